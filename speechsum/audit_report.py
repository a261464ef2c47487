"""An audit as a person reads it: the table with its targets, and the picture of what the judge sees through.

Reads the figures that `cluster/audit.py` writes, so that a saved audit can be shown again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

UNKNOWN = "–"
TITLES = {
    "name": "a name swapped",
    "number": "a number swapped",
    "day": "a day swapped",
    "negation": "a negation swapped",
    "other_clip": "another clip's summary",
    "shuffled": "words shuffled",
    "truncated": "cut in half",
    "doubled": "said twice",
    "padded": "padded with filler",
    "injection": "words to the judge",
    "politeness": "empty politeness",
    "transcript": "the transcript itself",
}
WIDTH, BAR, LEFT, TOP, ROW = 760, 400, 200, 64, 28
MET, NOT_MET, INK, GRID = "#2a7f62", "#c0392b", "#222222", "#888888"


def print_audit(figures: Mapping[str, Any], console: Console | None = None) -> None:
    """Print `render_audit` to `console`, standard output by default."""
    from rich.console import Console

    (console or Console()).print(render_audit(figures))


def render_audit(figures: Mapping[str, Any]) -> RenderableType:
    """The table of targets, and the figures that have none."""
    from rich.console import Group
    from rich.text import Text

    return Group(_table(figures), *(Text(line) for line in _lines(figures)))


def _table(figures: Mapping[str, Any]) -> RenderableType:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"Audit of {figures['judge']} on {figures['clips']} clips (95 % intervals)"
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("measure")
    for heading in ("value", "target", "met", "judged"):
        table.add_column(heading, justify="right", no_wrap=True)
    ranks, injection = figures["spearman"], figures["injection"]
    cells = (_value(ranks["mean"], ranks["ci95"]), _target(ranks), _met(ranks), str(ranks["clips"]))
    table.add_row("ranks by corruption (Spearman)", *cells)
    for kind, part in figures["canaries"].items():
        cells = (_value(part["win_rate"], part["ci95"]), _target(part), _met(part), str(_judged(part)))
        table.add_row(f"truth beats {TITLES[kind]}", *cells)
    cells = (str(injection["raised"]), "0", _met(injection), str(injection["tried"]))
    table.add_row("words to the judge raise the reward", *cells)
    return table


def _lines(figures: Mapping[str, Any]) -> Iterator[str]:
    bias, failures = figures["length_bias"], figures["failures"]
    flips = figures["position_flips"]
    told = "reward with length (Spearman, true summaries)"
    if flips["pairs"]:
        told = "lead with length (Spearman, truth against canary)"
        yield f"winners that changed with the order: {flips['flips']} of {flips['pairs']} ({flips['share']:.0%})"
    else:
        yield "winners that changed with the order: none can, as each text is judged alone"
    yield (
        f"{told}: {UNKNOWN if bias is None else f'{bias:+.2f}'} · "
        f"{figures['judgements']} judgements, {figures['seconds_per_judgement']:.3g} s each"
    )
    if "requests" in figures:
        each = (figures[name] / figures["judgements"] for name in ("requests", "tokens"))
        yield "cost of a judgement: {:.2f} requests, {:.0f} tokens".format(*each)
    kinds = ", ".join(f"{kind} {entry['count']}" for kind, entry in failures.items())
    yield f"judge failures, in no win rate: {kinds or 'none'}"
    yield from (f"  the first {kind}: {entry['first']}" for kind, entry in failures.items() if entry["first"])
    if absent := [title for kind, title in TITLES.items() if kind not in figures["canaries"]]:
        yield f"not to be had from these clips: {', '.join(absent)}"
    yield "all targets are met" if figures["passed"] else "not all targets are met"


def _value(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.3f} ({interval[0]:.2f}–{interval[1]:.2f})" if interval else f"{value:.3f}"


def _target(part: Mapping[str, Any]) -> str:
    return f">= {part['target']:.2f}"


def _met(part: Mapping[str, Any]) -> str:
    return "yes" if part["met"] else "NO"


def _judged(part: Mapping[str, Any]) -> int:
    return int(part["wins"] + part["ties"] + part["losses"])


# --- the picture ---------------------------------------------------------------------------------------------------


def render_svg(figures: Mapping[str, Any]) -> str:
    """A bar for each kind of canary: how often the true summary beat it, with its interval and the target."""
    canaries: Mapping[str, Any] = figures["canaries"]
    height = TOP + ROW * len(canaries) + 36
    bars = [line for place, (kind, part) in enumerate(canaries.items()) for line in _bar(place, kind, part)]
    target = max((part["target"] for part in canaries.values()), default=0.0)
    return "\n".join((
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="13" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(16, 24, f"How often the true summary wins: {figures['judge']}, {figures['clips']} clips", "start"),
        *bars,
        *(line for share in (0.0, 0.5, 1.0) for line in _mark(share, height, target=False)),
        *_mark(target, height, target=True),
        "</svg>\n",
    ))  # fmt: skip


def _bar(place: int, kind: str, part: Mapping[str, Any]) -> Iterator[str]:
    top, rate = TOP + ROW * place, part["win_rate"]
    middle = top + ROW / 2
    yield _text(LEFT - 10, middle + 4, TITLES[kind], "end")
    note = f"{UNKNOWN if rate is None else f'{rate:.2f}'} of {_judged(part)}"
    note += f", {part['failures']} failed" if part["failures"] else ""
    yield _text(LEFT + BAR + 12, middle + 4, note, "start")
    if rate is not None:
        colour = MET if part["met"] else NOT_MET
        yield f'<rect x="{LEFT}" y="{top + 5}" width="{BAR * rate:.1f}" height="{ROW - 10}" fill="{colour}"/>'
        low, high = (LEFT + BAR * end for end in part["ci95"])
        yield f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" stroke="{INK}" stroke-width="2"/>'


def _mark(share: float, height: int, *, target: bool) -> Iterator[str]:
    """An upright line: of the scale, labelled below, or of the target, dashed and labelled above."""
    x, bottom = LEFT + BAR * share, height - 30
    style = f'stroke="{INK}" stroke-dasharray="4 3"' if target else f'stroke="{GRID}"'
    yield f'<line x1="{x:g}" x2="{x:g}" y1="{TOP - 6}" y2="{bottom}" {style}/>'
    yield _text(x, TOP - 12 if target else bottom + 18, f"target {share:g}" if target else f"{share:g}", "middle")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
