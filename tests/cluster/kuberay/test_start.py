"""What the pod runs, at the first attempt and at the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.kuberay.start import arguments, main
from cluster.run_folder import RunFolder
from speechsum.config import load_recipe

RECIPE = Path(__file__).resolve().parents[3] / "recipes" / "demo.toml"


def test_the_first_attempt_begins_and_the_next_goes_on(tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    first = ["train", "recipe.toml", "--run-dir", run_dir, "--address", "auto"]
    assert arguments("recipe.toml", run_dir) == first
    RunFolder.create(run_dir, load_recipe(RECIPE))
    assert arguments("recipe.toml", run_dir) == [*first, "--resume"]


def test_a_folder_that_holds_something_else_is_left_to_train_to_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main([str(RECIPE), str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"
