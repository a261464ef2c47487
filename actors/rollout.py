"""Rollouts: the student listens and writes G completions of every prompt.

`Rollout` is plain and tested without Ray; `RolloutActor` is its Ray shell, one engine in one process. The actor opens
recordings itself, so audio never travels; what it returns is owned by the caller, so a dead actor takes no finished
group with it. Methods run one at a time: a push waits for the generation that is under way and the other way round,
so no completion is ever sampled from two versions.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from actors.notice import Notice
from actors.published import Published
from speechsum.audio import DEFAULT_LIMITS, SAMPLE_RATE, AudioError, AudioLimits, load_audio
from speechsum.config import ModelConfig, RolloutConfig
from speechsum.errors import RunError, UserError
from speechsum.families import FAMILIES
from speechsum.prompting import PromptBuilder, transcript_ids
from speechsum.types import (
    AudioRef,
    Leaving,
    Prompt,
    SamplingParams,
    Trajectory,
    TrajectoryGroup,
    WeightsVersion,
    trajectory_id,
)
from speechsum.weights import WeightsPayload, WeightsRefused

if TYPE_CHECKING:
    from actors.engine import Engine, EngineOutput, EngineRequest

BASE_VERSION = -1
"""What an engine serves before its first push: the checkpoint as it is on disk."""

Draw = tuple[int, Prompt]
"""(epoch, prompt): the same prompt in another epoch is another draw."""


class StaleWeights(RunError):
    """The rollout was asked for a version newer than it has; it never serves an older one instead."""


@dataclass(frozen=True, slots=True)
class RolloutFailure:
    """A prompt without completions, in place of its group. Rollout actor -> controller, which counts and drops it."""

    prompt_id: str
    reason: str


Rolled = TrajectoryGroup | RolloutFailure


@dataclass(slots=True)
class RolloutTotals:
    """Running totals since the start; the Ray shell publishes them."""

    tokens: int = 0
    audio_s: float = 0.0
    generate_s: float = 0.0
    groups: int = 0
    failures: int = 0
    pushes: int = 0
    refused_pushes: int = 0
    last_tokens_per_s: float = 0.0
    last_receive_s: float = 0.0


@dataclass
class Rollout:
    """An engine, the way to its prompts, and the version of the weights it holds.

    `load` opens a recording as float32 mono at 16 kHz; tests give their own.
    """

    engine: Engine
    builder: PromptBuilder
    limits: AudioLimits = DEFAULT_LIMITS
    load: Callable[[AudioRef, AudioLimits], np.ndarray] = load_audio
    version: int = BASE_VERSION
    totals: RolloutTotals = field(default_factory=RolloutTotals)
    refusal: str = ""
    _checksum: str = ""

    def generate(self, draws: Sequence[Draw], sampling: SamplingParams, run_id: str, min_version: int) -> list[Rolled]:
        """One group (or failure) per draw, in order, `sampling.n` completions each, in one engine call.

        Raises `StaleWeights` when the weights held are older than `min_version`. A recording that does not open
        costs its own prompt only.
        """
        self._refuse_if_older(min_version)
        started = time.perf_counter()
        prepared = [self._request(draw, sampling) for draw in draws]
        requests = [p for p in prepared if not isinstance(p, RolloutFailure)]
        outputs = iter(self.engine.generate(requests, replace(sampling, seed=None)))
        rolled = [
            p if isinstance(p, RolloutFailure) else self._group(draw, next(outputs), run_id)
            for p, draw in zip(prepared, draws, strict=True)
        ]
        self._count(rolled, requests, time.perf_counter() - started)
        return rolled

    def write(self, prompts: Sequence[Prompt], sampling: SamplingParams, min_version: int) -> list[str]:
        """One summary for each prompt in the student's text mode: it reads the transcript and hears nothing.

        Raises `StaleWeights` as `generate` does, `RunError` where a prompt is longer than the engine takes.
        """
        self._refuse_if_older(min_version)
        tokenizer = self.builder.tokenizer
        return self.engine.write([transcript_ids(tokenizer, p.instruction, p.transcript) for p in prompts], sampling)

    def receive(self, payload: WeightsPayload, version: WeightsVersion | None = None) -> int:
        """Swap to the weights in `payload` and return their version; a repeat of the version held is a no-op.

        Raises `WeightsRefused` for a payload that is damaged, not the `version` announced, or not newer than what
        is held. The old weights then stay in force under their old number, and `refusal` says why.
        """
        try:
            return self._receive(payload, version)
        except WeightsRefused as error:
            self.totals.refused_pushes += 1
            self.refusal = str(error)
            raise

    def finish_update(self, version: int) -> None:
        """Serve what a GPU transfer has just brought, as `version`; see `Engine.start_update` for its beginning."""
        self.engine.finish_update()
        self.version, self._checksum, self.refusal = version, "", ""
        self.totals.pushes += 1

    def metrics(self) -> dict[str, float]:
        """Totals since the start, under the names that the run's metrics use."""
        t = self.totals
        return {
            "rollout/tokens": t.tokens,
            "rollout/tokens_per_s": t.last_tokens_per_s,
            "rollout/audio_s": t.audio_s,
            "rollout/generate_s": t.generate_s,
            "rollout/groups": t.groups,
            "rollout/failures": t.failures,
            "rollout/pushes": t.pushes,
            "rollout/refused_pushes": t.refused_pushes,
            "rollout/receive_s": t.last_receive_s,
            "rollout/policy_version": self.version,
        }

    def reset_caches(self) -> None:
        """Forget what the engine has computed, so that a measurement starts cold."""
        self.engine.reset_caches()

    def close(self) -> None:
        """Shut the engine down."""
        self.engine.close()

    def _refuse_if_older(self, min_version: int) -> None:
        if self.version < min_version:
            why = f"; the last push was refused: {self.refusal}" if self.refusal else ""
            raise StaleWeights(f"rollout holds weights version {self.version}, asked for at least {min_version}{why}")

    def _receive(self, payload: WeightsPayload, version: WeightsVersion | None) -> int:
        stamp = payload.version
        if version is not None and version != stamp:
            raise WeightsRefused(f"weights version {version.version} was announced, version {stamp.version} arrived")
        if stamp.version == self.version and stamp.checksum == self._checksum:
            return self.version
        if stamp.version <= self.version:
            raise WeightsRefused(f"weights version {stamp.version} is not newer than {self.version}, which is held")
        started = time.perf_counter()
        self.engine.update_weights(payload)
        self.version, self._checksum, self.refusal = stamp.version, stamp.checksum, ""
        self.totals.pushes += 1
        self.totals.last_receive_s = time.perf_counter() - started
        return self.version

    def _request(self, draw: Draw, sampling: SamplingParams) -> EngineRequest | RolloutFailure:
        from actors.engine import EngineRequest

        epoch, prompt = draw
        try:
            samples = self.load(prompt.audio, self.limits)
            ids = self.builder.request_ids(prompt.instruction)
        except AudioError as error:
            return RolloutFailure(prompt.id, f"audio {error.reason.value}: {error}")
        except UserError as error:
            return RolloutFailure(prompt.id, str(error))
        return EngineRequest(ids, samples, _seed(sampling.seed, epoch, prompt.id))

    def _group(self, draw: Draw, output: object, run_id: str) -> Rolled:
        from actors.engine import EngineRefusal

        epoch, prompt = draw
        if isinstance(output, EngineRefusal):
            return RolloutFailure(prompt.id, f"engine: {output.reason}")
        made: EngineOutput = output  # type: ignore[assignment]
        if not all(np.isfinite(s.logprobs).all() for s in made.samples):
            return RolloutFailure(prompt.id, "engine: log-probabilities are not finite")
        trajectories = tuple(
            Trajectory(
                id=trajectory_id(run_id, epoch, prompt.id, i),
                token_ids=s.token_ids,
                logprobs=s.logprobs,
                text=s.text,
                finish_reason=s.finish_reason,
                policy_version=self.version,
            )
            for i, s in enumerate(made.samples)
        )
        return TrajectoryGroup(prompt=prompt, prompt_ids=made.prompt_ids, trajectories=trajectories)

    def _count(self, rolled: Sequence[Rolled], requests: Sequence[EngineRequest], seconds: float) -> None:
        groups = [r for r in rolled if isinstance(r, TrajectoryGroup)]
        tokens = sum(len(t.token_ids) for group in groups for t in group.trajectories)
        t = self.totals
        t.tokens += tokens
        t.groups += len(groups)
        t.failures += len(rolled) - len(groups)
        t.audio_s += sum(len(r.samples) for r in requests if r.samples is not None) / SAMPLE_RATE
        t.generate_s += seconds
        t.last_tokens_per_s = tokens / seconds


