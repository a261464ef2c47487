"""Which completions make a pair, and where pairs are read from."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechsum.errors import UserError
from speechsum.ledger import Ledger, LedgerRow
from speechsum.objectives import PairRules
from speechsum.pairs import Pair, choose_pairs, fared, read_pairs
from speechsum.types import FailureKind, JudgeFailure, Preference, Reward

FREE = PairRules(margin=0.0, faithful_first=False, max_length_ratio=100.0, per_prompt=9)


def rewards(*values: float | None) -> list[Reward | None]:
    return [None if v is None else Reward(v) for v in values]


def rules(**changes: object) -> PairRules:
    return FREE.model_copy(update=changes)


def test_the_widest_pair_comes_first_and_no_completion_twice():
    assert choose_pairs(rewards(0.2, 0.9, 0.5, 0.4), [5] * 4, FREE) == [(1, 0), (2, 3)]
    assert choose_pairs(rewards(0.2, 0.9, 0.5, 0.4), [5] * 4, rules(per_prompt=1)) == [(1, 0)]


def test_a_failed_judgement_is_on_no_side():
    assert choose_pairs(rewards(None, 0.9, None, 0.4), [5] * 4, FREE) == [(1, 3)]
    assert choose_pairs(rewards(None, 0.9), [5] * 2, FREE) == []


def test_equal_rewards_make_no_pair():
    assert choose_pairs(rewards(0.5, 0.5, 0.5), [5] * 3, FREE) == []


FAILED = JudgeFailure(FailureKind.TIMEOUT)
COMPARED = [Preference(0, 1, Reward(0.15)), Preference(0, 2, Reward(0.5)), Preference(1, 2, FAILED)]


def test_a_pairwise_judge_decides_by_the_pair_itself():
    assert choose_pairs(rewards(0.3, 0.85, 0.5), [5] * 3, FREE, COMPARED) == [(1, 0)]
    assert choose_pairs(rewards(0.3, 0.85, 0.5), [5] * 3, rules(margin=0.7), COMPARED) == [(1, 0)]  # 0.85 - 0.15
    assert choose_pairs(rewards(0.3, 0.85, 0.5), [5] * 3, rules(margin=0.71), COMPARED) == []
    assert choose_pairs(rewards(0.3, 0.85, 0.5), [20, 5, 5], rules(max_length_ratio=3.0), COMPARED) == []


def test_where_a_pairwise_judge_abstains_there_is_no_pair_whatever_the_rewards():
    assert choose_pairs(rewards(0.9, 0.1, 0.5), [5] * 3, FREE, [Preference(0, 1, Reward(0.5))]) == []


def test_how_each_of_a_group_fared():
    first, second, third = fared(3, COMPARED)
    assert first == Reward((0.15 + 0.5) / 2, {"won": 0.0, "lost": 1.0, "abstained": 1.0})
    assert second == Reward(0.85, {"won": 1.0, "lost": 0.0, "abstained": 0.0})  # what failed counts on neither side
    assert third == Reward(0.5, {"won": 0.0, "lost": 0.0, "abstained": 1.0})
    assert fared(2, [Preference(0, 1, FAILED)]) == [FAILED, FAILED]


def test_the_margin_is_the_least_difference():
    assert choose_pairs(rewards(0.75, 0.5), [5] * 2, rules(margin=0.25)) == [(0, 1)]
    assert choose_pairs(rewards(0.75, 0.51), [5] * 2, rules(margin=0.25)) == []


def test_a_pair_of_very_different_lengths_teaches_length():
    chosen = choose_pairs(rewards(0.9, 0.1, 0.3), [30, 9, 11], rules(max_length_ratio=3.0))
    assert chosen == [(0, 2)]


@pytest.mark.parametrize("name", ["faithful", "support"])
def test_the_less_faithful_is_never_preferred(name: str):
    scored = [Reward(0.9, {name: 0.2}), Reward(0.5, {name: 0.8}), Reward(0.3, {name: 0.5})]
    assert choose_pairs(scored, [5] * 3, rules(faithful_first=True)) == [(1, 2)]
    assert choose_pairs(scored, [5] * 3, FREE) == [(0, 2)]


def test_the_one_with_more_errors_is_never_preferred():
    def compared(value: float, own: float, other: float) -> Preference:
        return Preference(0, 1, Reward(value, {"unsupported": own, "unsupported_other": other}))

    for preference, pairs in [
        (compared(0.75, 1.0, 0.5), []), (compared(0.75, 1.0, 1.0), [(0, 1)]), (compared(0.25, 1.0, 0.5), [(1, 0)]),
        (compared(0.25, 0.0, 0.5), []),
    ]:  # fmt: skip
        found = choose_pairs(rewards(0.5, 0.5), [5] * 2, rules(faithful_first=True), [preference])
        assert found == pairs
        assert len(choose_pairs(rewards(0.5, 0.5), [5] * 2, FREE, [preference])) == 1


def test_a_mark_that_is_less_sure_is_no_less_faithful():
    scored = [Reward(0.9, {"faithful": 0.97}), Reward(0.2, {"faithful": 1.0})]
    assert choose_pairs(scored, [5] * 2, rules(faithful_first=True)) == [(0, 1)]


def test_what_a_gate_turned_down_is_least_faithful():
    scored = [Reward(0.0, gate="looping"), Reward(0.4, {"support": -3.0})]
    assert choose_pairs(scored, [5] * 2, rules(faithful_first=True)) == [(1, 0)]


# --- read ------------------------------------------------------------------------------------------------------------

ROWS = [{"prompt_id": "a", "chosen": "yes", "rejected": "no"}, {"prompt_id": "b", "chosen": "up", "rejected": "down"}]
PAIRS = [Pair("a", "yes", "no"), Pair("b", "up", "down")]


def test_pairs_of_a_file(tmp_path: Path):
    lines = tmp_path / "pairs.jsonl"
    lines.write_text("\n".join(map(json.dumps, ROWS)))
    table = tmp_path / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), table)
    assert read_pairs(lines) == read_pairs(table) == PAIRS


def test_lines_of_pairs_end_at_newlines_only(tmp_path: Path):
    path = tmp_path / "pairs.jsonl"
    rows = [json.dumps(ROWS[0] | {"chosen": "yes\u2028sir"}, ensure_ascii=False), "", json.dumps(ROWS[1])]
    path.write_text("\ufeff" + "\r\n".join(rows) + "\n", encoding="utf-8", newline="")
    assert read_pairs(path) == [Pair("a", "yes\u2028sir", "no"), PAIRS[1]]


def ledger_row(sample: int, text: str, pair: int | None, preferred: bool | None) -> LedgerRow:
    return LedgerRow(
        trajectory_id=f"t{sample}", run_id="r", stage="dpo", epoch=0, prompt_id="a", sample=sample,
        group_step=1 if pair is not None else None, drop_reason="" if pair is not None else "no_pair",
        policy_version=0, prompt_tokens=3, response_tokens=2, finish_reason="stop", text=text, token_ids=[1, 2],
        logprobs=[-1.0, -1.0], reward=0.5, judge="", breakdown={}, judge_failure="", gate="", advantage=None, pair=pair,
        preferred=preferred,
    )  # fmt: skip


def test_pairs_of_a_run(tmp_path: Path):
    ledger = Ledger(tmp_path)
    ledger.record([
        ledger_row(0, "no", 0, False), ledger_row(1, "nobody's", None, None), ledger_row(2, "yes", 0, True),
        ledger_row(3, "up", 1, True), ledger_row(4, "down", 1, False),
    ])  # fmt: skip
    ledger.flush()
    ids = ((1, 2), (1, 2))
    assert read_pairs(tmp_path) == [Pair("a", "yes", "no", ids), Pair("a", "up", "down", ids)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.jsonl", None, "cannot read"),
        ("none.parquet", None, "cannot read"),
        ("broken.parquet", "PAR1", "cannot read"),
        ("empty.jsonl", "", "holds no pairs"),
        ("broken.jsonl", '{"prompt_id"', "row 1: not JSON"),
        ("deep.jsonl", "[" * 200_000, "row 1: not JSON"),
        ("half.jsonl", json.dumps(ROWS[0] | {"rejected": "no \ud800"}), "row 1: rejected is not UTF-8"),
        ("list.jsonl", "[1]", "row 1: prompt_id is missing"),
        ("short.jsonl", json.dumps(ROWS[0]) + '\n{"prompt_id": "b", "chosen": "x"}', "row 2: rejected is missing"),
        ("same.jsonl", '{"prompt_id": "b", "chosen": "x", "rejected": "x"}', "row 1: chosen and rejected are the same"),
    ],
)
def test_a_bad_file_of_pairs_is_told_by_row(tmp_path: Path, name: str, text: str | None, message: str):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_pairs(path)


def test_parquet_that_is_not_utf8_is_told_by_row(tmp_path: Path):
    latin = pa.array([b"yes", b"caf\xe9"]).view(pa.string())
    path = tmp_path / "latin.parquet"
    pq.write_table(pa.table({"prompt_id": ["a", "b"], "chosen": latin, "rejected": ["no", "tea"]}), path)
    with pytest.raises(UserError, match=r"row 2: not UTF-8 .*; write the texts as UTF-8"):
        read_pairs(path)
