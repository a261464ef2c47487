"""Manifests in, prompts out.

A manifest is checked in one pass that gathers every problem, because a run that fails on row 40 000 after an hour of
GPU time is worse than a report. Whatever a manifest says is a claim by a stranger: no path may leave the data root,
no address is ever fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from speechsum.audio import DEFAULT_LIMITS, AudioError, AudioLimits, inspect_audio, inspect_encoded
from speechsum.errors import UserError
from speechsum.textscores import words
from speechsum.types import AudioRef, Prompt

REQUIRED = ("id", "audio", "instruction")
OPTIONAL_TEXT = ("transcript", "reference", "licence", "request")
LISTS = ("facts", "clip_facts")

SHOWN_PROBLEMS = 20
BATCH_ROWS = 64
MAX_LINE_BYTES = 8 * 2**20
URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")

T = TypeVar("T")
PromptCheck = Callable[[Prompt], str | None]


@dataclass(frozen=True, slots=True)
class RowProblem:
    """One thing wrong with one row. `row` is None for the file as a whole, `field` empty for the row as a whole."""

    row: int | None
    id: str
    field: str
    message: str


class ManifestError(UserError):
    """Everything wrong with a manifest, found in one pass. `counting` says what a row number counts."""

    def __init__(self, path: str, problems: Sequence[RowProblem], counting: str = "row") -> None:
        self.path = path
        self.problems = list(problems)
        self.counting = counting
        super().__init__(self.text())

    def __reduce__(self) -> tuple[type[ManifestError], tuple[str, list[RowProblem], str]]:
        return type(self), (self.path, self.problems, self.counting)

    def text(self, shown: int | None = SHOWN_PROBLEMS) -> str:
        """The problems, a line each; the first `shown` of them, or all."""
        if len(self.problems) == 1 and self.problems[0].row is None:
            return f"{self.path}: {self.problems[0].message}"
        base = "lines from 1" if self.counting == "line" else "rows from 0"
        lines = [f"{self.path}: {len(self.problems)} problem(s), {base}:"]
        lines += [f"  {self._where(p)}: {p.message}" for p in self.problems[:shown]]
        if more := len(self.problems[shown or len(self.problems) :]):
            lines.append(f"  and {more} more; `speechsum data check MANIFEST --recipe RECIPE` lists them all")
        return "\n".join(lines)

    def _where(self, problem: RowProblem) -> str:
        parts = [] if problem.row is None else [f"{self.counting} {problem.row}"]
        parts += [f"id {problem.id!r}"] if problem.id else []
        parts += [problem.field] if problem.field else []
        return ", ".join(parts) or "manifest"


class _Unusable(Exception):
    """The file as a whole cannot be read on; carries the sentence for the user."""


@dataclass(frozen=True, slots=True)
class _Row:
    """One row as either format yields it: text fields still as bytes where the format does not promise UTF-8."""

    number: int
    values: dict[str, Any]
    problem: str = ""


def read_manifest(
    path: str | Path,
    *,
    root: str | Path | None = None,
    limits: AudioLimits = DEFAULT_LIMITS,
    check_audio: bool = True,
    check_prompt: PromptCheck | None = None,
) -> list[Prompt]:
    """Read a Parquet or JSONL manifest, or raise one `ManifestError` that lists all that is wrong with it.

    Audio paths are relative to `root` (default: the manifest's folder) and must stay inside it. `check_audio` decodes
    every recording once; without it a bad one is found by whoever opens it. `check_prompt` may return what is wrong
    with a prompt.
    """
    path = Path(path)
    folder = os.path.realpath(path.parent if root is None else root)
    reader = _Reader(path, folder, limits, check_audio, check_prompt)
    prompts: list[Prompt] = []
    try:
        if root is not None and not os.path.isdir(folder):
            raise _Unusable(f"the data root {root} is not a folder; correct data.root")
        prompts = reader.read(_rows(path))
    except _Unusable as error:
        reader.problems.append(RowProblem(None, "", "", str(error)))
    if reader.problems:
        raise ManifestError(str(path), reader.problems, _counting(path))
    return prompts


def _counting(path: Path) -> str:
    """What a row number means: an editor's line from 1, or a data frame's row from 0."""
    return "line" if path.suffix == ".jsonl" else "row"


# --- the two formats -----------------------------------------------------------------------------------------------


def _rows(path: Path) -> Iterator[_Row]:
    if not os.path.exists(path):  # unlike pathlib's, it takes a name that is too long for a missing one
        raise _Unusable("there is no such manifest; correct data.train or data.eval")
    if not os.path.isfile(path):
        raise _Unusable("is not a file; name a .parquet or .jsonl manifest")
    if path.suffix == ".jsonl":
        return _jsonl_rows(path)
    if path.suffix == ".parquet":
        return _parquet_rows(path)
    raise _Unusable(f"has the ending {path.suffix!r}; a manifest is .parquet or .jsonl")


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open("rb") as file:
            yield from (_json_row(number, line) for number, line in _lines(file) if line.strip())
    except OSError as error:
        raise _Unusable(f"cannot be read ({error}); check its permissions") from None


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered from 1; an endless line is an error, not an allocation."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise _Unusable(f"line {number} is longer than {MAX_LINE_BYTES} bytes; is this really JSONL?")
        yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _json_row(number: int, line: bytes) -> _Row:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _Row(number, {}, f"is not UTF-8 (byte {error.start}); save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return _Row(number, {}, f"is not JSON ({error}); write one object a line")
    if not isinstance(values, dict):
        return _Row(number, {}, f"is a JSON {type(values).__name__}; write one object a line")
    return _Row(number, values)


def _parquet_rows(path: Path) -> Iterator[_Row]:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_columns(schema)
            wanted = [c for c in (*REQUIRED, *OPTIONAL_TEXT, *LISTS) if c in schema.names]
            number = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=wanted):
                columns = {name: _python_values(batch.column(name)) for name in batch.schema.names}
                for i in range(batch.num_rows):
                    yield _Row(number + i, {name: column[i] for name, column in columns.items()})
                number += batch.num_rows
    except pa.ArrowException as error:
        raise _Unusable(f"is not Parquet that can be read ({error}); write it again") from None
    except OSError as error:
        raise _Unusable(f"cannot be read ({error}); check the file and its permissions") from None


def _check_columns(schema: pa.Schema) -> None:
    """All missing and mistyped columns at once; extra columns are nobody's business."""
    faults = [f"column {c!r} is missing; add it" for c in REQUIRED if c not in schema.names]
    faults += [f"column {c!r} appears twice; rename one" for c in sorted(_repeated(schema.names))]
    for column in (c for c in schema if c.name not in _repeated(schema.names)):
        wanted = _wanted_type(column)
        if wanted:
            faults.append(f"column {column.name!r} is {column.type}; make it {wanted}")
    if faults:
        raise _Unusable("; ".join(faults))


def _repeated(names: Sequence[str]) -> set[str]:
    return {n for n in names if names.count(n) > 1 and n in (*REQUIRED, *OPTIONAL_TEXT, *LISTS)}


def _wanted_type(column: pa.Field) -> str:
    """What the column should have been, or nothing when it is fine."""
    if column.name in ("id", "instruction", *OPTIONAL_TEXT):
        return "" if _is_text(column.type) else "string"
    if column.name in LISTS:
        return "" if _is_text_list(column.type) else "list<string>"
    if column.name == "audio":
        return "" if _is_audio(column.type) else "string (a path) or struct<bytes: binary, path: string>"
    return ""


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind))


