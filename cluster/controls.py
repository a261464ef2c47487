"""The controls of an evaluation: the same requests about a recording that cannot tell the answer."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile as sf

from speechsum.audio import SAMPLE_RATE, AudioLimits, inspect_audio
from speechsum.errors import RunError
from speechsum.types import AudioRef, Prompt


def with_wrong_audio(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same requests, each with another recording, half a set of recordings away; empty where all share one."""
    clips = list({p.audio.key: p.audio for p in prompts}.values())
    if len(clips) < 2:
        return []
    place = {clip.key: i for i, clip in enumerate(clips)}
    return [replace(p, audio=clips[(place[p.audio.key] + len(clips) // 2) % len(clips)]) for p in prompts]


def with_silence(prompts: Sequence[Prompt], folder: Path, limits: AudioLimits) -> list[Prompt]:
    """The same requests, each with as much silence as its recording lasts.

    The silent files are kept in `folder`, one for each length, where every rollout actor has to be able to read them.
    Raises `AudioError` for a recording that does not open, `RunError` where nothing can be written.
    """
    quiet = {p.audio.key: silence(folder, inspect_audio(p.audio, limits).seconds) for p in prompts}
    return [replace(p, audio=quiet[p.audio.key]) for p in prompts]


def silence(folder: Path, seconds: float) -> AudioRef:
    """A file of zeros at 16 kHz, made once. FLAC, which keeps a minute of nothing in a few kilobytes."""
    frames = max(1, round(seconds * SAMPLE_RATE))
    path = folder.absolute() / f"silence-{frames}.flac"
    if not path.exists():
        try:
            _write_aside(path, np.zeros(frames, dtype=np.int16))
        except (OSError, sf.LibsndfileError) as error:
            raise RunError(f"cannot write the silent recording {path} ({error}); see to the folder") from error
    return AudioRef(str(path))


def _write_aside(path: Path, samples: np.ndarray) -> None:
    """Renamed into place whole, for another evaluation may be about to read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".silence-", suffix=".flac", dir=path.parent)
    os.close(handle)
    try:
        sf.write(name, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        os.chmod(name, 0o644)  # a temporary file is its owner's alone
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
