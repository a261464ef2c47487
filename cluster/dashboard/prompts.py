"""What a prompt of a run was: its instruction, transcript and reference from the manifest, and its recording.

A recording is only ever found by the prompt that names it, and only played if it lies in the data root of the run's
recipe and is audio: what a run's samples name are claims, and must not make the page a reader of files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechsum.audio import read_encoded
from speechsum.config import STARTER, RunConfig
from speechsum.data import read_manifest
from speechsum.errors import UserError
from speechsum.starter.model import default_cache
from speechsum.starter.speech import MANIFEST, set_folder
from speechsum.types import AudioRef, Prompt

AUDIO_TYPES = {b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"OggS": "audio/ogg", b"ID3": "audio/mpeg"}
MP3_SYNC = 0xFFE0


class PromptBook:
    """The training prompts of one run by id. The manifest is read when somebody first asks, and again if it changes.

    `problem` says why there is none, or is empty.
    """

    def __init__(self, config: RunConfig | None, cache: Path | None = None) -> None:
        self._manifest = _manifest(config, cache or default_cache()) if config else None
        self._root = self._data_root(config)
        self._prompts: dict[str, Prompt] = {}
        self._seen: tuple[int, int] | None = None
        self.problem = "" if config else "config.json cannot be read, so it is not known where the recordings lie"

    def _data_root(self, config: RunConfig | None) -> str:
        if config is None or self._manifest is None:
            return ""
        own = None if config.data.train == STARTER else config.data.root
        return os.path.realpath(own or self._manifest.parent)

    def poll(self) -> None:
        """Read the manifest if it is new or another."""
        if self._manifest is None:
            return
        try:
            stat = self._manifest.stat()
        except OSError as error:
            self.problem = f"the manifest {self._manifest} is not to be had here ({error.strerror})"
            return
        if self._seen != (stat.st_mtime_ns, stat.st_size):
            self._seen = stat.st_mtime_ns, stat.st_size
            self._read(self._manifest)

    def _read(self, manifest: Path) -> None:
        try:
            prompts = read_manifest(manifest, root=self._root, check_audio=False)
        except UserError as error:
            self.problem = str(error).splitlines()[0]
            return
        self._prompts = {prompt.id: prompt for prompt in prompts}
        self.problem = ""

    def get(self, prompt_id: str) -> Prompt | None:
        """The prompt as the manifest has it."""
        return self._prompts.get(prompt_id)

    def recording(self, prompt_id: str, samples: Sequence[Mapping[str, Any]]) -> tuple[bytes, str]:
        """Encoded bytes and media type of a prompt's recording. Raises `UserError` where there is none to be played.

        The manifest decides; for a prompt that it lacks, the run's `samples` do. Either may only name what lies in
        the data root once every link is followed.
        """
        prompt = self._prompts.get(prompt_id)
        named = (row.get("audio_path") for row in reversed(samples) if row.get("prompt_id") == prompt_id)
        ref = prompt.audio if prompt else _reference(next(named, None))
        if ref is None:
            reason = f": {self.problem}" if self.problem else ""
            raise UserError(f"no recording is known for prompt {prompt_id!r}{reason}")
        encoded = read_encoded(self._contained(ref))
        return encoded, _media_type(encoded, ref)

    def _contained(self, ref: AudioRef) -> AudioRef:
        real = os.path.realpath(ref.path)
        is_manifest = ref.row is not None and self._manifest is not None and real == os.path.realpath(self._manifest)
        if not is_manifest and not (self._root and Path(real).is_relative_to(self._root)):
            raise UserError(f"{ref.key} lies outside the run's data root {self._root}, so it is not played")
        return AudioRef(real, ref.row)


def _manifest(config: RunConfig, cache: Path) -> Path:
    data = config.data
    if data.train != STARTER:
        return Path(data.train).absolute()
    speech = data.speech
    folder = set_folder(
        cache, clips=speech.train_clips, seed=config.seed, held_out=False, kinds=speech.requests, terse=speech.terse
    )
    return folder / MANIFEST


def _reference(key: object) -> AudioRef | None:
    """`AudioRef.key` back into the reference: a file, or a Parquet manifest and a row."""
    if not isinstance(key, str) or not os.path.isabs(key) or "\0" in key:
        return None
    path, _, row = key.rpartition("#")
    if path.endswith(".parquet") and row.isdecimal():
        return AudioRef(path, int(row))
    return AudioRef(key)


def _media_type(encoded: bytes, ref: AudioRef) -> str:
    """By the first bytes, never by the name. Raises `UserError` for a file that is not audio."""
    for magic, media_type in AUDIO_TYPES.items():
        if encoded.startswith(magic):
            return media_type
    if int.from_bytes(encoded[:2], "big") & MP3_SYNC == MP3_SYNC:
        return "audio/mpeg"
    raise UserError(f"{ref.key} is not WAV, FLAC, Ogg or MP3, so it is not played")
