"""The paper's stages one after the other in one run, and an offline stage on the pairs which that run has made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from actors.likelihood_judge import revision
from cluster.teach import teach
from cluster.train import run
from speechsum.config import parse
from speechsum.errors import UserError
from speechsum.ledger import read_ledger
from speechsum.metrics import describe
from speechsum.pairs import read_pairs
from tests.processes import leftover_processes

pytestmark = pytest.mark.e2e

OPTIMIZER = {"lr": 1e-3, "warmup_steps": 0}
RULES = {"margin": 0.0, "max_length_ratio": 100.0}


@pytest.fixture(scope="module")
def finished(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The student is its own teacher, in text mode, and the judge asks that teacher's engine."""
    opd = {"kind": "opd", "top_k": 8}
    stages = [
        {"name": "sft", "steps": 2, "groups_per_step": 4, "loss": {"kind": "sft"}},
        {"name": "opd", "steps": 2, "groups_per_step": 2, "group_size": 2, "loss": opd},
        {"name": "dpo", "steps": 2, "groups_per_step": 2, "group_size": 4, "loss": {"kind": "dpo", "rules": RULES}},
        {"name": "mix", "steps": 1, "groups_per_step": 2, "group_size": 4,
         "loss": {"kind": "grpo", "distill": 0.1, "reference_kl": 0.01}},
    ]  # fmt: skip
    engine = recipe["rollout"]["engine"]
    teacher = {"path": recipe["model"]["path"], "dtype": "float32", "engine": engine}
    judge = {"kind": "likelihood", "path": "teacher"}
    tree = recipe | {"judge": judge, "teacher": teacher}
    tree["stage"] = [stage | {"optimizer": OPTIMIZER} for stage in stages]
    tree["eval"] = recipe["eval"] | {"rows": ["text-mode", "teacher"]}
    folder = tmp_path_factory.mktemp("runs") / "paper"
    return folder, run(parse(tree, "paper"), folder, address=None, resume=False, overwrite=False)


def lines(folder: Path, stage: str) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in told if line["stage"] == stage]


def test_every_stage_ran_and_every_figure_is_described(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    assert summary["stages"] == ["sft", "opd", "dpo", "mix"]
    assert summary["steps"] == 7
    assert set(summary["eval"]["stages"]) == {"sft", "opd", "dpo"}
    assert all(evaluation["n"] == 4 for evaluation in summary["eval"]["stages"].values())
    for stage in summary["stages"]:
        for line in lines(folder, stage):
            assert all(describe(name) for name in set(line) - {"time", "stage", "step"})
            assert line["learner/skipped"] == 0


def test_the_stages_stand_side_by_side_in_the_report(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    figures = json.loads((folder / "eval.json").read_text())
    assert list(figures["rows"]) == ["before", "text-mode", "teacher", "sft", "opd", "dpo", "after"]
    assert set(summary["eval"]["rows"]) == {"text-mode", "teacher"}
    for item in figures["items"]:  # before training, the student in text mode is its own teacher
        assert item["answers"]["text-mode"]["summary"] == item["answers"]["teacher"]["summary"]
    assert [own["held_out"] for own in figures["kinds"].values()] == [False]
    assert figures["baseline"] == "before"
    assert "| opd |" in (folder / "eval.md").read_text()
    assert (folder / "eval.html").read_text().count("<audio") == 4


def test_the_teacher_was_asked_where_the_stage_says_so(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    for line in lines(folder, "opd"):
        assert line["learner/teacher_divergence"] > 0
        assert 0 < line["learner/teacher_top"] <= 1
        assert 0 < line["teacher/exposed_s"] <= line["teacher/teach_s"] + 1
        assert line["teacher/failure_share"] == 0
        assert "judge/reward_mean" not in line
    (mix,) = lines(folder, "mix")
    assert mix["learner/teacher_advantage"] != 0
    assert mix["judge/failure_share"] == 0
    assert all("teacher/teach_s" not in line for line in lines(folder, "dpo"))


def test_the_ledger_knows_pairs_and_lessons_from_rewards(
    finished: tuple[Path, dict[str, Any]], tiny_30s_path: Path
) -> None:
    rows = read_ledger(finished[0]).to_pylist()
    taught = [r for r in rows if r["stage"] == "opd" and r["group_step"]]
    assert len(taught) == 2 * 2 * 2
    assert all(r["reward"] is None and r["advantage"] is None and not r["judge_failure"] for r in taught)
    paired = [r for r in rows if r["pair"] is not None]
    assert {r["stage"] for r in paired} == {"dpo"}
    assert {r["judge"] for r in paired} == {f"likelihood/{revision(tiny_30s_path)}/likelihood-1"}
    assert sum(r["preferred"] for r in paired) == len(paired) / 2 == 2 * 2
    by_prompt: dict[tuple[int, str], dict[bool, float]] = {}
    for r in paired:
        by_prompt.setdefault((r["epoch"], r["prompt_id"]), {})[r["preferred"]] = r["reward"]
    assert all(rewards[True] > rewards[False] for rewards in by_prompt.values())


def test_a_run_on_the_pairs_that_another_has_made(
    finished: tuple[Path, dict[str, Any]], recipe: dict[str, Any], tmp_path: Path
) -> None:
    folder, _ = finished
    assert len(read_pairs(folder)) == 4
    stage = {
        "name": "offline", "steps": 2, "groups_per_step": 2, "checkpoint_every": 1, "optimizer": OPTIMIZER,
        "loss": {"kind": "dpo", "beta": 1.0, "pairs": str(folder)},
    }  # fmt: skip
    tree = recipe | {"stage": [stage], "eval": recipe["eval"] | {"clips": 0}}
    config, target = parse(tree, "offline"), tmp_path / "run"
    run(config, target, address=None, resume=False, overwrite=False)
    told = lines(target, "offline")
    assert told[0]["learner/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert told[1]["learner/loss"] != pytest.approx(0.6931, abs=1e-2)
    assert all(not any(name.startswith(("judge/", "rollout/")) for name in line) for line in told)
    shutil.rmtree(max((target / "checkpoints").glob("step_*")))
    (target / "summary.json").unlink()
    run(config, target, address=None, resume=True, overwrite=False)
    again = lines(target, "offline")
    assert [line["step"] for line in again] == [1, 2]
    assert again[1]["learner/loss"] == pytest.approx(told[1]["learner/loss"], abs=1e-5)  # the reference is still step 0


def test_a_teacher_of_any_vocabulary_writes_references(
    recipe: dict[str, Any], manifest: Path, tiny_30s_path: Path
) -> None:
    teacher = {"path": str(tiny_30s_path), "dtype": "float32", "engine": recipe["rollout"]["engine"]}
    out = manifest.with_name("taught.jsonl")
    teach(parse(recipe | {"teacher": teacher}, "taught"), manifest, out, print)
    before, after = ([json.loads(line) for line in path.read_text().splitlines()] for path in (manifest, out))
    assert [row["id"] for row in before] == [row["id"] for row in after]
    assert all(
        a["reference"] != b["reference"] and a["audio"] == b["audio"] for a, b in zip(after, before, strict=True)
    )
    assert len({row["reference"] for row in after}) == 1  # of one transcript, greedily
    with pytest.raises(UserError, match="has to be another"):
        teach(parse(recipe | {"teacher": teacher}, "taught"), manifest, manifest, print)


def test_nothing_is_left_running(finished: tuple[Path, dict[str, Any]]) -> None:
    assert leftover_processes() == []
