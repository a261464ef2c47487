"""A file is there whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from speechsum.files import whole_file, write_whole


def test_until_the_block_ends_nothing_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, "old")
    with whole_file(path) as sink:
        sink.write("n\u00e9w".encode())
        sink.flush()
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "n\u00e9w"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, "old")
    with pytest.raises(TypeError), whole_file(path) as sink:
        sink.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_crash_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.unfinished").write_bytes(b"much longer than what comes")
    write_whole(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "new"
