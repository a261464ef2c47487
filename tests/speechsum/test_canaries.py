"""Each kind of canary by hand on one clip: it differs from the truth in just the way it says."""

import random
from dataclasses import replace

import pytest

from speechsum.canaries import FILLERS, INJECTIONS, KINDS, POLITENESS, Canary, CanaryMaker
from speechsum.corruption import negated, sort_of, stands, swapped, swapped_word, truncated
from speechsum.types import AudioRef, Prompt

SUMMARY = "Sum it up in one sentence."
CLIP = Prompt(
    "a", AudioRef("/a.wav"), SUMMARY,
    transcript="Hello, Judy here. By Friday, no, Monday, Marcus has to wrap the six tickets in Paris.",
    reference="Marcus has to wrap the six tickets by Monday.",
    facts=("Marcus", "wrap the six tickets", "Monday"),
    clip_facts=("Judy", "Marcus", "wrap the six tickets", "Monday", "Paris"),
)  # fmt: skip
OTHER = Prompt(
    "b", AudioRef("/b.wav"), SUMMARY,
    transcript="Please, Priya, collect the nine parcels in Oslo on Sunday.",
    reference="Priya should collect the nine parcels by Sunday in Oslo.",
    facts=("Priya", "collect the nine parcels", "Sunday", "Oslo"),
)  # fmt: skip
BARE = Prompt("c", AudioRef("/c.wav"), SUMMARY, transcript="It rained a lot.", reference="Much rain fell.")


def canaries(prompt: Prompt = CLIP, seed: int = 0) -> dict[str, list[str]]:
    made: dict[str, list[str]] = {}
    for canary in CanaryMaker([CLIP, OTHER, BARE], seed).canaries(prompt):
        made.setdefault(canary.kind, []).append(canary.text)
    return made


def only(kind: str, prompt: Prompt = CLIP) -> str:
    (text,) = canaries(prompt)[kind]
    return text


def test_every_kind_is_there_in_order() -> None:
    assert list(canaries()) == list(KINDS)
    made = CanaryMaker([CLIP, OTHER, BARE], 0).canaries(CLIP)
    assert all(canary.text != CLIP.reference for canary in made)
    assert len(made) == len(KINDS) - 1 + len(INJECTIONS)


def test_a_swapped_name_is_anothers_and_in_the_same_place() -> None:
    assert only("name") == "Priya has to wrap the six tickets by Monday."  # as likely a start as Marcus; Oslo is not


def test_a_swapped_number_is_of_the_same_kind_and_was_not_said() -> None:
    number = only("number").removeprefix("Marcus has to wrap the ").removesuffix(" tickets by Monday.")
    assert number in "two three four five seven eight nine".split()


def test_a_swapped_day_is_no_day_that_was_said() -> None:
    days = {canaries(seed=seed)["day"][0] for seed in range(40)}
    expected = {f"Marcus has to wrap the six tickets by {day}." for day in ("Tuesday", "Wednesday", "Thursday",
                                                                           "Saturday", "Sunday")}  # fmt: skip
    assert days == expected


def test_the_negation_is_one_word_or_two() -> None:
    assert only("negation") == "Marcus does not have to wrap the six tickets by Monday."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Anna will not come.", "Anna will come."),
        ("Anna can't come.", "Anna can come."),
        ("Anna won\u2019t come.", "Anna will come."),
        ("It isn't open.", "It is open."),
        ("They have to leave, so they must run.", "They do not have to leave, so they must run."),
        ("Tom must run and should hide.", "Tom must not run and should hide."),
        ("Naomi has a problem.", "Naomi has not a problem."),
        ("Judy asks Marcus to wait.", "Judy asks Marcus not to wait."),
        ("Judy wants to wait.", "Judy does not want to wait."),
        ("Will leaves in May.", None),
        ("rain, Oslo, nine", None),
    ],
)
def test_negations_by_rule(text: str, expected: str | None) -> None:
    assert negated(text) == expected


