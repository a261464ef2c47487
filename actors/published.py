"""The figures of a process as Ray's metrics, named and described by the table in `speechsum.metrics`.

Ray drops a gauge that nobody has set for two of its export intervals, 20 seconds, while a step or a call may take
minutes: it would be missing most of the time, and no alert on it could hold. So gauges are set again, to what they
were, until they are forgotten or the process ends.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from speechsum.metrics import METRICS, Metric, ray_name

REFRESH_S = 5.0
SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
"""Between which durations are counted."""


class Published:
    """Metrics with the same `tags`. Counters begin when there is something to count; may be used from any thread."""

    def __init__(self, tags: Mapping[str, str], refresh_s: float = REFRESH_S) -> None:
        self._tags, self._refresh_s = dict(tags), refresh_s
        self._made: dict[str, Any] = {}
        self._gauges: dict[str, float] = {}
        self._totals: dict[str, float] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._refresher: threading.Thread | None = None

    def tell(self, figures: Mapping[str, float]) -> None:
        """Set a gauge for each figure or, where it adds up over a run, count it up by that much."""
        for name, value in figures.items():
            if _about(name).form == "counter":
                self.add(name, value)
            else:
                self._set(name, value)

    def tell_totals(self, figures: Mapping[str, float]) -> None:
        """As `tell`, of figures of which those that add up are totals since the start."""
        for name, value in figures.items():
            if _about(name).form == "counter":
                self.add(name, value - self._totals.get(name, 0.0))
                self._totals[name] = value
            else:
                self._set(name, value)

    def add(self, name: str, amount: float, **labels: str) -> None:
        """Count up by `amount`, if that is anything, under `labels` of its own."""
        if amount > 0:
            self._metric(name, Counter).inc(amount, labels or None)

    def observe(self, name: str, seconds: float) -> None:
        """One more duration of those that a histogram counts."""
        self._metric(name, Histogram, boundaries=SECONDS).observe(seconds)

    def forget(self, names: Collection[str]) -> None:
        """Let gauges go that are not true any more; Ray drops them within half a minute."""
        with self._lock:
            for name in names:
                self._gauges.pop(name, None)

    def close(self) -> None:
        """Let all of them go. May be called twice."""
        self._ended.set()
        if self._refresher:
            self._refresher.join()

    def _set(self, name: str, value: float) -> None:
        with self._lock:
            self._gauges[name] = value
            self._metric(name, Gauge).set(value)
            if self._refresher is None:
                self._refresher = threading.Thread(target=self._refresh, name="metrics", daemon=True)
                self._refresher.start()

    def _refresh(self) -> None:
        while not self._ended.wait(self._refresh_s):
            with self._lock:
                for name, value in self._gauges.items():
                    if ray.is_initialized():
                        self._made[name].set(value)

    def _metric(self, name: str, form: type, **settings: Any) -> Any:
        if name not in self._made:
            about = _about(name)
            self._made[name] = form(ray_name(name), about.text, tag_keys=about.labels, **settings)
            self._made[name].set_default_tags(self._tags)
        return self._made[name]


def _about(name: str) -> Metric:
    """A figure without a line in the table, which tests look for, is told all the same."""
    return METRICS.get(name, Metric("", ""))
