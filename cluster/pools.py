"""The pools of rollout, judge, teacher and recogniser actors.

A pool turns "the least busy actor" into one call, so that the controller never says `.remote`. Making it starts its
actors and `ready` awaits them, so that all of them can load at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from math import comb
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray import ObjectRef

from actors.rollout import Rolled, RolloutActor
from cluster.calls import deployed, fetch, not_replaced, wait_for_one
from cluster.elastic import TEND_S, ActorDied, ElasticPool, State, Ticket, check_versions, patience_s
from speechsum.audio import AudioLimits
from speechsum.config import TEACHER, RunConfig
from speechsum.data import Draw
from speechsum.errors import RunError
from speechsum.types import (
    AudioRef,
    JudgeTask,
    PairTask,
    Prompt,
    SamplingParams,
    TrajectoryGroup,
    WeightsVersion,
)

T = TypeVar("T")

TASKS_PER_REQUEST = 64
"""Judgements in a request of evaluation or audit, as long as the pool may have an actor for each request."""

RECORDING_WORK = 8
"""Completions that a recording to write down counts as: its recogniser has no engine and no GPU."""


class Pool:
    """Interchangeable actors; a call goes to the one with the fewest calls outstanding.

    One of them that has not answered a call after `call_timeout_s` seconds is taken to hang: see `stop_if_hanging`. A
    call of more work than `WORK_IN_TIME` has more time in proportion.
    """

    role = "actor"

    def __init__(self, actors: Sequence[Any], call_timeout_s: float) -> None:
        self.actors = list(actors)
        self._call_timeout_s = call_timeout_s
        self._calls: list[dict[ObjectRef, int]] = [{} for _ in self.actors]  # the work of each, the one under way first
        self._since = [0.0 for _ in self.actors]

    def ready(self) -> list[ObjectRef]:
        """What to wait for until every actor has loaded."""
        return [actor.ready.remote() for actor in self.actors]

    def submit(self, call: Callable[[Any], ObjectRef], work: int) -> ObjectRef:
        """Send a call to the least busy actor."""
        index = min(range(len(self.actors)), key=lambda i: len(self._calls[i]))
        ref = call(self.actors[index])
        if not self._calls[index]:
            self._since[index] = time.monotonic()
        self._calls[index][ref] = work
        return ref

    def holder(self, ref: ObjectRef) -> str:
        """The actor that has a call, such as `teacher 0`."""
        return f"{self.role} {self._index(ref)}"

    def take(self, ref: ObjectRef) -> Any:
        """The result of a finished call."""
        index = self._index(ref)
        del self._calls[index][ref]
        self._since[index] = time.monotonic()
        try:
            return fetch(ref, who=f"{self.role} {index}")
        except ActorDied as error:
            raise not_replaced(error) from error

    def stop_if_hanging(self) -> None:
        """Raise `RunError` where an actor has been at one call for too long; nobody can take its place."""
        now = time.monotonic()
        for index, calls in enumerate(self._calls):
            if not calls:
                continue
            ref, work = next(iter(calls.items()))
            waited_s = now - self._since[index]
            if waited_s > patience_s(self._call_timeout_s, work) and not wait_for_one([ref], 0.0):
                raise RunError(
                    f"{self.role} {index} has not answered for {waited_s:.0f} s; start again, a run with --resume"
                )

    def _index(self, ref: ObjectRef) -> int:
        return next(index for index, calls in enumerate(self._calls) if ref in calls)

    def _spread(self, items: Sequence[Any], work: int, call: Callable[[Any, list[Any]], ObjectRef]) -> list[Any]:
        """An answer for each item, in order; waits for them. Each actor is called with its part, `work` an item."""
        parts = [[items[i] for i in part] for part in np.array_split(np.arange(len(items)), len(self.actors))]
        refs = [self.submit(lambda actor, part=part: call(actor, part), work * len(part)) for part in parts if part]  # type: ignore[misc]
        answers: dict[ObjectRef, list[Any]] = {}
        while waiting := [ref for ref in refs if ref not in answers]:
            self.stop_if_hanging()
            answers |= {ref: self.take(ref) for ref in wait_for_one(waiting, TEND_S)}
        return [answer for ref in refs for answer in answers[ref]]

    def close(self) -> None:
        """End the processes."""
        for actor in self.actors:
            ray.kill(actor)


class RayActors:
    """A pool's side of Ray: see `cluster.elastic.Side`. `make` starts the actor of a given index and `role`."""

    def __init__(self, role: str, make: Callable[[int], Any]) -> None:
        self._role, self.start = role, make

    def join(self, actor: Any) -> ObjectRef:
        """See `Side.join`."""
        return actor.join.remote()

    def receive(self, actor: Any, payload: ObjectRef, stamp: WeightsVersion) -> ObjectRef:
        """See `Side.receive`."""
        return actor.receive.remote(payload, stamp)

    def wait(self, refs: Sequence[ObjectRef], timeout_s: float) -> list[ObjectRef]:
        """See `Side.wait`."""
        return wait_for_one(refs, timeout_s)

    def take(self, ref: ObjectRef) -> Any:
        """See `Side.take`."""
        return fetch(ref, who=f"a {self._role} actor")

    def kill(self, actor: Any) -> None:
        """See `Side.kill`."""
        ray.kill(actor)

    def leaving_nodes(self) -> Collection[str]:
        """See `Side.leaving_nodes`. Ray tells them to its own libraries only, so this is not a public call."""
        return ray._private.state.state.get_draining_nodes().keys()


