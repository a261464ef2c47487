"""What is shown and recorded of a run. wandb is the real one, offline; the terminals are strings."""

import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console

from actors import published
from cluster.run_folder import RunFolder
from cluster.screen import LiveScreen, Pace, PlainScreen, duration, screen_for
from cluster.trackers import RayTracker
from cluster.watch import SampleRow, Watch
from speechsum.config import RunConfig, parse

FIGURES = {"judge/reward_mean": 0.4125, "learner/loss": 0.5, "rollout/tokens_per_s": 800.4}


@pytest.fixture(autouse=True)
def _wandb_stays_in_the_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "run" / "wandb" / "data"))


def config(wandb: str = "disabled") -> RunConfig:
    stages = [{"name": name, "steps": 3, "loss": {"kind": "sft"}} for name in ("align", "tune")]
    return parse({"name": "t", "stage": stages, "watch": {"wandb": wandb, "samples": 2}}, "test")


@contextmanager
def begin(tmp_path: Path, console: Console | None = None, wandb: str = "disabled", **options: Any) -> Iterator[Watch]:
    folder = RunFolder.create(tmp_path / "run", config(wandb))
    with (
        closing(screen_for(console or Console(file=io.StringIO(), width=200), **options)) as screen,
        Watch(folder, config(wandb), screen) as watch,
    ):
        yield watch


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sample(prompt: str, audio: str = "", reward: float | None = 0.5) -> SampleRow:
    return SampleRow(prompt, audio, "Summarize.", "A tone.", "A tone sounds.", reward, {"faithful": 0.75}, 3)


