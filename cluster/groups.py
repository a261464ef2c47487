"""Handles on groups of Ray actors: the learner's ranks, and the pools of rollout, judge and teacher actors.

A handle turns "all ranks" or "the least busy actor" into one call, so that the controller never says `.remote`.
Actors are started by `start` and awaited by `ready`, so that all of them can load at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
from ray import ObjectRef

from actors.rollout import Rolled, RolloutActor
from learner.worker import LearnerWorker
from speechsum.config import RunConfig, StageConfig
from speechsum.data import Draw
from speechsum.errors import RunError, UserError
from speechsum.types import (
    Batch,
    JudgeTask,
    Prompt,
    PushMode,
    SamplingParams,
    ScoredGroup,
    TrainingSample,
    TrajectoryGroup,
    WeightsVersion,
)

T = TypeVar("T")
START_TIMEOUT_S = 1800.0


def environment(threads: int) -> dict[str, Any]:
    """Ray's runtime environment for a compute process: its share of threads, and waiting that does not spin."""
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "MALLOC_ARENA_MAX": "1",  # glibc gives each of torch's threads a heap of its own, and none gives back
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


def fetch(refs: Any, timeout_s: float | None = None) -> Any:
    """`ray.get`, with an actor's death or hang told as a `RunError` in one sentence."""
    try:
        return ray.get(refs, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError:
        raise RunError(f"an actor did not answer within {timeout_s:.0f} s; see the Ray logs of the run") from None
    except ray.exceptions.RayActorError as error:
        raise RunError(f"an actor died: {_last_line(error)}") from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | RunError):
            raise error.cause from None
        raise RunError(f"an actor failed: {type(error.cause).__name__}: {_last_line(error.cause)}") from error


def _last_line(error: BaseException) -> str:
    """Where Ray's texts, which quote whole tracebacks, say what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


class LearnerGroup:
    """The ranks of the learner, called together."""

    def __init__(self, config: RunConfig, checkpoint: Path) -> None:
        self.config = config
        chosen = config.learner
        worker = _deployed(LearnerWorker, chosen.gpus_per_rank, chosen.threads_per_rank, chosen.resources)
        self.workers = [worker.remote(config, rank, str(checkpoint)) for rank in range(chosen.ranks)]

    def ready(self) -> list[ObjectRef]:
        """Begin loading; gives what to wait for until every rank has."""
        host, port = fetch(self.workers[0].address.remote(), START_TIMEOUT_S)
        return [w.join.remote(host, port) for w in self.workers]

    def begin_stage(self, stage: StageConfig) -> None:
        """See `Learner.begin_stage`."""
        self._all("begin_stage", stage)

    def step(self, batch: Batch, policy_version: int) -> ObjectRef:
        """Start one optimizer step; every rank pulls its own shard from the object store."""
        shards = [ray.put(shard) for shard in batch.shards]
        refs = [
            w.step.remote(shard, batch.loss_tokens, batch.sequences, policy_version)
            for w, shard in zip(self.workers, shards, strict=True)
        ]
        return _together.options(num_cpus=0).remote(*refs)

    def logprobs(self, samples: Sequence[TrainingSample], temperature: float = 1.0) -> list[np.ndarray]:
        """See `Learner.logprobs`; the first rank's answer."""
        return self._all("logprobs", list(samples), temperature)[0]

    def greedy(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """See `Learner.greedy`; the first rank's answer."""
        return self._all("greedy", list(samples))[0]

    def publish(self, version: int, mode: PushMode) -> tuple[WeightsVersion, ObjectRef]:
        """Gather the weights and stamp them; the payload stays in the object store, only its stamp comes here."""
        refs = [w.publish.remote(version, mode) for w in self.workers]
        stamps = fetch([stamp for stamp, _ in refs])
        return stamps[0], refs[0][1]

    def connect(self, backend: str, rollout: RolloutPool) -> None:
        """Open the way from GPU to GPU that `broadcast` takes."""
        host, port = fetch(self.workers[0].address.remote())
        self._all("connect", backend, rollout.actors, host, port)

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
        """The merged checkpoint and, inside it, the bare adapter."""
        self._all("export", str(out))
        self._all("export_adapter", str(out.with_name(out.name + "-adapter.safetensors")))

    def _all(self, method: str, *args: Any) -> list[Any]:
        return fetch([getattr(w, method).remote(*args) for w in self.workers])

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            ray.kill(worker)


@ray.remote
def _together(*results: dict[str, float]) -> dict[str, float]:
    """One object for "all ranks are done"; their metrics are already reduced, so the first rank's stand for all."""
    return results[0]


class Pool:
    """Interchangeable actors; a call goes to the one with the fewest calls outstanding."""

    role = "actor"

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)
        self._busy: Counter[int] = Counter()
        self._owner: dict[ObjectRef, int] = {}

    def ready(self) -> list[ObjectRef]:
        """What to wait for until every actor has loaded."""
        return [actor.ready.remote() for actor in self.actors]

    def submit(self, call: Callable[[Any], ObjectRef]) -> ObjectRef:
        """Send a call to the least busy actor."""
        index = min(range(len(self.actors)), key=lambda i: self._busy[i])
        ref = call(self.actors[index])
        self._busy[index] += 1
        self._owner[ref] = index
        return ref

    def holder(self, ref: ObjectRef) -> str:
        """The actor that has a call, such as `rollout 0`."""
        return f"{self.role} {self._owner[ref]}"

    def take(self, ref: ObjectRef) -> Any:
        """The result of a finished call."""
        self._busy[self._owner.pop(ref)] -= 1
        return fetch(ref)

    def close(self) -> None:
        """End the processes."""
        for actor in self.actors:
            ray.kill(actor)


