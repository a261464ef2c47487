"""The first half of a cascade: a Whisper model writes down what a recording says.

`Recogniser` is plain and tested without Ray; `RecogniserActor` is its Ray shell. transformers runs the model: an
evaluation asks for a few hundred transcripts once, which is not worth an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from speechsum.audio import SAMPLE_RATE, AudioLimits, load_audio
from speechsum.errors import UserError
from speechsum.types import AudioRef

WINDOWS_AT_ONCE = 8


class Recogniser:
    """A Whisper checkpoint in transformers, on the CPU. Greedy.

    What lasts longer than the model's window (30 s) is heard window by window, so a word at a border may be lost.
    """

    def __init__(self, checkpoint: Path | str) -> None:
        import torch
        from transformers import AutoFeatureExtractor, AutoTokenizer, WhisperForConditionalGeneration

        self._model = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
        self._model.eval()
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self._extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
        if getattr(self._model.generation_config, "no_timestamps_token_id", None) is None:
            raise UserError(f"{checkpoint} has no no_timestamps_token_id in generation_config.json; copy that file too")

    def transcribe(self, clips: Sequence[np.ndarray]) -> list[str]:
        """What each clip says: float32 mono at 16 kHz in, one line of text out; empty where nothing is heard."""
        window = int(self._extractor.chunk_length * SAMPLE_RATE)
        pieces = [clip[at : at + window] for clip in clips for at in range(0, len(clip), window)]
        heard: list[str] = []
        for start in range(0, len(pieces), WINDOWS_AT_ONCE):
            heard += self._hear(pieces[start : start + WINDOWS_AT_ONCE])
        texts = iter(heard)
        return [" ".join(next(texts) for _ in range(0, len(clip), window)).strip() for clip in clips]

    def _hear(self, windows: Sequence[np.ndarray]) -> list[str]:
        import torch

        features: Any = self._extractor(
            list(windows), sampling_rate=SAMPLE_RATE, return_tensors="pt", padding="max_length"
        )
        with torch.no_grad():
            ids = self._model.generate(features.input_features, do_sample=False, num_beams=1, return_timestamps=False)
        return [text.strip() for text in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]


@ray.remote
class RecogniserActor:
    """`Recogniser` in a Ray actor that opens the recordings itself. `checkpoint` is a folder on the node."""

    def __init__(self, checkpoint: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._recogniser = Recogniser(checkpoint)

    def ready(self) -> bool:
        """Answers once the model is loaded."""
        return True

    def transcribe(self, recordings: Sequence[AudioRef], limits: AudioLimits) -> list[str]:
        """See `Recogniser.transcribe`. Raises `AudioError` for a recording that does not open."""
        return self._recogniser.transcribe([load_audio(ref, limits) for ref in recordings])
