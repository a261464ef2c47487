"""Actors that a machine can never place are told before anybody waits for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster import placement
from cluster.placement import refuse_without_room
from cluster.train import roles_of
from speechsum.config import RunConfig, load_recipe
from speechsum.errors import UserError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SFT = {"name": "sft", "steps": 1, "loss": {"kind": "sft"}}
GRPO = {"name": "grpo", "steps": 1, "group_size": 4, "loss": {"kind": "grpo"}}


def recipe(*stages: dict[str, Any], **sections: Any) -> RunConfig:
    return RunConfig.model_validate({"name": "placed", "eval": {"clips": 0}, "stage": stages or [SFT]} | sections)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What Ray has found on it."""
    found: dict[str, float] = {"CPU": 2.0}
    monkeypatch.setattr(placement.ray, "cluster_resources", lambda: found)
    return found


def test_who_runs_at_the_same_time() -> None:
    assert roles_of(recipe()) == {"learner"}
    assert roles_of(recipe(GRPO)) == {"learner", "rollout", "judge"}
    reads = {"rows": ["teacher"], "second_judge": {"kind": "lexical"}}
    teacher = {"path": "starter"}
    every = {"learner", "rollout", "judge", "teacher", "eval.second_judge"}
    assert roles_of(recipe(eval=reads, teacher=teacher)) == every
    assert roles_of(recipe(eval=reads | {"clips": 0}, teacher=teacher)) == {"learner"}
    opd = {"name": "opd", "steps": 1, "loss": {"kind": "opd"}}
    assert roles_of(recipe(opd, teacher=teacher)) == every - {"eval.second_judge"}


def test_a_recipe_for_the_cpu_has_room_everywhere(machine: dict[str, float]) -> None:
    demo = load_recipe(RECIPES / "demo.toml")
    refuse_without_room(demo, roles_of(demo))


def test_gpus_are_counted_over_all_roles(machine: dict[str, float]) -> None:
    paper = load_recipe(RECIPES / "paper-qwen2.5-omni-7b.toml")
    machine["GPU"] = 8.0
    refuse_without_room(paper, roles_of(paper))
    machine["GPU"] = 7.0
    with pytest.raises(UserError, match=r"wants 8 GPUs at once \(learner 4, rollout 2, teacher 2\) and .* has 7"):
        refuse_without_room(paper, roles_of(paper))
    refuse_without_room(paper, roles_of(paper) - {"learner"})


def test_a_second_judge_has_to_have_room_beside_the_others(machine: dict[str, float]) -> None:
    second = {"path": "starter", "actors": 2, "gpus_per_actor": 0.25}
    chosen = recipe(rollout={"gpus_per_actor": 0.6}, eval={"second_judge": second})
    machine["GPU"] = 1.0
    with pytest.raises(UserError, match=r"wants 1\.1 GPUs at once \(eval\.second_judge 0\.5, rollout 0\.6\)"):
        refuse_without_room(chosen, roles_of(chosen))
    machine["GPU"] = 2.0
    refuse_without_room(chosen, roles_of(chosen))


def test_fractions_that_make_a_whole_have_room(machine: dict[str, float]) -> None:
    rollout, judge = {"actors": 3, "gpus_per_actor": 0.2}, {"actors": 6, "gpus_per_actor": 0.4}
    chosen = recipe(GRPO, rollout=rollout, judge=judge)
    machine["GPU"] = 3.0
    refuse_without_room(chosen, roles_of(chosen))


def test_resources_that_only_a_cluster_offers_are_told(machine: dict[str, float]) -> None:
    chosen = recipe(GRPO, rollout={"actors": 2, "resources": {"rollout": 1}})
    with pytest.raises(UserError, match=r"wants 2 of the resource 'rollout' at once \(rollout 2\) and .* has 0"):
        refuse_without_room(chosen, roles_of(chosen))
    machine["rollout"] = 2.0
    refuse_without_room(chosen, roles_of(chosen))
