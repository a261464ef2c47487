"""A recipe on a cluster: written down whole, with every actor on pods that can hold it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from cluster.kuberay.recipe import as_toml, fitted, pods_needed, run_name
from speechsum.config import load_recipe, parse
from speechsum.errors import UserError

RECIPES = sorted((Path(__file__).resolve().parents[3] / "recipes").glob("*.toml"))
QWEN = next(path for path in RECIPES if path.stem == "qwen2.5-omni-3b")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_written_down_is_the_recipe(path: Path) -> None:
    config = load_recipe(path)
    assert parse(tomllib.loads(as_toml(config)), "written") == config


def test_texts_survive_being_written_down() -> None:
    name = 'tab\t "quoted" \\ back\\slash\nline ü 🎙 \x7f'
    config = load_recipe(QWEN).model_copy(update={"name": name})
    assert tomllib.loads(as_toml(config))["name"] == name


def test_every_actor_asks_for_its_own_group(gke) -> None:
    config = fitted(*gke)
    assert [config.learner.resources, config.rollout.resources, config.judge.resources] == [
        {"learner": 1.0}, {"rollout": 1.0}, {"judge": 1.0},
    ]  # fmt: skip


def test_pods_are_counted_by_what_one_holds(gke) -> None:
    config, profile = gke  # 4 ranks, 4 rollout actors and 2 judges; pods hold 4, 1 and 2
    assert pods_needed(config, profile) == {"learner": 1, "rollout": 4, "judge": 1}
    config = load_recipe(QWEN, ["learner.ranks=5", "judge.actors=3"])
    assert pods_needed(config, profile) == {"learner": 2, "rollout": 4, "judge": 2}
    config = load_recipe(QWEN, ["rollout.pool={ min = 2, max = 16 }"])
    assert pods_needed(config, profile)["rollout"] == 4  # those it starts with; Ray's autoscaler does the others


def test_a_teacher_has_pods_of_its_own_or_no_run(gke) -> None:
    taught = load_recipe(
        QWEN, ["stage.grpo.loss.distill=0.1", "teacher.path=/models/teacher", "teacher.gpus_per_actor=1"]
    )
    with pytest.raises(UserError, match=r"asks a teacher, for which the profile has no pods; add \[teacher\]"):
        fitted(taught, gke[1])
    profile = gke[1].model_copy(update={"teacher": gke[1].rollout})
    assert fitted(taught, profile).teacher.resources == {"teacher": 1.0}
    assert pods_needed(taught, profile)["teacher"] == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rollout.actors=17", "rollout.actors = 17 need 17 pods and the profile's rollout.max_replicas is 16"),
        ("rollout.pool={ min = 1, max = 17 }", "rollout.pool.max = 17 need 17 pods and the profile's rollout.max"),
        ("rollout.gpus_per_actor=2", "a rollout pod of the profile has 1 GPUs and would hold actors that take 2"),
        ("judge.gpus_per_actor=0.5", "a judge pod of the profile has 0 GPUs and would hold actors that take 1"),
        ("rollout.gpus_per_actor=0", "a rollout pod of the profile has 1 GPUs of which the recipe uses none"),
        ("judge.resources={ scarce = 1 }", "asks for 'scarce', which no pod of the profile offers"),
        ("model.path=/elsewhere/model", "model.path = '/elsewhere/model' lies in no volume"),
        ("model.path=/models-old/model", "model.path = '/models-old/model' lies in no volume"),
        ("data.root=data", "data.root = 'data' lies in no volume"),
        ("teacher.path=/elsewhere/teacher", "teacher.path = '/elsewhere/teacher' lies in no volume"),
        ("eval.second_judge={ path = '/elsewhere/judge' }", "eval.second_judge.path = '/elsewhere/judge' lies in no"),
        ("model.adapter=runs/a.safetensors", "model.adapter = 'runs/a.safetensors' lies in no volume"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(gke, override: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        fitted(load_recipe(QWEN, [override]), gke[1])
    assert words in str(refused.value)


def test_the_starter_does_not_come_from_a_bucket(kind) -> None:
    config, profile = kind
    storage = profile.storage.model_copy(update={"pvc": None, "bucket": "gs://runs"})
    with pytest.raises(UserError, match="which a bucket is not; use a pvc"):
        fitted(config, profile.model_copy(update={"storage": storage}))


@pytest.mark.parametrize(
    ("name", "called"), [("qwen2.5-omni-3b", "qwen2-5-omni-3b"), ("Try_7", "try-7"), ("--a--", "a")]
)
def test_a_name_becomes_a_label(name: str, called: str) -> None:
    assert run_name(load_recipe(QWEN, [f'name="{name}"'])) == called
