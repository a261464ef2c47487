"""What a person sees while a run goes on: a moving picture on a terminal, plain lines elsewhere.

Both keep moving when nothing happens. Loading an engine can take a minute, and a screen that stands still for a
minute is taken for a crash and stopped.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

RECENT_STEPS = 20
HEARTBEAT_S = 10.0


class Pace:
    """How fast a stage moves, from its recent steps: the first ones are slow and must not set the forecast."""

    def __init__(self, steps: int, start: int, now: float) -> None:
        self._steps = steps
        self._marks: deque[tuple[int, float]] = deque([(start, now)], maxlen=RECENT_STEPS)

    def left_s(self, step: int, now: float) -> float | None:
        """Note that `step` steps are done; returns seconds until the stage is, None while that is unknown."""
        self._marks.append((step, now))
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        return (ended - began) / (last - first) * (self._steps - step) if last > first else None


class Screen(Protocol):
    """Where `Watch` shows things."""

    def status(self, text: str) -> None:
        """Say what is happening now."""

    def stage(self, name: str, steps: int, start: int) -> None:
        """Begin a stage of `steps` steps, of which `start` are done."""

    def step(self, step: int, figures: str, left: str) -> None:
        """Show that `step` steps of the stage are done."""

    def note(self, text: str) -> None:
        """Print a line that stays."""

    def close(self) -> None:
        """Stop moving."""


def screen_for(console: Console, heartbeat_s: float = HEARTBEAT_S) -> Screen:
    """The moving picture where the terminal can draw one."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console)
    return PlainScreen(console, heartbeat_s)


class LiveScreen:
    """Two lines at the bottom of a terminal; rich's own thread redraws them, and prints scroll by above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status = Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console)
        self._stage = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[figures]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._status_task = self._status.add_task("starting", total=None)
        self._stage_task: TaskID | None = None
        self._live = Live(Group(self._status, self._stage), console=console, refresh_per_second=8)
        self._live.start()

    def status(self, text: str) -> None:
        """Replace the first line's text."""
        self._status.update(self._status_task, description=_plain(text))

    def stage(self, name: str, steps: int, start: int) -> None:
        """Give the second line to this stage."""
        if self._stage_task is not None:
            self._stage.remove_task(self._stage_task)
        self._stage_task = self._stage.add_task(
            f"[bold]{_plain(name)}[/]", total=steps, completed=start, figures="", left=""
        )

    def step(self, step: int, figures: str, left: str) -> None:
        """Move the bar."""
        if self._stage_task is not None:
            self._stage.update(self._stage_task, completed=step, figures=figures, left=left)

    def note(self, text: str) -> None:
        """Print above the two lines."""
        self._live.console.print(Text(text))

    def close(self) -> None:
        """Leave the last picture on the screen and stop the thread that redraws it."""
        self._live.stop()


class PlainScreen:
    """A line for each step, and after `heartbeat_s` of silence one that says what is going on."""

    def __init__(self, console: Console, heartbeat_s: float) -> None:
        self._console = console
        self._heartbeat_s = heartbeat_s
        self._started = self._printed = time.monotonic()
        self._status = "starting"
        self._title = ""
        self._steps = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def status(self, text: str) -> None:
        """Print a new status once; the heartbeat repeats it."""
        if text != self._status:
            self._status = text
            self.note(text)

    def stage(self, name: str, steps: int, start: int) -> None:
        """Print the stage's name and size."""
        self._title, self._steps = name, steps
        self.note(f"stage {name}: {steps} steps" + (f", {start} of them done" if start else ""))

    def step(self, step: int, figures: str, left: str) -> None:
        """Print the step."""
        parts = (f"{self._title} {step}/{self._steps}", figures, left)
        self.note(" · ".join(part for part in parts if part))

    def note(self, text: str) -> None:
        """Print a line that begins with the time since the start."""
        with self._lock:
            self._printed = time.monotonic()
            elapsed = self._printed - self._started
            self._console.print(f"[{elapsed:6.0f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """End the heartbeat."""
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(max(0.0, self._printed + self._heartbeat_s - time.monotonic())):
            if time.monotonic() - self._printed >= self._heartbeat_s:
                self.note(f"... {self._status}")


def _plain(text: str) -> str:
    """Square brackets are markup to rich; a status is not."""
    return text.replace("[", r"\[")


def duration(seconds: float) -> str:
    """Seconds as people say them: `45 s`, `12 min`, `1 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
