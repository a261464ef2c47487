"""How one thing in a text is made wrong and the rest left alone: days, numbers, names, negations, order, length.

Pure functions of a text and a random stream. Each gives None where the text has no place for it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from speechsum.textscores import words

LEAST_WORDS = 4  # a shorter text has no half worth calling one

_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("January", "February", "March", "April", "June", "July", "August", "September", "October", "November",
           "December")  # without May, which is a verb too  # fmt: skip
_UNITS = ("two", "three", "four", "five", "six", "seven", "eight", "nine")  # "one" is a pronoun as often as not
_HOURS = ("ten", "eleven", "twelve")  # beyond nine, but still on the clock
_TEENS = ("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SETS = (_WEEKDAYS, _MONTHS, _UNITS, _HOURS, _TEENS, _TENS)

_DAY = re.compile(rf"\b(?:(?i:{'|'.join(_WEEKDAYS)})|{'|'.join(_MONTHS)})\b")
_NUMBER = re.compile(  # the digits that count off the items of a list are no statement
    rf"(?!^\d+[.)]\s)\b(?:\d+|(?i:{'|'.join((*_UNITS, *_HOURS, *_TEENS, *_TENS))}))\b", re.MULTILINE
)
_PATTERNS = {"day": _DAY, "number": _NUMBER}
_NAME = r"[A-Z]\w*[a-z](?: [A-Z]\w*[a-z])*"
NAME_INSIDE = re.compile(rf"(?<=[\w,;] ){_NAME}\b")  # at the start of a sentence a capital says nothing

_AUXILIARY = "will|must|should|can|could|would|may|might|is|are|was|were|do|does|did|has|have|had"
_NEGATIONS = tuple(
    (re.compile(rf"\b(?:{pattern})\b"), replacement)  # in lower case: Will and May are names too
    for pattern, replacement in (
        (rf"({_AUXILIARY}) not", r"\1"),
        (r"cannot|can['\u2019]t", "can"),
        (r"won['\u2019]t", "will"),
        (rf"({_AUXILIARY})n['\u2019]t", r"\1"),
        (r"has to", "does not have to"),
        (r"have to", "do not have to"),
        (r"(will|must|should|can|could|would|may|might|is|are|was|were|has|have|had)", r"\1 not"),
        (r"wants to", "does not want to"),
        (r"want to", "do not want to"),
        (r"((?:asks?|asked|wants?|wanted|tells?|told)(?: \w+){1,3}) to", r"\1 not to"),
        (r"(request|task|plan|decision) to", r"\1 not to"),
    )
)


def negated(text: str) -> str | None:
    """The first negation taken out, or the first verb that allows it negated; None where no rule fits."""
    for pattern, replacement in _NEGATIONS:
        if pattern.search(text):
            return pattern.sub(replacement, text, count=1)
    return None


@lru_cache(maxsize=65536)
def sort_of(form: str) -> str:
    """What may stand in for it: a day for a day, a number for a number, a name for a name."""
    for sort, pattern in _PATTERNS.items():
        if pattern.search(form):
            return sort
    return "name" if re.fullmatch(_NAME, form) else "phrase"


def traits_of(form: str, text: str) -> set[str]:
    """What makes two forms exchangeable: their words, how many there are, and the words on both sides in `text`."""
    traits = {*words(form), f"length {len(words(form))}"}
    if found := _whole(form).search(text):
        before, after = words(text[: found.start()])[-1:], words(text[found.end() :])[:1]
        traits |= {f"after {''.join(before)}", f"before {''.join(after)}"}  # an edge of the text counts as a word
    return traits


@lru_cache(maxsize=65536)
def _whole(form: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(form)}(?!\w)", re.IGNORECASE)


def stands(form: str, text: str) -> bool:
    """Whether `form` is in `text` as whole words, in whatever case."""
    return _whole(form).search(text) is not None


def swapped(text: str, stand_ins: Mapping[str, str]) -> str:
    """All swaps at once, so that none undoes another; capitals stay where they were."""
    either = "|".join(_whole(form).pattern for form in sorted(stand_ins, key=len, reverse=True))

    def stand_in(hit: re.Match[str]) -> str:  # asked of the patterns: to them more letters are one than to `lower`
        return _capital_like(hit[0], next(other for form, other in stand_ins.items() if _whole(form).fullmatch(hit[0])))

    return re.sub(either, stand_in, text, flags=re.IGNORECASE)


def swapped_word(sort: str, text: str, said: str, rng: random.Random) -> str | None:
    """`text` with one of its words of `sort` ("day" or "number") made another, which `said` does not hold either."""
    found = list(_PATTERNS[sort].finditer(text))
    if not found:
        return None
    hit = rng.choice(found)
    others = [other for other in _alternatives(hit[0], rng) if not stands(other, said) and not stands(other, text)]
    return text[: hit.start()] + _capital_like(hit[0], rng.choice(others)) + text[hit.end() :] if others else None


def _alternatives(word: str, rng: random.Random) -> Sequence[str]:
    """The set that a word is of; for digits a few numbers of as many digits."""
    if word.isdecimal():
        low = 10 ** (len(word) - 1)
        return [str(rng.randrange(low, 10 * low)) for _ in range(20)]
    return next(members for members in _SETS if any(stands(member, word) for member in members))


def shuffled(text: str, rng: random.Random) -> str | None:
    """The same words in another order."""
    parts = text.split()
    if len(set(parts)) < LEAST_WORDS:
        return None
    mixed = parts[:]
    while mixed == parts:
        rng.shuffle(mixed)
    return " ".join(mixed)


def truncated(text: str) -> str | None:
    """The first half of the words."""
    parts = list(re.finditer(r"\S+", text))
    return text[: parts[len(parts) // 2 - 1].end()] if len(parts) >= LEAST_WORDS else None


def seam(text: str) -> str:
    """What joins another sentence, or another item, to `text`."""
    return "\n" if "\n" in text else " "


def _capital_like(old: str, new: str) -> str:
    return new[:1].upper() + new[1:] if old[:1].isupper() else new
