"""SIGTERM: at once where nothing is lost by it, else after the step under way and a checkpoint."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cluster.memory import MemoryWatch
from cluster.readers import ReaderPlan
from cluster.run_folder import RunFolder
from cluster.screen import screen_for
from cluster.stopping import StopRequest
from cluster.train import Plan, Training
from cluster.watch import Watch
from speechsum.config import RunConfig, StageConfig, WatchConfig
from speechsum.errors import StopAsked
from speechsum.objectives import SftLoss
from speechsum.types import AudioRef, Batch, Prompt


def be_asked() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_request_ends_the_run_at_once_and_only_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        with pytest.raises(StopAsked):
            be_asked()
        be_asked()  # while the run closes down; nothing more is raised
        assert stop.asked
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_held_request_waits_for_the_end_of_the_block() -> None:
    reached = []
    with StopRequest() as stop, pytest.raises(StopAsked), stop.held():  # noqa: PT012
        be_asked()
        reached.append(stop.asked)
    assert reached == [True]


def test_a_handler_of_somebody_else_is_replaced() -> None:
    with StopRequest() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.listen()
        with pytest.raises(StopAsked):
            be_asked()


class FakeLearner:
    """Notes what is saved."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, int]] = []

    def begin_stage(self, stage: StageConfig) -> None: ...

    def save(self, folder: Path, total_steps: int, state: dict[str, Any]) -> None:
        self.saved.append((total_steps, state["progress"]["step"]))


class FakePorts:
    """A learner whose step `asked_in` is interrupted by a request to stop, and goes on."""

    run_id, rollout = "fake", None

    def __init__(self, asked_in: int) -> None:
        self.asked_in, self.steps = asked_in, 0

    def prompt_ids(self, prompt: Prompt, reads: str) -> list[int]:
        return [1, 2]

    def completion_ids(self, text: str) -> np.ndarray:
        return np.array([3, 4])

    def step(self, batch: Batch, version: int) -> int:
        return version

    def result(self, handle: int) -> dict[str, float]:
        self.steps += 1
        if self.steps == self.asked_in:
            be_asked()
        return {"learner/loss": 0.5}

    def figures(self) -> dict[str, float]:
        return {}


@pytest.fixture
def training(tmp_path: Path, tiny_path: Path) -> Any:
    """A run of one stage of five steps that saves every fourth; learner and ports are fakes."""
    stage = StageConfig(name="align", steps=5, groups_per_step=1, loss=SftLoss(), checkpoint_every=4)
    config = RunConfig(name="fake", stage=(stage,), watch=WatchConfig(wandb="disabled"))
    prompts = [Prompt(f"p{i}", AudioRef(f"/clips/{i}.wav"), "ask", reference="answer") for i in range(3)]
    folder = RunFolder.create(tmp_path / "run", config)
    crew: Any = SimpleNamespace(learner=FakeLearner(), rollout=None, judge=None, teacher=None)
    screen = screen_for(Console(file=io.StringIO()))
    with closing(screen), Watch(folder, config, screen) as watch, StopRequest() as stop:
        plan = Plan(tiny_path, None, None, None, prompts, [], {}, ReaderPlan(), [], None)
        yield Training(config, plan, crew, folder, watch, MemoryWatch(), stop)


def run(training: Any, asked_in: int) -> Sequence[tuple[int, int]]:
    training.ports = FakePorts(asked_in)
    with pytest.raises(StopAsked), training.stop.held():
        training._run_stage(0, training.config.stage[0])
    return training.crew.learner.saved


def test_the_step_under_way_ends_and_is_saved(training: Any) -> None:
    assert run(training, asked_in=2) == [(2, 2)]
    assert training.ports.steps == 2
    assert (training.progress.stage, training.progress.step) == (0, 2)


def test_a_step_that_is_saved_anyway_is_saved_once(training: Any) -> None:
    assert run(training, asked_in=4) == [(4, 4)]


def test_after_the_last_step_the_stage_is_done(training: Any) -> None:
    assert run(training, asked_in=5) == [(4, 4), (5, 0)]
    assert (training.progress.stage, training.progress.step) == (1, 0)