class RolloutPool(ElasticPool):
    """Rollout actors, and the version that all of them serve."""

    def __init__(self, config: RunConfig, checkpoint: Path, say: Callable[[str], None] = lambda text: None) -> None:
        chosen = config.rollout
        actor = deployed(RolloutActor, chosen.gpus_per_actor, chosen.engine.threads, chosen.resources)
        side = RayActors(
            "rollout", lambda i: actor.remote(str(checkpoint), config.model, chosen, index=i, seed=config.seed)
        )
        in_store = chosen.backend == "object_store"  # a transfer between GPUs knows the actors of the start only
        super().__init__(
            "rollout", side, chosen.bounds, chosen.actors,
            call_timeout_s=chosen.call_timeout_s, replaced=in_store, say=say,
        )  # fmt: skip
        self._prompts_per_request = chosen.prompts_per_request

    def ready(self) -> list[ObjectRef]:
        """What to wait for until every actor of the start has loaded."""
        return [member.joining for member in self._in(State.STARTING)]

    def generate(self, draws: Sequence[Draw], sampling: SamplingParams, run_id: str, min_version: int) -> Ticket:
        """A request for a list of `Rolled`, one for each draw, in order."""
        pairs = [(d.epoch, d.prompt) for d in draws]
        return self.submit(
            lambda actor: actor.generate.remote(pairs, sampling, run_id, min_version), len(draws) * sampling.n
        )

    def generate_all(self, draws: Sequence[Draw], sampling: SamplingParams, run_id: str, version: int) -> list[Rolled]:
        """Spread draws over the pool and wait; for evaluation and preflight."""
        return self.spread(
            draws, self._prompts_per_request, lambda part: self.generate(part, sampling, run_id, version)
        )

    def write_all(self, prompts: Sequence[Prompt], sampling: SamplingParams, version: int) -> list[str]:
        """Summaries in the student's text mode, see `Rollout.write`; waits for them."""
        return self.spread(
            prompts, self._prompts_per_request,
            lambda part: self.submit(lambda actor: actor.write.remote(part, sampling, version), len(part) * sampling.n),
        )  # fmt: skip

    def check_version(self, version: int) -> None:
        """Raise `RunError` unless every actor serves `version`."""
        check_versions(self.everywhere(lambda actor: actor.version.remote()), version)

    def reset_caches(self) -> None:
        """Forget what earlier requests left in prefix and audio caches; for benchmarks."""
        self.everywhere(lambda actor: actor.reset_caches.remote())

    def receive_s(self) -> dict[str, float]:
        """The slowest actor's time to put the last push in force; nothing where nobody serves at the moment."""
        times = [told["rollout/receive_s"] for told in self.everywhere(lambda actor: actor.metrics.remote())]
        return {"sync/receive_s": max(times)} if times else {}


