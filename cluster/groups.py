"""Handles on groups of Ray actors: the learner's ranks, and the pools of rollout, judge and teacher actors.

A handle turns "all ranks" or "the least busy actor" into one call, so that the controller never says `.remote`.
Making a handle starts its actors and `ready` awaits them, so that all of them can load at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from math import comb
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray import ObjectRef

from actors.rollout import Rolled, RolloutActor
from cluster.elastic import START_TIMEOUT_S, TEND_S, ActorDied, ElasticPool, State, Ticket, check_versions, patience_s
from learner.worker import LearnerWorker
from speechsum.audio import AudioLimits
from speechsum.config import TEACHER, RunConfig, StageConfig
from speechsum.data import Draw
from speechsum.errors import RunError, UserError, last_line
from speechsum.types import (
    AudioRef,
    Batch,
    JudgeTask,
    PairTask,
    Prompt,
    PushMode,
    SamplingParams,
    TrainingSample,
    TrajectoryGroup,
    WeightsVersion,
)

T = TypeVar("T")

TASKS_PER_REQUEST = 64
"""Judgements in a request of evaluation or audit, as long as the pool may have an actor for each request."""

RECORDING_WORK = 8
"""Completions that a recording to write down counts as: its recogniser has no engine and no GPU."""

LOST = (
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.RuntimeEnvSetupError,
    ray.exceptions.ActorUnschedulableError,
)
"""What Ray calls the end of an actor besides `RayActorError`. Another actor may fare better."""


def environment(threads: int) -> dict[str, Any]:
    """Ray's runtime environment for a compute process: its share of threads, and waiting that does not spin."""
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "MALLOC_ARENA_MAX": "1",  # glibc gives each of torch's threads a heap of its own, and none gives back
        "MALLOC_MMAP_THRESHOLD_": str(8 * 2**20),  # larger tensors stay out of the heap, which they leave in holes
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    return {"env_vars": variables}


def _deployed(actor: Any, gpus: float, threads: int, resources: dict[str, float]) -> Any:
    """An actor class with its resources. Nothing is retried behind our back: who called decides what is done again."""
    return actor.options(
        num_cpus=0, num_gpus=gpus, resources=resources, runtime_env=environment(threads),
        max_restarts=0, max_task_retries=0,
    )  # fmt: skip


def fetch(refs: Any, timeout_s: float | None = None, who: str = "an actor") -> Any:
    """`ray.get`, with the death (`ActorDied`), failure or hang of `who` told as a `RunError` in one sentence."""
    try:
        return ray.get(refs, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise RunError(f"{who} did not answer within {timeout_s:.0f} s; see the Ray logs of the run") from None
    except ray.exceptions.RayActorError as error:
        raise ActorDied(f"{who} died: {last_line(error)}") from error
    except LOST as error:
        raise ActorDied(f"{who} was lost: {type(error).__name__}: {last_line(error)}") from error
    except ray.exceptions.ObjectLostError as error:
        raise ActorDied(f"what {who} made was lost with its node: {last_line(error)}") from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | RunError):
            raise error.cause from None
        raise RunError(f"{who} failed: {type(error.cause).__name__}: {last_line(error.cause)}") from error
    except ray.exceptions.RayError as error:
        raise RunError(
            f"Ray has no answer of {who}: {type(error).__name__}: {last_line(error)}; see the Ray logs of the run"
        ) from error


def _fetch_or_end(ref: ObjectRef, who: str) -> Any:
    """The answer of an actor whose place nobody can take, so that its death ends the run."""
    try:
        return fetch(ref, who=who)
    except ActorDied as error:
        raise RunError(f"{str(error).rstrip('.')}; go on with --resume") from error


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
                self._answers[rank] = _fetch_or_end(self._refs[rank], f"learner rank {rank}")

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

    def _silent(self) -> list[int]:
        return [rank for rank in range(len(self._refs)) if rank not in self._answers]


