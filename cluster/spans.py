"""Who was at work when: one span for each call of the controller, as lines of `spans.jsonl`."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one actor's work. Controller and driver -> watch; the timeline is drawn from them.

    `start` and `end` are seconds since 1970 by the driver's clock; `step` is the step that was to be finished when the
    work ended; `groups` is how many groups it was about. `actor` is a role and a number, such as `rollout 0`.
    """

    stage: str
    step: int
    name: str
    actor: str
    start: float
    end: float
    groups: int = 0


class SpanLog:
    """The spans of a stage since they were last taken.

    The controller knows when something was given to an actor and when it saw the answer. An actor takes one call after
    the other, so a call's span begins no sooner than the one before it on the same actor has ended.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._free: dict[str, float] = {}
        self._spans: list[Span] = []

    def add(self, name: str, actor: str, asked: float, step: int, groups: int = 0) -> None:
        """What was asked of `actor` at `asked` has just been answered."""
        now = time.time()
        start = min(now, max(asked, self._free.get(actor, asked)))
        self._free[actor] = now
        self._spans.append(Span(self._stage, step, name, actor, start, now, groups))

    def take(self) -> tuple[Span, ...]:
        """Those since the last time."""
        taken, self._spans = tuple(self._spans), []
        return taken
