"""An evaluation as a table in Markdown: every measure of every row, and every row against the first.

Reads the figures of `eval_table.EvalTable`, so that a saved evaluation can be shown again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from speechsum.eval_measures import MEASURES, Measure
from speechsum.report import UNKNOWN, difference_text, estimate_text

Figures = Mapping[str, Any]
LEAST_RECORDINGS = 6
"""With fewer, nothing is marked as different: five that all agree do so by chance once in 16 (the sign test)."""

MEANS = 'Means with 95 % intervals by recording. "of 3": known of so many items only.'
DIFFERENCES = (
    f"Paired differences, item by item; an asterisk where the interval leaves out zero and at least {LEAST_RECORDINGS} "
    "recordings were compared."
)
KINDS = '"Held out" is a kind that training never asks, where the recipe says what it asks.'
RULES_OBEYED = "From 0 to 1, over the items whose request speaks of the rule and where the rule can tell."


def render_markdown(figures: Figures) -> str:
    """The whole report but for the samples, which the page shows."""
    parts = (*_means(figures), *_against(figures), *_kinds(figures), *_rules(figures), *_meanings(figures))
    return "\n".join((*parts, ""))


def known_measures(figures: Figures) -> list[Measure]:
    """Those that any row has a value for."""
    rows = figures["rows"].values()
    return [measure for measure in MEASURES if any(row.get(measure.key) for row in rows)]


def heading(figures: Figures) -> str:
    """What was measured, on what, by whom."""
    judges = ", ".join(f"{judge.replace('_', ' ')} {name}" for judge, name in figures.get("judges", {}).items())
    counts = f"{figures['n']} items about {figures['recordings']} recordings"
    return " · ".join(part for part in (str(figures.get("data", "")), counts, judges) if part)


def mean_cells(figures: Figures) -> Iterator[list[str]]:
    """A line for each measure: its title, then each row's mean, with the number of items where not all are known."""
    for m in known_measures(figures):
        cells = (
            estimate_text(row.get(m.key)) + _of(row["known"].get(m.key, 0), figures["n"])
            for row in figures["rows"].values()
        )
        yield [m.title, *cells]


def difference_cells(figures: Figures) -> Iterator[list[str]]:
    """A line for each measure: its title, then how each other row differs from the first."""
    for m in known_measures(figures):
        yield [m.title, *(_difference(other, m.key, figures["n"]) for other in figures["against_baseline"].values())]


def _difference(comparison: Figures, key: str, items: int) -> str:
    if key not in comparison["difference"]:
        return UNKNOWN
    pairs = comparison["pairs"][key]
    text = difference_text(comparison["difference"][key], mark=pairs["recordings"] >= LEAST_RECORDINGS)
    return text.strip() + _of(pairs["items"], items)


def _of(known: int, items: int) -> str:
    return f" of {known}" if 0 < known < items else ""


def kind_cells(figures: Figures) -> Iterator[list[str]]:
    """A line for each kind of request and measure: what they are, then each row's mean."""
    titles = {m.key: m.title for m in known_measures(figures)}
    for kind, own in figures.get("kinds", {}).items():
        name = f"{kind} ({'held out, ' if own['held_out'] else ''}n = {own['n']})"
        for key, title in titles.items():
            if any(row.get(key) for row in own["rows"].values()):
                cells = (estimate_text(row.get(key)) + _of(row["known"][key], own["n"]) for row in own["rows"].values())
                yield [f"{name}: {title}", *cells]


def rule_cells(figures: Figures) -> Iterator[list[str]]:
    """A line for each rule that any request speaks of: its name, then how far each row obeys it."""
    for rule, rows in figures.get("rules", {}).items():
        yield [rule, *(estimate_text(rows[name]) for name in figures["rows"])]


def systems(figures: Figures) -> Iterator[str]:
    """A sentence for each row that is no checkpoint."""
    yield from (f"{name}: {system}" for name, system in figures.get("systems", {}).items())


def win_rates(comparison: Figures) -> Iterator[str]:
    """A sentence for each judge that compared a row with the first."""
    for judge, won in comparison["win_rate"].items():
        by = "the judge" if judge == "judge" else "the second judge"
        items = comparison["pairs"][judge]["items"]
        yield f"preferred by {by} on {estimate_text(won)} of {items} items, ties counted half"


def _means(figures: Figures) -> Iterator[str]:
    yield from ("# Evaluation", "", _cell(heading(figures)), "", MEANS, "")
    yield from _table(["measure", *figures["rows"]], mean_cells(figures))
    if figures.get("systems"):
        yield ""
        yield from (f"- {_cell(sentence)}" for sentence in systems(figures))


def _kinds(figures: Figures) -> Iterator[str]:
    if len(figures.get("kinds", {})) > 1:
        yield from ("", "## By kind of request", "", KINDS, "")
        yield from _table(["kind", *figures["rows"]], kind_cells(figures))


def _rules(figures: Figures) -> Iterator[str]:
    if figures.get("rules"):
        yield from ("", "## Rules obeyed", "", RULES_OBEYED, "")
        yield from _table(["rule", *figures["rows"]], rule_cells(figures))


def _against(figures: Figures) -> Iterator[str]:
    others: Figures = figures["against_baseline"]
    if not others:
        return
    yield from ("", f"## Against {_cell(figures['baseline'])}", "")
    yield DIFFERENCES
    yield ""
    yield from _table(["measure", *others], difference_cells(figures))
    yield ""
    yield from (f"- {_cell(name)}: {sentence}" for name, other in others.items() for sentence in win_rates(other))


def _meanings(figures: Figures) -> Iterator[str]:
    yield from ("", "## What is measured", "")
    yield from (f"- {m.title}: {m.meaning}" for m in known_measures(figures))


def _table(headings: Sequence[str], lines: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_cell, headings))} |"
    yield f"| --- |{' ---: |' * (len(headings) - 1)}"
    yield from (f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    """On one line, with nothing that Markdown would take for a column, a mark or HTML."""
    flat = " ".join(text.split())
    for mark in "\\|`*_[]<>":
        flat = flat.replace(mark, "\\" + mark)
    return flat