def _is_text_list(kind: pa.DataType) -> bool:
    if pa.types.is_null(kind):
        return True
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)


def _is_audio(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_text(kind)
    parts = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
    binary = parts.get("bytes", pa.null())
    known = {"bytes", "path"} & parts.keys()
    is_bytes = pa.types.is_binary(binary) or pa.types.is_large_binary(binary) or pa.types.is_null(binary)
    return bool(known) and is_bytes and _is_text(parts.get("path", pa.null()))


def _python_values(column: pa.Array) -> list[Any]:
    """Strings come out as bytes: pyarrow does not check UTF-8 on reading and would raise for the whole column."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[Any] = column.cast(_as_binary(column.type)).to_pylist()
    return values


def _as_binary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_binary(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_binary(kind.value_type))
    if pa.types.is_struct(kind):
        fields = [kind.field(i) for i in range(kind.num_fields)]
        return pa.struct([pa.field(f.name, _as_binary(f.type), f.nullable) for f in fields])
    return kind


# --- rows into prompts ---------------------------------------------------------------------------------------------


class _Invalid(Exception):
    """One field of one row is wrong; becomes a `RowProblem`."""


@dataclass
class _Reader:
    """One validation pass. Problems pile up in `problems`; a row with any gives no prompt."""

    path: Path
    root: str
    limits: AudioLimits
    check_audio: bool
    check_prompt: PromptCheck | None
    problems: list[RowProblem] = field(default_factory=list)
    first_rows: dict[str, int] = field(default_factory=dict)
    heard: dict[str, str] = field(default_factory=dict)

    def read(self, rows: Iterator[_Row]) -> list[Prompt]:
        prompts: list[Prompt] = []
        empty = True
        for row in rows:
            empty = False
            if row.problem:
                self.problems.append(RowProblem(row.number, "", "", row.problem))
            else:
                prompts += self._prompt(row)
        if empty:
            raise _Unusable("has no rows; write at least one")
        return prompts

    def _prompt(self, row: _Row) -> list[Prompt]:
        """The row's prompt, or nothing once its problems are noted."""
        before = len(self.problems)
        name = self._field(row, "", "id", partial(self._id, row.number)) or ""
        audio = self._field(row, name, "audio", partial(self._audio, row.number))
        instruction = self._field(row, name, "instruction", _required_text)
        texts = {key: self._field(row, name, key, _text) or "" for key in OPTIONAL_TEXT}
        lists = {key: self._field(row, name, key, _facts) or () for key in LISTS}
        if len(self.problems) > before or audio is None or instruction is None:
            return []
        prompt = Prompt(name, audio, instruction, **texts, **lists)  # type: ignore[arg-type]
        complaint = self.check_prompt(prompt) if self.check_prompt else None
        if complaint:
            self.problems.append(RowProblem(row.number, name, "", complaint))
            return []
        return [prompt]

    def _field(self, row: _Row, name: str, key: str, parse: Callable[[Any], T]) -> T | None:
        """The parsed value, or None once its problem is noted."""
        try:
            return parse(row.values.get(key))
        except _Invalid as error:
            self.problems.append(RowProblem(row.number, name, key, str(error)))
            return None

    def _id(self, number: int, value: Any) -> str:
        name = _required_text(value)
        first = self.first_rows.setdefault(name, number)
        if first != number:
            raise _Invalid(f"{name!r} was used before, at {_counting(self.path)} {first}; ids must differ")
        return name

    def _audio(self, number: int, value: Any) -> AudioRef:
        """HF datasets' struct (bytes first, then path), or a plain path."""
        if not isinstance(value, dict):
            return self._file(_required_text(value))
        encoded = value.get("bytes")
        if encoded is None:
            return self._file(_required_text(value.get("path")))
        if not isinstance(encoded, bytes):
            raise _Invalid("bytes cannot live in JSONL; write a path, or use Parquet")
        return self._embedded(number, encoded)

    def _embedded(self, number: int, encoded: bytes) -> AudioRef:
        if self.check_audio:
            _refuse_bad_audio(_complaint(lambda: inspect_encoded(encoded, "embedded audio", self.limits)))
        return AudioRef(os.path.realpath(self.path), number)

    def _file(self, text: str) -> AudioRef:
        """Rows often share a recording, so each is decoded once."""
        ref = AudioRef(contained_path(text, self.root))
        if self.check_audio:
            if ref.path not in self.heard:
                self.heard[ref.path] = _complaint(lambda: inspect_audio(ref, self.limits))
            _refuse_bad_audio(self.heard[ref.path])
        return ref


def _complaint(inspect: Callable[[], object]) -> str:
    """What is wrong with a recording, or nothing."""
    try:
        inspect()
    except AudioError as error:
        return str(error)
    return ""


def _refuse_bad_audio(complaint: str) -> None:
    if complaint:
        raise _Invalid(complaint)


def _text(value: Any) -> str:
    """A string that survives encoding: JSON can spell lone surrogates, Parquet does not check its bytes."""
    if value is None:
        return ""
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")
            return value
    except UnicodeError as error:
        raise _Invalid(f"is not UTF-8 ({error}); write the text as UTF-8") from None
    raise _Invalid(f"is a {type(value).__name__}; write a string")


def _required_text(value: Any) -> str:
    text = _text(value)
    if not text.strip():
        raise _Invalid("is missing or empty; fill it in")
    return text


def _facts(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _Invalid(f"is a {type(value).__name__}; write a list of strings")
    return tuple(_fact(item) for item in value)


def _fact(value: Any) -> str:
    """Facts are looked for by their words, so one without any could never be told."""
    fact = _required_text(value)
    if not words(fact):
        raise _Invalid(f"{fact!r} has no letter or digit; write the fact in words, or take it out")
    return fact


def contained_path(text: str, root: str) -> str:
    """The real path of a recording under `root` (itself a real path), or `_Invalid`.

    Decided after links are followed, so `..`, absolute paths and symbolic links out of the root all fail here.
    """
    try:
        named = os.path.normpath(os.path.join(root, _local_path(text)))
        real = os.path.realpath(named)
    except ValueError as error:
        raise _Invalid(f"{text!r} is not a path ({error}); correct it") from None
    if _is_inside(real, root):
        return real
    how = "is a symbolic link that leads" if _is_inside(named, root) else "leads"
    raise _Invalid(f"{text!r} {how} outside the data root {root}; move the recording there, or set data.root")


def _is_inside(path: str, root: str) -> bool:
    return os.path.commonpath([path, root]) == root


def _local_path(text: str) -> str:
    """Fetching what a manifest names would let it reach any address from inside the cluster; so only local files."""
    scheme = URI.match(text)
    if not scheme:
        return text
    if scheme[1].lower() != "file":
        raise _Invalid(f"{text!r} is not fetched; download it or mount the storage, then name the local path")
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise _Invalid(f"{text!r} is on another host; mount it and write file:///path")
    return unquote(parts.path)


# --- the stream ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draw:
    """One visit to a prompt. The epoch is part of a trajectory's identity."""

    epoch: int
    prompt: Prompt


class PromptStream:
    """Prompts without end, each once an epoch, in an order that only the seed and the epoch decide.

    An epoch's order needs no history, so a resumed stream continues exactly where its state was taken.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise UserError("there are no prompts to draw from; check the manifest")
        if seed < 0:
            raise UserError(f"seed = {seed} is negative; use 0 or more")
        self._prompts = tuple(prompts)
        self._seed = seed
        self._fingerprint = _fingerprint(self._prompts)
        self._again: deque[Draw] = deque()
        self._start_epoch(0)

    def _start_epoch(self, epoch: int, position: int = 0) -> None:
        self._epoch = epoch
        self._position = position
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        self._order = generator.permutation(len(self._prompts))

    def take(self, n: int) -> list[Draw]:
        """The next `n`, across epochs where need be."""
        return [self._next() for _ in range(n)]

    def _next(self) -> Draw:
        if self._again:
            return self._again.popleft()
        if self._position == len(self._prompts):
            self._start_epoch(self._epoch + 1)
        draw = Draw(self._epoch, self._prompts[self._order[self._position]])
        self._position += 1
        return draw

    def state(self, unfinished: Sequence[Draw] = ()) -> dict[str, Any]:
        """Where the stream stands, as plain JSON. Draws that nothing came of yet are drawn again after a restore."""
        return {
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "fingerprint": self._fingerprint,
            "again": [[draw.epoch, draw.prompt.id] for draw in (*unfinished, *self._again)],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`. Refuses, and leaves the stream as it was, if the data or the seed is another."""
        if state.get("fingerprint") != self._fingerprint:
            raise UserError("the checkpoint is of other data (ids or their order differ); resume with its manifest")
        if state.get("seed") != self._seed:
            raise UserError(f"the checkpoint's seed is {state.get('seed')}, not {self._seed}; resume with that seed")
        epoch, position = state.get("epoch"), state.get("position")
        if not _is_count(epoch) or not _is_count(position) or position > len(self._prompts):
            raise UserError(f"the checkpoint's data state is damaged at {epoch!r}, {position!r}; use another")
        by_id = {prompt.id: prompt for prompt in self._prompts}
        self._again = deque(Draw(epoch_then, by_id[name]) for epoch_then, name in state.get("again", ()))
        self._start_epoch(epoch, position)


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _fingerprint(prompts: Sequence[Prompt]) -> str:
    """Of the ids in order: the order is what a permutation is applied to."""
    return hashlib.blake2b(json.dumps([p.id for p in prompts]).encode(), digest_size=16).hexdigest()
