"""The ledger keeps every row, whole parts only, across resumes and failed writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from speechsum import ledger as ledger_module
from speechsum.errors import UserError
from speechsum.ledger import SCHEMA, Ledger, LedgerRow, part_files, read_ledger, read_part


def row(number: int = 0, **changes: Any) -> LedgerRow:
    values: dict[str, Any] = {
        "trajectory_id": f"t{number}",
        "run_id": "run",
        "stage": "grpo",
        "epoch": 0,
        "prompt_id": f"p{number // 4}",
        "sample": number % 4,
        "group_step": 3,
        "drop_reason": "",
        "policy_version": 2,
        "prompt_tokens": 100,
        "response_tokens": 3,
        "finish_reason": "stop",
        "text": f"summary {number}",
        "token_ids": [1, 2, 3],
        "logprobs": [-0.5, -0.25, 0.0],
        "reward": 0.75,
        "judge": "rubric/big/rubric-2",
        "breakdown": {"faithful": 1.0},
        "judge_failure": "",
        "gate": "",
        "advantage": -1.5,
    }
    return LedgerRow(**(values | changes))


def parts(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "trajectories").iterdir())


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record([row(1), row(2, group_step=None, drop_reason="judge_failed", reward=None, advantage=None,
                               judge_failure="timeout: no answer", breakdown={})])  # fmt: skip
    ledger.flush()
    table = read_ledger(tmp_path)
    assert table.schema.equals(SCHEMA)
    trained, dropped = table.to_pylist()
    assert trained["token_ids"] == [1, 2, 3]
    assert trained["logprobs"] == [-0.5, -0.25, 0.0]
    assert json.loads(trained["breakdown"]) == {"faithful": 1.0}
    assert (trained["reward"], trained["group_step"], trained["drop_reason"]) == (0.75, 3, "")
    assert (dropped["reward"], dropped["group_step"], dropped["advantage"]) == (None, None, None)
    assert dropped["judge_failure"] == "timeout: no answer"


def test_parts_rotate_and_flush_without_rows_writes_none(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, rows_per_part=2)
    for number in range(5):
        ledger.record([row(number)])
    assert parts(tmp_path) == ["part-00000.parquet", "part-00001.parquet"]
    ledger.flush()
    ledger.flush()
    assert parts(tmp_path) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert read_ledger(tmp_path)["trajectory_id"].to_pylist() == ["t0", "t1", "t2", "t3", "t4"]


def test_a_resumed_run_adds_after_the_last_part(tmp_path: Path) -> None:
    first = Ledger(tmp_path)
    first.record([row(0)])
    first.flush()
    before = (tmp_path / "trajectories/part-00000.parquet").read_bytes()
    (tmp_path / "trajectories/.part-00001.parquet.unfinished").write_bytes(b"cut off by a crash")
    second = Ledger(tmp_path)
    second.record([row(1)])
    second.flush()
    assert (tmp_path / "trajectories/part-00000.parquet").read_bytes() == before
    assert parts(tmp_path) == ["part-00000.parquet", "part-00001.parquet"]
    assert read_ledger(tmp_path)["trajectory_id"].to_pylist() == ["t0", "t1"]


def test_parts_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, rows_per_part=1)
    for number in range(3):
        ledger.record([row(number)])
    ledger = Ledger(tmp_path)
    ledger.record([row(9)])
    ledger.rewind(1)
    ledger.record([row(1)])
    ledger.flush()
    assert read_ledger(tmp_path)["trajectory_id"].to_pylist() == ["t0", "t1"]
    assert ledger.parts == 2


def test_numbers_sort_beyond_five_digits(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger._next = 99_999
    for number in range(2):
        ledger.record([row(number)])
        ledger.flush()
    assert Ledger(tmp_path).parts == 100_001
    assert read_ledger(tmp_path)["trajectory_id"].to_pylist() == ["t0", "t1"]


def test_a_failed_write_keeps_the_rows_and_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    ledger.record([row(0)])

    def disk_full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module.pq, "write_table", disk_full)
        with pytest.raises(OSError, match="No space"):
            ledger.flush()
    assert parts(tmp_path) == []
    ledger.flush()
    assert read_ledger(tmp_path)["trajectory_id"].to_pylist() == ["t0"]


def test_some_columns_of_a_part(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record([row(0, reward=0.0, gate="echo"), row(1)])
    ledger.flush()
    (part,) = part_files(tmp_path / "trajectories")
    assert read_part(part, ["sample", "gate"]).to_pylist() == [{"sample": 0, "gate": "echo"}, {"sample": 1, "gate": ""}]


def test_half_a_surrogate_pair_is_stored_as_a_question_mark(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record([row(0, text="a\ud800b")])
    ledger.flush()
    assert read_ledger(tmp_path)["text"].to_pylist() == ["a?b"]


def test_rows_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(AssertionError):
        row(group_step=None)
    with pytest.raises(AssertionError):
        row(drop_reason="stale")
    with pytest.raises(AssertionError):
        row(judge_failure="timeout")


def test_reading_what_is_not_there_or_not_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="folder of a run"):
        read_ledger(tmp_path)
    Ledger(tmp_path)
    assert read_ledger(tmp_path).num_rows == 0
    (tmp_path / "trajectories/part-00000.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"part-00000\.parquet"):
        read_ledger(tmp_path)
