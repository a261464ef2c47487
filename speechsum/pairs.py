"""Judged completions of one prompt -> pairs to prefer by, and pairs that were made before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechsum.errors import UserError
from speechsum.ledger import FOLDER, read_ledger
from speechsum.objectives import PairRules
from speechsum.pairwise import OTHERS_ERRORS, OWN_ERRORS, preferred
from speechsum.rubric import whole_mark
from speechsum.types import FailureKind, JudgeFailure, Judgement, Preference, Reward

COLUMNS = ("prompt_id", "chosen", "rejected")

PairIds = tuple[np.ndarray, np.ndarray]
"""Response ids [R] of the preferred answer and of the other one."""


def choose_pairs(
    rewards: Sequence[Reward | None], lengths: Sequence[int], rules: PairRules, preferences: Sequence[Preference] = ()
) -> list[tuple[int, int]]:
    """Indices (preferred, other) of completions that `rules` allow to be compared, the widest apart first.

    `rewards` is None where the judge failed, `lengths` are in tokens. No completion is in two pairs. Where a judge
    compared the completions themselves, its `preferences` say how far apart two are, and rewards do not.
    """
    known = {i: r for i, r in enumerate(rewards) if r is not None}
    leads = _preferred_leads(preferences, rules) if preferences else _reward_leads(known)
    candidates = [
        (lead, i, j) for (i, j), lead in leads.items()
        if lead >= rules.margin and _allowed(known[i], known[j], lengths[i], lengths[j], rules)
    ]  # fmt: skip
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for _, i, j in sorted(candidates, key=lambda c: (-c[0], c[1], c[2])):
        if len(pairs) < rules.per_prompt and not {i, j} & used:
            pairs.append((i, j))
            used |= {i, j}
    return pairs


def _reward_leads(known: Mapping[int, Reward]) -> dict[tuple[int, int], float]:
    """By how much the first of two is ahead, for all that are not equal."""
    pairs = ((i, j, better.value - worse.value) for i, better in known.items() for j, worse in known.items())
    return {(i, j): lead for i, j, lead in pairs if lead > 0}


def _preferred_leads(preferences: Sequence[Preference], rules: PairRules) -> dict[tuple[int, int], float]:
    """By how much likelier the first of two is to be the better one.

    Without those on which the judge abstained and, faithful first, those whose better one it charged with more errors.
    """
    leads: dict[tuple[int, int], float] = {}
    for p in preferences:
        if isinstance(p.judgement, Reward) and (lead := 2 * p.judgement.value - 1):
            errors = p.judgement.breakdown.get(OWN_ERRORS, 0.0) - p.judgement.breakdown.get(OTHERS_ERRORS, 0.0)
            if not rules.faithful_first or errors * lead <= 0:
                leads[(p.first, p.second) if lead > 0 else (p.second, p.first)] = abs(lead)
    return leads


def all_pairs(size: int) -> list[tuple[int, int]]:
    """Every two of `size` places, once."""
    return list(combinations(range(size), 2))


def fared(size: int, preferences: Sequence[Preference]) -> list[Judgement]:
    """How each of `size` texts did against the others: the mean probability that it is the better one.

    Comparisons that failed count on neither side; where all of a text's did, the first failure stands for it.
    """
    return [_fared(place, [p for p in preferences if place in (p.first, p.second)]) for place in range(size)]


def _fared(place: int, own: Sequence[Preference]) -> Judgement:
    judged = [(p, p.judgement) for p in own if isinstance(p.judgement, Reward)]
    if not judged:
        return next(
            (p.judgement for p in own if isinstance(p.judgement, JudgeFailure)),
            JudgeFailure(FailureKind.BAD_ROW, "nothing to compare with"),
        )
    chances = [j.value if p.first == place else 1.0 - j.value for p, j in judged]
    results = [preferred(chance) for chance in chances]
    breakdown = {"won": results.count("first"), "lost": results.count("second"), "abstained": results.count("tie")}
    return Reward(sum(chances) / len(chances), {name: float(count) for name, count in breakdown.items()})


def _allowed(better: Reward, worse: Reward, own: int, other: int, rules: PairRules) -> bool:
    if max(own, other) > rules.max_length_ratio * min(own, other):
        return False
    return not rules.faithful_first or _faithfulness(better) >= _faithfulness(worse)


def _faithfulness(reward: Reward) -> float:
    """By the judge's own account; least for what a gate turned down, and the same for all where no judge says.

    The rubric's mark, which is one of five: how sure the judge is of it makes nothing less faithful. The likelihood
    judge's support.
    """
    if reward.gate:
        return float("-inf")
    if "faithful" in reward.breakdown:
        return whole_mark(reward.breakdown["faithful"])
    return reward.breakdown.get("support", 0.0)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, the preferred one first. Pairs file, ledger -> `cluster.assets.pairs_by_prompt`.

    `token_ids` are both answers' as an engine made them, in the same order; None where only their texts are known.
    """

    prompt_id: str
    chosen: str
    rejected: str
    token_ids: tuple[tuple[int, ...], tuple[int, ...]] | None = None


