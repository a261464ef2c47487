"""Seeing a run: one object that the driver tells what happens, and that shows and records it.

What goes to `metrics.jsonl` is the record; the screen, wandb and Ray's metrics are views of it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.run_folder import RunFolder
from cluster.screen import Pace, Screen, duration
from cluster.spans import Span
from cluster.trackers import RayTracker, SampleRow, WandbTracker
from speechsum.config import RunConfig
from speechsum.files import write_whole

__all__ = ["SampleRow", "Watch"]

TABLES_PER_STAGE = 20  # wandb keeps a copy of the audio with each table
SHOWN = (
    ("judge/reward_mean", "reward {:.3f}"),
    ("learner/loss", "loss {:.4f}"),
    ("rollout/tokens_per_s", "{:.0f} tokens/s"),
    ("wall/step_s", "{:.1f} s/step"),
)


class Watch:
    """Shows a run and records it. `with Watch(folder, config, screen) as watch:`, then tell it what happens."""

    def __init__(self, folder: RunFolder, config: RunConfig, screen: Screen) -> None:
        self._folder = folder
        self._order = {stage.name: i for i, stage in enumerate(config.stage)}
        self._steps_before = {s.name: sum(t.steps for t in config.stage[:i]) for i, s in enumerate(config.stage)}
        self._shown_samples = config.watch.samples
        self._stage = ""
        self._table_every = 1
        self._pace: Pace | None = None
        self._screen = screen
        self._wandb = WandbTracker(folder, config, self.note)
        self._ray = RayTracker(folder.path.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def status(self, text: str) -> None:
        """What is happening now, such as `starting engines`; shown until the next one."""
        self._screen.status(text)

    def note(self, text: str) -> None:
        """A line that stays: a figure of the preflight, a warning."""
        self._screen.note(text)

    def stage(self, name: str, steps: int, start: int) -> None:
        """A stage of `steps` steps begins, `start` of them done before a resume."""
        self._stage = name
        self._table_every = max(1, steps // TABLES_PER_STAGE)
        self._pace = Pace(steps, start, time.monotonic())
        number = f" ({self._order[name] + 1} of {len(self._order)})" if len(self._order) > 1 else ""
        self._screen.stage(f"{name}{number}", steps, start)

    def step(self, metrics: Mapping[str, float], step: int, stage: str) -> None:
        """Step number `step` of the stage, counted from 1, is done."""
        plain = {name: float(value) for name, value in metrics.items()}
        _append(self._folder.metrics, [{"time": round(time.time(), 3), "stage": stage, "step": step, **plain}])
        finite = {name: value for name, value in plain.items() if math.isfinite(value)}
        self._screen.step(step, _figures(finite), self._left(step))
        self._wandb.log(finite, stage, step, self._steps_before.get(stage, 0) + step)
        self._ray.step(finite)

    def live(self, figures: Mapping[str, float]) -> None:
        """How things stand at this moment: for Ray's metrics alone."""
        self._ray.live(figures)

    def spans(self, spans: Sequence[Span]) -> None:
        """Who was at work when."""
        _append(self._folder.spans, [asdict(span) for span in spans])

    def samples(self, rows: Sequence[SampleRow], step: int) -> None:
        """Completions of this step to be looked at; at most `watch.samples` of them are kept.

        All of those are in `samples.jsonl`; wandb gets those of the first step and of every so many.
        """
        shown = rows[: self._shown_samples]
        if shown:
            _append(self._folder.samples, [{"stage": self._stage, "step": step, **asdict(row)} for row in shown])
            if step == 1 or step % self._table_every == 0:
                self._wandb.samples(shown, self._stage, step)

    def rewind(self, stage: str, step: int) -> None:
        """Cut off what was recorded after step `step` of `stage`: a resumed run will do those steps again."""
        for path in (self._folder.metrics, self._folder.samples, self._folder.spans):
            if path.exists():
                _cut(path, self._order, (self._order[stage], step))

    def close(self) -> None:
        """Let go of all but the screen, which is its maker's to close. May be called twice."""
        self._ray.close()
        self._wandb.close()

    def _left(self, step: int) -> str:
        left_s = self._pace.left_s(step, time.monotonic()) if self._pace else None
        return "" if left_s is None else f"about {duration(left_s)} left"


def _figures(metrics: Mapping[str, float]) -> str:
    return " · ".join(form.format(metrics[name]) for name, form in SHOWN if name in metrics)


def _append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """JSON has no NaN; a figure that is not finite is written as null so that the line can be read at all."""
    with path.open("a", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(_finite(line), allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut(path: Path, order: Mapping[str, int], last: tuple[int, int]) -> None:
    """Keep the lines up to the first that lies after `last`, or that a crash left half written."""
    kept: list[str] = []
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            line = json.loads(text)
        except ValueError:
            break
        if (order.get(line["stage"], -1), line["step"]) > last:
            break
        kept.append(text)
    write_whole(path, "".join(kept))