class RolloutPool(Pool):
    """Rollout actors and the version that all of them serve."""

    role = "rollout"

    def __init__(self, config: RunConfig, checkpoint: Path) -> None:
        chosen = config.rollout
        actor = _deployed(RolloutActor, chosen.gpus_per_actor, chosen.engine.threads, chosen.resources)
        super().__init__([
            actor.remote(str(checkpoint), config.model, chosen, index=i, seed=config.seed)
            for i in range(chosen.actors)
        ])  # fmt: skip

    def generate(self, draws: Sequence[Draw], sampling: SamplingParams, run_id: str, min_version: int) -> ObjectRef:
        """A reference to a list of `Rolled`, one for each draw, in order."""
        pairs = [(d.epoch, d.prompt) for d in draws]
        return self.submit(lambda actor: actor.generate.remote(pairs, sampling, run_id, min_version))

    def generate_all(self, draws: Sequence[Draw], sampling: SamplingParams, run_id: str, version: int) -> list[Rolled]:
        """Spread draws over the pool and wait; for evaluation and preflight."""
        parts = np.array_split(np.arange(len(draws)), len(self.actors))
        refs = [self.generate([draws[i] for i in part], sampling, run_id, version) for part in parts if len(part)]
        return [rolled for ref in refs for rolled in self.take(ref)]

    def receive(self, payload: ObjectRef, stamp: WeightsVersion) -> None:
        """Put weights in force on every actor; returns when all of them serve `stamp`."""
        _check_versions(fetch([actor.receive.remote(payload, stamp) for actor in self.actors]), stamp.version)

    def check_version(self, version: int) -> None:
        """Raise `RunError` unless every actor serves `version`."""
        _check_versions(fetch([actor.version.remote() for actor in self.actors]), version)

    def reset_caches(self) -> None:
        """Forget what earlier requests left in prefix and audio caches; for benchmarks."""
        fetch([actor.reset_caches.remote() for actor in self.actors])

    def receive_s(self) -> float:
        """The slowest actor's time to put the last push in force, in seconds."""
        return max(m["rollout/receive_s"] for m in fetch([a.metrics.remote() for a in self.actors]))


def _check_versions(versions: Sequence[int], pushed: int) -> None:
    if any(v != pushed for v in versions):
        raise RunError(f"rollout actors serve versions {versions} after a push of version {pushed}")


class JudgePool(Pool):
    """Judge actors."""

    role = "judge"

    def __init__(self, config: RunConfig, checkpoint: Path | None) -> None:
        from actors.judge import JudgeActor

        chosen = config.judge
        actor = _deployed(JudgeActor, chosen.gpus_per_actor, chosen.engine.threads, chosen.resources)
        path = str(checkpoint) if checkpoint else None
        super().__init__([actor.remote(chosen, path, index=i) for i in range(chosen.actors)])

    def score_groups(self, groups: Sequence[TrajectoryGroup]) -> ObjectRef:
        """A reference to a list of `ScoredGroup`, in order."""
        return self.submit(lambda actor: actor.score_groups.remote(list(groups)))

    def score_all(self, tasks: Sequence[JudgeTask]) -> list[Any]:
        """Judge tasks and wait; for evaluation."""
        return self.take(self.submit(lambda actor: actor.score.remote(list(tasks))))


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
        ])  # fmt: skip

    def teach(self, groups: Sequence[TrajectoryGroup]) -> ObjectRef:
        """A reference to a tuple of `Lesson` for each group, in order."""
        return self.submit(lambda actor: actor.teach.remote(list(groups)))

    def write_all(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[str]:
        """The teacher's own summaries, by the whole pool; waits for them."""
        parts = np.array_split(np.arange(len(prompts)), len(self.actors))
        refs = [self._write([prompts[i] for i in part], sampling) for part in parts if len(part)]
        return [text for ref in refs for text in self.take(ref)]

    def _write(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> ObjectRef:
        return self.submit(lambda actor: actor.write.remote(prompts, sampling))


__all__ = ["JudgePool", "LearnerGroup", "RolloutPool", "ScoredGroup", "TeacherPool", "environment", "fetch"]
