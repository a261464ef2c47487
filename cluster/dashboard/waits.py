"""Who works and who waits, as shares of a step's wall time.

Derived from what each step records anyway. In a synchronous run the shares add up to about 1; in one that runs ahead
they overlap, and a part whose call spans two steps is counted in the one in which the call ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from speechsum.metrics import Metric

PARTS = ("rollout", "judge", "teacher", "learner", "sync")
DERIVED = {
    f"busy/{part}": Metric("", f"share of the step's wall time in which {who} worked")
    for part, who in zip(
        PARTS,
        ("a rollout actor", "a judge", "a teacher", "the learner", "nobody but the push of weights"),
        strict=True,
    )
}


def busy_shares(figures: Mapping[str, Any]) -> dict[str, float]:
    """`busy/<part>` for each part that took part in the step; empty for a step without a wall time."""
    wall_s = _number(figures, "wall/step_s")
    if not wall_s:
        return {}
    tokens_per_s = _number(figures, "rollout/tokens_per_s")
    seconds = {
        "rollout": (_number(figures, "rollout/tokens") or 0.0) / tokens_per_s if tokens_per_s else None,
        "judge": _number(figures, "judge/score_s"),
        "teacher": _number(figures, "teacher/teach_s"),
        "learner": _number(figures, "learner/step_s"),
        "sync": _number(figures, "sync/publish_s"),
    }
    return {f"busy/{part}": s / wall_s for part, s in seconds.items() if s is not None}


def _number(figures: Mapping[str, Any], name: str) -> float | None:
    value = figures.get(name)
    return float(value) if isinstance(value, int | float) else None
