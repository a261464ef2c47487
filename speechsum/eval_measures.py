"""What an evaluation measures of each item, and what each measure is called, means and ranges over.

Every value is a number or None, and None says that it cannot be told: the judge failed, or it judges by something else,
or the data names no facts. What is None is left out of means and never stands for a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speechsum.forms import form_obeyed
from speechsum.obeying import obeyed
from speechsum.rewards import loop_share
from speechsum.rubric import whole_mark
from speechsum.textscores import copied_share, fact_precision, fact_recall, length_obeyed, rouge_l, word_error_rate
from speechsum.types import Judgement, Prompt, Reward
from speechsum.wording import words

Rows = dict[str, list[float | None]]
"""Under each measure's key, a value for each item in order."""

WRONG_AUDIO, NO_AUDIO = "wrong_audio", "no_audio"
HARMLESS = 0.75
"""The rubric's mark 4 of 5, "one harmless imprecision", as a share of its scale; below it, something is unsupported."""

QUOTES = " | unsupported: "
"""Where the notes of the rubric judge begin to quote what the transcript does not support."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One line of a report. `top` is the end of its scale, None where it has none; `better` 0 is neither way."""

    key: str
    title: str
    meaning: str
    top: float | None = 1.0
    bottom: float = 0.0
    better: int = 1


MEASURES = (
    Measure("judge", "judge reward", "what the judge gives, from 0 to 1"),
    Measure("second_judge", "second judge", "the same by a judge that training never sees"),
    Measure("overall", "overall, 1 to 7", "the judge's reward on a scale from 1 to 7", 7.0, 1.0),
    Measure("adherence", "adherence, 1 to 7", "how well the request is obeyed, by the rubric judge", 7.0, 1.0),
    Measure("hallucination", "hallucination", "share of items that state something unsupported", better=-1),
    Measure("fact_recall", "fact recall", "share of the asked facts that are told"),
    Measure("fact_precision", "fact precision", "share of the facts told that are true of the recording"),
    Measure("fact_f1", "fact F1", "harmonic mean of both; 0 where no asked fact is told"),
    Measure("wrong_audio_recall", "wrong audio", "fact recall with somebody else's recording", better=-1),
    Measure("no_audio_recall", "no audio", "fact recall with silence of the same length", better=-1),
    Measure("wrong_audio_f1", "fact F1, wrong audio", "fact F1 with somebody else's recording", better=-1),
    Measure("no_audio_f1", "fact F1, no audio", "fact F1 with silence of the same length", better=-1),
    Measure("rougeL", "ROUGE-L", "words in common with the reference, in order"),
    Measure("wrong_audio_rougeL", "ROUGE-L, wrong audio", "ROUGE-L with somebody else's recording", better=-1),
    Measure("no_audio_rougeL", "ROUGE-L, no audio", "ROUGE-L with silence of the same length", better=-1),
    Measure("word_errors", "word errors", "words that a cascade's recogniser misheard, per word said", None, better=-1),
    Measure("obeyed", "rules obeyed", "how far the request's rules are kept: length, form, keys, language"),
    Measure("length_obeyed", "length obeyed", "share with as many words as were asked for"),
    Measure("form_obeyed", "form obeyed", "share in the form asked for: bullets, JSON, key words, one sentence"),
    Measure("repetition", "repetition", "share of four-word runs that repeat", better=-1),
    Measure("copied_share", "copied", "share of words in runs of four and more from the transcript", better=0),
    Measure("response_words", "words", "length of the summary in words", None, better=0),
    Measure("judge_failed", "judge failures", "share of summaries that the judge could not judge", better=-1),
    Measure("gated", "gated", "share of judged summaries that a gate stopped: reward 0, judge not asked", better=-1),
)


