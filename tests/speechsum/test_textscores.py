"""Scores worked out by hand."""

import pytest

from speechsum.textscores import (
    copied_share,
    fact_precision,
    fact_recall,
    length_obeyed,
    marked,
    rouge_l,
    word_error_rate,
    words,
)

VOCABULARY = ("twenty dollars", "twenty five dollars", "twenty", "Monday", "Thursday", "Anna", "Tom", "half past two")


def test_words_drop_case_and_punctuation_and_part_hyphens() -> None:
    assert words("Twenty-five, at nine O\u2019Clock!") == ("twenty", "five", "at", "nine", "oclock")
    assert words("a_b 3.5% cafe\u0301") == ("a", "b", "3", "5", "caf\u00e9")


def test_words_of_other_scripts() -> None:
    assert words("\u092c\u0948\u0920\u0915 \u0939\u0948\u0964") == (
        "\u092c\u0948\u0920\u0915",
        "\u0939\u0948",
    )  # vowel signs stay
    assert words("\u8ba8\u8bba\u4e86\u9884\u7b97\u3002") == tuple(
        "\u8ba8\u8bba\u4e86\u9884\u7b97"
    )  # a character is a word
    assert fact_recall("\u4eca\u5929\u8ba8\u8bba\u4e86\u9884\u7b97\u3002", ["\u9884\u7b97"]) == 1.0


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


@pytest.mark.parametrize(
    ("instruction", "words_said", "obeyed"),
    [
        ("Sum up in at most 5 words.", 5, 1.0),
        ("Sum up in at most 5 words.", 6, 0.0),
        ("Sum up in 10 words.", 8, 1.0),  # a fifth less
        ("Sum up in 10 words.", 12, 1.0),  # a fifth more
        ("Sum up in 10 words.", 7, 0.0),
        ("Sum up in 5 to 7 words.", 4, 0.0),
        ("Sum up.", 5, None),
        ("Give 3 keywords of at most 5 words.", 5, None),
    ],
)
def test_length_obeyed(instruction: str, words_said: int, obeyed: float | None) -> None:
    assert length_obeyed("word " * words_said, instruction) == obeyed


TRANSCRIPT = "Okay, Anna must send the budget report by Friday noon."


@pytest.mark.parametrize(
    ("summary", "share"),
    [
        ("Anna must send the budget report by Friday noon", 1.0),
        ("ANNA must send the, says Tom Lee today", 4 / 8),
        ("Anna must send it by Friday noon", 0.0),  # runs of three
        ("By Friday noon Anna must send the budget", 5 / 8),
        ("send the budget report, send the budget report", 1.0),
        ("Anna must send", None),
        ("", None),
    ],
)
def test_copied_share(summary: str, share: float | None) -> None:
    assert copied_share(summary, TRANSCRIPT) == share


@pytest.mark.parametrize(
    ("heard", "rate"),
    [
        ("Anna pays Tom today", 0.0),
        ("Hannah pays Tom today", 0.25),
        ("Anna Tom today", 0.25),
        ("so Anna pays Tom to day", 0.75),  # one more, and "today" is two others
        ("", 1.0),
        ("you you you you you", 1.25),
    ],
)
def test_word_error_rate(heard: str, rate: float) -> None:
    assert word_error_rate(heard, "Anna pays Tom, today.") == rate
    assert word_error_rate(heard, "...") is None


def test_nothing_can_be_copied_from_next_to_nothing() -> None:
    assert copied_share("Anna must send the budget report", "Anna must send") is None


def marks(summary: str, transcript: str) -> list[str]:
    pieces = marked(summary, transcript)
    assert "".join(piece for piece, _ in pieces) == summary
    return [piece for piece, unsaid in pieces if unsaid]


@pytest.mark.parametrize(
    ("summary", "unsaid"),
    [
        ("Anna sends the\n  budget reports by FRIDAY.", []),
        ("Tom, sending a budget, reported on Monday!", ["Tom,", "Monday!"]),
        ("Anna's budget-report is the best-report.", ["best-report."]),
        ("They would have been with us.", []),  # grammar, not content
        ("Ann must resend it", ["Ann", "resend"]),
        ("<b>Anna</b> & 25", ["<b>Anna</b>", "25"]),
        ("", []),
    ],
)
def test_words_that_were_not_said_are_marked(summary: str, unsaid: list[str]) -> None:
    assert marks(summary, TRANSCRIPT) == unsaid


def test_a_possessive_is_no_other_word() -> None:
    assert marks("Anna calls the team", "Anna's team calls.") == []
    assert marks("Anna's team calls", "Anna calls the team.") == []


def test_numbers_with_hyphens_are_the_words_that_were_said() -> None:
    assert marks("twenty-five dollars", "It costs twenty five dollars.") == []
    assert marks("twenty five dollars", "It costs twenty-five dollars.") == []
