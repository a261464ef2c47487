"""Another manifest out of one that is there: rows taken in any order, some of their columns written anew.

Whatever else a row carries goes along, whoever put it there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechsum.errors import UserError
from speechsum.files import whole_file, write_whole

TYPES = {"facts": pa.list_(pa.string()), "clip_facts": pa.list_(pa.string())}
"""Of columns that may be empty everywhere, where pyarrow could not tell."""


def check_beside(data: Path, out: Path) -> None:
    """Raise `UserError` unless `out` is another file of its kind beside `data`, as audio paths want it."""
    if out.suffix != data.suffix or out.resolve().parent != data.resolve().parent or out.resolve() == data.resolve():
        raise UserError(
            f"--out {out} has to be another {data.suffix} file in the folder of {data}: audio is named from there"
        )


def write_copy(data: Path, out: Path, rows: Sequence[int], columns: Mapping[str, Sequence[Any]]) -> None:
    """The rows of `data` at `rows` (blank lines not counted), with `columns` in place of what they had there."""
    if data.suffix == ".jsonl":
        source = [json.loads(line) for line in data.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        changes = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        lines = [json.dumps(source[at] | change) for at, change in zip(rows, changes, strict=True)]
        write_whole(out, "\n".join(lines) + "\n")
    else:
        table = pq.read_table(data).take(pa.array(rows, pa.int64()))
        table = table.drop_columns([name for name in columns if name in table.column_names])
        for name, values in columns.items():
            table = table.append_column(name, pa.array(values, TYPES.get(name)))
        with whole_file(out) as sink:
            pq.write_table(table, sink)
