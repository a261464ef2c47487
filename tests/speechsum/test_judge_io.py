"""`judge score` files: a row out for each row in, whatever the row; a bad file is refused before judging."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speechsum.errors import UserError
from speechsum.judge_io import Judged, PairOfRewards, as_preference, read_tasks, write_judgements
from speechsum.types import FailureKind, JudgeFailure, Judgement, JudgeTask, PairTask, Reward

GOOD = {"transcript": "t", "instruction": "i", "summary": "s"}
JUDGE = "rubric/big/rubric-2"


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_good_rows_become_tasks_and_keep_other_fields(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", json.dumps(GOOD | {"id": 7}), "", json.dumps(GOOD | {"summary": ""}), "")
    (first, row), (second, _) = read_tasks(path)
    assert first == JudgeTask("t", "i", "s")
    assert row["id"] == 7
    assert second == JudgeTask("t", "i", "")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"transcript": "t", "instruction": "i"}', "no 'summary'"),
        ('{"transcript": 3, "instruction": "i", "summary": "s"}', "'transcript' is not a string"),
        ('{"transcript": "t", "instruction": null, "summary": "s"}', "'instruction' is not a string"),
        ('{"transcript": " ", "instruction": "i", "summary": "s"}', "'transcript' is empty"),
        ('{"transcript": "t\\ud800", "instruction": "i", "summary": "s"}', "'transcript' holds a lone surrogate"),
        ('{"transcript": "t", "instruction": "i", "summary": "s", "other": null}', "'other' is not a string"),
        ('{"transcript": "t", ', "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("[" * 20_000, "not JSON"),
        ('{"transcript": "t", "instruction": "i", "summary": "s", "x": NaN}', "not JSON"),
        ('{"transcript": "t", "instruction": "i", "summary": "s", "x": 1e999}', "not JSON"),
    ],
)
def test_a_bad_row_costs_that_row_only(tmp_path: Path, line: str, says: str) -> None:
    entries = read_tasks(written(tmp_path / "in.jsonl", json.dumps(GOOD), line, json.dumps(GOOD)))
    assert [type(task) for task, _ in entries] == [JudgeTask, JudgeFailure, JudgeTask]
    failure = entries[1][0]
    assert isinstance(failure, JudgeFailure)
    assert failure.kind is FailureKind.BAD_ROW
    assert "line 2" in failure.detail
    assert says in failure.detail


def test_files_that_cannot_be_judged_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file at"):
        read_tasks(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="has no rows"):
        read_tasks(written(tmp_path / "empty.jsonl", "", "  "))
    with pytest.raises(UserError, match="cannot read"):
        read_tasks(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"transcript": "t"}\n{"transcript": "caf\xe9"}\n')
    with pytest.raises(UserError, match="line 2 is not UTF-8"):
        read_tasks(tmp_path / "latin.jsonl")


def test_bom_crlf_and_line_separators_inside_strings(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(GOOD | {"summary": "a\u2028b"}, ensure_ascii=False).encode() + b"\r\n"
    )
    assert [task for task, _ in read_tasks(path)] == [JudgeTask("t", "i", "a\u2028b")]


def test_judgements_are_written_beside_their_rows(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    judgements: list[Judgement] = [
        Reward(0.75, {"faithful": 1.0}),
        Reward(0.0, gate="empty"),
        JudgeFailure(FailureKind.TIMEOUT, "no answer"),
    ]
    write_judgements(out, [GOOD, GOOD | {"reward": "old", "judge": "old"}, GOOD], judgements, JUDGE)
    scored, gated, failed = (json.loads(line) for line in out.read_text(encoding="utf-8").splitlines())
    assert scored == GOOD | {
        "judge": JUDGE,
        "reward": 0.75,
        "failure": None,
        "gate": "",
        "breakdown": {"faithful": 1.0},
    }
    assert gated == GOOD | {"judge": JUDGE, "reward": 0.0, "failure": None, "gate": "empty", "breakdown": {}}
    assert failed["reward"] is None
    assert failed["failure"] == {"kind": "timeout", "detail": "no answer"}
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_row_with_another_summary_is_a_pair(tmp_path: Path) -> None:
    path = written(tmp_path / "in.jsonl", json.dumps(GOOD | {"other": "o"}), json.dumps(GOOD | {"other": ""}))
    assert [task for task, _ in read_tasks(path)] == [PairTask("t", "i", "s", "o"), PairTask("t", "i", "s", "")]


def test_pairs_are_told_by_who_judged_them(tmp_path: Path) -> None:
    failed = JudgeFailure(FailureKind.TIMEOUT, "no answer")
    row = GOOD | {"other": "o"}
    judged: list[Judged] = [
        PairOfRewards(Reward(0.75, {"faithful": 1.0}), Reward(0.5, gate="g")),
        PairOfRewards(Reward(0.75), failed),
        as_preference(Reward(0.85, {"flipped": 0.0})),
        as_preference(Reward(0.5)),
        as_preference(Reward(0.25)),
        as_preference(failed),
    ]
    write_judgements(tmp_path / "out.jsonl", [row] * len(judged), judged, JUDGE)
    both, half, *compared = (json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert both == row | {
        "judge": JUDGE, "reward": 0.75, "failure": None, "gate": "", "breakdown": {"faithful": 1.0},
        "other_reward": 0.5, "other_failure": None, "other_gate": "g", "other_breakdown": {}, "difference": 0.25,
    }  # fmt: skip
    assert (half["reward"], half["other_reward"], half["difference"]) == (0.75, None, None)
    assert half["other_failure"]["kind"] == "timeout"
    assert [(line["reward"], line.get("preferred")) for line in compared] == [
        (0.85, "summary"), (0.5, "tie"), (0.25, "other"), (None, None),
    ]  # fmt: skip
    assert compared[-1]["failure"]["kind"] == "timeout"


def test_output_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_judgements(tmp_path / "absent/out.jsonl", [GOOD], [Reward(1.0)], JUDGE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(json_values | st.fixed_dictionaries(dict.fromkeys(GOOD, json_values)), min_size=1, max_size=5))
def test_a_row_out_for_each_row_in(tmp_path: Path, rows: list[object]) -> None:
    entries = read_tasks(written(tmp_path / "in.jsonl", *(json.dumps(row) for row in rows)))
    judgements = [task if isinstance(task, JudgeFailure) else Reward(0.5) for task, _ in entries]
    write_judgements(tmp_path / "out.jsonl", [row for _, row in entries], judgements, JUDGE)
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(lines) == len(rows)
    assert all((json.loads(line)["reward"] is None) != (json.loads(line)["failure"] is None) for line in lines)
