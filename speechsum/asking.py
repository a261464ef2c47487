"""How much a request asks for, by its words: of words, of anything that can be counted, key words or not.

Requests are read in English, numbers in digits or spelled out.
"""

from __future__ import annotations

import math
import re

from speechsum.numerals import with_digits
from speechsum.wording import folded

Bounds = tuple[float, float]
"""The (least, most) of something that is asked for; `math.inf` where there is no most."""

KEYWORD = r"(?:key[\s-]?(?:words?|terms?|phrases?)|tags)"
_KEYWORDS = re.compile(rf"\b{KEYWORD}\b")
_A_KEYWORD = re.compile(r"\b(?:an?|single)\s+(?:\w+\s+)?key[\s-]?(?:word|term|phrase)\b(?!\s+list)")
_NUMBER = r"(\d{1,6})"
_LIMIT = (
    r"(?:at (?:the )?most|under|below|up to|within|limit(?:ed)? (?:it |this |that |yourself )?to|limit of"
    r"|not exceed(?:ing)?|(?:no|not) (?:more|longer) than|(?:fewer|less|shorter) than|max(?:imum)?[.:]?(?: of)?)"
)
_LEAST = r"(?:at (?:the )?least|(?:no|not) (?:fewer|less) than|more than|min(?:imum)?[.:]?(?: of)?)"
NOT_EACH = r"\b(?!\s+(?:each|apiece|per)\b)"
"""After what is counted: "two sentences per speaker" is no number of sentences."""


def asks_for_keywords(instruction: str) -> bool:
    """A list of key words is an answer in its own right and is not held to whole sentences."""
    return bool(_KEYWORDS.search(folded(instruction)))


def asked_words(instruction: str) -> Bounds | None:
    """The (least, most) words a request asks for, or None. A limit has no least; a target allows 20 % either way.

    "the two words they argue about" is no target: it speaks of words that were said. Key words have no prose length:
    see `asked_keywords`.
    """
    if asks_for_keywords(instruction):
        return None
    request = _request(instruction)
    if bounds := _bounds(request, "words?"):
        return bounds
    if match := re.search(rf"(?<!\bthe )(?<!\bthese )(?<!\bthose )\b{_NUMBER}[\s-]words?{NOT_EACH}", request):
        target = int(match[1])
        return math.floor(0.8 * target), math.ceil(1.2 * target)
    return None


def asked_keywords(instruction: str) -> Bounds | None:
    """The (least, most) key words a request asks for, or None where it names no number or wants none."""
    if _A_KEYWORD.search(folded(instruction)):
        return 1, 1
    return asked_count(instruction, rf"(?:[a-z]+\s+)?{KEYWORD}")


def asked_count(instruction: str, noun: str) -> Bounds | None:
    """The (least, most) of something a request asks for, or None where it names no number. `noun` is a pattern.

    "three to five bullets", "at most 3 bullets", "two bullets or more", "three bullets". A limit has no least.
    """
    request = _request(instruction)
    if bounds := _bounds(request, noun):
        return bounds
    if match := re.search(rf"\b{_NUMBER}[\s-]{noun}{NOT_EACH}", request):
        return int(match[1]), int(match[1])
    return None


def _request(instruction: str) -> str:
    return with_digits(folded(instruction))


def _bounds(request: str, noun: str) -> Bounds | None:
    """A range, an upper or a lower limit of something, in that order."""
    if match := re.search(
        rf"\b(?:between {_NUMBER} and|{_NUMBER}\s*(?:-|\u2013|to|or))\s*{_NUMBER}[\s-]{noun}{NOT_EACH}", request
    ):
        low, high = sorted(int(number) for number in match.groups() if number)
        return low, high
    if match := re.search(
        rf"\b{_LIMIT}\s+(?:an?\s+)?{_NUMBER}[\s-]{noun}{NOT_EACH}"
        rf"|\b{_NUMBER}[\s-]{noun}\s+(?:or (?:less|fewer|under|shorter)|at (?:the )?most|max(?:imum)?|limit)\b",
        request,
    ):
        return 0, int(match[1] or match[2])
    if match := re.search(
        rf"\b{_LEAST}\s+(?:an?\s+)?{_NUMBER}[\s-]{noun}{NOT_EACH}"
        rf"|\b{_NUMBER}[\s-]{noun}\s+(?:or (?:more|longer)|at (?:the )?least|min(?:imum)?)\b",
        request,
    ):
        return int(match[1] or match[2]), math.inf
    return None