class JudgePool(ElasticPool):
    """Judge actors. Those that judge by the teacher's model have no engine of their own where there are `teachers`."""

    def __init__(
        self, config: RunConfig, checkpoint: Path | None, teachers: TeacherPool | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        from actors.judge import JudgeActor

        chosen = config.judge
        actor = deployed(JudgeActor, chosen.gpus_per_actor, chosen.engine.threads, chosen.resources)
        path = str(checkpoint) if checkpoint else None
        asked = teachers.actors if teachers and chosen.path == TEACHER else [None]
        side = RayActors("judge", lambda i: actor.remote(chosen, path, index=i, teacher=asked[i % len(asked)]))
        super().__init__("judge", side, chosen.bounds, chosen.actors, call_timeout_s=chosen.call_timeout_s, say=say)
        self._pairwise = chosen.kind == "pairwise"

    def ready(self) -> list[ObjectRef]:
        """What to wait for until every actor has loaded: name and version of its judge."""
        return [m.actor.ready.remote() for m in self._members if m.state is not State.DRAINING]

    def score_groups(self, groups: Sequence[TrajectoryGroup]) -> Ticket:
        """A request for a list of `ScoredGroup`, in order."""
        asked = list(groups)
        return self.submit(lambda actor: actor.score_groups.remote(asked), sum(map(self._work, asked)))

    def name(self) -> str:
        """Name and version of the judge, by whichever actor is free first."""
        return str(self.take(self.submit(lambda actor: actor.ready.remote(), 0)))

    def score_all(self, tasks: Sequence[JudgeTask] | Sequence[PairTask], *, afresh: bool = False) -> list[Any]:
        """Spread tasks over the pool and wait; for evaluation and, `afresh` past any cache, for an audit."""
        return self.spread(
            tasks, TASKS_PER_REQUEST,
            lambda part: self.submit(lambda actor: actor.score.remote(part, afresh), len(part)),
        )  # fmt: skip

    def _work(self, group: TrajectoryGroup) -> int:
        """The tasks that a group is: an audit's are counted one by one, and both make up one rate."""
        size = len(group.trajectories)
        return comb(size, 2) if self._pairwise else size


class TeacherPool(Pool):
    """Teacher actors. `audio`, `top_k` and `vocabulary` as `TeacherActor` has them."""

    role = "teacher"

    def __init__(self, config: RunConfig, checkpoint: Path, *, audio: bool, top_k: int, vocabulary: int) -> None:
        from actors.teacher import TeacherActor

        chosen = config.teacher
        actor = deployed(TeacherActor, chosen.gpus_per_actor, chosen.engine.threads, chosen.resources)
        super().__init__([
            actor.remote(str(checkpoint), chosen, audio=audio, top_k=top_k, vocabulary=vocabulary, index=i)
            for i in range(chosen.actors)
        ], chosen.call_timeout_s)  # fmt: skip

    def teach(self, groups: Sequence[TrajectoryGroup]) -> ObjectRef:
        """A reference to a tuple of `Lesson` for each group, in order."""
        work = sum(len(group.trajectories) for group in groups)
        return self.submit(lambda actor: actor.teach.remote(list(groups)), work)

    def write_all(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[str]:
        """The teacher's own summaries, by the whole pool; waits for them."""
        return self._spread(prompts, sampling.n, lambda actor, part: actor.write.remote(part, sampling))


class RecogniserPool(Pool):
    """The first half of a cascade, as many as a run starts rollout actors; on the CPU, as those hold the GPUs."""

    role = "recogniser"

    def __init__(self, config: RunConfig, checkpoint: Path) -> None:
        from actors.recogniser import RecogniserActor

        chosen = config.rollout
        actor = deployed(RecogniserActor, 0, chosen.engine.threads, chosen.resources)
        super().__init__(
            [actor.remote(str(checkpoint), chosen.engine.threads) for _ in range(chosen.actors)], chosen.call_timeout_s
        )

    def transcribe_all(self, recordings: Sequence[AudioRef], limits: AudioLimits) -> list[str]:
        """What each recording says, by the whole pool; waits for it."""
        return self._spread(recordings, RECORDING_WORK, lambda actor, part: actor.transcribe.remote(part, limits))