def _seed(seed: int | None, epoch: int, prompt_id: str) -> int | None:
    """A seed of its own for every draw, so that equal prompts of two epochs do not sample alike."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}\0{epoch}\0{prompt_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


@ray.remote
class RolloutActor:
    """`Rollout` in a Ray actor, with its metrics on Ray's Prometheus endpoint.

    `checkpoint` is a folder that exists on the node. `index` tells actors of one run apart in metrics and seeds.
    """

    def __init__(
        self, checkpoint: str, model: ModelConfig, config: RolloutConfig, *, index: int = 0, seed: int = 0
    ) -> None:
        from actors.engine import Engine

        family = FAMILIES[model.family]
        engine = Engine(
            checkpoint, config.engine, dtype=model.dtype, audio=True, receives=config.backend, seed=seed + index
        )
        builder = PromptBuilder.load(Path(checkpoint), family)
        self._rollout = Rollout(engine, builder, AudioLimits(max_s=model.max_audio_s))
        self._published = Published({"actor": str(index)})
        self._notice = Notice()

    def join(self) -> str:
        """See `Notice.listen`."""
        return self._notice.listen()

    def version(self) -> int:
        """The version of the weights in force."""
        return self._rollout.version

    def generate(
        self, draws: Sequence[Draw], sampling: SamplingParams, run_id: str, min_version: int
    ) -> list[Rolled] | Leaving:
        """See `Rollout.generate`."""
        if self._notice.given:
            return Leaving()
        rolled = self._rollout.generate(draws, sampling, run_id, min_version)
        self._publish()
        return rolled

    def write(self, prompts: Sequence[Prompt], sampling: SamplingParams, min_version: int) -> list[str] | Leaving:
        """See `Rollout.write`."""
        if self._notice.given:
            return Leaving()
        return self._rollout.write(prompts, sampling, min_version)

    def receive(self, payload: WeightsPayload, version: WeightsVersion | None = None) -> int:
        """See `Rollout.receive`. Pass the payload's ObjectRef as the argument itself: it is read in place."""
        try:
            return self._rollout.receive(payload, version)
        finally:
            self._publish()

    def join_transfer(self, init_info: dict[str, Any]) -> None:
        """See `Engine.join_transfer`. This and the next three are called by `learner.broadcast`, on GPUs only."""
        self._rollout.engine.join_transfer(init_info)

    def start_update(self) -> None:
        """See `Engine.start_update`."""
        self._rollout.engine.start_update()

    def take_update(self, update_info: dict[str, Any]) -> None:
        """See `Engine.take_update`."""
        self._rollout.engine.take_update(update_info)

    def finish_update(self, version: int) -> None:
        """See `Rollout.finish_update`."""
        self._rollout.finish_update(version)
        self._publish()

    def metrics(self) -> dict[str, float]:
        """See `Rollout.metrics`."""
        return self._rollout.metrics()

    def reset_caches(self) -> None:
        """See `Rollout.reset_caches`."""
        self._rollout.reset_caches()

    def _publish(self) -> None:
        """Each of `Rollout.metrics`, called `rollout_actor/...` in the table."""
        figures = self._rollout.metrics()
        self._published.tell_totals({name.replace("rollout/", "rollout_actor/"): n for name, n in figures.items()})
