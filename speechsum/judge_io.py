"""Files of `speechsum judge score`: JSONL of summaries in, the same rows with judgements out.

A bad row costs that row only. A bad file is the user's to mend before anything is judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechsum.errors import UserError
from speechsum.files import whole_file
from speechsum.pairwise import preferred
from speechsum.types import FailureKind, JudgeFailure, Judgement, JudgeTask, PairTask, Reward

FIELDS = ("transcript", "instruction", "summary")
OTHER = "other"
MAY_BE_EMPTY = frozenset({"summary", OTHER})
RAW_LIMIT = 200

Row = dict[str, Any]
Entry = JudgeTask | PairTask | JudgeFailure
"""What to judge of a row, or why it cannot be."""


@dataclass(frozen=True, slots=True)
class PairOfRewards:
    """A row with `other`, both of whose summaries were scored alone."""

    own: Judgement
    other: Judgement


@dataclass(frozen=True, slots=True)
class Compared:
    """A row with `other`, whose summaries were shown together: the probability that `summary` is the better one."""

    reward: Reward


Judged = Judgement | PairOfRewards | Compared


def as_preference(judgement: Judgement) -> Judged:
    """A pairwise judge's answer as a row tells it."""
    return Compared(judgement) if isinstance(judgement, Reward) else judgement


def needs_other(task: JudgeTask | JudgeFailure) -> JudgeFailure:
    """Why a pairwise judge has nothing to say of a row."""
    detail = f"no {OTHER!r}, the summary that a pairwise judge compares with"
    return task if isinstance(task, JudgeFailure) else JudgeFailure(FailureKind.BAD_ROW, detail)


def read_tasks(path: Path | str) -> list[tuple[Entry, Row]]:
    """One entry per non-blank line, in order: what to judge, or why this row cannot be, and the row itself."""
    entries = [_entry(number, line) for number, line in enumerate(_lines(Path(path)), start=1) if line.strip()]
    if not entries:
        raise UserError(f"{path} has no rows; each line is a JSON object with {', '.join(FIELDS)}")
    return entries


def write_judgements(path: Path | str, rows: Sequence[Row], judgements: Sequence[Judged], judge: str) -> None:
    """Each row with `reward`, `failure`, `gate` and `breakdown` added, in place of any it had. All lines or no file.

    `judge` is the name and version of who scored, of model and prompt, and in every row.
    A row that was compared also has `preferred`: `summary`, `other` or `tie`. One whose two summaries were scored has
    the same four fields again as `other_reward` and so on, and `difference`, null where either failed.
    """
    path = Path(path)
    lines = [_line(row | {"judge": judge}, judgement) for row, judgement in zip(rows, judgements, strict=True)]
    try:
        with whole_file(path) as sink:
            sink.writelines(lines)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another output file") from None


def _lines(path: Path) -> list[str]:
    """Lines end at a newline only: other separators are legal inside a JSON string."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no file at {path}; give a JSONL file of summaries to judge") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        return data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path} line {line} is not UTF-8; save the file as UTF-8") from None


def _entry(number: int, line: str) -> tuple[Entry, Row]:
    """What cannot be parsed is passed on as its line number and its beginning."""
    try:
        row = json.loads(line, parse_constant=_no_constant)
        json.dumps(row, allow_nan=False)  # 1e999 reads as infinity, which no output row could carry
    except (ValueError, RecursionError) as error:
        reason = f"line {number} is not JSON ({error})"[:RAW_LIMIT]
        return JudgeFailure(FailureKind.BAD_ROW, reason), {"line": number, "raw": line.strip()[:RAW_LIMIT]}
    if not isinstance(row, dict):
        reason = f"line {number} is not a JSON object"
        return JudgeFailure(FailureKind.BAD_ROW, reason), {"line": number, "raw": line.strip()[:RAW_LIMIT]}
    problem = _problem(row)
    if problem:
        return JudgeFailure(FailureKind.BAD_ROW, f"line {number}: {problem}"), row
    task = JudgeTask(**{name: row[name] for name in FIELDS})
    return (PairTask(task.transcript, task.instruction, task.summary, row[OTHER]) if OTHER in row else task), row


def _problem(row: Row) -> str:
    for name in (*FIELDS, *({OTHER} & row.keys())):
        if name not in row:
            return f"no {name!r}"
        if not isinstance(row[name], str):
            return f"{name!r} is not a string"
        if name not in MAY_BE_EMPTY and not row[name].strip():
            return f"{name!r} is empty"
        try:
            row[name].encode("utf-8")
        except UnicodeEncodeError:
            return f"{name!r} holds a lone surrogate, which is no character"
    return ""


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _line(row: Row, judged: Judged) -> bytes:
    out = row | _told(judged)
    return json.dumps(out, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"


def _told(judged: Judged) -> Row:
    if isinstance(judged, PairOfRewards):
        own, other = judged.own, judged.other
        difference = own.value - other.value if isinstance(own, Reward) and isinstance(other, Reward) else None
        told = {f"{OTHER}_{name}": value for name, value in _told(other).items()}
        return {**_told(own), **told, "difference": difference}
    if isinstance(judged, Compared):
        winner = {"first": "summary", "second": OTHER}.get(preferred(judged.reward.value), "tie")
        return {**_told(judged.reward), "preferred": winner}
    if isinstance(judged, JudgeFailure):
        failure = {"kind": judged.kind.value, "detail": judged.detail}
        return {"reward": None, "failure": failure, "gate": "", "breakdown": {}}
    return {"reward": judged.value, "failure": None, "gate": judged.gate, "breakdown": judged.breakdown}
