"""How a stage of a run ends before its time: with a checkpoint of the step that was done. No actor is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.run_folder import RunFolder
from cluster.spans import Span
from cluster.train import Progress, Training
from speechsum.config import RunConfig, parse
from speechsum.data import PromptStream
from speechsum.errors import RunError, StopAsked
from speechsum.ledger import Ledger
from speechsum.metrics import describe
from speechsum.types import AudioRef, Prompt

PROMPTS = [Prompt(f"p{i}", AudioRef(f"/{i}.wav"), "Sum up.", reference="said") for i in range(3)]


class FakePorts:
    """A learner that trains on references, at once."""

    rollout, run_id = None, "run"

    def step(self, batch: Any, version: int) -> int:
        return version

    def result(self, handle: int) -> dict[str, float]:
        return {"learner/loss": 0.5}

    def figures(self) -> dict[str, float]:
        return {"judge/actors_serving": 3.0}

    def completion_ids(self, text: str) -> np.ndarray:
        return np.array([1], dtype=np.int32)

    def prompt_ids(self, prompt: Prompt, reads: str) -> list[int]:
        return [2]


class FakeLearner:
    """Keeps which step was saved."""

    def __init__(self) -> None:
        self.saved: list[int] = []

    def begin_stage(self, stage: Any) -> None:
        pass

    def save(self, folder: Path, number: int, state: dict[str, Any]) -> None:
        assert state["progress"]["total_steps"] == number
        self.saved.append(number)


class FakeTrust:
    """Audits after one step, as it is told to."""

    def __init__(self, after: int, audit: Callable[[], str]) -> None:
        self.after, self.audit = after, audit

    def due(self, steps: int) -> bool:
        return steps == self.after

    def doubt_after(self, steps: int) -> str:
        return self.audit()

    def metrics(self) -> dict[str, float]:
        return {"judge/audit_win_rate": 0.1}


class FakeWatch:
    """Keeps the figures of each step, and who was at work."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self.worked: list[tuple[str, str, int]] = []

    def live(self, figures: Mapping[str, float]) -> None:
        assert all(describe(name).live for name in figures)

    def spans(self, spans: Sequence[Span]) -> None:
        self.worked += [(span.actor, span.name, span.step) for span in spans]

    def status(self, text: str) -> None:
        pass

    def stage(self, name: str, steps: int, start: int) -> None:
        pass

    def step(self, metrics: dict[str, float], step: int, stage: str) -> None:
        self.steps.append(metrics)

    def samples(self, rows: Sequence[Any], step: int) -> None:
        pass


class BareTraining(Training):
    """A run whose parts are the fakes above."""

    def __init__(self, config: RunConfig, folder: Path, audit_after: int) -> None:
        self.config, self.folder, self.ledger = config, RunFolder(folder), Ledger(folder)
        self.learner, self.fake_watch = FakeLearner(), FakeWatch()
        self.request, self.fake_trust = SimpleNamespace(asked=False), FakeTrust(audit_after, lambda: "")
        parts: dict[str, Any] = {
            "plan": SimpleNamespace(pairs={}), "crew": SimpleNamespace(learner=self.learner), "ports": FakePorts(),
            "watch": self.fake_watch, "memory": SimpleNamespace(last_gb=1.0, peak_gb=1.0),
            "stop": self.request, "trust": self.fake_trust,
        }  # fmt: skip
        self.__dict__.update(parts)
        self.stream, self.progress, self._counted_until = PromptStream(PROMPTS, 0), Progress(), 0.0
        self._saved_s = 0.0


def training(folder: Path, *, audit_after: int) -> BareTraining:
    folder.joinpath("trajectories").mkdir()
    stage = {"name": "sft", "steps": 4, "groups_per_step": 2, "checkpoint_every": 3, "loss": {"kind": "sft"}}
    return BareTraining(parse({"name": "n", "stage": [stage]}, "test"), folder, audit_after)


def test_a_judge_that_is_doubted_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    run = training(tmp_path, audit_after=2)
    run.fake_trust.audit = lambda: "no judge to trust"
    with pytest.raises(RunError, match="no judge to trust"):
        run._run_stage(0, run.config.stage[0])
    assert run.learner.saved == [2]
    assert (run.progress.step, run.progress.total_steps) == (2, 2)
    told = [(step["judge/audit_win_rate"], step["judge/actors_serving"]) for step in run.fake_watch.steps]
    assert told == [(0.1, 3.0), (0.1, 3.0)]
    assert run.fake_watch.worked == [
        ("learner", "train", 1), ("learner", "train", 2), ("learner", "checkpoint", 2)
    ]  # fmt: skip


def test_a_judge_that_is_trusted_does_not(tmp_path: Path) -> None:
    run = training(tmp_path, audit_after=2)
    run._run_stage(0, run.config.stage[0])
    assert run.learner.saved == [2, 3, 4]


@pytest.mark.parametrize("after", [2, 3])
def test_a_step_is_told_and_saved_before_the_judge_is_audited(tmp_path: Path, after: int) -> None:
    """A checkpoint is due after step 3 anyway."""
    run = training(tmp_path, audit_after=after)

    def fail() -> str:
        assert (run.learner.saved, len(run.fake_watch.steps)) == ([after], after)
        raise RunError("the judge is gone")

    run.fake_trust.audit = fail
    with pytest.raises(RunError, match="the judge is gone"):
        run._run_stage(0, run.config.stage[0])


def test_a_request_to_stop_during_an_audit_waits_for_no_other_step(tmp_path: Path) -> None:
    run = training(tmp_path, audit_after=2)

    def hear() -> str:
        run.request.asked = True
        return ""

    run.fake_trust.audit = hear
    with pytest.raises(StopAsked):
        run._run_stage(0, run.config.stage[0])
    assert run.learner.saved == [2]


def test_a_request_to_stop_ends_the_run_with_a_checkpoint_and_without_an_audit(tmp_path: Path) -> None:
    run = training(tmp_path, audit_after=1)
    run.request.asked, run.fake_trust.audit = True, lambda: "no judge to trust"
    with pytest.raises(StopAsked):
        run._run_stage(0, run.config.stage[0])
    assert run.learner.saved == [1]
