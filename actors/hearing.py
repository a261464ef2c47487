"""vLLM's classes of audio LLMs, where its own do not hear what the learner hears.

Each is registered under its architecture's name and differs from vLLM's class by what its docstring says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm import ModelRegistry
from vllm.model_executor.models.audioflamingo3 import (
    AudioFlamingo3FeatureInputs,
    AudioFlamingo3ForConditionalGeneration,
)
from vllm.model_executor.models.granite_speech import GraniteSpeechForConditionalGeneration

from speechsum.errors import UserError


class ShortWindowAudioFlamingo3(AudioFlamingo3ForConditionalGeneration):
    """Audio Flamingo 3 whose encoder window may be shorter than 30 s (the checkpoint's `max_source_positions`).

    vLLM's class runs any window but its input check insists on 3,000 mel frames. A 10 s window makes a short clip
    three times cheaper to encode.
    """

    def _parse_and_validate_audio_input(self, **kwargs: object) -> Any:
        if kwargs.get("input_features") is None:
            return super()._parse_and_validate_audio_input(**kwargs)
        fields = {key: kwargs[key] for key in ("input_features", "feature_attention_mask", "chunk_counts")}
        return AudioFlamingo3FeatureInputs(type="audio_features", validate=False, **fields)


class OneByOneGraniteSpeech(GraniteSpeechForConditionalGeneration):
    """Granite-Speech that encodes each clip by itself.

    vLLM's class pads the clips that arrive together to the longest, and its encoder has no mask: a summary would
    depend on which other recordings happened to be in the batch.
    """

    def embed_multimodal(self, **kwargs: object) -> Any:
        """Embeddings of each clip [A_i, H]."""
        features, sizes = kwargs.get("input_features"), kwargs.get("audio_embed_sizes")
        if features is None:
            return super().embed_multimodal(**kwargs)
        assert isinstance(features, (torch.Tensor, list))
        assert isinstance(sizes, torch.Tensor)
        clips = zip(features, sizes.reshape(-1, 1), strict=True)
        return tuple(
            super(OneByOneGraniteSpeech, self).embed_multimodal(input_features=f[None], audio_embed_sizes=n)[0]
            for f, n in clips
        )


OMNI = ("Qwen2_5OmniModel", "Qwen2_5OmniForConditionalGeneration", "Qwen3OmniMoeForConditionalGeneration")


def register_models(architectures: Sequence[str]) -> None:
    """Make the classes above, and those of `hearing_omni` where asked for, serve their architectures in this process.

    Raises `UserError` where vLLM cannot load its own files of the model.
    """
    ModelRegistry.register_model("AudioFlamingo3ForConditionalGeneration", ShortWindowAudioFlamingo3)
    ModelRegistry.register_model("GraniteSpeechForConditionalGeneration", OneByOneGraniteSpeech)
    for architecture in set(architectures) & set(OMNI):
        try:
            from actors.hearing_omni import HearingQwen3Omni, HearingQwen25Omni
        except ModuleNotFoundError as error:
            raise UserError(f"vLLM needs {error.name} for {architecture}; install it beside torch") from error
        chosen = HearingQwen3Omni if architecture.startswith("Qwen3") else HearingQwen25Omni
        ModelRegistry.register_model(architecture, chosen)
