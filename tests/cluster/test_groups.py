"""What a recipe asks of Ray for its actors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import actors.judge
from cluster import groups
from speechsum.config import RunConfig


class Asked:
    """Stands in for an actor class, its actors and their calls, and keeps what was asked for each actor."""

    def __init__(self) -> None:
        self.options_of: list[dict[str, Any]] = []

    def options(self, **options: Any) -> Asked:
        self.options_of.append(options)
        return self

    def remote(self, *args: Any, **kwargs: Any) -> Asked:
        return self

    @property
    def join(self) -> Asked:
        return self


def test_every_role_asks_for_its_own_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, rollout, judge = Asked(), Asked(), Asked()
    monkeypatch.setattr(groups, "LearnerWorker", learner)
    monkeypatch.setattr(groups, "RolloutActor", rollout)
    monkeypatch.setattr(actors.judge, "JudgeActor", judge)
    config = RunConfig.model_validate(
        {
            "name": "placed",
            "rollout": {"resources": {"rollout": 1}},
            "judge": {"resources": {"judge": 0.5}},
            "stage": [{"name": "sft", "steps": 1, "loss": {"kind": "sft"}}],
        }
    )
    groups.LearnerGroup(config, Path("student"))
    groups.RolloutPool(config, Path("student"))
    groups.JudgePool(config, None)
    assert [asked.options_of[0]["resources"] for asked in (learner, rollout, judge)] == [
        {},
        {"rollout": 1},
        {"judge": 0.5},
    ]
