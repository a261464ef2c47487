"""How many actors a pool should have: the work at hand against the rate that was measured."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable

from speechsum.config import PoolConfig

RATES_KEPT = 8
"""The last calls whose median rate counts: a stage with longer answers is noticed, one slow call is not."""


class Sizer:
    """Turns work at hand into a wanted number of actors within `bounds`; the pool starts with `start` of them.

    Work is counted in completions, or in pairs of them where a judge compares. One actor does `rate` of them a second,
    so that the outstanding ones need `outstanding / (rate * target_s)` actors. The wanted number is the largest need of
    the last `idle_s` seconds: it rises at once, and falls only after work has been less for that long. Until a call has
    been measured the need is what the pool started with. `clock` gives seconds and never goes back.
    """

    def __init__(self, bounds: PoolConfig, start: int, clock: Callable[[], float]) -> None:
        self.bounds, self._start, self._clock = bounds, start, clock
        self._rates: deque[float] = deque(maxlen=RATES_KEPT)
        self._needs: deque[tuple[float, int]] = deque()

    @property
    def rate(self) -> float | None:
        """Completions per second of one actor; None before any was measured."""
        return statistics.median(self._rates) if self._rates else None

    def finished(self, work: int, seconds: float) -> None:
        """An actor did `work` completions in `seconds`, with nothing else to do meanwhile."""
        if work and seconds > 0:
            self._rates.append(work / seconds)

    def wanted(self, outstanding: int) -> int:
        """How many actors there should be now that `outstanding` completions are asked for and not yet there."""
        now, need = self._clock(), self._need(outstanding)
        while self._needs and self._needs[-1][1] <= need:
            self._needs.pop()  # a need that is older and no larger will never again be the largest
        self._needs.append((now, need))
        while self._needs[0][0] < now - self.bounds.idle_s:
            self._needs.popleft()
        return self._needs[0][1]

    def _need(self, outstanding: int) -> int:
        rate = self.rate
        actors = self._start if rate is None else math.ceil(outstanding / (rate * self.bounds.target_s))
        return max(self.bounds.min, min(self.bounds.max, actors))
