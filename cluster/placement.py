"""Whether a machine that will not grow has a place for every actor: Ray would wait for one for ever."""

from __future__ import annotations

from collections.abc import Iterable

import ray

from cluster.assets import reads_by_teacher
from speechsum.config import RunConfig
from speechsum.errors import UserError


def beside(config: RunConfig) -> set[str]:
    """The roles that an evaluation starts beside rollout and judge.

    A recogniser takes `rollout.resources` beside the rollout actors, and no GPU.
    """
    second = {"eval.second_judge"} if config.eval.second_judge else set()
    return second | ({"teacher"} if reads_by_teacher(config) else set())


def refuse_without_room(config: RunConfig, roles: Iterable[str]) -> None:
    """Raise `UserError` where this Ray can never hold the actors of `roles`, those of a start, at the same time."""
    asked = {role: _asked(config, role) for role in sorted(roles)}
    found = ray.cluster_resources()
    for name in sorted({name for amounts in asked.values() for name in amounts}):
        shares = {role: amounts[name] for role, amounts in asked.items() if amounts.get(name)}
        total, there = sum(shares.values()), found.get(name, 0.0)
        if total > there + 1e-6:  # sums of decimal fractions
            what = "GPUs" if name == "GPU" else f"of the resource {name!r}"
            told = ", ".join(f"{role} {amount:g}" for role, amount in shares.items())
            raise UserError(
                f"the recipe wants {total:g} {what} at once ({told}) and this machine has {there:g}; lower actors and "
                "gpus_per_actor there (of the learner ranks and gpus_per_rank), leave out resources, or train on a "
                "cluster with --address"
            )


def _asked(config: RunConfig, role: str) -> dict[str, float]:
    """What the actors of a role take together, of each of Ray's resources."""
    if role == "learner":
        count, gpus, resources = config.learner.ranks, config.learner.gpus_per_rank, config.learner.resources
    else:
        pools = {
            "rollout": config.rollout, "judge": config.judge, "teacher": config.teacher,
            "eval.second_judge": config.eval.second_judge,
        }  # fmt: skip
        chosen = pools[role]
        assert chosen is not None
        count, gpus, resources = chosen.actors, chosen.gpus_per_actor, chosen.resources
    return {name: count * amount for name, amount in {"GPU": gpus, **resources}.items()}
