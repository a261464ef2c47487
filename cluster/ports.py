"""The controller's ports on real Ray actors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import ray
from ray import ObjectRef

from cluster.groups import JudgePool, LearnerGroup, Pool, RolloutPool, TeacherPool, fetch
from speechsum.data import Draw
from speechsum.prompting import PromptBuilder, transcript_ids
from speechsum.types import Batch, Prompt, PushMode, SamplingParams, TrajectoryGroup


class RayPorts:
    """Groups of actors as the controller sees them. Those that a run does not need are None.

    `sync` says how weights travel: see `RolloutConfig`.
    """

    def __init__(
        self, builder: PromptBuilder, learner: LearnerGroup, rollout: RolloutPool | None, judge: JudgePool | None,
        teacher: TeacherPool | None, *, run_id: str, sync: str,
    ) -> None:  # fmt: skip
        self.builder, self.learner, self.rollout, self.judge, self.teacher = builder, learner, rollout, judge, teacher
        self.run_id = run_id
        self.mode = PushMode(sync) if sync in set(PushMode) else None
        if self.mode is None and rollout is not None:
            learner.connect(sync, rollout)
        self._pools: dict[ObjectRef, Pool] = {}

    def generate(self, draws: Sequence[Draw], sampling: SamplingParams, version: int) -> ObjectRef:
        """See `Ports.generate`."""
        assert self.rollout is not None
        return self._owned(self.rollout.generate(draws, sampling, self.run_id, version), self.rollout)

    def score(self, groups: Sequence[TrajectoryGroup]) -> ObjectRef:
        """See `Ports.score`."""
        assert self.judge is not None
        return self._owned(self.judge.score_groups(groups), self.judge)

    def teach(self, groups: Sequence[TrajectoryGroup]) -> ObjectRef:
        """See `Ports.teach`."""
        assert self.teacher is not None
        return self._owned(self.teacher.teach(groups), self.teacher)

    def step(self, batch: Batch, version: int) -> ObjectRef:
        """See `Ports.step`."""
        return self.learner.step(batch, version)

    def push(self, version: int) -> dict[str, float]:
        """Publish and receive; returns when every rollout actor serves `version`."""
        assert self.rollout is not None
        started = time.perf_counter()
        if self.mode is None:
            self.learner.broadcast(version)
            self.rollout.check_version(version)
            return {"sync/publish_s": time.perf_counter() - started}
        stamp, payload = self.learner.publish(version, self.mode)
        self.rollout.receive(payload, stamp)
        return {
            "sync/publish_s": time.perf_counter() - started,
            "sync/receive_s": self.rollout.receive_s(),
            "sync/bytes": stamp.bytes,
        }

    def actor(self, handle: ObjectRef) -> str:
        """See `Ports.actor`."""
        return self._pools[handle].holder(handle)

    def wait(self, handles: Sequence[ObjectRef]) -> list[ObjectRef]:
        """See `Ports.wait`."""
        done, _ = ray.wait(list(handles), num_returns=1)
        return done

    def result(self, handle: ObjectRef) -> Any:
        """See `Ports.result`."""
        pool = self._pools.pop(handle, None)
        return pool.take(handle) if pool else fetch(handle)

    def completion_ids(self, text: str) -> np.ndarray:
        """See `Ports.completion_ids`."""
        return self.builder.completion_ids(text)

    def prompt_ids(self, prompt: Prompt, reads: Literal["audio", "transcript"]) -> list[int]:
        """See `Ports.prompt_ids`."""
        if reads == "transcript":
            return transcript_ids(self.builder.tokenizer, prompt.instruction, prompt.transcript)
        return self.builder.request_ids(prompt.instruction)

    def _owned(self, ref: ObjectRef, pool: Pool) -> ObjectRef:
        self._pools[ref] = pool
        return ref
