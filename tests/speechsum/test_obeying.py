"""How far an answer obeys, by hand, for each rule that a request speaks of."""

from __future__ import annotations

import random

import pytest

from speechsum.obeying import asked_keys, obeyed, obeying, request_kind
from speechsum.starter.grammar import HELD_OUT_REQUESTS, sample_request, sample_talk

FOUR = "- Anna leaves\n- Tom stays\n- Kim pays\n- Bo waits"


@pytest.mark.parametrize(
    ("instruction", "answer", "scores"),
    [
        ("Sum up in at most 4 words.", "Anna leaves at noon", {"words": 1.0}),
        ("Sum up in at most 4 words.", "Anna leaves us all today at noon sharp", {"words": 0.5}),
        ("Sum up in at most 4 words.", "", {"words": 0.0}),
        ("Sum up in 20 to 30 words.", "Anna leaves " * 5, {"words": 0.5}),
        ("Use two sentences.", "Anna leaves. Tom stays.", {"sentences": 1.0}),
        ("Use two sentences.", "Anna leaves", {"sentences": 0.5}),
        ("Use two to three short sentences.", "A b. C d. E f. G h. I j. K l.", {"sentences": 0.5}),
        ("Use at most two sentences.", "Dr. Lee leaves.", {"sentences": 1.0}),
        ("Use at least two sentences.", "A b. C d. E f.", {"sentences": 1.0}),
        ("In one sentence of at most 5 words.", "Anna leaves. Tom stays for the rest.",
         {"words": 5 / 7, "sentences": 0.5}),
        ("Give me two bullets.", FOUR, {"bullets": 0.5}),
        ("Give me at most five bullet points.", FOUR, {"bullets": 1.0}),
        ("Give me bullets.", FOUR, {"bullets": 1.0}),
        ("Give me bullets.", "- Anna leaves\nTom stays", {"bullets": 0.25}),  # half of the lines, half of two
        ("Three bullets of one sentence each.", "- Anna leaves\n- Tom stays\n- Kim pays", {"bullets": 1.0}),
        ("Give one sentence, as bullets.", "- Anna leaves\n- Tom stays", {}),  # two forms: a judge's
        ("List three keywords.", "Anna, report, Friday", {"keywords": 1.0}),
        ("List three keywords.", "Anna, she has to send the yearly report", {"keywords": 0.5 * 2 / 3}),
        ("As JSON.", '{"who": "Anna"}', {"json": 1.0}),
        ("As JSON.", "Anna", {"json": 0.0}),
        ('JSON with the keys "who" and "what".', '{"Who": "Anna", "when": "Friday"}', {"json": 0.5}),
        ('JSON list of objects with the keys who, what.', '[{"who": 1, "what": 2}, {"who": 3}]', {"json": 0.5}),
        ("JSON with the keys who and what.", '["Anna"]', {"json": 0.0}),
        ("Sum up in French.", "Le chat est dans la maison et il dort.", {"language": 1.0}),
        ("Sum up in French.", "The cat is in the house and sleeps.", {"language": 0.0}),
        ("Sum up in French.", "", {"language": 0.0}),
        ("Sum up in French.", "Anna, vendredi", {}),  # cannot tell
        ("Sum up in German, as JSON.", '{"the and of to": "Der Hund ist auf dem Weg und nicht hier"}',
         {"json": 1.0, "language": 1.0}),
        ("Sum up.", "anything", {}),
    ],
)  # fmt: skip
def test_the_scores_of_each_rule(instruction: str, answer: str, scores: dict[str, float]) -> None:
    assert obeying(answer, instruction) == pytest.approx(scores)
    mean = sum(scores.values()) / len(scores) if scores else None
    assert obeyed(answer, instruction) == (None if mean is None else pytest.approx(mean))


@pytest.mark.parametrize(
    ("instruction", "keys"),
    [
        ("JSON with the keys who, what and when, please", ("who", "what", "when")),
        ("JSON with keys: `Owner`, `Due date`", ("owner", "due date")),
        ('Use the key "facts" for them', ("facts",)),
        ("JSON with two keys, owner and deadline.", ("owner", "deadline")),
        ("JSON with the keys owner, due date", ("owner", "due date")),
        ("JSON with the keys due date and owner, for each task", ("due date", "owner")),
        ("JSON with the keys who, what for each task", ("who", "what")),
        ("JSON with the key points", ()),
        ("JSON with keywords", ()),
        ("JSON", ()),
    ],
)
def test_the_keys_that_are_asked_for(instruction: str, keys: tuple[str, ...]) -> None:
    assert asked_keys(instruction) == keys


@pytest.mark.parametrize(
    ("instruction", "kind"),
    [
        ("In one sentence of at most ten words", "words+sentences"),
        ("Give me three bullets in Spanish.", "bullets+language"),
        ("Tag this with five keywords.", "keywords"),
        ("Answer in JSON.", "json"),
        ("What must Anna do?", "free"),
    ],
)
def test_the_kind_of_a_request(instruction: str, kind: str) -> None:
    assert request_kind(instruction) == kind


@pytest.mark.parametrize("kind", HELD_OUT_REQUESTS)
def test_the_references_of_kinds_never_trained_obey(kind: str) -> None:
    rng = random.Random(3)
    for _ in range(60):
        request = sample_request(rng, sample_talk(rng, True), True, [kind])
        assert request is not None
        assert obeyed(request.reference, request.instruction) == 1.0, request
