"""Reading a JSONL file that somebody else is writing, and now and then cuts off at the end."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO


class JsonlTail:
    """The rows of a growing file. `poll` reads only what is new.

    A row counts once its line has ended, so half a line is simply not there yet. A resumed run rewrites the file
    without the steps it will do again; then everything is read anew under another `generation`, which tells whoever
    kept rows of the old one to throw them away. `broken` counts the lines that are no row of a stage and step.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start_again(())

    def poll(self) -> None:
        """Take in what was written since the last time."""
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if not self._goes_on(file, (stat.st_dev, stat.st_ino)):
                    self._start_again((stat.st_dev, stat.st_ino))
                file.seek(self._offset)
                self._take(file.read())
        except FileNotFoundError:
            if self._identity:
                self._start_again(())

    def _start_again(self, identity: tuple[int, ...]) -> None:
        self.generation = secrets.token_hex(4)
        self.rows: list[dict[str, Any]] = []
        self.broken = 0
        self._identity = identity
        self._offset = 0
        self._last_line = b""

    def _goes_on(self, file: BinaryIO, identity: tuple[int, ...]) -> bool:
        """The same file, still ending what was read with the same line: a number of a file is soon used again."""
        file.seek(self._offset - len(self._last_line))
        return identity == self._identity and file.read(len(self._last_line)) == self._last_line

    def _take(self, data: bytes) -> None:
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            self._offset += len(line)
            self._last_line = line
            row = _row(line)
            if row is None:
                self.broken += 1
            else:
                self.rows.append(row)


def _row(line: bytes) -> dict[str, Any] | None:
    """The line's object; None unless it says a stage and a step. NaN, which JSON lacks, is read as null."""
    try:
        row = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("step"), int):
        return row
    return None
