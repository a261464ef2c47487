"""Checkpoints on disk: what is kept, and what a resume makes of a damaged one."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch

from learner.checkpoint import (
    ADAPTER,
    MANIFEST,
    OPTIMIZER,
    STATE,
    load_checkpoint,
    load_state,
    newest_checkpoint,
    save_checkpoint,
    verify,
)
from speechsum.errors import RunError, UserError


def save(folder: Path, number: int, keep: int = 2) -> Path:
    weights = {"w": torch.full((3,), float(number))}
    return save_checkpoint(folder, number, weights, {"w.m": torch.ones(3)}, {"step": number}, keep)


def test_the_newest_two_are_kept_and_hold_what_was_saved(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(tmp_path, number)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000003"]
    newest = newest_checkpoint(tmp_path, pytest.fail)
    assert newest == tmp_path / "step_000003"
    weights, moments, state = load_checkpoint(newest)
    assert weights["w"].tolist() == [3.0] * 3
    assert moments["w.m"].tolist() == [1.0] * 3
    assert state == load_state(newest) == {"step": 3}


@pytest.mark.parametrize("room", [1, 250])  # nothing fits, or all but the manifest
def test_a_disk_that_is_full_is_told_with_a_remedy_and_gets_back_what_was_written(tmp_path: Path, room: int) -> None:
    folder = tmp_path / "checkpoints"
    kept = save(folder, 1)
    assert max((kept / name).stat().st_size for name in (ADAPTER, OPTIMIZER)) < 250 < (kept / MANIFEST).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(
            RunError, match=r"checkpoints did not take a checkpoint of 0.00 GB \(.*File too large"
        ) as told:
            save(folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(told.value).endswith("; free space there, then go on with --resume")
    assert list(folder.iterdir()) == [kept]
    assert verify(kept) is None


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tmp_step_000001").mkdir()
    (tmp_path / "tmp_step_000001" / ADAPTER).write_bytes(b"half")
    saved = save(tmp_path, 2)
    assert list(tmp_path.iterdir()) == [saved]


@pytest.mark.parametrize("file", [ADAPTER, OPTIMIZER, STATE, MANIFEST])
@pytest.mark.parametrize("how", ["gone", "short", "changed"])
def test_a_damaged_one_is_told_set_aside_and_the_one_before_taken(tmp_path: Path, file: str, how: str) -> None:
    save(tmp_path, 1)
    damaged = save(tmp_path, 2) / file
    data = damaged.read_bytes()
    damaged.unlink()
    if how == "short":
        damaged.write_bytes(data[:-1])
    elif how == "changed":
        damaged.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    told: list[str] = []
    assert newest_checkpoint(tmp_path, told.append) == tmp_path / "step_000001"
    assert len(told) == 1
    assert f"step_000002{'' if file == MANIFEST else '/' + file} " in told[0]
    assert told[0].endswith("set aside as step_000002.corrupt")
    assert (tmp_path / "step_000002.corrupt").is_dir()


def test_a_resume_never_starts_from_scratch_behind_ones_back(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path, pytest.fail) is None
    (save(tmp_path, 1) / ADAPTER).unlink()
    for _ in range(2):  # the second time all that is left is what was set aside
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
            newest_checkpoint(tmp_path, lambda text: None)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"files": 1}', json.dumps({"files": {STATE: []}})])
def test_a_manifest_that_lists_too_little_verifies_nothing(tmp_path: Path, text: str) -> None:
    path = save(tmp_path, 1)
    assert verify(path) is None
    (path / MANIFEST).write_text(text)
    assert verify(path) == f"{path} has no readable {MANIFEST}"
