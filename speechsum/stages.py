"""A stage is three choices: where completions come from, who scores them, which loss reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechsum.objectives import DpoLoss, GrpoLoss, Loss

Source = Literal["data", "pairs", "rollout"]
Scorer = Literal["judge", "teacher"]


@dataclass(frozen=True)
class StageKind:
    """One row of the table. `completions`: the data's references, pairs made before, or what the student writes now.

    `scorers` are asked one after the other, so that a teacher never reads what the judge has already ruled out.
    """

    completions: Source
    scorers: tuple[Scorer, ...] = ()


STAGES = {
    "sft": StageKind("data"),
    "opd": StageKind("rollout", ("teacher",)),
    "dpo": StageKind("rollout", ("judge",)),
    "dpo on pairs": StageKind("pairs"),
    "grpo": StageKind("rollout", ("judge",)),
    "grpo and opd": StageKind("rollout", ("judge", "teacher")),
}


def kind_of(loss: Loss) -> StageKind:
    """The row of a loss with its settings."""
    if isinstance(loss, DpoLoss) and loss.pairs:
        return STAGES["dpo on pairs"]
    if isinstance(loss, GrpoLoss) and loss.distill:
        return STAGES["grpo and opd"]
    return STAGES[loss.kind]
