"""What can be decided without a model: gates that give 0 before any judge call, length by rule, lexical overlap.

The gates exist because they close the cheapest ways to please a judge (Zhao et al. 2025, "One Token to Fool
LLM-as-a-Judge"): saying nothing, saying it again, repeating the question, addressing whoever scores. Each gate has a
name and each name is a metric; a gate that starts to fire often is news about the policy.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from speechsum.asking import asked_keywords, asked_words, asks_for_keywords
from speechsum.forms import Form, asked_form, entries, parsed_json, prose
from speechsum.languages import COMMON, asked_language, has_language, latin_language
from speechsum.types import FailureKind, JudgeFailure, Judgement, JudgeTask, Reward
from speechsum.wording import content_words, folded, has_letter, words

MIN_WORDS = 5
MIN_KEYWORDS = 3
MAX_LOOP_SHARE = 0.3
MAX_ECHO_SHARE = 0.5
MIN_SCRIPT_SHARE = 0.5
SURE_HITS = 3  # common words of a language before its being the wrong one costs the reward

_LANGUAGE = re.compile(
    rf"\b(?:{'|'.join(COMMON)}|"
    r"afrikaans|albanian|arabic|armenian|basque|bengali|bulgarian|burmese|cantonese|catalan|chinese|croatian|czech"
    r"|danish|estonian|farsi|finnish|galician|georgian|greek|gujarati|hebrew|hindi|hungarian|icelandic|indonesian|irish"
    r"|japanese|kannada|kazakh|khmer|korean|lao|latin|latvian|lithuanian|macedonian|malay|malayalam|mandarin|marathi"
    r"|mongolian|nepali|norwegian|pashto|persian|polish|punjabi|romanian|russian|serbian|sinhala|slovak|slovenian"
    r"|somali|swahili|swedish|tagalog|tamil|telugu|thai|turkish|ukrainian|urdu|vietnamese|welsh|yiddish|yoruba|zulu)\b"
)
_SCORER = r"(?:judges?|graders?|evaluators?|raters?|scorers?|assessors?)"
_MARK = (
    r"(?:[1-9]|10|five|seven|ten)"
    r"(?:\s*(?:/|out of)\s*\d+|\s+(?:stars?|because|since|please|for|and)\b|\s*(?:[.!,;)]|$))"
)
_THIS = r"(?:this|it|me|(?:this|the|my)(?: above)? (?:summary|answer|response|text|output))"
_ADDRESS = re.compile(
    rf"\b(?:give|award|assign|grant)\s+{_THIS}\s+(?:(?:a|an|the|full|highest|top|best|maximum|perfect|possible|good|high)"
    rf"\s+)*(?:score|rating|marks?|grade|{_MARK})"
    rf"|\b(?:rate|score|grade|mark)\s+{_THIS}\s+(?:(?:a|an|as|with|at)\s+)?(?:{_MARK}|highly\b|high\b|perfect\b)"
    rf"|\bas (?:a|an|the|my|your) (?:(?:impartial|fair|strict|ai|llm|expert|honest) )?{_SCORER}"
    r"(?=\s*[,:]|\s+you\b)"
    rf"|\b(?:dear|hello|hey|hi|attention|note to|message to|instructions? (?:to|for))(?: the)? {_SCORER}\b"
    rf"|\byou are (?:a|an|the) (?:\w+ )?{_SCORER}\b"
    r"|\b(?:ignore|disregard|forget)\s+(?:(?:all|any|the|your|of)\s+)*(?:previous|prior|above|earlier|other)\s+"
    r"(?:instructions?|prompts?|rules|criteria|rubric)\b"
    r"|\b(?:this|the above|my) (?:summary|answer|response) (?:deserves|merits|earns|should (?:get|receive|be (?:rated"
    r"|scored|given|graded)))\b"
    r"|[\"']?\b(?:faithful|covers|obeys|clear)\b[\"']?\s*[:=]\s*[1-5]\b"
    r"|<\|[a-z_]{1,20}\|>|\[/?inst\]|<(?:start|end)_of_turn>|</?s>"
)


def apply_gates(task: JudgeTask) -> Reward | None:
    """`Reward(0.0, gate=name)` for the first gate that fires, None when the summary deserves a judge."""
    for name, fires in GATES:
        if fires(task):
            return Reward(0.0, gate=name)
    return None


def without_asking(task: JudgeTask) -> Judgement | None:
    """What needs no judge: a gate's 0, and the failure of a task without a transcript to judge against."""
    if gated := apply_gates(task):
        return gated
    return None if task.transcript.strip() else JudgeFailure(FailureKind.BAD_ROW, "no transcript to judge against")


def loop_share(text: str) -> float:
    """Share of 4-grams that are repeats: 1 - distinct / total. 0 for fewer than four words."""
    grams = _ngrams(words(text), 4)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def echo_share(summary: str, instruction: str) -> float:
    """Share of the summary's distinct word trigrams that stand in the request."""
    said = set(_ngrams(words(summary), 3))
    return len(said & set(_ngrams(words(instruction), 3))) / len(said) if said else 0.0


