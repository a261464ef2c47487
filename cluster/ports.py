"""The controller's ports on real Ray actors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from ray import ObjectRef

from cluster.calls import wait_for_one
from cluster.elastic import TEND_S, ElasticPool, Ticket
from cluster.pools import JudgePool, Pool, RolloutPool, TeacherPool
from cluster.ranks import LearnerGroup, RankCall
from speechsum.data import Draw
from speechsum.prompting import PromptBuilder, transcript_ids
from speechsum.types import Batch, Prompt, PushMode, SamplingParams, TrajectoryGroup

Handle: TypeAlias = ObjectRef | Ticket | RankCall


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
        self._elastic: list[ElasticPool] = [pool for pool in (rollout, judge) if pool is not None]
        self._pools: dict[ObjectRef, Pool] = {}

    def generate(self, draws: Sequence[Draw], sampling: SamplingParams, version: int) -> Ticket:
        """See `Ports.generate`."""
        assert self.rollout is not None
        return self.rollout.generate(draws, sampling, self.run_id, version)

    def score(self, groups: Sequence[TrajectoryGroup]) -> Ticket:
        """See `Ports.score`."""
        assert self.judge is not None
        return self.judge.score_groups(groups)

    def teach(self, groups: Sequence[TrajectoryGroup]) -> ObjectRef:
        """See `Ports.teach`."""
        assert self.teacher is not None
        ref = self.teacher.teach(groups)
        self._pools[ref] = self.teacher
        return ref

    def step(self, batch: Batch, version: int) -> RankCall:
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
        with self.rollout.held():
            self.rollout.push(payload, stamp)
            publish_s = time.perf_counter() - started
            return {"sync/publish_s": publish_s, "sync/bytes": stamp.bytes} | self.rollout.receive_s()

    def actor(self, handle: ObjectRef | Ticket) -> str:
        """See `Ports.actor`."""
        return handle.actor if isinstance(handle, Ticket) else self._pools[handle].holder(handle)

    def given(self, handle: ObjectRef | Ticket) -> float:
        """See `Ports.given`."""
        return handle.given if isinstance(handle, Ticket) else 0.0

    def wait(self, handles: Sequence[Handle]) -> list[Handle]:
        """See `Ports.wait`. Meanwhile the pools grow, shrink and replace what is lost or hangs."""
        refs = [handle for handle in handles if not isinstance(handle, Ticket | RankCall)]
        tended: list[ElasticPool | RankCall] = [*self._elastic, *(h for h in handles if isinstance(h, RankCall))]
        done: list[ObjectRef] = []
        while not (ready := [h for h in handles if (h.done if isinstance(h, Ticket | RankCall) else h in done)]):
            for each in tended:
                each.tend()
            for teachers in set(self._pools.values()):
                teachers.stop_if_hanging()
            watched = [ref for each in tended for ref in each.watched()]
            done = wait_for_one(refs + watched, TEND_S)
            for each in tended:
                each.settle(done)
        return ready

    def result(self, handle: Handle) -> Any:
        """See `Ports.result`."""
        self.wait([handle])
        if isinstance(handle, Ticket):
            return handle.answer
        if isinstance(handle, RankCall):
            return handle.take()[0]
        return self._pools.pop(handle).take(handle)

    def figures(self) -> dict[str, float]:
        """How the pools stand."""
        return {name: value for pool in self._elastic for name, value in pool.figures().items()}

    def completion_ids(self, text: str) -> np.ndarray:
        """See `Ports.completion_ids`."""
        return self.builder.completion_ids(text)

    def prompt_ids(self, prompt: Prompt, reads: Literal["audio", "transcript"]) -> list[int]:
        """See `Ports.prompt_ids`."""
        if reads == "transcript":
            return transcript_ids(self.builder.tokenizer, prompt.instruction, prompt.transcript)
        return self.builder.request_ids(prompt.instruction)
