"""PromQL for our metrics. Every query goes through here, so that a name that is not exported cannot be asked for."""

from __future__ import annotations

from dataclasses import dataclass

from speechsum.metrics import describe, series

SESSION = "SessionName"
"""The label by which Ray tells one cluster from another."""


@dataclass(frozen=True)
class Queries:
    """Queries on the series that `only` selects, such as `{run="demo"}`; empty for all. Results are by session.

    An actor that restarts is a new series, so nothing is read without being summed up, or its greatest taken.
    """

    only: str = ""

    def latest(self, name: str, *by: str) -> str:
        """The greatest value at this moment."""
        return f"max {_by(by)} ({self._series(name, 'gauge')})"

    def rate(self, name: str, *by: str, over: str = "15m") -> str:
        """Growth of a counter per second."""
        return f"sum {_by(by)} (rate({self._series(name, 'counter')}[{over}]))"

    def grown(self, name: str, *by: str, over: str = "15m") -> str:
        """Growth of a counter."""
        return f"sum {_by(by)} (increase({self._series(name, 'counter')}[{over}]))"

    def happened(self, name: str, *, over: str) -> str:
        """Growth of a counter of what is rare: its first time, before which it has no series, counts too."""
        counter = self._series(name, "counter")
        return f"sum {_by(())} (({counter} unless {counter} offset {over}) or increase({counter}[{over}]))"

    def worst(self, name: str, *, over: str) -> str:
        """The greatest value since then."""
        return f"max {_by(())} (max_over_time({self._series(name, 'gauge')}[{over}]))"

    def mean(self, name: str, *, over: str) -> str:
        """The mean since then."""
        return f"max {_by(())} (avg_over_time({self._series(name, 'gauge')}[{over}]))"

    def quantile(self, share: float, name: str, *, over: str = "15m") -> str:
        """What `share` of the durations stayed below."""
        buckets = self._series(name, "histogram", "_bucket")
        return f"histogram_quantile({share:g}, sum {_by(('le',))} (rate({buckets}[{over}])))"

    def _series(self, name: str, form: str, suffix: str = "") -> str:
        assert describe(name).form == form, f"{name} is no {form}"
        return f"{series(name)}{suffix}{self.only}"


def _by(labels: tuple[str, ...]) -> str:
    return f"by ({', '.join((SESSION, *labels))})"
