"""Every recipe that ships loads, and says nothing that the code would refuse later."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechsum.config import STARTER, RunConfig, load_recipe
from speechsum.families import FAMILIES

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))


@pytest.fixture(params=RECIPES, ids=lambda path: path.stem)
def path(request) -> Path:
    return request.param


def test_there_are_recipes():
    assert {"demo", "starter-align", "qwen2.5-omni-3b"} <= {path.stem for path in RECIPES}


def test_it_validates_and_survives_being_saved(path):
    config = load_recipe(path)
    assert config.name == path.stem
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_it_begins_by_saying_what_it_is_for(path):
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_a_recording_and_a_request_fit_the_context(path):
    config = load_recipe(path)
    audio = round(config.model.max_audio_s * FAMILIES[config.model.family].tokens_per_s)
    assert audio + 100 <= config.model.max_prompt_tokens
    assert config.model.max_prompt_tokens + config.rollout.max_tokens <= config.rollout.engine.max_model_len


def test_gpus_and_collectives_go_together(path):
    learner = load_recipe(path).learner
    assert (learner.backend == "nccl") == (learner.gpus_per_rank > 0)


def test_the_full_size_recipe():
    path = FOLDER / "qwen2.5-omni-3b.toml"
    config = load_recipe(path)
    assert "NOT BEEN RUN ON A GPU" in path.read_text(encoding="utf-8")
    assert [(s.name, s.loss.kind) for s in config.stage] == [("sft", "sft"), ("grpo", "grpo")]
    assert (config.stage[1].group_size, config.stage[1].max_staleness) == (8, 1)
    assert config.model.path != STARTER
    gpus = config.learner.ranks * config.learner.gpus_per_rank + config.rollout.actors * config.rollout.gpus_per_actor
    assert gpus == 8
    longest = config.model.max_prompt_tokens + config.stage[1].group_size * config.rollout.max_tokens
    assert longest <= config.learner.microbatch_tokens


@pytest.mark.parametrize("last", ["dpo", "grpo"])
def test_the_paper_in_two_sizes(last):
    suffix = "" if last == "dpo" else "-grpo"
    for name in ("paper-mini", "paper-qwen2.5-omni-7b"):
        config = load_recipe(FOLDER / f"{name}{suffix}.toml")
        assert [(s.name, s.loss.kind) for s in config.stage] == [(k, k) for k in ("sft", "opd", last)]
        assert config.teacher.path
        if name != "paper-mini":
            used = [config.rollout, config.teacher]
            gpus = config.learner.ranks * config.learner.gpus_per_rank + sum(p.actors * p.gpus_per_actor for p in used)
            assert gpus == 8
            assert "NOT BEEN RUN ON A GPU" in (FOLDER / f"{name}{suffix}.toml").read_text(encoding="utf-8")


def test_paper_mini_differs_in_its_last_stage_alone():
    dpo, grpo = (load_recipe(FOLDER / f"paper-mini{suffix}.toml") for suffix in ("", "-grpo"))
    assert dpo.model_copy(update={"name": "", "stage": dpo.stage[:-1]}) == grpo.model_copy(
        update={"name": "", "stage": grpo.stage[:-1]}
    )
