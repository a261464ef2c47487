"""When a run folder may be begun, gone on with or replaced."""

import json
from functools import reduce
from pathlib import Path

import pytest

from cluster.run_folder import MAY_CHANGE, RunFolder
from speechsum.config import RunConfig, parse
from speechsum.errors import UserError


def config(**changes: object) -> RunConfig:
    tree = {"name": "t", "stage": [{"name": "a", "steps": 2, "loss": {"kind": "sft"}}]}
    return parse({**tree, **changes}, "test")


def test_a_new_folder_holds_the_resolved_recipe(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "deep" / "run", config())
    assert RunConfig.model_validate_json(folder.config.read_text()) == config()
    assert folder.trajectories.is_dir()
    assert folder.checkpoints.is_dir()
    assert folder.logs.is_dir()
    assert RunFolder.open(folder.path) == folder


def test_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    assert RunFolder.create(tmp_path, config()).config.exists()


def test_an_occupied_folder_is_refused_with_the_remedy(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", config())
    with pytest.raises(UserError, match=r"--resume to go on.*--overwrite to move.*another --run-dir"):
        RunFolder.create(tmp_path / "run", config())


def test_overwrite_moves_the_old_run_aside_and_keeps_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for seed in range(4):
        RunFolder.create(path, config(seed=seed), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.old-3"]
    assert json.loads((tmp_path / "run.old-3" / "config.json").read_text())["seed"] == 2


def test_starts_that_came_to_nothing_do_not_cost_the_finished_run_moved_aside(tmp_path: Path) -> None:
    path = tmp_path / "run"
    (RunFolder.create(path, config(seed=0)).checkpoints / "step_000001").mkdir()
    RunFolder.create(path, config(seed=1), overwrite=True).write_summary({"steps": 1})
    for seed in (2, 3, 4):
        RunFolder.create(path, config(seed=seed), overwrite=True)
    kept = [json.loads((p / "config.json").read_text())["seed"] for p in sorted(tmp_path.iterdir())]
    assert kept == [4, 1, 3]  # the run, the finished one, and the newest of those that came to nothing
    RunFolder(path).write_summary({"steps": 1})
    RunFolder.create(path, config(seed=5), overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_moved_aside_is_kept_while_it_got_further(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for seed, steps in enumerate((900, 10, 1000)):
        folder = RunFolder.create(path, config(seed=seed), overwrite=True)
        (folder.checkpoints / f"step_{steps:06d}").mkdir()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.old-1", "run.old-2"]
    RunFolder.create(path, config(seed=3), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.old-3"]


def test_a_folder_is_reserved_without_being_made(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder.reserve(path, config(), resume=False, overwrite=False)
    assert not path.exists()
    RunFolder.create(path, config())
    RunFolder.reserve(path, config(), resume=False, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.old-1"]


def test_overwrite_deletes_nothing_that_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "run"
    (tmp_path / "run.old-7").mkdir()
    (tmp_path / "run.old-7" / "letters.txt").write_text("mine")
    RunFolder.create(path, config())
    RunFolder.create(path, config(), overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "run.old-7", "run.old-8"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="another --run-dir"):
        RunFolder.create(tmp_path, config(), overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_resume_wants_the_same_recipe(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, config())
    assert RunFolder.create(tmp_path, config(), resume=True).path == tmp_path
    with pytest.raises(UserError, match=r"seed \(was 0, now 4\), rollout\.max_tokens \(was 48, now 9\)"):
        RunFolder.create(tmp_path, config(seed=4, rollout={"max_tokens": 9}), resume=True)


RUBRIC = {"kind": "rubric", "endpoint": {"url": "http://a/v1", "model": "big"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"judge": RUBRIC | {"audit": {"enforce": False}}},
        {"judge": RUBRIC | {"max_failure_share": 0.5, "pool": {"max": 4}}},
        {"judge": {"kind": "rubric", "endpoint": {"url": "http://b/v1", "model": "big", "timeout_s": 9}}},
        {"learner": {"ranks": 1, "threads_per_rank": 2}, "rollout": {"actors": 3, "resources": {"big": 1}}},
        {"watch": {"wandb": "disabled"}, "keep_checkpoints": 5, "teacher": {"call_timeout_s": 9}},
    ],
)
def test_what_is_neither_trained_nor_measured_may_change(tmp_path: Path, changes: dict[str, object]) -> None:
    RunFolder.create(tmp_path, config(judge=RUBRIC))
    now = config(**({"judge": RUBRIC} | changes))
    folder = RunFolder.create(tmp_path, now, resume=True)
    assert RunConfig.model_validate_json(folder.config.read_text()) == now


def test_the_model_behind_an_endpoint_may_not_change(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, config(judge=RUBRIC))
    other = config(judge={"kind": "rubric", "endpoint": {"url": "http://a/v1", "model": "small"}})
    with pytest.raises(UserError, match=r"judge\.endpoint\.model \(was \"big\", now \"small\"\); restore"):
        RunFolder.create(tmp_path, other, resume=True)


def test_every_key_that_may_change_is_one() -> None:
    whole = config(eval={"second_judge": RUBRIC}).model_dump()
    for key in MAY_CHANGE:
        *sections, last = key.split(".")
        assert last in reduce(dict.__getitem__, sections, whole), key


def test_resume_names_values_that_came_or_went(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, config())
    folder.config.write_text(folder.config.read_text().replace('"seed": 0', '"sown": 0'))
    with pytest.raises(UserError, match=r"sown \(was 0, now absent\), seed \(was absent, now 0\)"):
        RunFolder.create(tmp_path, config(), resume=True)


def test_a_key_that_has_come_since_has_its_default(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, config())
    saved = json.loads(folder.config.read_text())
    del saved["rollout"]["prompts_per_request"]
    folder.config.write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"rollout\.prompts_per_request \(was 8, now 9\)"):
        RunFolder.create(tmp_path, config(rollout={"prompts_per_request": 9}), resume=True)
    assert RunFolder.create(tmp_path, config(), resume=True) == folder


@pytest.mark.parametrize("content", [None, "{"])
def test_resume_wants_a_run(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"leave out --resume|damaged"):
        RunFolder.create(tmp_path, config(), resume=True)


def test_odd_places_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="is a file"):
        RunFolder.create(file, config())
    with pytest.raises(UserError, match="choose another --run-dir"):
        RunFolder.create(file / "below", config())
    with pytest.raises(UserError, match="one of the two"):
        RunFolder.create(tmp_path, config(), resume=True, overwrite=True)
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path)


def test_the_summary_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, config())
    with pytest.raises(UserError, match="finish the run"):
        folder.read_summary()
    folder.write_summary({"steps": 3, "rollout_vs_vllm": None})
    with pytest.raises(ValueError, match=r"'eval\.after\.judge\.ci95\.1' is not a finite number"):
        folder.write_summary({"eval": {"after": {"judge": {"ci95": [0.1, float("nan")]}}}})
    assert folder.read_summary() == {"steps": 3, "rollout_vs_vllm": None}
    assert [p.name for p in tmp_path.iterdir() if "unfinished" in p.name] == []
