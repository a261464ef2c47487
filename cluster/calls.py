"""Calls of Ray actors: what their processes get, waiting for answers, and what is told where none comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import ray
from ray import ObjectRef

from cluster.elastic import START_TIMEOUT_S, ActorDied
from speechsum.errors import RunError, UserError, last_line

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


def deployed(actor: Any, gpus: float, threads: int, resources: dict[str, float]) -> Any:
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


def not_replaced(death: ActorDied) -> RunError:
    """The end of a run by the death of an actor whose place nobody can take."""
    return RunError(f"{str(death).rstrip('.')}; start again, a run with --resume")


def wait_for_one(refs: Sequence[ObjectRef], timeout_s: float) -> list[ObjectRef]:
    """All refs that are done; waits for one of them, but not longer than `timeout_s`."""
    if not refs:
        return []
    done, others = ray.wait(list(refs), num_returns=1, timeout=timeout_s)
    if done and others:
        done += ray.wait(others, num_returns=len(others), timeout=0)[0]
    return done


class Loading(Protocol):
    """A group of actors that was made and may not have loaded yet."""

    role: str

    def ready(self) -> list[ObjectRef]:
        """What to wait for until every actor has loaded."""


def wait_until_loaded(groups: Sequence[Loading], say: Callable[[str], None] = lambda text: None) -> None:
    """Wait until every actor of `groups` has loaded; `say` is told how many have.

    Raises `RunError` where one fails, and where for `START_TIMEOUT_S` seconds no other comes to be.
    """
    waiting = {ref: group.role for group in groups for ref in group.ready()}
    total = len(waiting)
    while waiting:
        done = wait_for_one(list(waiting), START_TIMEOUT_S)
        if not done:
            raise none_loads(waiting.values())
        for ref in done:
            fetch(ref, who=f"{waiting.pop(ref)} actor")
        say(f"models loaded: {total - len(waiting)} of {total}")


def none_loads(roles: Iterable[str]) -> RunError:
    """What to raise where these roles wait for an actor that does not come to be."""
    told = ", ".join(f"{role} {count}" for role, count in Counter(roles).items())
    return RunError(
        f"no model has loaded for {START_TIMEOUT_S:.0f} s, and these are waited for: {told}; "
        "do the nodes offer what their resources and gpus_per_actor (of the learner gpus_per_rank) ask for?"
    )
