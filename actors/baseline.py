"""vLLM on its own, for comparison: what the hardware gives before this project adds anything."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import ray

from speechsum.audio import AudioLimits, load_audio
from speechsum.config import EngineConfig, ModelConfig
from speechsum.families import FAMILIES
from speechsum.prompting import PromptBuilder
from speechsum.types import Prompt, SamplingParams


@ray.remote
class BareEngine:
    """`vllm.LLM.generate` on prompts that are already tokenised and audio that is already open."""

    def __init__(self, checkpoint: str, model: ModelConfig, config: EngineConfig, prompts: Sequence[Prompt]) -> None:
        from actors.engine import Engine, EngineRequest

        builder = PromptBuilder.load(checkpoint, FAMILIES[model.family])
        limits = AudioLimits(max_s=model.max_audio_s)
        self._engine = Engine(checkpoint, config, dtype=model.dtype)
        self._requests = [
            EngineRequest(builder.request_ids(p.instruction), load_audio(p.audio, limits)) for p in prompts
        ]

    def ready(self) -> bool:
        """Answers once the engine is loaded."""
        return True

    def tokens_per_s(self, sampling: SamplingParams) -> float:
        """Generated tokens per second of one `LLM.generate` call over all prompts, caches dropped before it."""
        self._engine.reset_caches()
        started = time.perf_counter()
        tokens = self._engine.bare_generate(self._requests, replace(sampling, seed=None))
        return tokens / (time.perf_counter() - started)
