"""The ledger: what became of every trajectory, as Parquet that any tool can open.

A row is written once, when the fate of its trajectory is settled: trained in a step, or dropped for a reason. Rows
gather in memory and leave as numbered parts; a part is complete or absent (written aside, synced, renamed). A resumed
run cuts off the parts after its checkpoint, so a trajectory that is made again has one row all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechsum.errors import UserError
from speechsum.files import whole_file

FOLDER = "trajectories"

SCHEMA = pa.schema(
    [
        pa.field("trajectory_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("epoch", pa.int32(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("group_step", pa.int64()),
        pa.field("drop_reason", pa.string(), nullable=False),
        pa.field("policy_version", pa.int64(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("response_tokens", pa.int32(), nullable=False),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("reward", pa.float64()),
        pa.field("judge", pa.string(), nullable=False),
        pa.field("breakdown", pa.string(), nullable=False),
        pa.field("judge_failure", pa.string(), nullable=False),
        pa.field("gate", pa.string(), nullable=False),
        pa.field("advantage", pa.float64()),
        pa.field("pair", pa.int32()),
        pa.field("preferred", pa.bool_()),
    ]
)
"""`judge` is the judge's name with the versions of its model and prompt, or "" where nobody judged.

`breakdown` is a JSON object of numbers; `judge_failure` is "" or `kind: detail`. `gate` names the rule that turned a
completion down before the judge saw it, or is "".

`pair` numbers the pairs of a prompt, and `preferred` says which side of it a trajectory is; null where it is on none.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """The fate of one trajectory. Controller -> Parquet.

    `group_step` is None for what was dropped, and then `drop_reason` says why. `reward` is None where nobody judged or
    the judge failed: a failure is never a number.
    """

    trajectory_id: str
    run_id: str
    stage: str
    epoch: int
    prompt_id: str
    sample: int
    group_step: int | None
    drop_reason: str
    policy_version: int
    prompt_tokens: int
    response_tokens: int
    finish_reason: str
    text: str
    token_ids: Sequence[int]
    logprobs: Sequence[float]
    reward: float | None
    judge: str
    breakdown: dict[str, float]
    judge_failure: str
    gate: str
    advantage: float | None
    pair: int | None = None
    preferred: bool | None = None

    def __post_init__(self) -> None:
        assert (self.group_step is None) == bool(self.drop_reason), "trained in a step, or dropped for a reason"
        assert self.reward is None or not self.judge_failure, "a failed judgement has no reward"


class Ledger:
    """Appends rows to `folder`/trajectories. One writer per folder: the controller."""

    def __init__(self, folder: Path, rows_per_part: int = 1024) -> None:
        self._folder = folder / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rows_per_part = rows_per_part
        self._pending: list[LedgerRow] = []
        self._next = 1 + max((_number(part) for part in part_files(self._folder)), default=-1)

    @property
    def parts(self) -> int:
        """Parts written so far."""
        return self._next

    def rewind(self, parts: int) -> None:
        """Remove all but the first `parts`, and what is pending."""
        for part in part_files(self._folder):
            if _number(part) >= parts:
                part.unlink()
        self._next = parts
        self._pending.clear()

    def record(self, rows: Iterable[LedgerRow]) -> None:
        """Add rows; a part is written as soon as there are enough of them."""
        self._pending.extend(rows)
        if len(self._pending) >= self._rows_per_part:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one part. If that fails the rows stay pending and the folder is as before."""
        if not self._pending:
            return
        final = self._folder / f"part-{self._next:05d}.parquet"
        assert not final.exists(), f"{final} exists: two ledgers write to one folder"
        table = pa.Table.from_pylist([_plain(row) for row in self._pending], schema=SCHEMA)
        with whole_file(final) as sink:
            pq.write_table(table, sink, compression="zstd")
        self._next += 1
        self._pending.clear()


def read_ledger(folder: Path) -> pa.Table:
    """Every row of a run folder, in the order of writing; empty, with the schema, if nothing was flushed yet."""
    trajectories = folder / FOLDER
    if not trajectories.is_dir():
        raise UserError(f"no {FOLDER} folder in {folder}; name the folder of a run")
    return pa.concat_tables([SCHEMA.empty_table(), *map(read_part, part_files(trajectories))])


def read_part(part: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one part, with all columns or some. Raises `UserError` if it is damaged, `OSError` if it is gone."""
    try:
        return pq.read_table(part, schema=SCHEMA, columns=columns, partitioning=None)
    except pa.ArrowException as error:
        raise UserError(f"{part} cannot be read as a ledger part: {error}; move it away to read the rest") from None


def part_files(folder: Path) -> list[Path]:
    """The complete parts in a folder of trajectories, in the order of writing; none where there is no folder."""
    return sorted((p for p in folder.glob("part-*.parquet") if p.stem[5:].isdigit()), key=_number)


def _number(part: Path) -> int:
    return int(part.stem[5:])


def _plain(row: LedgerRow) -> dict[str, Any]:
    """A row as Arrow takes it. Sampled text can hold half a surrogate pair, which UTF-8 cannot."""
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    values["breakdown"] = json.dumps(row.breakdown, sort_keys=True)
    for name in ("text", "judge_failure"):
        values[name] = values[name].encode("utf-8", "replace").decode("utf-8")
    return values
