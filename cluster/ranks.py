"""The learner's ranks and their calls, which all have to answer."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import ObjectRef

from cluster.calls import deployed, fetch, none_loads, not_replaced, wait_for_one
from cluster.elastic import START_TIMEOUT_S, TEND_S, ActorDied
from cluster.pools import RolloutPool
from learner.worker import LearnerWorker
from speechsum.config import RunConfig, StageConfig
from speechsum.errors import RunError
from speechsum.types import Batch, PushMode, TrainingSample, WeightsVersion

DEATH_S = 2.0
"""Ray tells an actor's death within a second."""


class RankCall:
    """A call that every rank of the learner has to answer; the first of them that fails or dies ends it.

    It is tended and settled as a pool is. Ranks that have not answered after `timeout_s` seconds are taken to hang.
    """

    def __init__(self, method: str, refs: Sequence[ObjectRef], timeout_s: float) -> None:
        self._method, self._refs, self._timeout_s = method, refs, timeout_s
        self._began = time.monotonic()
        self._answers: dict[int, Any] = {}

    @property
    def done(self) -> bool:
        """Whether every rank has answered."""
        return len(self._answers) == len(self._refs)

    def watched(self) -> list[ObjectRef]:
        """Refs of the ranks that have not answered yet."""
        return [self._refs[rank] for rank in self._silent()]

    def settle(self, done: Collection[ObjectRef]) -> None:
        """Take in what is done. Raises `RunError` where a rank failed or died; nobody can take its place."""
        for rank in self._silent():
            if self._refs[rank] in done:
                try:
                    self._answers[rank] = fetch(self._refs[rank], who=f"learner rank {rank}")
                except RunError as error:
                    death = error if isinstance(error, ActorDied) else self._death_of_another(rank)
                    if death is None:
                        raise
                    raise not_replaced(death) from death

    def tend(self) -> None:
        """Raise `RunError` where ranks hang. An answer may be there that nobody has looked at yet."""
        waited_s = time.monotonic() - self._began
        if waited_s > self._timeout_s:
            self.settle(wait_for_one(self.watched(), 0.0))
            if silent := self._silent():
                raise RunError(
                    f"the learner has not answered {self._method!r} for {waited_s:.0f} s "
                    f"(rank {', '.join(map(str, silent))}); go on with --resume"
                )

    def take(self) -> list[Any]:
        """The ranks' answers, in order; waits for them."""
        while not self.done:
            self.tend()
            self.settle(wait_for_one(self.watched(), TEND_S))
        return [self._answers[rank] for rank in range(len(self._refs))]

    def _death_of_another(self, failed: int) -> ActorDied | None:
        """A death fails the others' collectives at once, and may be told a moment after these."""
        until = time.monotonic() + DEATH_S
        others = {self._refs[rank]: rank for rank in self._silent() if rank != failed}
        while others and (done := wait_for_one(list(others), max(until - time.monotonic(), 0.0))):
            for ref in done:
                try:
                    fetch(ref, who=f"learner rank {others.pop(ref)}")
                except ActorDied as death:
                    return death
                except RunError:
                    continue
        return None

    def _silent(self) -> list[int]:
        return [rank for rank in range(len(self._refs)) if rank not in self._answers]


class LearnerGroup:
    """The ranks of the learner, called together."""

    role = "learner"

    def __init__(self, config: RunConfig, checkpoint: Path) -> None:
        self.config = config
        chosen = config.learner
        worker = deployed(LearnerWorker, chosen.gpus_per_rank, chosen.threads_per_rank, chosen.resources)
        self.workers = [worker.remote(config, rank, str(checkpoint)) for rank in range(chosen.ranks)]

    def ready(self) -> list[ObjectRef]:
        """Begin loading; gives what to wait for until every rank has."""
        door = self.workers[0].open_door.remote()
        if not wait_for_one([door], START_TIMEOUT_S):
            raise none_loads([self.role])
        host, port = fetch(door, who="learner rank 0")
        return [w.join.remote(host, port) for w in self.workers]

    def begin_stage(self, stage: StageConfig) -> None:
        """See `Learner.begin_stage`."""
        self._all("begin_stage", stage)

    def step(self, batch: Batch, policy_version: int) -> RankCall:
        """Start one optimizer step; every rank pulls its own shard from the object store.

        The metrics that the ranks answer are reduced already, so the first rank's stand for all.
        """
        shards = [ray.put(shard) for shard in batch.shards]
        return self._call("step", [
            w.step.remote(shard, batch.loss_tokens, batch.sequences, policy_version)
            for w, shard in zip(self.workers, shards, strict=True)
        ])  # fmt: skip

    def logprobs(self, samples: Sequence[TrainingSample], temperature: float = 1.0) -> list[np.ndarray]:
        """See `Learner.logprobs`; the first rank's answer."""
        return self._all("logprobs", list(samples), temperature)[0]

    def greedy(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """See `Learner.greedy`; the first rank's answer."""
        return self._all("greedy", list(samples))[0]

    def publish(self, version: int, mode: PushMode) -> tuple[WeightsVersion, ObjectRef]:
        """Gather the weights and stamp them; the payload stays in the object store, only its stamp comes here."""
        refs = [w.publish.remote(version, mode) for w in self.workers]
        stamps = self._call("publish", [stamp for stamp, _ in refs]).take()
        return stamps[0], refs[0][1]

    def connect(self, backend: str, rollout: RolloutPool) -> None:
        """Open the way from GPU to GPU that `broadcast` takes."""
        host, port = self._call("address", [self.workers[0].address.remote()]).take()[0]
        self._all("connect", backend, rollout.serving(), host, port)

    def broadcast(self, version: int) -> None:
        """Send the weights to the actors met in `connect`; returns when they are in force there."""
        self._all("broadcast", version)

    def save(self, folder: Path, number: int, state: dict[str, Any]) -> Path:
        """See `LearnerWorker.save`."""
        return Path(self._all("save", str(folder), number, state, self.config.keep_checkpoints)[0])

    def load_adapter(self, path: Path) -> None:
        """See `LearnerWorker.load_adapter`."""
        self._all("load_adapter", str(path))

    def restore(self, path: Path) -> None:
        """See `LearnerWorker.restore`."""
        self._all("restore", str(path))

    def export(self, out: Path) -> None:
        """The merged checkpoint and, beside it, the bare adapter."""
        self._all("export", str(out))
        self._all("export_adapter", str(out.with_name(out.name + "-adapter.safetensors")))

    def _all(self, method: str, *args: Any) -> list[Any]:
        return self._call(method, [getattr(w, method).remote(*args) for w in self.workers]).take()

    def _call(self, method: str, refs: Sequence[ObjectRef]) -> RankCall:
        return RankCall(method, refs, self.config.learner.call_timeout_s)

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            ray.kill(worker)
