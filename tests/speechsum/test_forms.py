"""Forms that a rule can tell, and requests that it leaves alone."""

from __future__ import annotations

import random

import pytest

from speechsum.forms import asked_form, form_obeyed, prose
from speechsum.starter.grammar import sample_request, sample_talk


@pytest.mark.parametrize(
    ("instruction", "form"),
    [
        ("Answer in JSON.", "json"),
        ("Give me bullet points.", "bullets"),
        ("Write a bulleted list of the decisions.", "bullets"),
        ("Tag this recording with key words.", "keywords"),
        ("Sum up in one short sentence.", "sentence"),
        ("Give a single-sentence summary.", "sentence"),
        ("Summarize what is said.", None),
        ("Write one sentence, then three bullet points.", None),
        ("JSON with the keywords", None),
        ("One sentence per speaker.", None),
        ("Summarize without bullets.", None),
        ("Use plain text, not JSON.", None),
        ("What does the bullet train cost?", None),
    ],
)
def test_the_form_that_is_asked_for(instruction: str, form: str | None) -> None:
    assert asked_form(instruction) == form


@pytest.mark.parametrize(
    ("instruction", "summary", "obeyed"),
    [
        ("Give me bullets.", "- Anna leaves\n- Tom stays", 1.0),
        ("Give me bullets.", "Decisions:\n1. Anna leaves\n2) Tom stays\n\n\u2022 Nobody pays", 1.0),
        ("Give me bullets.", "- Anna leaves\nTom stays", 0.0),
        ("Give me bullets.", "Anna leaves.", 0.0),
        ("Give me bullets.", "- all in one", 0.0),
        ("Give me bullets.", "", 0.0),
        ("As JSON, please.", '{"who": "Anna"}', 1.0),
        ("As JSON, please.", '```json\n["Anna"]\n```', 1.0),
        ("As JSON, please.", 'Here it is: {"who": "Anna"}', 0.0),
        ("As JSON, please.", "3", 0.0),
        ("As JSON, please.", "[" * 100_000, 0.0),
        ("List the keywords.", "Anna, send the report, twenty five hundred dollars, Friday.", 1.0),
        ("List the keywords.", "Anna\nreport", 1.0),
        ("List the keywords.", "Anna, she has to send the yearly report", 0.0),
        ("List the keywords.", "Anna leaves. Tom stays.", 0.0),
        ("List the keywords.", "report", 0.0),
        ("Name one keyword.", "report", 1.0),
        ("List the keywords.", "", 0.0),
        ("List the keywords.", "1. budget\n2. venue\n3. speaker", 1.0),
        ("List the keywords.", "budget \u00b7 venue \u00b7 speaker", 1.0),
        ("Give me a keyword.", "budget", 1.0),
        ("In one sentence?", "Anna calls Acme Inc. Tuesday at 5 p.m. Eastern on Jan. 5, about No. 7.", 1.0),
        ("In one sentence?", "Anna said no. Tom stays.", 0.0),
        ("In one sentence?", "Anna owes 3.5 dollars to Dr. Lee and J. Smith by Friday.", 1.0),
        ("In one sentence?", 'Anna said "Stop!" and left', 1.0),
        ("In one sentence?", "Anna leaves. Tom stays.", 0.0),
        ("In one sentence?", "Anna leaves! 20 people stay.", 0.0),
        ("In one sentence?", "Anna leaves\nTom stays", 0.0),
        ("In one sentence?", "- Anna leaves", 0.0),
        ("In one sentence?", "  ", 0.0),
        ("Summarize.", "anything", None),
    ],
)
def test_whether_it_is_obeyed(instruction: str, summary: str, obeyed: float | None) -> None:
    assert form_obeyed(summary, instruction) == obeyed


def test_the_starters_own_references_obey() -> None:
    rng, told = random.Random(0), set()
    for turn in range(400):
        held_out = bool(turn % 2)
        request = sample_request(rng, sample_talk(rng, held_out), held_out)
        assert request is not None
        assert form_obeyed(request.reference, request.instruction) in (None, 1.0), request
        told.add(asked_form(request.instruction))
    assert told == {"bullets", "keywords", "sentence", None}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"who": "Anna", "tasks": [{"what": "call Tom"}, 5], "when": ["Friday", null]}', "Anna\ncall Tom\n5\nFriday"),
        ("- call Tom\n2. send the budget", "call Tom\nsend the budget"),
        ("Anna calls Tom.", "Anna calls Tom."),
        ('{"who": "Anna"', '{"who": "Anna"'),
        ("[" * 400 + '"Anna"' + "]" * 400, "Anna"),
    ],
)
def test_prose_has_neither_keys_nor_marks(answer: str, said: str) -> None:
    assert prose(answer) == said
