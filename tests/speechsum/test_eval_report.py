"""A made-up evaluation of five samples as a table and as a page."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from speechsum.eval_measures import Measure, measure
from speechsum.eval_report import render_markdown
from speechsum.eval_report_html import audio_uri, render_html
from speechsum.eval_report_plots import interval_plot
from speechsum.eval_table import EvalTable, judgement_row
from speechsum.types import AudioRef, FailureKind, JudgeFailure, Judgement, Prompt, Reward
from tests.browser import browsed, heard, needs_chromium

EVIL = "<script>alert('x')</script> & \"so on\""
TALKS = (
    ("Anna must send the budget report by Friday.", "Anna must send the report.", ("Anna", "Friday")),
    ("Tom cancelled the picnic because of rain.", "Tom cancelled the picnic.", ("Tom", "picnic")),
    ("The storm hit Oslo on Monday.", "A storm hit Oslo.", ("storm", "Oslo")),
    ("Read chapter nine about honey bees.", "Read chapter nine.", ("chapter nine", "honey bees")),
    ("My freezer broke, I want fifty dollars back.", "A refund of fifty dollars.", ("freezer", "fifty dollars")),
)
VOID = {"meta", "br", "img", "input", "link"}


def prompts() -> list[Prompt]:
    requests = ["Sum up in one sentence.", "List the keywords.", "Give me bullets.", "Sum up in 5 words.", EVIL]
    return [
        Prompt(f"talk-{i}", AudioRef(f"/{i}.wav"), request, said, reference, facts)
        for i, (request, (said, reference, facts)) in enumerate(zip(requests, TALKS, strict=True))
    ]


def figures() -> dict[str, Any]:
    """Two systems, one of which says evil things; a failed judgement, a gated one, and a judge that quotes HTML."""
    before = ["Anna sends Monday's report.", "Tom, rain", "- A storm\n- Oslo", "", EVIL]
    after = ["Anna must send the report by Friday.", "Tom, picnic, rain", "A storm hit Oslo.", "Read nine.", "Refund"]
    first: list[Judgement] = [
        Reward(0.4, {"faithful": 0.25, "obeys": 1.0}, notes=f"{EVIL} | unsupported: Monday"),
        Reward(0.7, {"faithful": 1.0, "obeys": 0.75}), Reward(0.6, {"faithful": 0.75, "obeys": 0.5}),
        Reward(0.0, gate="empty"), JudgeFailure(FailureKind.INVALID_JSON, EVIL),
    ]  # fmt: skip
    second: list[Judgement] = [Reward(0.3 + 0.1 * i, {"faithful": 1.0, EVIL: 0.5}) for i in range(5)]
    table = EvalTable(prompts(), bootstrap=100)
    for name, said, judged in (("base", before, first), (f"grpo {EVIL}", after, second)):
        controls = {"wrong_audio": [EVIL] * 5, "no_audio": ["Something."] * 5}
        table.add_row(name, {
            "rows": measure(table.prompts, said, judged, controls=controls), "summaries": said,
            "judgements": {"judge": [judgement_row(j) for j in judged]}, "judges": {"judge": "rubric/7b"},
            "controls": controls,
        })  # fmt: skip
    return {"data": EVIL, **table.figures()}


def tone() -> str:
    return audio_uri((0.1 * np.sin(np.arange(4000) / 10)).astype(np.float32))


class Page(HTMLParser):
    """Which elements a browser would make of it, and that every one is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.links: list[str] = []
        self.marks: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["mark"]:
            self.marks.append(data)


def test_the_page_stands_alone_and_runs_nothing() -> None:
    html = render_html(figures(), [tone(), tone()])
    page = Page(html)
    assert page.counts["article"] == 5
    assert page.counts["audio"] == 2
    assert all(link.startswith("data:audio/flac;base64,") for link in page.links)
    assert "script" not in page.counts
    assert not re.search(r"<script|https?://|@import|url\(", html)
    assert html.count("&lt;script&gt;") >= 8  # data, name of a row, request, reason, summary, failure, control, part
    assert "default-src 'none'".replace("'", "&#x27;") in html
    assert "prefers-color-scheme: dark" in html


