"""An evaluation as one page of HTML that needs nothing else: tables, pictures, and every item to read and to listen to.

Whatever a model, a judge or a manifest wrote is escaped, and the page's own policy forbids it scripts and the network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import soundfile as sf

from speechsum.audio import SAMPLE_RATE
from speechsum.eval_measures import MEASURES
from speechsum.eval_report import (
    DIFFERENCES,
    KINDS,
    MEANS,
    RULES_OBEYED,
    Figures,
    difference_cells,
    heading,
    kind_cells,
    known_measures,
    mean_cells,
    rule_cells,
    systems,
    win_rates,
)
from speechsum.eval_report_plots import interval_plot
from speechsum.eval_report_style import STYLE
from speechsum.report import UNKNOWN
from speechsum.textscores import marked

POLICY = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"
JUDGES = {"judge": "reward", "second_judge": "second judge"}
CONTROLS = {"wrong_audio": "with the wrong audio", "no_audio": "with silence"}


def render_html(figures: Figures, recordings: Sequence[str] = ()) -> str:
    """The page. `recordings` are data URIs (see `audio_uri`) of the first items; the others get no player."""
    parts = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Evaluation of {_text(', '.join(figures['rows']))}</title><style>{STYLE}</style></head><body>",
        f'<header><h1>Evaluation</h1><p class="quiet">{_text(heading(figures))}</p></header>',
        *_means(figures),
        *_against(figures),
        *_kinds(figures),
        *_plots(figures),
        *_samples(figures, recordings),
        *_meanings(figures),
        "</body></html>\n",
    )
    return "\n".join(parts)


def audio_uri(samples: np.ndarray, rate: int = SAMPLE_RATE) -> str:
    """Mono samples [n], full scale 1, as FLAC in a data URI that an `<audio>` element plays."""
    encoded = io.BytesIO()
    sf.write(encoded, samples, rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(encoded.getvalue()).decode('ascii')}"


def _text(text: str) -> str:
    """Anybody's text as content or attribute value; half characters, which no file can hold, become question marks."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


# --- figures -------------------------------------------------------------------------------------------------------


def _means(figures: Figures) -> Iterator[str]:
    yield f'<h2>Means</h2><p class="quiet">{_text(MEANS)}</p>'
    yield from _table(["measure", *figures["rows"]], mean_cells(figures))
    yield from (f"<p>{_text(sentence)}.</p>" for sentence in systems(figures))


def _kinds(figures: Figures) -> Iterator[str]:
    if len(figures.get("kinds", {})) > 1:
        yield f'<h2>By kind of request</h2><p class="quiet">{_text(KINDS)}</p>'
        yield from _table(["kind", *figures["rows"]], kind_cells(figures))
    if figures.get("rules"):
        yield f'<h2>Rules obeyed</h2><p class="quiet">{RULES_OBEYED}</p>'
        yield from _table(["rule", *figures["rows"]], rule_cells(figures))


def _against(figures: Figures) -> Iterator[str]:
    others: Figures = figures["against_baseline"]
    if not others:
        return
    yield f"<h2>Against {_text(figures['baseline'])}, item by item</h2>"
    yield f'<p class="quiet">{DIFFERENCES}</p>'
    yield from _table(["measure", *others], difference_cells(figures))
    for name, other in others.items():
        yield from (f"<p>{_text(name)}: {_text(sentence)}.</p>" for sentence in win_rates(other))


def _plots(figures: Figures) -> Iterator[str]:
    yield '<h2>Pictures of the means</h2><div class="plots">'
    for m in known_measures(figures):
        estimates = {name: row.get(m.key) for name, row in figures["rows"].items()}
        yield f"<figure><figcaption>{_text(m.title)}</figcaption>{interval_plot(m, estimates)}</figure>"
    yield "</div>"


def _meanings(figures: Figures) -> Iterator[str]:
    yield '<h2>What is measured</h2><dl class="meanings">'
    yield from (f"<dt>{_text(m.title)}</dt><dd>{_text(m.meaning)}</dd>" for m in known_measures(figures))
    yield "</dl>"


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    yield '<div class="wide"><table><thead><tr>'
    yield "".join(f'<th scope="col">{_text(cell)}</th>' for cell in headings) + "</tr></thead><tbody>"
    for first, *others in lines:
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in others)
        yield f'<tr><th scope="row">{_text(first)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


