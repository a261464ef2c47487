"""What a request asks for that a rule can check, and how far an answer obeys: from 0 to 1, for each rule by itself.

Six rules: how many words, how many sentences, a bullet list and of how many, key words and how many, JSON and with
which keys, which language. A rule that the request does not speak of has no score, and neither has one that cannot
tell. `speechsum.forms` knows the forms; here they are graded, counted and joined. Requests are read in English.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from speechsum.asking import Bounds, asked_count, asked_keywords, asked_words
from speechsum.forms import (
    Form,
    asked_form,
    bullet_share,
    keyword_share,
    named_forms,
    parsed_json,
    prose,
    sentence_count,
)
from speechsum.languages import asked_language, has_language
from speechsum.wording import folded, words

Rule = Callable[[str, str], float | None]

_SENTENCES = r"(?:\w+\s+)?sentences?"
_BULLETS = r"(?:\w+\s+)?(?:bullets?(?:[\s-]points?)?|points)"
_KEYS = re.compile(r"\b(?:keys|fields|(?:key|field)(?=\s*[:\"'\u201c\u2018`]))[\s:,]*(.*)", re.DOTALL)
_QUOTED_KEY = re.compile(r"[\"'\u201c\u2018`]([\w -]{1,40})[\"'\u201d\u2019`]")
_BARE_KEY = r"(?!and\b)[a-z_]\w*(?: (?!and\b|please\b)[a-z_]\w*(?=\s*(?:,|and\b|[.;)]|\Z)))?"  # "owner", "due date"
_BARE_KEYS = re.compile(rf"\A({_BARE_KEY}(?:\s*,\s*{_BARE_KEY})*(?:\s*,?\s*and\s+{_BARE_KEY})?)")
_KEY_BREAK = re.compile(r"\s*,\s*(?:and\s+)?|\s+and\s+")


def obeying(answer: str, instruction: str) -> dict[str, float]:
    """The score of each rule that the request speaks of and that can tell, by the rule's name."""
    scores = {name: rule(answer, instruction) for name, rule in RULES.items()}
    return {name: score for name, score in scores.items() if score is not None}


def obeyed(answer: str, instruction: str) -> float | None:
    """Mean score of the rules that apply; None where none does."""
    scores = obeying(answer, instruction)
    return sum(scores.values()) / len(scores) if scores else None


def request_kind(instruction: str) -> str:
    """Which rules a request speaks of, such as `bullets` or `sentences+words`; `free` where it speaks of none.

    For breakdowns of data that does not name its kinds of request.
    """
    asked = {
        "words": asked_words(instruction) is not None,
        "sentences": _asked_sentences(instruction) is not None,
        "bullets": asked_form(instruction) is Form.BULLETS,
        "keywords": asked_form(instruction) is Form.KEYWORDS,
        "json": asked_form(instruction) is Form.JSON,
        "language": asked_language(instruction) is not None,
    }
    return "+".join(name for name, found in asked.items() if found) or "free"


def asked_keys(instruction: str) -> tuple[str, ...]:
    """The keys that a request for JSON names: quoted, or bare after "keys" or "fields"; in lower case."""
    named = _KEYS.search(folded(instruction))
    if not named:
        return ()
    quoted = _QUOTED_KEY.findall(named[1])
    bare = _BARE_KEYS.match(named[1])
    found = quoted or (_KEY_BREAK.split(bare[1]) if bare else [])
    return tuple(dict.fromkeys(found))


def within(count: int, bounds: Bounds) -> float:
    """1 inside the bounds; outside, the ratio to the nearer one."""
    least, most = bounds
    if count < least:
        return count / least
    return most / count if count > most else 1.0


def _words(answer: str, instruction: str) -> float | None:
    asked = asked_words(instruction)
    return None if asked is None else within(len(words(answer)), asked) if words(answer) else 0.0


def _sentences(answer: str, instruction: str) -> float | None:
    asked = _asked_sentences(instruction)
    return None if asked is None else within(sentence_count(answer), asked) if words(answer) else 0.0


def _asked_sentences(instruction: str) -> Bounds | None:
    """None beside another form: "three bullets of one sentence" each is no number of sentences."""
    if named_forms(instruction) - {Form.SENTENCE}:
        return None
    return asked_count(instruction, _SENTENCES)


def _bullets(answer: str, instruction: str) -> float | None:
    if asked_form(instruction) is not Form.BULLETS:
        return None
    return _counted_form(*bullet_share(answer), asked_count(instruction, _BULLETS))


def _keywords(answer: str, instruction: str) -> float | None:
    if asked_form(instruction) is not Form.KEYWORDS:
        return None
    return _counted_form(*keyword_share(answer), asked_keywords(instruction))


def _counted_form(share: float, entries: int, asked: Bounds | None) -> float:
    """The share of entries that have the form, times how well their number fits; without a number, two and more."""
    return share * within(entries, asked or (2, math.inf))


def _json(answer: str, instruction: str) -> float | None:
    """0 for what is no JSON, else the share of the asked keys that are there, in every object of a list."""
    if asked_form(instruction) is not Form.JSON:
        return None
    value = parsed_json(answer)
    if value is None:
        return 0.0
    asked = asked_keys(instruction)
    if not asked:
        return 1.0
    objects = value if isinstance(value, list) else [value]
    if not objects or not all(isinstance(each, dict) for each in objects):
        return 0.0
    return min(sum(key in {folded(own) for own in each} for key in asked) / len(asked) for each in objects)


def _language(answer: str, instruction: str) -> float | None:
    """JSON is judged by its values, a list without its marks: neither keys nor bullets have to be translated."""
    language = asked_language(instruction)
    if language is None:
        return None
    text = prose(answer)
    if not words(text):
        return 0.0
    found = has_language(text, language)
    return None if found is None else float(found)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "words": _words,
        "sentences": _sentences,
        "bullets": _bullets,
        "keywords": _keywords,
        "json": _json,
        "language": _language,
    }
)
"""By name, in the order of a report."""
