"""A run's summary as a person reads it: what changed, by how much, and how sure that is.

Reads `summary.json` and nothing else, and takes it with holes: a run that was not benchmarked has no ratio yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

UNKNOWN = "–"
SHOWN_EXAMPLES = 2
MEASURES = (
    ("judge", "judge reward"),
    ("fact_recall", "fact recall"),
    ("fact_precision", "fact precision"),
    ("wrong_audio_recall", "wrong audio"),
    ("rougeL", "ROUGE-L"),
)


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
    for key, title in MEASURES:
        cells = [_estimate(before.get(key)), _estimate(after.get(key))]
        table.add_row(title, *cells, _change(before.get(key), after.get(key), difference.get(key)))
    return table


def _estimate(estimate: Mapping[str, Any] | None) -> str:
    if not estimate or estimate.get("mean") is None:
        return UNKNOWN
    interval = estimate.get("ci95")
    text = f"{estimate['mean']:.2f}"
    return f"{text} ({interval[0]:.2f}–{interval[1]:.2f})" if interval else text


def _change(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, paired: Mapping[str, Any] | None) -> str:
    """The paired difference, marked where its interval leaves out zero; without one the plain difference."""
    if paired and paired.get("mean") is not None:
        low, high = paired.get("ci95") or (0.0, 0.0)
        return f"{paired['mean']:+.3f} ({low:+.3f}, {high:+.3f}) {'*' if low > 0 or high < 0 else ' '}"
    means = [side["mean"] for side in (before, after) if side and side.get("mean") is not None]
    return f"{means[1] - means[0]:+.3f}" if len(means) == 2 else UNKNOWN


def _facts(summary: Mapping[str, Any]) -> Iterator[str]:
    yield "* the interval leaves out zero · wrong audio: fact recall on a wrong clip"
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
