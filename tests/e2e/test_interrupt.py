"""Ctrl-C at any moment, or a request to stop: the run says how to go on, and leaves no process behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import LOOPBACK, listening, processes_marked

pytestmark = pytest.mark.e2e
DEADLINE_S = 180.0
SECRETS = {name: uuid.uuid4().hex for name in ("RAY_AUTH_TOKEN", "SPEECHSUM_JUDGE_API_KEY")}


@pytest.mark.parametrize("moment", ["starting Ray", "models loaded: 1", "stage grpo"])
def test_ctrl_c_leaves_nothing_behind(moment: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    # as a terminal does: to everyone in the foreground
    assert ended(recipe, tmp_path, moment, lambda run: os.killpg(run.pid, signal.SIGINT)) == 130


def test_a_request_to_stop_lets_the_step_end_and_saves_it(recipe: dict[str, Any], tmp_path: Path) -> None:
    reached: set[str] = set()

    def look_and_stop(run: subprocess.Popen[str]) -> None:
        reached.update(listening(run.pid))  # Ray, the learner's rendezvous and the engine are all up by now
        run.terminate()

    rarely = "stage.grpo.checkpoint_every=50"
    assert ended(recipe, tmp_path, "stage grpo", look_and_stop, "-o", rarely) == 75
    assert (tmp_path / "run" / "checkpoints" / "step_000003" / "MANIFEST.json").exists()  # two of sft, and the one
    assert reached
    assert reached <= LOOPBACK


def ended(
    recipe: dict[str, Any], folder: Path, moment: str, interrupt: Callable[[subprocess.Popen[str]], None], *options: str
) -> int:
    """The exit code of a run that is interrupted when it prints `moment`."""
    path = folder / "tiny.toml"
    path.write_text("\n".join(f"{key} = {_toml(value)}" for key, value in recipe.items()))
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "speechsum", "train", str(path), "--run-dir", str(folder / "run"), *options],
        env=os.environ | SECRETS | {"SPEECHSUM_TEST": mark}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    timer = threading.Timer(DEADLINE_S, process.kill)
    timer.start()
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if moment in line:
            interrupt(process)
            break
    seen += process.stdout.read()
    code = process.wait()
    timer.cancel()
    assert "--resume" in seen
    assert "Traceback" not in seen
    written = b"".join(file.read_bytes() for file in (folder / "run").rglob("*") if file.is_file())
    assert not [name for name, secret in SECRETS.items() if secret in seen or secret.encode() in written]
    wait_until_gone(mark)
    return code


def wait_until_gone(mark: str) -> None:
    """Ray's daemons notice their driver's end on their own; a few seconds are theirs."""
    deadline = time.monotonic() + 20
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        threading.Event().wait(0.2)
    assert not left


def _toml(value: Any) -> str:
    """A value as inline TOML; JSON but for its tables."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