class LearnerGroup:
    """The ranks of the learner, called together."""

    role = "learner"

    def __init__(self, config: RunConfig, checkpoint: Path) -> None:
        self.config = config
        chosen = config.learner
        worker = _deployed(LearnerWorker, chosen.gpus_per_rank, chosen.threads_per_rank, chosen.resources)
        self.workers = [worker.remote(config, rank, str(checkpoint)) for rank in range(chosen.ranks)]

    def ready(self) -> list[ObjectRef]:
        """Begin loading; gives what to wait for until every rank has."""
        door = self.workers[0].open_door.remote()
        if not wait_for_one([door], START_TIMEOUT_S):
            raise _none_loads([self.role])
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
        return _fetch_or_end(ref, f"{self.role} {index}")

    def stop_if_hanging(self) -> None:
        """Raise `RunError` where an actor has been at one call for too long; nobody can take its place."""
        now = time.monotonic()
        for index, calls in enumerate(self._calls):
            if not calls:
                continue
            ref, work = next(iter(calls.items()))
            waited_s = now - self._since[index]
            if waited_s > patience_s(self._call_timeout_s, work) and not wait_for_one([ref], 0.0):
                raise RunError(f"{self.role} {index} has not answered for {waited_s:.0f} s; go on with --resume")

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


def wait_until_loaded(
    groups: Sequence[LearnerGroup | RolloutPool | JudgePool | Pool], say: Callable[[str], None] = lambda text: None
) -> None:
    """Wait until every actor of `groups` has loaded; `say` is told how many have.

    Raises `RunError` where one fails, and where for `START_TIMEOUT_S` seconds no other comes to be.
    """
    waiting = {ref: group.role for group in groups for ref in group.ready()}
    total = len(waiting)
    while waiting:
        done = wait_for_one(list(waiting), START_TIMEOUT_S)
        if not done:
            raise _none_loads(waiting.values())
        for ref in done:
            fetch(ref, who=f"{waiting.pop(ref)} actor")
        say(f"models loaded: {total - len(waiting)} of {total}")


def _none_loads(roles: Iterable[str]) -> RunError:
    told = ", ".join(f"{role} {count}" for role, count in Counter(roles).items())
    return RunError(
        f"no model has loaded for {START_TIMEOUT_S:.0f} s, and these are waited for: {told}; "
        "do the nodes offer what their resources and gpus_per_actor (of the learner gpus_per_rank) ask for?"
    )


class RayActors:
    """A pool's side of Ray: see `cluster.elastic.Side`. `make` starts the actor of a given index."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.start = make

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
        return fetch(ref)

    def kill(self, actor: Any) -> None:
        """See `Side.kill`."""
        ray.kill(actor)

    def leaving_nodes(self) -> Collection[str]:
        """See `Side.leaving_nodes`. Ray tells them to its own libraries only, so this is not a public call."""
        return ray._private.state.state.get_draining_nodes().keys()


def wait_for_one(refs: Sequence[ObjectRef], timeout_s: float) -> list[ObjectRef]:
    """All refs that are done; waits for one of them, but not longer than `timeout_s`."""
    if not refs:
        return []
    done, others = ray.wait(list(refs), num_returns=1, timeout=timeout_s)
    if done and others:
        done += ray.wait(others, num_returns=len(others), timeout=0)[0]
    return done


class RolloutPool(ElasticPool):
    """Rollout actors, and the version that all of them serve."""

    def __init__(self, config: RunConfig, checkpoint: Path, say: Callable[[str], None] = lambda text: None) -> None:
        chosen = config.rollout
        actor = _deployed(RolloutActor, chosen.gpus_per_actor, chosen.engine.threads, chosen.resources)
        side = RayActors(
            lambda index: actor.remote(str(checkpoint), config.model, chosen, index=index, seed=config.seed)
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
        actor = _deployed(JudgeActor, chosen.gpus_per_actor, chosen.engine.threads, chosen.resources)
        path = str(checkpoint) if checkpoint else None
        asked = teachers.actors if teachers and chosen.path == TEACHER else [None]
        side = RayActors(lambda index: actor.remote(chosen, path, index=index, teacher=asked[index % len(asked)]))
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
        actor = _deployed(TeacherActor, chosen.gpus_per_actor, chosen.engine.threads, chosen.resources)
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
        actor = _deployed(RecogniserActor, 0, chosen.engine.threads, chosen.resources)
        super().__init__(
            [actor.remote(str(checkpoint), chosen.engine.threads) for _ in range(chosen.actors)], chosen.call_timeout_s
        )

    def transcribe_all(self, recordings: Sequence[AudioRef], limits: AudioLimits) -> list[str]:
        """What each recording says, by the whole pool; waits for it."""
        return self._spread(recordings, RECORDING_WORK, lambda actor, part: actor.transcribe.remote(part, limits))


__all__ = [
    "JudgePool", "LearnerGroup", "RankCall", "RecogniserPool", "RolloutPool", "TeacherPool", "environment", "fetch",
    "wait_for_one", "wait_until_loaded",
]  # fmt: skip
