"""Recipes: what is accepted, what is refused and in which words."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from speechsum.config import EndpointConfig, RunConfig, load_recipe
from speechsum.errors import UserError

RECIPE = """
name = "two"

[model]
adapter = "early"

[[stage]]
name = "align"
steps = 4
loss = { kind = "sft" }

[[stage]]
name = "grpo"
steps = 6
group_size = 4
loss = { kind = "grpo", clip_high = 0.3 }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(RECIPE)
    return path


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        load_recipe(recipe, list(overrides))
    return str(refused.value)


def test_a_recipe_with_its_defaults(recipe: Path) -> None:
    config = load_recipe(recipe)
    assert [stage.name for stage in config.stage] == ["align", "grpo"]
    assert (config.model.adapter, config.model.lora.rank, config.seed) == ("early", 16, 0)
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_overrides_reach_sections_and_stages(recipe: Path) -> None:
    config = load_recipe(
        recipe,
        [
            "seed=5",
            "model.lora.rank=8",
            "stage.grpo.steps=20",
            "stage.0.steps=2",
            "stage.grpo.loss.is_cap=3.5",
            "data.train=some/file.parquet",
            'data.speech.requests=["sentence"]',
            "watch.wandb=disabled",
            "name = spaced",
        ],
    )
    assert (config.seed, config.model.lora.rank, config.name) == (5, 8, "spaced")
    assert [stage.steps for stage in config.stage] == [2, 20]
    assert config.stage[1].loss.kind == "grpo"
    assert config.stage[1].loss.is_cap == 3.5
    assert (config.data.train, config.data.speech.requests) == ("some/file.parquet", ("sentence",))
    assert config.watch.wandb == "disabled"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.lora.rnk=8", "'model.lora.rnk'; did you mean 'rank'"),
        ("learnr.ranks=1", "did you mean 'learner'"),
        ("stage.grpo.loss.clip_hihg=0.4", "did you mean 'clip_high'"),
        ("qqqqqq=1", "unknown key 'qqqqqq'; remove it"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(recipe: Path, override: str, words: str) -> None:
    message = refusal(recipe, override)
    assert words in message
    assert str(recipe) in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage.align.steps=0", "greater than or equal to 1"),
        ("stage.grpo.group_size=1", "set group_size >= 2"),
        ("stage.align.group_size=2", "set group_size = 1"),
        ("stage.align.max_staleness=1", "max_staleness = 0"),
        ("stage.align.name=grpo", "stage names must differ"),
        ("rollout.top_p=0.9", "lower rollout.temperature"),
        ("rollout.max_tokens=4000", "rollout.max_tokens = 5024 exceeds rollout.engine.max_model_len"),
        ("eval.max_tokens=600", "eval.max_tokens = 1624 exceeds rollout.engine.max_model_len"),
        ("rollout.sync=nccl", "set rollout.sync to 'adapter'"),
        ("judge.kind=rubric", "judge.endpoint.url"),
        ("eval.second_judge.kind=rubric", "endpoint.url"),
        ("judge.path=teacher", "judge.path = 'teacher' and the recipe has none; set teacher.path"),
        ("eval.second_judge={ path = 'teacher' }", "eval.second_judge.path = 'teacher' and the recipe has none"),
        ('eval.controls=["silence"]', "'wrong_audio' or 'no_audio'"),
        ("model.dtype=int4", "model.dtype"),
        ("stage.grpo.loss.kind=ppo", "ppo"),
        ("stage.grpo.loss.ratio=group", "'token' or 'sequence'"),
        ("stage.grpo.loss.objective=ppo", "'clip' or 'cispo'"),
        ("stage.grpo.loss.baseline=leave_one_out", "set loss.scale_by_std = false"),
        ("seed=many", "'seed' = \"many\""),
        ("rollout.pool={ min = 3, max = 2 }", "rollout.pool.min = 3 exceeds rollout.pool.max = 2; lower it"),
        ("judge.pool={ min = 2, max = 4 }", "judge.pool holds 2 to 4; set judge.actors to 2"),
        ("eval.second_judge.pool={ min = 3, max = 1 }", "eval.second_judge.pool.min = 3 exceeds"),
        ("rollout.pool={ max = 2, sync = 1 }", "unknown key 'rollout.pool.sync'"),
        ("rollout.resources={ GPU = 1 }", "'GPU', which Ray counts itself"),
        ("judge.resources={ judge = 0 }", "judge.resources.judge"),
        ('name="../../elsewhere"', "'name'"),
        ('name=""', "'name'"),
        ('stage.grpo.name="a.b"', "name"),
        ("stage.grpo.optimizer.betas=[0.9, 1.0]", "betas"),
        ("model.lora.targets=[]", "targets"),
    ],
)
def test_an_impossible_value_is_refused_with_the_remedy(recipe: Path, override: str, words: str) -> None:
    assert words in refusal(recipe, override)


