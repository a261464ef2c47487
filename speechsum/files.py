"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` when the block ends: flushed to disk, then renamed.

    So a reader, or a crash, never meets half of it; a block that fails leaves what was there, and nothing beside it.
    For one writer at a time. Raises `OSError` where the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.unfinished")
    try:
        with aside.open("wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """`text` as UTF-8, by way of `whole_file`."""
    with whole_file(path) as sink:
        sink.write(text.encode())
