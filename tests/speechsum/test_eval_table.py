"""Rows side by side, with numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from speechsum.eval_table import EvalTable, Evaluation, compare, judgement_row, means
from speechsum.types import AudioRef, FailureKind, JudgeFailure, Prompt, Reward

PROMPTS = [Prompt(name, AudioRef(f"/{name[0]}.wav"), "Sum up.", "said", "ref") for name in ("a1", "a2", "b1", "b2")]
RECORDINGS = [p.audio.key for p in PROMPTS]


def row(*rewards: float | None) -> Evaluation:
    return {"rows": {"judge": list(rewards), "rougeL": [None] * len(rewards)}, "summaries": ["s"] * len(rewards)}


def table(**rows: Sequence[float | None]) -> EvalTable:
    found = EvalTable(PROMPTS, bootstrap=200)
    for name, rewards in rows.items():
        found.add_row(name, row(*rewards))
    return found


def test_means_are_by_recording_and_skip_what_is_unknown() -> None:
    found = means({"judge": [0.0, None, 1.0, 1.0], "rougeL": [None] * 4}, RECORDINGS, 400)
    # Two recordings, one answer of 0 and two of 1: drawn with replacement, means from 0 to 1.
    assert found.pop("known") == {"judge": 3, "rougeL": 0}
    assert found == {"n": 4, "judge": {"mean": pytest.approx(2 / 3), "ci95": [0.0, 1.0]}, "rougeL": None}


def test_each_row_is_compared_with_the_first() -> None:
    found = table(base=(0.1, 0.2, 0.3, None), sft=(0.2, 0.2, 0.2, 0.9), dpo=(0.3, 0.4, None, 0.1)).figures()
    assert (found["baseline"], list(found["rows"]), list(found["against_baseline"])) == (
        "base", ["base", "sft", "dpo"], ["sft", "dpo"],
    )  # fmt: skip
    sft, dpo = found["against_baseline"].values()
    assert sft["pairs"] == {"judge": {"items": 3, "recordings": 2}}
    assert sft["difference"]["judge"]["mean"] == pytest.approx(0.0)
    assert sft["win_rate"]["judge"] == {"mean": pytest.approx(0.5), "ci95": [0.0, 0.75]}  # a: 1 and a tie; b: 0
    assert dpo["win_rate"]["judge"] == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert dpo["pairs"] == {"judge": {"items": 2, "recordings": 1}}
    assert "rougeL" not in dpo["difference"]


def test_the_figures_are_json_with_every_item() -> None:
    whole = row(0.5, 0.5, 0.5, 0.5) | {
        "judgements": {"judge": [judgement_row(Reward(0.5, {"faithful": 1.0}, notes="fine"))] * 4},
        "judges": {"judge": "rubric/7b"},
        "controls": {"no_audio": ["quiet"] * 4},
    }
    found = EvalTable(PROMPTS, 50)
    found.add_row("cascade", whole)
    figures = found.figures()
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["n"], figures["recordings"], figures["judges"]) == (4, 2, {"judge": "rubric/7b"})
    answer = figures["items"][2]["answers"]["cascade"]
    assert answer["measures"] == {"judge": 0.5, "rougeL": None}
    assert answer["judgements"]["judge"]["breakdown"] == {"faithful": 1.0}
    assert answer["controls"] == {"no_audio": "quiet"}


def test_a_comparison_takes_what_both_have() -> None:
    found = compare({"judge": [0.5], "old": [1.0]}, {"judge": [0.7], "new": [1.0]}, ["r"], 10)
    assert found["difference"].keys() == {"judge"}


def test_a_second_judge_has_a_win_rate_of_its_own() -> None:
    found = compare({"second_judge": [0.5, 0.5]}, {"second_judge": [0.4, 0.6]}, ["r", "s"], 10)
    assert found["win_rate"]["second_judge"]["mean"] == 0.5


def test_a_failed_judgement_keeps_its_reason() -> None:
    assert judgement_row(JudgeFailure(FailureKind.TIMEOUT, "60 s")) == {
        "reward": None, "failure": {"kind": "timeout", "detail": "60 s"}, "gate": "", "breakdown": {}, "notes": "",
    }  # fmt: skip


def test_kinds_and_rules_have_means_of_their_own() -> None:
    requests = [("Give me two bullets.", ""), ("In one sentence.", ""), ("Sum up.", "task"), ("Give me bullets.", "")]
    prompts = [
        Prompt(str(i), AudioRef(f"/{i}.wav"), asked, "said", request=kind) for i, (asked, kind) in enumerate(requests)
    ]
    found = EvalTable(prompts, 20, trained=frozenset({"bullets", "sentences"}))
    said = ["- a\n- b\n- c\n- d", "One. Two.", "Yes.", "- a\n- b"]
    found.add_row("sft", {"rows": {"judge": [0.2, 0.4, None, 0.6]}, "summaries": said})
    found.add_row("none", {"rows": {"judge": [0.0] * 4}, "summaries": [""] * 4, "system": "says nothing"})
    figures = found.figures()
    kinds = {kind: (own["n"], own["held_out"]) for kind, own in figures["kinds"].items()}
    assert kinds == {"bullets": (2, False), "sentences": (1, False), "task": (1, True)}
    assert figures["kinds"]["bullets"]["rows"]["sft"]["judge"]["mean"] == pytest.approx(0.4)
    assert figures["kinds"]["task"]["rows"]["sft"]["judge"] is None
    means_of = {rule: {name: own["mean"] for name, own in rows.items()} for rule, rows in figures["rules"].items()}
    assert means_of == {"sentences": {"sft": 0.5, "none": 0.0}, "bullets": {"sft": 0.75, "none": 0.0}}
    assert figures["systems"] == {"none": "says nothing"}
    assert figures["items"][2]["kind"] == "task"
    assert {own["held_out"] for own in EvalTable(prompts, 20, rows=found.rows).figures()["kinds"].values()} == {None}


def test_rows_that_do_not_fit_are_refused() -> None:
    found = table(base=(0.1, 0.2, 0.3, 0.4))
    with pytest.raises(ValueError, match="two rows called 'base'"):
        found.add_row("base", row(0.1, 0.2, 0.3, 0.4))
    with pytest.raises(ValueError, match=r"about \[3\] items, the table about 4"):
        found.add_row("other", row(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="without rows"):
        EvalTable(PROMPTS).figures()
