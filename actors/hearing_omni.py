"""Qwen's omni models in vLLM, hearing and nothing else.

vLLM's classes prepare images and video too, and plan memory for them; a policy that listens needs neither. Importing
this file needs torchvision, which vLLM's own files of these models import.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import Qwen2_5OmniProcessor, Qwen3OmniMoeProcessor
from transformers.processing_utils import ProcessorMixin
from vllm.model_executor.models.qwen2_5_omni_thinker import (
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2_5OmniThinkerMultiModalProcessor,
    Qwen2_5OmniThinkerProcessingInfo,
)
from vllm.model_executor.models.qwen3_omni_moe_thinker import (
    Qwen3OmniMoeThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerMultiModalProcessor,
    Qwen3OmniMoeThinkerProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseDummyInputsBuilder

LONGEST_DUMMY_S = 30


class _Ears:
    """What both processors below have in common."""

    image_processor = None

    def _listen(self, feature_extractor: Any, tokenizer: Any, chat_template: str | None) -> None:
        ProcessorMixin.__init__(self, feature_extractor, tokenizer, chat_template=chat_template)
        for kind in ("audio", "image", "video"):
            setattr(self, f"{kind}_token", getattr(tokenizer, f"{kind}_token"))

    def replace_multimodal_special_tokens(
        self, text: list[str], audio_lengths: Iterator[int], *_: Any, **__: Any
    ) -> list[str]:
        """Every audio token repeated as often as its recording has tokens."""
        token: str = self.audio_token  # type: ignore[attr-defined]
        return [re.sub(re.escape(token), lambda _: token * int(next(audio_lengths)), part) for part in text]


class Qwen25Ears(_Ears, Qwen2_5OmniProcessor):
    """transformers' processor without eyes."""

    def __init__(self, feature_extractor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self._listen(feature_extractor, tokenizer, chat_template)


class Qwen3Ears(_Ears, Qwen3OmniMoeProcessor):
    """transformers' processor without eyes."""

    def __init__(self, feature_extractor: Any = None, tokenizer: Any = None, chat_template: str | None = None) -> None:
        self._listen(feature_extractor, tokenizer, chat_template)


class Qwen25Info(Qwen2_5OmniThinkerProcessingInfo):
    """vLLM's description of the model's inputs, of which only recordings are left."""

    def get_hf_processor(self, **kwargs: object) -> Any:
        """The processor above."""
        return self.ctx.get_hf_processor(Qwen25Ears, **kwargs)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Recordings alone."""
        return {"audio": None}


class Qwen3Info(Qwen3OmniMoeThinkerProcessingInfo):
    """The same for Qwen3-Omni."""

    def get_hf_processor(self, **kwargs: object) -> Any:
        """The processor above."""
        return self.ctx.get_hf_processor(Qwen3Ears, **kwargs)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Recordings alone."""
        return {"audio": None}


class Dummies(BaseDummyInputsBuilder[Any]):
    """Recordings to plan memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """A placeholder for each."""
        return str(self.info.get_hf_processor().audio_token) * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> Any:
        """As long as vLLM's own."""
        extractor = self.info.get_feature_extractor()
        length = min(extractor.chunk_length, LONGEST_DUMMY_S) * extractor.sampling_rate
        return {"audio": self._get_dummy_audios(length=length, num_audios=mm_counts.get("audio", 0),
                                                overrides=mm_options.get("audio"))}  # fmt: skip


@MULTIMODAL_REGISTRY.register_processor(Qwen2_5OmniThinkerMultiModalProcessor, info=Qwen25Info, dummy_inputs=Dummies)
class HearingQwen25Omni(Qwen2_5OmniThinkerForConditionalGeneration):
    """Qwen2.5-Omni's thinker; it loads no vision tower where images and video are limited to none."""


@MULTIMODAL_REGISTRY.register_processor(Qwen3OmniMoeThinkerMultiModalProcessor, info=Qwen3Info, dummy_inputs=Dummies)
class HearingQwen3Omni(Qwen3OmniMoeThinkerForConditionalGeneration):
    """Qwen3-Omni's thinker, likewise."""