def measure(
    prompts: Sequence[Prompt],
    summaries: Sequence[str],
    judgements: Sequence[Judgement],
    *,
    second: Sequence[Judgement] | None = None,
    controls: Mapping[str, Sequence[str]] | None = None,
    heard: Sequence[str] | None = None,
) -> Rows:
    """Every measure of every item. `controls` holds the answers to the same requests under `WRONG_AUDIO`, `NO_AUDIO`.

    `heard` is what a recogniser wrote down of each recording, where the summaries were written from that.
    Raises ValueError where the sequences differ in length.
    """
    pairs = list(zip(prompts, summaries, strict=True))
    unknown = [None] * len(pairs)
    vocabulary = sorted({fact for p in prompts for fact in (*p.facts, *p.clip_facts)})
    recall = [_recall(p, s) for p, s in pairs]
    precision = [_precision(p, s, vocabulary) for p, s in pairs]
    rows: Rows = {
        "judge": [reward(j) for j in judgements],
        "second_judge": [*unknown] if second is None else [reward(j) for j in second],
        "overall": [overall(j) for j in judgements],
        "adherence": [adherence(j) for j in judgements],
        "hallucination": [hallucination(j, share) for j, share in zip(judgements, precision, strict=True)],
        "fact_recall": recall,
        "fact_precision": precision,
        "fact_f1": [f1(r, p) for r, p in zip(recall, precision, strict=True)],
        "rougeL": [_rouge(p, s) for p, s in pairs],
        "word_errors": [_word_errors(p, text) for p, text in zip(prompts, heard or unknown, strict=True)],
        "obeyed": [obeyed(s, p.instruction) for p, s in pairs],
        "length_obeyed": [length_obeyed(s, p.instruction) for p, s in pairs],
        "form_obeyed": [form_obeyed(s, p.instruction) for p, s in pairs],
        "repetition": [loop_share(s) for s in summaries],
        "copied_share": [copied_share(s, p.transcript) for p, s in pairs],
        "response_words": [float(len(words(s))) for s in summaries],
        "judge_failed": [float(not isinstance(j, Reward)) for j in judgements],
        "gated": [gated(j) for j in judgements],
    }
    for name in (WRONG_AUDIO, NO_AUDIO):
        answers: Sequence[str | None] = (controls or {}).get(name) or unknown
        answered = list(zip(prompts, answers, strict=True))
        rows[f"{name}_recall"] = [_recall(p, s) for p, s in answered]
        rows[f"{name}_f1"] = [f1(_recall(p, s), _precision(p, s, vocabulary)) for p, s in answered]
        rows[f"{name}_rougeL"] = [_rouge(p, s) for p, s in answered]
    assert rows.keys() == {m.key for m in MEASURES}
    return {m.key: rows[m.key] for m in MEASURES}


def reward(judgement: Judgement) -> float | None:
    """The judge's value; None for a judgement that failed."""
    return judgement.value if isinstance(judgement, Reward) else None


def overall(judgement: Judgement) -> float | None:
    """The reward from 1 to 7; None where there is none, or one that is not on the scale from 0 to 1."""
    value = reward(judgement)
    return 1.0 + 6.0 * value if value is not None and 0.0 <= value <= 1.0 else None


def adherence(judgement: Judgement) -> float | None:
    """The criterion `obeys` from 1 to 7; None for a judge that has no such criterion, and for a gated summary."""
    obeys = judgement.breakdown.get("obeys") if isinstance(judgement, Reward) else None
    return None if obeys is None else 1.0 + 6.0 * obeys


def hallucination(judgement: Judgement, precision: float | None) -> float | None:
    """1.0 where something in the summary is unsupported, 0.0 where nothing is, None where nobody can tell.

    Two can tell: the rubric judge, by its mark for faithfulness and by what it quotes, and the facts of the data, of
    which `precision` is the share told that is true. Either is enough. A summary that states no known fact at all is
    not thereby a true one: the facts then tell nothing.
    """
    verdicts = [] if precision is None else [precision < 1.0]
    if isinstance(judgement, Reward) and "faithful" in judgement.breakdown:
        quoted = QUOTES in judgement.notes
        verdicts.append(whole_mark(judgement.breakdown["faithful"]) < HARMLESS or quoted)
    return float(any(verdicts)) if verdicts else None


def f1(recall: float | None, precision: float | None) -> float | None:
    """Of one item; None where its facts are unknown. Who tells none of them has no precision, and 0 all the same."""
    if recall is None:
        return None
    return 2 * recall * precision / (recall + precision) if recall and precision else 0.0


def gated(judgement: Judgement) -> float | None:
    """1.0 where a gate stopped the summary before any judge; None where the judgement failed."""
    return float(bool(judgement.gate)) if isinstance(judgement, Reward) else None


def _recall(prompt: Prompt, summary: str | None) -> float | None:
    return fact_recall(summary, prompt.facts) if prompt.facts and summary is not None else None


def _precision(prompt: Prompt, summary: str | None, vocabulary: Sequence[str]) -> float | None:
    facts = prompt.clip_facts or prompt.facts
    return fact_precision(summary, facts, vocabulary) if facts and summary is not None else None


def _word_errors(prompt: Prompt, heard: str | None) -> float | None:
    return None if heard is None else word_error_rate(heard, prompt.transcript)


def _rouge(prompt: Prompt, summary: str | None) -> float | None:
    return rouge_l(summary, prompt.reference) if prompt.reference and summary is not None else None
