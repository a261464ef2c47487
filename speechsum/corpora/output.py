"""What the builders share: items, why others were refused, and manifests that appear when every recording is there."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from speechsum.errors import UserError
from speechsum.files import whole_file

SPLITS = ("train", "eval", "test")
"""What a recipe calls them; the manifest of each is `<split>.parquet`."""

AUDIO_FOLDER = "audio"
SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("audio", pa.string()),
        ("instruction", pa.string()),
        ("transcript", pa.string()),
        ("reference", pa.string()),
        ("facts", pa.list_(pa.string())),
        ("licence", pa.string()),
    ]
)
"""`audio` is a path relative to the manifest's folder; `facts` are always empty, as no corpus here lists any."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Item:
    """A row of a manifest. A builder -> `write_manifests`."""

    id: str
    audio: str
    instruction: str
    transcript: str
    reference: str


@dataclass
class Split:
    """The items of one manifest, and how many were refused for which reason."""

    name: str
    items: list[Item] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """For people."""
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.refused.most_common())
        said = f"{self.name}: {len(self.items)} items, {self.refused.total()} refused"
        return f"{said} ({reasons})" if reasons else said


def check_out(out: Path) -> None:
    """Raise `UserError` where `out` cannot take a corpus: told before the minutes that one takes."""
    finished = [f"{split}.parquet" for split in SPLITS if os.path.lexists(out / f"{split}.parquet")]
    if finished:
        raise UserError(f"--out {out} has {', '.join(finished)} already; name another folder, or move them away")
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"--out {out} cannot be written to; name a folder that can")


def refuse(problems: Sequence[str]) -> None:
    """Raise one `UserError` with all that is wrong with the input, where anything is."""
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError("\n".join([f"the input has {len(problems)} problems:", *(f"  {text}" for text in problems)]))


def refuse_empty(splits: Sequence[Split], hint: str) -> None:
    """Raise `UserError` if a split has no item: nothing could be trained or measured on its manifest."""
    refuse([f"nothing is left of a split ({split.line()}); {hint}" for split in splits if not split.items])


def write_manifests(out: Path, splits: Sequence[Split], licence: str) -> None:
    """`<split>.parquet` for each; to be called when every recording that they name is written."""
    for split in splits:
        rows = [
            {
                "id": item.id, "audio": item.audio, "instruction": item.instruction, "transcript": item.transcript,
                "reference": item.reference, "facts": [], "licence": licence,
            }
            for item in split.items
        ]  # fmt: skip
        with whole_file(out / f"{split.name}.parquet") as sink:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink)