def test_a_pool_is_fixed_unless_it_has_bounds(recipe: Path) -> None:
    fixed = load_recipe(recipe, ["rollout.actors=3"]).rollout
    assert (fixed.bounds.min, fixed.bounds.max) == (3, 3)
    elastic = load_recipe(recipe, ["rollout.actors=2", "rollout.pool={ max = 4, idle_s = 90 }"]).rollout
    assert (elastic.actors, elastic.bounds.min, elastic.bounds.max, elastic.bounds.idle_s) == (2, 1, 4, 90)


def test_only_pushes_through_the_object_store_reach_who_comes_later(recipe: Path) -> None:
    gpus = ["rollout.gpus_per_actor=1", "learner.gpus_per_rank=1", "learner.backend=nccl"]
    assert load_recipe(recipe, [*gpus, "rollout.sync=nccl"]).rollout.pool is None
    assert "remove rollout.pool" in refusal(recipe, *gpus, "rollout.sync=nccl", "rollout.pool={ max = 2 }")


def test_the_switches_of_grpo_go_together(recipe: Path) -> None:
    switches = ["ratio=sequence", "objective=cispo", "baseline=leave_one_out", "scale_by_std=false"]
    loss = load_recipe(recipe, [f"stage.grpo.loss.{switch}" for switch in switches]).stage[1].loss
    assert loss.kind == "grpo"
    assert (loss.ratio, loss.objective, loss.baseline) == ("sequence", "cispo", "leave_one_out")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed", "not of the form"),
        ("=3", "not of the form"),
        ("stage.nope.steps=3", "no entry 'nope'"),
        ("stage.7.steps=3", "no entry '7'"),
        ("stage.².steps=3", "no entry '²'"),
        ("name.inner=3", "is a value, not a section"),
        ("eval.rows.0.x=1", "'0' is a value, not a section"),
        ("eval.rows.0.x.y=1", "'0' is a value, not a section"),
    ],
)
def test_an_override_that_cannot_be_applied(recipe: Path, override: str, words: str) -> None:
    recipe.write_text(recipe.read_text() + "\n[eval]\nrows = ['base']\n")
    assert words in refusal(recipe, override)


def test_all_that_is_wrong_is_told_at_once(recipe: Path) -> None:
    message = refusal(recipe, "sed=1", "learner.ranks=0")
    assert "sed" in message
    assert "learner.ranks" in message


def test_nothing_can_be_changed_afterwards(recipe: Path) -> None:
    config = load_recipe(recipe)
    with pytest.raises(ValidationError):
        config.model.lora.rank = 4
    with pytest.raises(ValidationError):
        config.seed = 1


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    broken, latin, empty = tmp_path / "broken.toml", tmp_path / "latin.toml", tmp_path / "empty.toml"
    broken.write_text("name = ")
    latin.write_bytes(b'name = "\xff"')
    empty.touch()
    assert "no recipe at" in refusal(tmp_path / "nope.toml")
    assert "is a folder" in refusal(tmp_path)
    assert "is not valid TOML" in refusal(broken)
    assert "is not valid TOML" in refusal(latin)
    assert "'name' is missing; add it" in refusal(empty)


def test_every_recipe_that_ships_loads() -> None:
    root = Path(__file__).resolve().parents[2]
    for path in [*sorted((root / "recipes").glob("*.toml")), root / "speechsum" / "standalone.toml"]:
        assert load_recipe(path).name