def read_pairs(source: str | Path) -> list[Pair]:
    """Pairs of a run folder's ledger, or of a Parquet or JSONL file with `prompt_id, chosen, rejected`.

    Raises `UserError` naming the file, the row and the remedy.
    """
    path = Path(source)
    if (path / FOLDER).is_dir():
        pairs = _of_ledger(path)
    else:
        rows = _json_lines(path) if path.suffix == ".jsonl" else _parquet_rows(path)
        pairs = [_pair(row, path, number) for number, row in rows]
    if not pairs:
        raise UserError(f"{path} holds no pairs; run a dpo stage without `pairs` to make some, or name another file")
    return pairs


def _of_ledger(folder: Path) -> list[Pair]:
    """A pair is the two rows that share run, stage, epoch, prompt and pair number."""
    sides: dict[tuple[object, ...], dict[bool, dict[str, Any]]] = {}
    for row in read_ledger(folder).to_pylist():
        if row["pair"] is not None:
            key = row["run_id"], row["stage"], row["epoch"], row["prompt_id"], row["pair"]
            sides.setdefault(key, {})[row["preferred"]] = row
    return [
        Pair(str(key[3]), both[True]["text"], both[False]["text"],
             (tuple(both[True]["token_ids"]), tuple(both[False]["token_ids"])))
        for key, both in sides.items() if len(both) == 2
    ]  # fmt: skip


def _json_lines(path: Path) -> list[tuple[int, object]]:
    """Rows and their line numbers. A newline ends a line, nothing else: other separators are legal inside a string."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; name a run folder, a Parquet or a JSONL file") from None
    rows: list[tuple[int, object]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, row {number}: not JSON ({error}); write one object a line") from None
    return rows


def _parquet_rows(path: Path) -> list[tuple[int, object]]:
    """Rows and their numbers, from 1. Each for itself, as pyarrow checks that a text is UTF-8 only here."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {error}; name a run folder, a Parquet or a JSONL file") from None
    rows: list[object] = []
    for batch in table.to_batches(max_chunksize=1):
        try:
            rows += batch.to_pylist()
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, row {len(rows) + 1}: not UTF-8 ({error}); write the texts as UTF-8") from None
    return list(enumerate(rows, start=1))


def _pair(row: object, path: Path, number: int) -> Pair:
    values = row if isinstance(row, dict) else {}
    texts = [values.get(name) for name in COLUMNS]
    for name, text in zip(COLUMNS, texts, strict=True):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{path}, row {number}: {name} is missing or no text; give {', '.join(COLUMNS)}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half a character
            raise UserError(f"{path}, row {number}: {name} is not UTF-8 ({error}); write the text as UTF-8") from None
    prompt_id, chosen, rejected = (str(text) for text in texts)
    if chosen == rejected:
        raise UserError(f"{path}, row {number}: chosen and rejected are the same text; drop the row")
    return Pair(prompt_id, chosen, rejected)