def _empty(task: JudgeTask) -> bool:
    return not has_letter(task.summary)


def _under_five_words(task: JudgeTask) -> bool:
    """Five words, or as few as obey a length that the request names.

    A key-word request is counted in items instead, and JSON that was asked for needs a value: two of its keys may well
    have four words between them.
    """
    if asks_for_keywords(task.instruction):
        return False
    if asked_form(task.instruction) is Form.JSON and parsed_json(task.summary) is not None:
        return not words(prose(task.summary))
    least, _ = asked_words(task.instruction) or (MIN_WORDS, math.inf)
    return len(words(task.summary)) < min(MIN_WORDS, max(1, least))


def _under_three_items(task: JudgeTask) -> bool:
    """Three different key words, or the one or two that were asked for."""
    if not asks_for_keywords(task.instruction):
        return False
    least, _ = asked_keywords(task.instruction) or (MIN_KEYWORDS, math.inf)
    items = {" ".join(words(entry)) for entry in entries(task.summary)}
    if len(items) == 1:  # without separators
        items = set(words(task.summary))
    return len(items) < min(MIN_KEYWORDS, max(1, least))


def _looping(task: JudgeTask) -> bool:
    return loop_share(task.summary) > MAX_LOOP_SHARE


def _prompt_echo(task: JudgeTask) -> bool:
    return echo_share(task.summary, task.instruction) > MAX_ECHO_SHARE


def _wrong_language(task: JudgeTask) -> bool:
    """Surely not the language asked for; or, unasked, another script or language than request and transcript have."""
    summary = prose(task.summary)
    if asked := asked_language(task.instruction):
        return has_language(summary, asked, SURE_HITS) is False
    request = folded(task.instruction)
    if _LANGUAGE.search(request) or _latin_share(request) < MIN_SCRIPT_SHARE:
        return False
    if _latin_share(summary) < MIN_SCRIPT_SHARE < _latin_share(task.transcript):
        return True
    said, spoken = (latin_language(text, SURE_HITS) for text in (summary, task.transcript))
    return bool(said and spoken) and said not in (spoken, latin_language(request) or "english")


def _judge_address(task: JudgeTask) -> bool:
    """Text aimed at whoever scores. What the speakers said themselves is content: a meeting may be about grading."""
    transcript = folded(task.transcript)
    return any(hit.group(0).strip(" .!,;)") not in transcript for hit in _ADDRESS.finditer(folded(task.summary)))


GATES: tuple[tuple[str, Callable[[JudgeTask], bool]], ...] = (
    ("empty", _empty),
    ("judge_address", _judge_address),
    ("under_five_words", _under_five_words),
    ("under_three_items", _under_three_items),
    ("looping", _looping),
    ("prompt_echo", _prompt_echo),
    ("wrong_language", _wrong_language),
)


def length_penalty(task: JudgeTask) -> float:
    """Factor in [0, 1] for length: by rule where the request names a number of words, else the soft cap.

    Inside the asked range it is 1; outside, the ratio to the nearer bound. A request for "at least" so many words sets
    no end, and the soft cap holds beyond its number. Key-word lists have no prose length.
    """
    said = len(words(task.summary))
    allowance = _allowance(len(words(task.transcript)))
    target = asked_words(task.instruction)
    if target is None:
        return _beyond(allowance, said)
    low, high = target
    if said < low:
        return said / low
    if math.isinf(high):
        return _beyond(max(low, allowance), said)
    return min(1.0, high / said if said and high else 1.0)


def lexical_overlap(task: JudgeTask) -> float:
    """Content-word F1 against the transcript, in [0, 1]. Deterministic, no model.

    Precision: share of the summary's distinct content words that were said. Recall: occurrences in the transcript of
    the words that were used, relative to the best choice of as many words as fit the allowance. A control and
    a test double, not a judge of quality: it is blind to order, negation and who did what.
    """
    said = set(content_words(task.summary))
    source = Counter(content_words(task.transcript))
    if not said or not source:
        return 0.0
    shared = said & source.keys()
    precision = len(shared) / len(said)
    room = max(1, round(_allowance(len(words(task.transcript))) / 2))
    best = sum(count for _, count in source.most_common(room))
    recall = min(1.0, sum(source[word] for word in shared) / best)
    if precision + recall == 0.0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _allowance(transcript_words: int) -> float:
    """Words that a summary may have unasked: 41 for half a minute of speech, 110 for 1000 words and 315 for 10 000.

    Summaries grow more slowly than what they summarise.
    """
    return 15 + 3 * math.sqrt(transcript_words)


def _beyond(allowance: float, said: int) -> float:
    """Soft cap on length: gentle (twice the allowance keeps 0.71) and never flat, so a shorter equal is preferred."""
    return 1.0 if said <= allowance else math.sqrt(allowance / said)


def _ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _latin_share(text: str) -> float:
    """Share of letters that are Latin; 1 where there are no letters, as digits belong to no language."""
    letters = [ch for ch in text if ch.isalpha()]
    latin = sum(ch.isascii() or unicodedata.name(ch, "").startswith("LATIN") for ch in letters)
    return latin / len(letters) if letters else 1.0
