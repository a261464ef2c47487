"""Every measure of an item, by hand, and what is no number."""

from __future__ import annotations

import pytest

from speechsum.eval_measures import MEASURES, adherence, f1, gated, hallucination, measure, overall, reward
from speechsum.rubric import parse_rubric
from speechsum.types import AudioRef, ChatAnswer, FailureKind, JudgeFailure, Judgement, Prompt, Reward

FAILED = JudgeFailure(FailureKind.TIMEOUT, "60 s")
GATED = Reward(0.0, gate="empty")


def filled_in(faithful: int = 5, obeys: int = 5, quotes: str = "[]") -> Judgement:
    """What the rubric judge says, by way of its own parser."""
    text = f'{{"unsupported": {quotes}, "reason": "as heard", "faithful": {faithful}, "covers": 5, "obeys": {obeys}, '
    return parse_rubric(ChatAnswer(f'{text}"clear": 5}}'))


@pytest.mark.parametrize(
    ("judgement", "value", "of_seven"),
    [(Reward(0.0), 0.0, 1.0), (Reward(0.75), 0.75, 5.5), (GATED, 0.0, 1.0), (Reward(1.5), 1.5, None),
     (FAILED, None, None)],
)  # fmt: skip
def test_the_reward_and_its_scale_of_seven(judgement: Judgement, value: float | None, of_seven: float | None) -> None:
    assert reward(judgement) == value
    assert overall(judgement) == of_seven


@pytest.mark.parametrize(
    ("judgement", "value"),
    [(filled_in(obeys=1), 1.0), (filled_in(obeys=3), 4.0), (filled_in(obeys=5), 7.0), (GATED, None),
     (Reward(0.9, {"support": -1.0}), None), (FAILED, None)],
)  # fmt: skip
def test_adherence_is_the_rubrics_obeys(judgement: Judgement, value: float | None) -> None:
    assert adherence(judgement) == value


@pytest.mark.parametrize(
    ("judgement", "precision", "found"),
    [
        (filled_in(5), None, 0.0),
        (filled_in(4), None, 0.0),  # one harmless imprecision
        (filled_in(3), None, 1.0),
        (filled_in(5, quotes='["Tom"]'), None, 1.0),
        (filled_in(5), 0.5, 1.0),  # the facts know better
        (filled_in(2), 1.0, 1.0),  # the judge read more than the facts say
        (filled_in(5), 1.0, 0.0),
        (Reward(0.9, {"support": -1.0}), 0.99, 1.0),
        (Reward(0.9, {"support": -1.0}), 1.0, 0.0),
        (Reward(0.9, {"support": -1.0}), None, None),
        (GATED, None, None),
        (FAILED, None, None),
        (FAILED, 0.5, 1.0),
    ],
)
def test_hallucination_by_judge_or_facts(judgement: Judgement, precision: float | None, found: float | None) -> None:
    assert hallucination(judgement, precision) == found


def test_a_failed_judgement_is_neither_gated_nor_not() -> None:
    assert [gated(j) for j in (GATED, Reward(0.5), FAILED)] == [1.0, 0.0, None]


PROMPTS = [
    Prompt(
        "a", AudioRef("/a.wav"), "Sum up in at most 5 words.", "Anna must leave by noon, says Tom.",
        "Anna must leave.", facts=("Anna", "noon"), clip_facts=("Anna", "noon", "Tom"),
    ),
    Prompt("b", AudioRef("/b.wav"), "Give me bullets.", "Kim stays.", facts=("Kim",)),
    Prompt("c", AudioRef("/c.wav"), "Sum up.", "Rain."),
]  # fmt: skip
SUMMARIES = ["Anna must leave by noon, Kim", "- Kim", "sun sun sun sun sun"]


@pytest.mark.parametrize(
    ("recall", "precision", "found"),
    [(0.5, 1.0, 2 / 3), (0.0, None, 0.0), (0.0, 0.5, 0.0), (None, None, None)],
)
def test_f1_of_an_item(recall: float | None, precision: float | None, found: float | None) -> None:
    assert f1(recall, precision) == (None if found is None else pytest.approx(found))


def test_all_measures_of_three_items() -> None:
    rows = measure(
        PROMPTS, SUMMARIES, [Reward(0.5), GATED, FAILED],
        second=[Reward(0.2), FAILED, Reward(1.0)],
        controls={"wrong_audio": ["noon", "Kim", "x"], "no_audio": ["", "", ""]},
        heard=["Hannah must leave by noon says", "", "Raining cats"],
    )  # fmt: skip
    assert list(rows) == [m.key for m in MEASURES]
    assert rows == {
        "judge": [0.5, 0.0, None],
        "second_judge": [0.2, None, 1.0],
        "overall": [4.0, 1.0, None],
        "adherence": [None, None, None],
        "hallucination": [1.0, 0.0, None],  # Kim is a fact of b, and not of a
        "fact_recall": [1.0, 1.0, None],
        "fact_precision": [pytest.approx(2 / 3), 1.0, None],
        "fact_f1": [pytest.approx(0.8), 1.0, None],
        "wrong_audio_recall": [0.5, 1.0, None],
        "no_audio_recall": [0.0, 0.0, None],
        "wrong_audio_f1": [pytest.approx(2 / 3), 1.0, None],  # noon is one of two facts, and true
        "no_audio_f1": [0.0, 0.0, None],
        "rougeL": [pytest.approx(2 / 3), None, None],  # 3 words in common, of 6 and of 3: F1 of 1/2 and 1
        "wrong_audio_rougeL": [0.0, None, None],
        "no_audio_rougeL": [0.0, None, None],
        "word_errors": [
            pytest.approx(2 / 7),
            1.0,
            2.0,
        ],  # two of seven words; all of two; one changed and one more, of one
        "obeyed": [pytest.approx(5 / 6), 0.5, None],  # six words for five; one bullet, where a list has two
        "length_obeyed": [0.0, None, None],
        "form_obeyed": [None, 0.0, None],
        "repetition": [0.0, 0.0, 0.5],  # two runs of four words, one of them new
        "copied_share": [pytest.approx(5 / 6), None, None],
        "response_words": [6.0, 1.0, 5.0],
        "judge_failed": [0.0, 0.0, 1.0],
        "gated": [0.0, 1.0, None],
    }


def test_what_was_not_asked_for_is_no_number() -> None:
    rows = measure(PROMPTS, SUMMARIES, [FAILED] * 3)
    for key in (
        "second_judge",
        "word_errors",
        "wrong_audio_recall",
        "no_audio_recall",
        "no_audio_rougeL",
        "judge",
        "gated",
    ):
        assert rows[key] == [None] * 3


def test_a_summary_for_every_prompt() -> None:
    with pytest.raises(ValueError, match="shorter"):
        measure(PROMPTS, SUMMARIES[:2], [FAILED] * 3)
