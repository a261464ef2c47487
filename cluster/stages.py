"""A stage is three choices: where completions come from, who scores them, which loss reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from speechsum.config import StageConfig


@dataclass(frozen=True)
class StageKind:
    """One row of the table. `completions`: the data's references or the student's own; `scorer`: a judge or nobody."""

    completions: Literal["data", "rollout"]
    scorer: Literal["judge"] | None


STAGES = {
    "sft": StageKind(completions="data", scorer=None),
    "grpo": StageKind(completions="rollout", scorer="judge"),
}


def kind_of(stage: StageConfig) -> StageKind:
    """The row for a stage, by its loss."""
    return STAGES[stage.loss.kind]