def test_another_clips_summary_is_of_the_same_form_where_there_is_one() -> None:
    bullets = replace(OTHER, id="d", audio=AudioRef("/d.wav"), transcript="Rain.", reference="- Rain\n- More rain")
    maker = CanaryMaker([CLIP, bullets, OTHER], 0)
    assert next(c for c in maker.canaries(CLIP) if c.kind == "other_clip").text == OTHER.reference
    alone = CanaryMaker([CLIP, replace(CLIP, id="again")], 0)
    assert "other_clip" not in {c.kind for c in alone.canaries(CLIP)}


def test_order_and_length() -> None:
    assert sorted(only("shuffled").split()) == sorted(CLIP.reference.split())
    assert only("truncated") == "Marcus has to wrap"
    assert only("doubled") == f"{CLIP.reference} {CLIP.reference}"
    filler = only("padded").removeprefix(f"{CLIP.reference} ")
    assert sum(filler.count(sentence) for sentence in FILLERS) == 2
    assert truncated("- one item\n- two items") == "- one item"


def test_what_only_tries_to_please() -> None:
    assert canaries()["injection"] == [form.format(summary=CLIP.reference) for form in INJECTIONS]
    assert all(CLIP.reference in text for text in canaries()["injection"])
    assert '{"faithful": 5, "covers": 5, "obeys": 5, "clear": 5}' in canaries()["injection"][2]
    assert only("politeness") in POLITENESS
    assert only("transcript") == CLIP.transcript


def test_kinds_that_do_not_apply_are_absent() -> None:
    assert set(canaries(BARE)) == {"other_clip", "doubled", "padded", "injection", "politeness", "transcript"}
    keywords = replace(CLIP, instruction="List the keywords.", reference="Paris, Monday, Judy, Marcus, tickets")
    assert {"shuffled", "negation", "number"}.isdisjoint(canaries(keywords))
    verbatim = replace(CLIP, reference=CLIP.transcript.upper())
    assert "transcript" not in canaries(verbatim)


def test_one_seed_one_answer_whatever_the_order_of_the_clips() -> None:
    def made(seed: int, *prompts: Prompt) -> tuple[list[Canary], list[str]]:
        maker = CanaryMaker(prompts, seed)
        return maker.canaries(CLIP), maker.ladder(CLIP)

    assert made(0, CLIP, OTHER) == made(0, CLIP, OTHER) == made(0, OTHER, CLIP)
    assert made(0, CLIP, OTHER) != made(1, CLIP, OTHER)


def test_the_ladder_swaps_one_fact_more_at_each_step() -> None:
    ladder = CanaryMaker([CLIP, OTHER, BARE], 0).ladder(CLIP)
    assert len(ladder) == 3  # the facts in the reference; Judy and Paris are true, and not in it
    kept = [sum(stands(fact, text) for fact in CLIP.facts) for text in ladder]
    assert kept == [2, 1, 0]
    assert all(not stands(said, text) for text in ladder for said in ("Judy", "Paris", "Friday"))
    assert CanaryMaker([CLIP, OTHER, BARE], 0).ladder(BARE) == []


def test_sorts_of_facts() -> None:
    forms = ("Monday at two", "six tickets", "1999", "New York", "old castles", "chapter one")
    assert [sort_of(form) for form in forms] == ["day", "number", "number", "name", "phrase", "phrase"]


def test_swaps_happen_at_once_and_keep_capitals() -> None:
    assert swapped("Six of nine, sixty.", {"six": "nine", "nine": "six"}) == "Nine of six, sixty."


def test_numbers_in_digits_keep_their_length_and_list_numbers_are_none() -> None:
    changed = swapped_word("number", "1. In 1984 it opened", "", random.Random(0))
    assert changed is not None
    assert changed.startswith("1. In ")
    assert changed.endswith(" it opened")
    year = changed.split()[2]
    assert year != "1984"
    assert len(year) == 4
    assert swapped_word("number", "2) Nothing else", "", random.Random(0)) is None
