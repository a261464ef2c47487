"""Checkpoints on disk: what is kept, and what a resume makes of a damaged one."""

from __future__ import annotations

import json
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
from speechsum.errors import UserError


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