# --- samples -------------------------------------------------------------------------------------------------------


def _samples(figures: Figures, recordings: Sequence[str]) -> Iterator[str]:
    items = figures["items"]
    yield "<h2>Samples</h2>"
    yield (
        '<p class="quiet">Marked: content words that the transcript does not hold, by a rule that knows no synonyms. '
        f"Recordings of the first {min(len(recordings), len(items))} of {len(items)} are in the page.</p>"
    )
    for place, item in enumerate(items):
        yield from _sample(place, item, recordings[place] if place < len(recordings) else None)


def _sample(place: int, item: Mapping[str, Any], recording: str | None) -> Iterator[str]:
    yield f"<article><h3>{place + 1}. {_text(item['id'])}</h3>"
    if recording is not None:
        yield f'<audio controls preload="none" src="{_text(recording)}"></audio>'
    yield f"<dl><dt>request</dt><dd>{_text(item['instruction'])}</dd>"
    yield f"<dt>reference</dt><dd>{_text(item['reference'] or UNKNOWN)}</dd></dl>"
    yield f"<details><summary>transcript</summary><p>{_text(item['transcript'])}</p></details>"
    yield '<div class="answers">'
    for name, answer in item["answers"].items():
        yield f'<section class="answer"><h4>{_text(name)}</h4>'
        yield f'<p class="summary">{_marked(answer["summary"], item["transcript"])}</p>'
        if answer.get("heard") is not None:
            yield f'<p class="quiet">written from: {_marked(answer["heard"], item["transcript"])}</p>'
        for judge, judgement in answer["judgements"].items():
            yield from _judgement(JUDGES.get(judge, judge), judgement)
        yield from _controls(answer["controls"])
        yield from _measures(answer["measures"])
        yield "</section>"
    yield "</div></article>"


def _marked(summary: str, transcript: str) -> str:
    """The summary, escaped piece by piece; all of it is unmarked where there is no transcript to compare with."""
    if not summary.strip():
        return '<span class="quiet">nothing was said</span>'
    if not transcript.strip():
        return _text(summary)
    pieces = marked(summary, transcript)
    return "".join(f"<mark>{_text(piece)}</mark>" if unsaid else _text(piece) for piece, unsaid in pieces)


def _judgement(title: str, judgement: Mapping[str, Any]) -> Iterator[str]:
    """Reward, gate or failure, then the parts that the reward is made of and what the judge noted."""
    failure = judgement["failure"]
    if failure is not None:
        yield f'<p class="failed">{_text(title)}: failed, {_text(failure["kind"])}. {_text(failure["detail"])}</p>'
        return
    gate = f", stopped by the gate {_text(judgement['gate'])}" if judgement["gate"] else ""
    yield f"<p>{_text(title)}: <strong>{judgement['reward']:.2f}</strong>{gate}</p>"
    yield from _pairs((part, f"{value:.2f}") for part, value in judgement["breakdown"].items())
    if judgement["notes"]:
        yield f'<p class="quiet">{_text(judgement["notes"])}</p>'


def _controls(controls: Mapping[str, str]) -> Iterator[str]:
    if controls:
        yield "<details><summary>controls</summary>"
        for control, said in controls.items():
            yield f'<p><span class="quiet">{_text(CONTROLS.get(control, control))}:</span> {_text(said)}</p>'
        yield "</details>"


def _measures(values: Mapping[str, float | None]) -> Iterator[str]:
    yield "<details><summary>measures</summary>"
    known = ((m.title, values.get(m.key)) for m in MEASURES)
    yield from _pairs((title, f"{value:.3g}") for title, value in known if value is not None)
    yield "</details>"


def _pairs(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    yield '<table class="breakdown"><tbody>'
    yield "".join(f'<tr><th scope="row">{_text(name)}</th><td>{_text(value)}</td></tr>' for name, value in pairs)
    yield "</tbody></table>"
