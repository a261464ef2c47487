"""The ablations: what the variants are, and a table that pools seeds and pairs stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import ablations
from tools.ablations import MEASURES, main, table, variants


def finished(folder: Path, name: str, judge: dict[str, list[float]], last: str = "dpo") -> None:
    """A run's files as far as the table reads them: the judge's reward of each row's items. `after` is after `last`."""
    run = folder / name
    run.mkdir(parents=True)
    items = [
        {
            "id": f"p{i}",
            "recording": f"clip-{i}",
            "answers": {row: {"measures": {"judge": v[i]}} for row, v in judge.items()},
        }
        for i in range(2)
    ]
    (run / "eval.json").write_text(json.dumps({"items": items}))
    stages = [row for row in judge if row not in ("before", "teacher", "after")]
    (run / "summary.json").write_text(json.dumps({"stages": [*stages, last], "wall_s": 120.0}))


def test_variants_differ_from_the_recipe_by_their_stages_and_teacher() -> None:
    made = variants(5)
    stages = {name: [stage.name for stage in config.stage] for name, config in made.items()}
    assert stages["full"] == ["sft", "opd", "dpo"]
    assert stages["grpo"] == ["sft", "opd", "grpo"]
    assert stages["longer-sft"] == ["sft"]
    assert stages["sft-dpo"] == ["sft", "dpo"]
    assert (stages["opd"], stages["dpo"]) == (["opd"], ["dpo"])
    assert all(config.seed == 5 for config in made.values())
    assert stages["early"] == stages["full"]
    assert (made["full"].data.speech.terse, made["early"].data.speech.terse) == (0.6, 0)
    assert made["early"].eval == made["full"].eval
    assert made["own-teacher"].teacher.adapter == made["full"].model.adapter != made["full"].teacher.adapter


def test_seeds_are_pooled_and_each_stage_is_paired_with_the_one_above(tmp_path: Path) -> None:
    read = {"teacher": [0.9, 0.9]}  # by whom nothing is trained
    finished(tmp_path, "full-1", {"before": [0.1, 0.3], **read, "sft": [0.2, 0.4], "after": [0.2, 0.4]})
    finished(tmp_path, "full-2", {"before": [0.2, 0.4], "sft": [0.3, 0.5], "after": [0.3, 0.5]})
    lines = table(tmp_path).splitlines()
    blank = " | " * (len(MEASURES) - 1)
    assert lines[2].replace("  ", " ") == f"| full | start | 0.250{blank} |".replace("  ", " ")
    assert "| full | after sft | 0.350 (+0.100, +0.100) |" in lines[3]
    assert "| full | after dpo | 0.350 (+0.000, +0.000) |" in lines[4]
    assert lines[-1] == "- full: seeds 1, 2; minutes 2, 2; 4 items"


def test_variants_are_compared_on_the_items_of_the_seeds_that_both_have(tmp_path: Path) -> None:
    finished(tmp_path, "full-1", {"before": [0.0, 0.0], "opd": [0.2, 0.4], "after": [0.5, 0.7]})
    finished(tmp_path, "full-2", {"before": [0.0, 0.0], "opd": [0.0, 0.0], "after": [0.0, 0.0]})
    finished(tmp_path, "longer-sft-1", {"before": [0.0, 0.0], "after": [0.3, 0.5]}, "sft")
    finished(tmp_path, "own-teacher-1", {"before": [0.0, 0.0], "after": [0.1, 0.3]}, "opd")
    lines = table(tmp_path).splitlines()
    assert "| full less longer-sft | after dpo | +0.200 (+0.200, +0.200) |" in lines[9]
    assert "| full less own-teacher | after opd | +0.100 (+0.100, +0.100) |" in lines[10]


def test_an_item_without_a_value_is_left_out_of_the_pairs(tmp_path: Path) -> None:
    finished(tmp_path, "full-1", {"before": [0.1, None], "sft": [0.4, 0.9], "after": [0.4, 0.9]})  # type: ignore[dict-item, list-item]
    lines = table(tmp_path).splitlines()
    assert "| full | start | 0.100 |" in lines[2]
    assert "| full | after sft | 0.400 (+0.300, +0.300) |" in lines[3]


def test_a_variant_that_is_none_is_refused_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(ablations, "run_all", lambda folder, seeds, only: ran.append(only))
    monkeypatch.setattr("sys.argv", ["ablations.py", "run", str(tmp_path), "--only", "grpo", "sft"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "'sft'" in told
    assert all(name in told for name in variants(0))
    for only in ([], ["--only", "grpo", "own-teacher"]):
        monkeypatch.setattr("sys.argv", ["ablations.py", "run", str(tmp_path), *only])
        assert main() == 0
    assert ran == [[], ["grpo", "own-teacher"]]
