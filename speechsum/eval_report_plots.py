"""Small pictures for an evaluation's page: means with their intervals, a line for each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from speechsum.eval_measures import Measure
from speechsum.report import UNKNOWN

WIDTH, LEFT, RIGHT, TOP, ROW, FOOT = 360, 108, 52, 8, 22, 22
MOST_CHARACTERS = 15


def interval_plot(measure: Measure, estimates: Mapping[str, Mapping[str, Any] | None]) -> str:
    """An `<svg>` for one measure: a dot at each row's mean, a line from end to end of its interval.

    `estimates` are by name of row; None leaves a row's place empty. Colours are those of the page it stands in.
    """
    scale = _Scale(measure, [e for e in estimates.values() if e])
    height = TOP + ROW * len(estimates) + FOOT
    parts = [part for place, (name, e) in enumerate(estimates.items()) for part in _row(place, name, e, scale)]
    return "".join((
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(measure.title)}">',
        *_axis(scale, height - FOOT),
        *parts,
        "</svg>",
    ))  # fmt: skip


class _Scale:
    """From a value to its place: the measure's own range, wider where an interval leaves it."""

    def __init__(self, measure: Measure, estimates: list[Mapping[str, Any]]) -> None:
        ends = [end for e in estimates for end in (e["mean"], *e["ci95"])]
        self.low = min([measure.bottom, *ends])
        self.high = max([self.low + 1e-9, *ends]) if measure.top is None else max([measure.top, *ends])

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.low) / (self.high - self.low)


def _axis(scale: _Scale, bottom: int) -> Iterator[str]:
    for value in (scale.low, (scale.low + scale.high) / 2, scale.high):
        x = scale.x(value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{value:.3g}</text>'


def _row(place: int, name: str, estimate: Mapping[str, Any] | None, scale: _Scale) -> Iterator[str]:
    y = TOP + ROW * place + ROW / 2
    short = name if len(name) <= MOST_CHARACTERS else name[: MOST_CHARACTERS - 1] + "\u2026"
    title = f"<title>{escape(name)}</title>"
    yield f'<text x="{LEFT - 10}" y="{y + 4:g}" text-anchor="end">{title}{escape(short)}</text>'
    if estimate is not None:
        low, high = map(scale.x, estimate["ci95"])
        yield f'<line class="interval" x1="{low:.1f}" x2="{high:.1f}" y1="{y:g}" y2="{y:g}"/>'
        yield f'<circle cx="{scale.x(estimate["mean"]):.1f}" cy="{y:g}" r="4"/>'
    value = UNKNOWN if estimate is None else f"{estimate['mean']:.2f}"
    yield f'<text class="value" x="{WIDTH - RIGHT + 10}" y="{y + 4:g}">{value}</text>'