@pytest.mark.parametrize("judge", ["judge", "eval.second_judge"])
@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("url=https://me:hunter2@host/v1", "the endpoint's url carries a user name or password"),
        ("url=https://hunter2@host/v1", "the endpoint's url carries a user name or password"),
        ("url=https://host/v1?api-version=3&api_key=hunter2", "the endpoint's url carries 'api_key'"),
        ("url=https://host/v1?sessionToken=hunter2", "the endpoint's url carries 'sessionToken'"),
        ("url=me:hunter2@host/v1", "the endpoint's url carries a user name or password"),
        ("api_key_env=hunter2", "the endpoint's api_key_env is the name of an environment variable"),
        ("api_key=hunter2", "unknown key"),
    ],
)
def test_a_secret_in_a_recipe_is_refused_and_not_repeated(recipe: Path, judge: str, setting: str, told: str) -> None:
    text = refusal(recipe, f"{judge}.endpoint.{setting}")
    assert told in text
    assert "hunter2" not in text


@pytest.mark.parametrize("judge", ["judge", "eval.second_judge"])
@pytest.mark.parametrize(
    "setting",
    [
        "=https://me:hunter2@host/v1",
        "=[{ endpoint = { url = 'https://me:hunter2@host/v1' } }]",
        ".endpoint=https://me:hunter2@host/v1",
        ".endpoint.url=['https://me:hunter2@host/v1']",
        ".endpoint.api_key_env=['hunter2']",
        ".endpoint.concurrency=hunter2",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated_either(recipe: Path, judge: str, setting: str) -> None:
    text = refusal(recipe, f"{judge}{setting}")
    assert f"'{judge}{setting.partition('=')[0]}" in text
    assert ": input should be a valid" in text
    assert "hunter2" not in text


def test_errors_of_a_section_do_not_quote_what_they_refuse() -> None:
    with pytest.raises(ValidationError) as refused:
        EndpointConfig(api_key_env="hunter2")
    assert "hunter2" not in str(refused.value)


def test_an_address_may_carry_what_is_no_secret() -> None:
    url = "https://host/v1?api-version=2026-01-01"
    assert EndpointConfig(url=url).url == url


@pytest.mark.parametrize("section", ["model", "teacher", "judge", "rollout.engine"])
def test_a_checkpoints_own_code_cannot_be_asked_for(recipe: Path, section: str) -> None:
    assert "unknown key" in refusal(recipe, f"{section}.trust_remote_code=true")


PAIRWISE = ("judge.kind=pairwise", 'judge.endpoint={ url = "http://judge/v1", model = "big" }')


def test_a_pairwise_judge_serves_only_what_compares(recipe: Path) -> None:
    to_dpo = ("stage.grpo.loss={ kind = 'dpo' }", "eval.clips=0")
    assert load_recipe(recipe, [*PAIRWISE, *to_dpo]).judge.kind == "pairwise"
    assert "set judge.kind to 'rubric', or the stage's loss.kind to 'dpo'" in refusal(recipe, *PAIRWISE, "eval.clips=0")
    assert "set eval.clips = 0" in refusal(recipe, *PAIRWISE, *to_dpo[:1])
    lexical = "eval.second_judge={ kind = 'lexical' }"
    assert load_recipe(recipe, [*PAIRWISE, *to_dpo[:1], lexical]).eval.clips > 0
    assert "needs judge.endpoint.url" in refusal(recipe, *PAIRWISE[:1], *to_dpo)
    second = "eval.second_judge={ kind = 'pairwise', endpoint = { url = 'http://judge/v1', model = 'big' } }"
    assert "eval.second_judge.kind = 'pairwise'" in refusal(recipe, second)


def test_an_audit_is_there_where_the_recipe_has_the_section(recipe: Path) -> None:
    assert load_recipe(recipe).judge.audit is None
    audit = load_recipe(recipe, ["judge.audit.clips=12"]).judge.audit
    assert audit is not None
    assert (audit.clips, audit.min_spearman, audit.min_win_rate, audit.every, audit.enforce) == (12, 0.85, 0.9, 0, True)
    assert "min_win_rate" in refusal(recipe, "judge.audit.min_win_rate=1.5")


def test_a_family_that_cannot_be_trained_is_refused_by_name(recipe: Path) -> None:
    assert "model.family = 'voxtral' cannot be trained: vLLM 0.32 loads it" in refusal(recipe, "model.family=voxtral")