class FakePipe(io.StringIO):
    """A pipe that lets a test wait for a word instead of sleeping."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word, self.seen = word, threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.word in self.getvalue():
            self.seen.set()
        return written


def test_each_step_is_a_line_on_disk_and_on_a_pipe(tmp_path: Path) -> None:
    out = io.StringIO()
    with begin(tmp_path, Console(file=out, width=60)) as watch:
        watch.status("starting engines")
        watch.stage("align", 3, 0)
        watch.step(FIGURES, 1, "align")
        assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 1  # on disk before the next step
        watch.step({**FIGURES, "learner/loss": float("nan")}, 2, "align")
    first, second = lines(tmp_path / "run" / "metrics.jsonl")
    assert first == {"time": first["time"], "stage": "align", "step": 1, **FIGURES}
    assert second["learner/loss"] is None
    shown = out.getvalue().splitlines()
    assert "starting engines" in shown[0]
    assert "stage align (1 of 2): 3 steps" in shown[1]
    assert "align (1 of 2) 1/3 · reward 0.412 · loss 0.5000 · 800 tokens/s · about 0 s left" in shown[2]
    assert "loss" not in shown[3]


def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    with begin(tmp_path) as watch:
        watch.step({"learner/loss": np.float32(0.5)}, 1, "align")
    assert lines(tmp_path / "run" / "metrics.jsonl")[0]["learner/loss"] == 0.5


def test_silence_is_broken_by_a_heartbeat(tmp_path: Path) -> None:
    pipe = FakePipe("... loading the engine")
    with begin(tmp_path, Console(file=pipe, width=100), heartbeat_s=0.01) as watch:
        watch.status("loading the engine")
        assert pipe.seen.wait(10)


def test_closing_ends_every_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with begin(tmp_path) as watch:
        assert threading.active_count() > before
        watch.close()
    assert threading.active_count() == before


def test_a_terminal_gets_a_moving_picture(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True, legacy_windows=False, _environ={"TERM": "xterm"})
    with begin(tmp_path, console) as watch:
        assert isinstance(watch._screen, LiveScreen)
        watch.status("training [fast]")
        watch.stage("align", 3, 1)
        watch.step(FIGURES, 2, "align")
        watch.stage("tune", 3, 0)
        watch.note("a note with [brackets]")
    shown = out.getvalue()
    assert "training [fast]" in shown
    assert "a note with [brackets]" in shown
    assert "tune (2 of 2)" in shown


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with begin(tmp_path, console) as watch:
        assert isinstance(watch._screen, PlainScreen)


def test_a_resumed_run_forgets_the_steps_it_will_repeat(tmp_path: Path) -> None:
    with begin(tmp_path) as watch:
        for stage in ("align", "tune"):
            watch.stage(stage, 3, 0)
            for step in (1, 2, 3):
                watch.step(FIGURES, step, stage)
                watch.samples([sample(f"{stage}{step}")], step)
        metrics = tmp_path / "run" / "metrics.jsonl"
        with metrics.open("a") as file:
            file.write('{"time": 1, "sta')  # a crash in the middle of a line
        watch.rewind("tune", 1)
        assert [(row["stage"], row["step"]) for row in lines(metrics)][-2:] == [("align", 3), ("tune", 1)]
        assert [row["prompt_id"] for row in lines(tmp_path / "run" / "samples.jsonl")][-1] == "tune1"
        watch.step(FIGURES, 2, "tune")
        assert len(lines(metrics)) == 5
        watch.rewind("align", 0)
        assert lines(metrics) == []


def test_wandb_offline_keeps_a_playable_table(tmp_path: Path) -> None:
    recording = tmp_path / "a.wav"
    soundfile.write(recording, np.sin(np.arange(8_000) / 20) * 0.1, 16_000)
    out = io.StringIO()
    with begin(tmp_path, Console(file=out, width=200), wandb="offline") as watch:
        watch.stage("align", 3, 0)
        watch.step(FIGURES, 1, "align")
        rows = [sample("p", str(recording)), sample("gone", str(tmp_path / "gone.wav"), None), sample("over")]
        watch.samples(rows, 1)
    assert "wandb is off" not in out.getvalue()
    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    assert list(run.glob("*.wandb"))
    waiting = [path.read_bytes() for path in (tmp_path / "run" / "wandb" / "data").rglob("*") if path.is_file()]
    assert waiting.count(recording.read_bytes()) == 1  # what `wandb sync` will upload, to be played in the table
    (table,) = (json.loads(path.read_text()) for path in run.rglob("*.table.json"))
    cells = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["prompt"], row["reward"], row["breakdown"]) for row in cells] == [
        ("p", 0.5, "faithful=0.75"),
        ("gone", None, "faithful=0.75"),
    ]
    assert [row["audio"] for row in cells] == ["Audio", None]
    assert [row["prompt_id"] for row in lines(tmp_path / "run" / "samples.jsonl")] == ["p", "gone"]


def test_a_long_stage_copies_audio_to_wandb_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[int] = []
    with begin(tmp_path) as watch:
        monkeypatch.setattr(watch._wandb, "samples", lambda rows, stage, step: tables.append(step))
        watch.stage("align", 200, 0)
        for step in range(1, 201):
            watch.samples([sample("p")], step)
    assert tables == [1, *range(10, 201, 10)]
    assert len(lines(tmp_path / "run" / "samples.jsonl")) == 200


class FakeBrokenWandb(ModuleType):
    """A wandb that cannot start."""

    Settings = dict
    ended = False

    def init(self, **options: Any) -> None:
        raise OSError("no space left")

    def teardown(self) -> None:
        self.ended = True


def test_a_failing_wandb_is_told_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = FakeBrokenWandb("wandb")
    monkeypatch.setitem(sys.modules, "wandb", broken)
    out = io.StringIO()
    with begin(tmp_path, Console(file=out, width=200), wandb="offline") as watch:
        watch.step(FIGURES, 1, "align")
        watch.samples([sample("p")], 1)
    assert out.getvalue().count("wandb is off from here on (OSError: no space left)") == 1
    assert broken.ended
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == 1


class FakeMetric:
    """What a Ray gauge or counter was told; all of them are in `made`."""

    made: dict[str, "FakeMetric"]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
        self.description, self.tag_keys, self.tags = description, tag_keys, {}
        self.values: list[tuple[str, float]] = []
        self.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert set(tags) == set(self.tag_keys)
        self.tags = tags

    def set(self, value: float) -> None:
        self.values.append(("set", value))

    def inc(self, value: float, tags: dict[str, str] | None) -> None:
        assert value > 0  # Ray refuses anything else
        assert tags is None
        self.values.append(("inc", value))


def test_ray_gets_gauges_and_counters_only_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeMetric.made = {}
    running = [False]
    ray = ModuleType("ray")
    vars(ray).update(is_initialized=lambda: running[0])
    monkeypatch.setitem(sys.modules, "ray", ray)
    for form in ("Gauge", "Counter"):
        monkeypatch.setattr(published, form, FakeMetric)
    tracker = RayTracker("night")
    tracker.step(FIGURES)
    assert FakeMetric.made == {}
    running[0] = True
    for dropped in (0.0, 2.0):
        tracker.step({"learner/loss": 0.5, "buffer/dropped": dropped})
    tracker.close()
    assert FakeMetric.made["speechsum_learner_loss"].values == [("set", 0.5)] * 2
    assert FakeMetric.made["speechsum_buffer_dropped"].values == [("inc", 2.0)]
    assert FakeMetric.made["speechsum_learner_loss"].tags == {"run": "night"}
    assert FakeMetric.made["speechsum_learner_loss"].description == "loss of the step, over the whole batch [nats]"


def test_the_forecast_follows_recent_steps() -> None:
    pace = Pace(steps=100, start=10, now=0.0)
    assert pace.left_s(10, 1.0) is None
    assert pace.left_s(11, 4.0) == 4.0 * 89
    for step in range(12, 40):
        left = pace.left_s(step, 4.0 + 2 * (step - 11))
    assert left == 2.0 * 61


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (90, "2 min"), (3900, "1 h 05 min")])
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