@pytest.mark.slow
@needs_chromium
def test_a_browser_plays_the_page_s_recordings_and_asks_nobody(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(render_html(figures(), [tone(), tone()]), encoding="utf-8")
    with browsed(report.as_uri(), report.as_uri()) as page:
        assert page.locator("article").count() == 5
        assert heard(page.locator("audio").first) == pytest.approx(0.25, abs=0.02)


def test_words_that_were_not_said_are_marked_in_the_page() -> None:
    marks = Page(render_html(figures())).marks
    assert "Monday's" in marks
    assert not {"Friday.", "Anna", "sends", "Oslo."} & set(marks)


def test_failures_gates_and_silence_are_told_apart() -> None:
    html = render_html(figures())
    assert "reward: failed, invalid_json." in html
    assert "reward: <strong>0.00</strong>, stopped by the gate empty" in html
    assert "nothing was said" in html


def test_kinds_rules_and_what_a_row_is_are_shown_in_both() -> None:
    table = EvalTable(prompts(), 20, trained=frozenset({"free"}))
    said = ["Two. Sentences.", "a, b", "- one\n- two", "One two three four five.", "x"]
    table.add_row("cascade", {
        "rows": measure(table.prompts, said, [Reward(0.5)] * 5, heard=["Hannah must"] * 5), "summaries": said,
        "system": f"ears {EVIL}", "heard": ["Hannah must"] * 5,
    })  # fmt: skip
    found = table.figures()
    markdown, html = render_markdown(found), render_html(found)
    Page(html)
    assert "| bullets (held out, n = 1): rules obeyed | 1.00 (1.00–1.00) |" in markdown
    assert "| free (n = 1): judge reward | 0.50 (0.50–0.50) |" in markdown
    assert "| sentences | 0.50 (0.50–0.50) |" in markdown
    assert "bullets (held out, n = 1): rules obeyed" in html
    assert "written from: <mark>Hannah</mark> must" in html
    assert "cascade: ears \\<script\\>" in markdown
    assert "<script" not in html


def test_one_row_has_nothing_to_be_compared_with() -> None:
    alone = EvalTable(prompts()[:1], 10)
    alone.add_row("base", {"rows": {"judge": [None]}, "summaries": ["S"]})
    html, markdown = render_html(alone.figures()), render_markdown(alone.figures())
    assert "Against" not in html + markdown
    Page(html)


def test_a_text_that_no_file_can_hold_does_not_cost_the_page() -> None:
    odd = figures()
    odd["items"][0]["reference"] = "half \ud83d"
    assert "half ?" in render_html(odd).encode("utf-8").decode()


def test_a_player_plays_the_samples() -> None:
    samples = np.linspace(-0.5, 0.5, 1000, dtype=np.float32)
    kind, _, encoded = audio_uri(samples).partition(";base64,")
    back, rate = sf.read(io.BytesIO(base64.b64decode(encoded)), dtype="float32")
    assert (kind, rate) == ("data:audio/flac", 16_000)
    np.testing.assert_allclose(back, samples, atol=1e-4)


def test_the_table_in_markdown() -> None:
    text = render_markdown(figures())
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("| measure"))
    assert head.count(" | ") == 2
    assert "<script>" not in text.replace("\\<script\\>", "")
    recall = next(line for line in lines if line.startswith("| fact recall"))
    # base: 1/2, 1/2, 1, 0, 0 of the facts; grpo: 1, 1, 1, 0, 0.
    assert re.findall(r" (0\.\d\d) \(", recall) == ["0.40", "0.60"]
    assert any("+0.200 (" in line for line in lines if line.startswith("| fact recall"))
    # Judged: 0.4 and 0.3, 0.7 and 0.4, 0.6 and 0.5, 0.0 and 0.6; the fifth failed.
    assert any("preferred by the judge on 0.25" in line and "of 4 items" in line for line in lines)
    form = next(line for line in lines if line.startswith("| form obeyed"))
    assert form.count(" of 3 |") == 2  # three of the five requests name a form


@pytest.mark.parametrize(("recordings", "marked"), [(5, False), (6, True)])
def test_few_recordings_prove_nothing(recordings: int, marked: bool) -> None:
    table = EvalTable([Prompt(str(i), AudioRef(f"/{i}.wav"), "Sum up.") for i in range(recordings)], 20)
    for name, value in (("base", 0.2), ("sft", 0.7)):
        table.add_row(name, {"rows": {"judge": [value] * recordings}, "summaries": ["s"] * recordings})
    suffix = r" \*" if marked else ""
    line = f"| judge reward | +0.500 (+0.500, +0.500){suffix} |"
    assert line in render_markdown(table.figures()).splitlines()


@pytest.mark.parametrize(
    ("top", "estimate", "middle", "ends"),
    [
        # The scale is 200 wide from 108 on: 0.25 of it, then 3 on a scale that ends with the interval, at 4.
        (1.0, {"mean": 0.25, "ci95": [0.0, 1.0]}, 158.0, [108.0, 308.0]),
        (None, {"mean": 3.0, "ci95": [2.0, 4.0]}, 258.0, [208.0, 308.0]),
    ],
)
def test_dots_and_intervals_stand_where_they_should(
    top: float | None, estimate: dict[str, Any], middle: float, ends: list[float]
) -> None:
    tree = ET.fromstring(interval_plot(Measure("k", "t", "m", top), {"a": estimate, "<b> with a long name": None}))
    (dot,) = tree.iter("circle")
    (line,) = (node for node in tree.iter("line") if node.get("class") == "interval")
    assert float(dot.get("cx", "nan")) == middle
    assert [float(line.get(end, "nan")) for end in ("x1", "x2")] == ends
    assert [node.text for node in tree.iter("title")] == ["a", "<b> with a long name"]
    assert "<b> with a lon\u2026" in "".join(tree.itertext())
