"""The form a request asks for, and whether an answer has it, where a rule can tell.

Four forms: JSON, a bullet list, key words, one sentence. A request that names none of them, several of them, or one to
be avoided is left to a judge.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from speechsum.asking import KEYWORD, NOT_EACH, asked_keywords, asks_for_keywords
from speechsum.wording import folded, words

MAX_ITEM_WORDS = 5
"""A key word may be a phrase ("twenty five hundred dollars"); what is longer is a statement."""


class Form(StrEnum):
    """What an answer is to look like."""

    JSON = "json"
    BULLETS = "bullets"
    KEYWORDS = "keywords"
    SENTENCE = "sentence"


_JSON = re.compile(r"\bjson\b")
_BULLETS = re.compile(r"\bbullets\b|\bbullet(?:ed)?[\s-]?(?:points|lists?)\b")
_SENTENCE = re.compile(rf"\b(?:one|single|1)[\s-](?:\w+[\s-])?sentence{NOT_EACH}")
_AVOIDED = re.compile(
    r"\b(?:no|not|without|avoid|never|don't|instead of|rather than)\s+(?:\w+\s+){0,2}"
    rf"(?:json|bullets?|{KEYWORD}|(?:one|single|1)[\s-]sentence)\b"
)
_FENCED = re.compile(r"\A\s*```(?:json)?\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)
_BULLET = re.compile(r"\s*(?:[-*+\u2022\u2023\u25aa\u00b7\u2013\u2014]|\d{1,2}[.)])\s+\S")
_ITEM_BREAK = re.compile(r"[,;\n|\u2022\u00b7\u3001]+")
_STATEMENT_END = re.compile(r"[.!?]\s+\S")
_SENTENCE_BREAK = re.compile(
    r"[.!?\u2026]+[\"'\u201d\u2019)\]]*\s+(?=[\"'\u201c\u2018(\[]*[A-Z0-9])|[\u3002\uff01\uff1f]"
)
_NO_BREAK = re.compile(
    r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Inc|Ltd|vs|cf|approx|e\.g|i\.e|[ap]\.m)\.\s+\S\Z"
    r"|\b(?:No|Nos|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.\s+\d\Z"
)


def asked_form(instruction: str) -> Form | None:
    """The one form that a request names; None where it names none, two, or one that it does not want."""
    asked = named_forms(instruction)
    return asked.pop() if len(asked) == 1 and not _AVOIDED.search(folded(instruction)) else None


def named_forms(instruction: str) -> set[Form]:
    """Every form that a request speaks of, whether it wants it or not."""
    request = folded(instruction)
    named = {
        Form.JSON: bool(_JSON.search(request)),
        Form.BULLETS: bool(_BULLETS.search(request)),
        Form.KEYWORDS: asks_for_keywords(instruction),
        Form.SENTENCE: bool(_SENTENCE.search(request)),
    }
    return {form for form, found in named.items() if found}


def form_obeyed(summary: str, instruction: str) -> float | None:
    """1.0 where the summary has the form that was asked for, 0.0 where not, None where no rule can tell."""
    form = asked_form(instruction)
    if form is None:
        return None
    if form is Form.KEYWORDS:
        least, _ = asked_keywords(instruction) or (2, math.inf)
        return float(_is_keywords(summary, min(2, least)))
    return float(_RULES[form](summary))


def unfenced(text: str) -> str:
    """Without the Markdown fence that a model may put around all of its JSON."""
    fenced = _FENCED.match(text)
    return fenced[1] if fenced else text


def parsed_json(text: str) -> dict[str, Any] | list[Any] | None:
    """An object or a list and nothing else, None for the rest; one Markdown fence around all of it is taken off."""
    try:
        value = json.loads(unfenced(text))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def bullet_share(text: str) -> tuple[float, int]:
    """Share of lines with a mark or a number, below at most one heading that ends in a colon, and how many have one."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and lines[0].rstrip().endswith(":") and not _BULLET.match(lines[0]):
        lines = lines[1:]
    marked = sum(bool(_BULLET.match(line)) for line in lines)
    return (marked / len(lines) if lines else 0.0), marked


def prose(answer: str) -> str:
    """What is said in whatever form: the values of JSON without its keys, a list without its marks."""
    value = parsed_json(answer)
    lines = answer.splitlines() if value is None else _texts(value)
    return "\n".join(_without_mark(line) for line in lines)


def keyword_share(text: str) -> tuple[float, int]:
    """Share of entries that are short and no statement, and how many entries there are."""
    found = entries(text)
    if any(_STATEMENT_END.search(entry) for entry in found):
        return 0.0, 0
    return (sum(len(words(entry)) <= MAX_ITEM_WORDS for entry in found) / len(found) if found else 0.0), len(found)


def entries(text: str) -> list[str]:
    """What a list is of, one on a line or all on one, without marks; text without a separator is one entry."""
    pieces = (_without_mark(piece) for piece in _ITEM_BREAK.split(text))
    return [piece for piece in pieces if words(piece)]


def sentence_count(text: str) -> int:
    """Sentences, a line with words in it holding at least one; "Dr. Lee" and "J. Lee" end none."""
    return sum(1 + _inner_ends(line.strip()) for line in text.splitlines() if words(line))


def _texts(value: object) -> Iterator[str]:
    """Without recursion: an answer may nest as deep as it likes."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += reversed([*value.values()] if isinstance(value, dict) else value)
        elif value is not None:
            yield str(value)


def _without_mark(line: str) -> str:
    found = _BULLET.match(line)
    return line[found.end() - 1 :] if found else line


def _inner_ends(line: str) -> int:
    return sum(
        not _NO_BREAK.search(line[: hit.end() + 1]) and bool(words(line[hit.end() :]))
        for hit in _SENTENCE_BREAK.finditer(line)
    )


def _is_json(text: str) -> bool:
    return parsed_json(text) is not None


def _is_bullets(text: str) -> bool:
    """Two lines and more, all of them bullets."""
    share, marked = bullet_share(text)
    return marked >= 2 and share == 1.0


def _is_keywords(text: str, least: float) -> bool:
    """Short entries with separators between them, and no sentences."""
    share, entries = keyword_share(text)
    return entries >= least and share == 1.0


def _is_one_sentence(text: str) -> bool:
    """One line with words in it and no end of a sentence before its own end."""
    return sentence_count(text) == 1 and not any(_BULLET.match(line) for line in text.splitlines() if words(line))


_RULES: dict[Form, Callable[[str], bool]] = {
    Form.JSON: _is_json,
    Form.BULLETS: _is_bullets,
    Form.SENTENCE: _is_one_sentence,
}
