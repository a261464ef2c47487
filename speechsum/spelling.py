"""Numbers as words. A recogniser writes "500" for what data may spell "five hundred": to every rule another fact."""

from __future__ import annotations

import re

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER = re.compile(r"(\$?)(?<![\w.,:])(\d{1,3}(?:,\d{3})+|\d{1,6})(?![\w:%]|[.,]\d| (?:thousand|[mb]illion)\b)")


def spell_numbers(text: str) -> str:
    """English words for whole numbers below a million, "$20" included; times, decimals, percentages and "5th" stay."""
    return _NUMBER.sub(_spelled, text)


def _spelled(match: re.Match[str]) -> str:
    number = int(match[2].replace(",", ""))
    if number >= 1_000_000:
        return match[0]
    return in_words(number) + (" dollars" if match[1] else "")


def in_words(number: int) -> str:
    """A number from 0 to 999 999 in words, without hyphens or "and": 2500 is "two thousand five hundred"."""
    parts = [f"{in_words(number // 1000)} thousand"] if number >= 1000 else []
    number %= 1000
    parts += [f"{_UNITS[number // 100]} hundred"] if number >= 100 else []
    rest = number % 100
    if rest >= 20:
        parts.append(_TENS[rest // 10 - 2] + (f" {_UNITS[rest % 10]}" if rest % 10 else ""))
    elif rest or not parts:
        parts.append(_UNITS[rest])
    return " ".join(parts)
