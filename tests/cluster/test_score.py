"""`judge score` on files whose rows are of both kinds, by both kinds of judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster import score
from speechsum.config import STANDALONE, load_recipe
from speechsum.types import FailureKind, JudgeFailure, Judgement, PairTask, Reward

SAID = "Maria will send the budget to the Lisbon office by Friday."
TRUE, FALSE = "Maria will send the budget to Lisbon.", "The choir rehearses at noon in town."
ALONE = {"transcript": SAID, "instruction": "Sum up.", "summary": TRUE}
ROWS = [ALONE, ALONE | {"other": FALSE}, {"summary": TRUE}, ALONE | {"summary": FALSE, "other": TRUE}]
ENDPOINT = 'judge.endpoint={ url = "http://judge/v1", model = "big" }'


class FakePairJudge:
    """Prefers the true summary, and has no answer the other way round."""

    name, version = "pairwise", "fake"

    def __init__(self) -> None:
        self.closed = False

    def score(self, tasks: Sequence[PairTask]) -> list[Judgement]:
        return [Reward(0.95) if task.summary == TRUE else JudgeFailure(FailureKind.TIMEOUT) for task in tasks]

    def close(self) -> None:
        self.closed = True


def scored(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    score.score_file(source, out, load_recipe(STANDALONE, list(overrides)))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_judge_of_single_summaries_scores_both(tmp_path: Path) -> None:
    alone, pair, bad, exchanged = scored(tmp_path, "judge.kind=lexical")
    assert alone["reward"] > 0.0
    assert {row["judge"] for row in (alone, pair, bad, exchanged)} == {"lexical/lexical-1"}
    assert "difference" not in alone
    assert (pair["reward"], exchanged["other_reward"]) == (alone["reward"], alone["reward"])
    assert pair["difference"] == -exchanged["difference"] == pair["reward"] - pair["other_reward"] > 0
    assert bad["failure"]["kind"] == "bad_row"


def test_a_pairwise_judge_compares_and_needs_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = FakePairJudge()
    monkeypatch.setattr(score, "open_pair_judge", lambda config: judge)
    alone, pair, bad, exchanged = scored(tmp_path, "judge.kind=pairwise", ENDPOINT)
    assert judge.closed
    assert (pair["reward"], pair["preferred"]) == (0.95, "summary")
    assert (alone["reward"], alone["failure"]["kind"]) == (None, "bad_row")
    assert "no 'other'" in alone["failure"]["detail"]
    assert bad["failure"]["detail"].startswith("line 3: no 'transcript'")
    assert (exchanged["reward"], exchanged["failure"]["kind"]) == (None, "timeout")
