"""A run's summary as a person reads it: what changed, by how much, and how sure that is.

Reads `summary.json` and nothing else, and takes it with holes: a run that was not benchmarked has no ratio yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from speechsum.eval_measures import MEASURES

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

UNKNOWN = "–"
SHOWN_EXAMPLES = 2
ALWAYS = ("judge", "fact_recall", "fact_precision", "wrong_audio_recall", "rougeL")
WHERE_KNOWN = ("second_judge", "no_audio_recall")
"""What a recipe has to ask for. All other measures are in `summary.json` alone: this table fits a terminal."""


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print `render_summary` to `console`, standard output by default."""
    from rich.console import Console

    (console or Console()).print(render_summary(summary))


def render_summary(summary: Mapping[str, Any]) -> RenderableType:
    """The table of measures, the run's figures, and examples where the evaluation kept some (`eval.examples`)."""
    from rich.console import Group
    from rich.text import Text

    lines = [Text(line) for line in (*_facts(summary), *_examples(summary))]
    return Group(_table(summary.get("eval") or {}), *lines)


def _table(evaluation: Mapping[str, Any]) -> RenderableType:
    from rich import box
    from rich.table import Table

    before, after, difference = (evaluation.get(part) or {} for part in ("before", "after", "difference"))
    counts = {part["n"] for part in (before, after) if part.get("n")}
    title = f"Held-out speech, {'/'.join(map(str, sorted(counts))) or UNKNOWN} items (95 % intervals)"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))  # fits 80 columns
    table.add_column("measure")
    for heading in ("before", "after", "difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    for measure in MEASURES:
        key = measure.key
        if key in ALWAYS or (key in WHERE_KNOWN and (before.get(key) or after.get(key))):
            cells = [estimate_text(before.get(key)), estimate_text(after.get(key))]
            table.add_row(measure.title, *cells, _change(before.get(key), after.get(key), difference.get(key)))
    return table


def estimate_text(estimate: Mapping[str, Any] | None) -> str:
    """Mean and interval to two places."""
    if not estimate or estimate.get("mean") is None:
        return UNKNOWN
    interval = estimate.get("ci95")
    text = f"{estimate['mean']:.2f}"
    return f"{text} ({interval[0]:.2f}–{interval[1]:.2f})" if interval else text


def _change(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, paired: Mapping[str, Any] | None) -> str:
    """The paired difference; without one the plain difference."""
    if paired and paired.get("mean") is not None:
        return difference_text(paired)
    means = [side["mean"] for side in (before, after) if side and side.get("mean") is not None]
    return f"{means[1] - means[0]:+.3f}" if len(means) == 2 else UNKNOWN


def difference_text(paired: Mapping[str, Any], *, mark: bool = True) -> str:
    """A paired difference and its interval, with an asterisk (or `mark` false, never) where that leaves out zero."""
    low, high = paired.get("ci95") or (0.0, 0.0)
    return f"{paired['mean']:+.3f} ({low:+.3f}, {high:+.3f}) {'*' if mark and (low > 0 or high < 0) else ' '}"


def _facts(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "* the interval leaves out zero · wrong audio: fact recall on a wrong clip"
    if won := (((summary.get("eval") or {}).get("win_rate")) or {}).get("judge"):
        yield f"judged better after than before: {estimate_text(won)} of the items, ties counted half"
    stages = ", ".join(_stage(stage) for stage in summary.get("stages") or []) or UNKNOWN
    wall, memory = summary.get("wall_s"), summary.get("peak_rss_gb")
    yield (
        f"stages: {stages} · steps: {_number(summary.get('steps'))} · "
        f"time: {UNKNOWN if wall is None else f'{wall / 60:.1f} min'} · "
        f"memory at its peak: {UNKNOWN if memory is None else f'{memory:.1f} GB'}"
    )
    ratio = summary.get("rollout_vs_vllm")
    yield f"rollout actor against bare vLLM: {UNKNOWN if ratio is None else f'{ratio:.2f} of its tokens/s'}"
    for key, title in (("parity", "learner against rollout"), ("sync", "weights back to the actors")):
        yield f"{title}: {_pairs(summary.get(key))}"


def _stage(stage: object) -> str:
    return str(stage.get("name", UNKNOWN)) if isinstance(stage, Mapping) else str(stage)


def _pairs(section: object) -> str:
    """A section of figures on one line; sections within it are named by a dotted key."""
    return ", ".join(f"{key} {_number(value)}" for key, value in _flat(section)) or UNKNOWN


def _flat(section: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(section, Mapping):
        for key, value in section.items():
            yield from _flat(value, f"{prefix}{key}." if isinstance(value, Mapping) else f"{prefix}{key}")
    elif section is not None:
        yield prefix, section


def _number(value: object) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _examples(summary: Mapping[str, Any]) -> Iterator[str]:
    for example in ((summary.get("eval") or {}).get("examples") or [])[:SHOWN_EXAMPLES]:
        yield ""
        yield f"asked: {example.get('instruction', UNKNOWN)}"
        for key, title in (("transcript", "said"), ("before", "before"), ("after", "after")):
            if example.get(key) is not None:
                text = " / ".join(str(example[key]).split("\n"))
                yield f"  {title:>6}  {text}"
