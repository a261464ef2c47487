"""Scores worked out by hand."""

import pytest

from speechsum.textscores import fact_precision, fact_recall, rouge_l, words

VOCABULARY = ("twenty dollars", "twenty five dollars", "twenty", "Monday", "Thursday", "Anna", "Tom", "half past two")


def test_words_drop_case_and_punctuation_and_part_hyphens() -> None:
    assert words("Twenty-five, at nine O\u2019Clock!") == ("twenty", "five", "at", "nine", "oclock")


@pytest.mark.parametrize(
    ("summary", "facts", "share"),
    [
        ("Anna sends the report on Thursday.", ["Anna", "send the report", "Thursday", "Tom"], 0.5),
        ("twenty-five dollars, by THURSDAY", ["twenty five dollars", "Thursday"], 1.0),
        ("Tomorrow", ["Tom"], 0.0),
        ("at nine o'clock", ["nine o\u2019clock"], 1.0),
        ("Anna", ["Anna", "anna"], 1.0),
        ("", ["Anna"], 0.0),
        ("anything", [], 1.0),
        ("half past, two", ["half past two"], 1.0),
        ("past two, half", ["half past two"], 0.0),
    ],
)
def test_fact_recall(summary: str, facts: list[str], share: float) -> None:
    assert fact_recall(summary, facts) == share


def test_a_fact_without_words_is_an_error() -> None:
    with pytest.raises(ValueError, match="no word"):
        fact_recall("Anna", ["..."])


@pytest.mark.parametrize(
    ("summary", "facts", "share"),
    [
        ("Anna owes twenty five dollars.", ["Anna", "twenty five dollars"], 1.0),
        ("Anna owes twenty dollars.", ["Anna", "twenty five dollars"], 0.5),
        ("Anna, Tom, Monday, Thursday", ["Anna"], 0.25),
        ("Anna and Anna and Tom", ["Anna"], 0.5),
        ("At half past two she left.", [], 0.0),
        ("A new fact: the moon", ["moon"], 1.0),
        ("Nothing was said.", ["Anna"], None),
        ("", ["Anna"], None),
    ],
)
def test_fact_precision(summary: str, facts: list[str], share: float | None) -> None:
    assert fact_precision(summary, facts, VOCABULARY) == share


def test_fact_precision_takes_the_longest_form() -> None:
    assert fact_precision("twenty five dollars", ["twenty five dollars"], ["twenty", "five", "dollars"]) == 1.0
    assert fact_precision("twenty five dollars", ["twenty"], ["twenty five dollars"]) == 0.0


@pytest.mark.parametrize(
    ("summary", "reference", "score"),
    [
        # Lin's example: "police kill the gunman" has the common subsequence "police the gunman", 3 of 4 and 3 of 4.
        ("police kill the gunman", "police killed the gunman", 0.75),
        ("the gunman kill police", "police killed the gunman", 0.5),
        # 2 words in common: precision 2/2, recall 2/4, F1 = 2 * 1 * 0.5 / 1.5.
        ("Anna Thursday", "Anna works on Thursday.", 2 / 3),
        ("the same", "the same", 1.0),
        ("nothing alike", "other words", 0.0),
        ("", "words", 0.0),
        ("words", "", 0.0),
    ],
)
def test_rouge_l(summary: str, reference: str, score: float) -> None:
    assert rouge_l(summary, reference) == pytest.approx(score)
