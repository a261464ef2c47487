"""Numbers as requests spell them: "twenty-five", "two hundred", "1,000" become digits, which one pattern finds."""

from __future__ import annotations

import re

_DIGITS = {name: n for n, name in enumerate("one two three four five six seven eight nine".split(), start=1)}
_TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
_TENS = {
    name: 10 * n for n, name in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_VALUES = _DIGITS | {name: n for n, name in enumerate(_TEENS.split(), start=10)} | _TENS | {"single": 1}

_DIGIT = "|".join(_DIGITS)
_UNDER_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{_DIGIT})\b)?|{'|'.join(n for n in _VALUES if n not in _TENS)})"
_SPELLED = re.compile(
    rf"\b(?:(?:(?P<hundreds>{_DIGIT}|an?)\s+)?(?P<hundred>hundred)(?:\s+(?:and\s+)?(?P<rest>{_UNDER_100})\b)?"
    rf"|(?P<alone>{_UNDER_100}))\b"
)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")


def with_digits(text: str) -> str:
    """`text`, in lower case, with spelled numbers below a thousand in digits, and without the commas of thousands."""
    return _SPELLED.sub(_digits, _THOUSANDS.sub("", text))


def _digits(match: re.Match[str]) -> str:
    if match["alone"]:
        return str(_under_100(match["alone"]))
    return str(100 * _VALUES.get(match["hundreds"], 1) + _under_100(match["rest"] or ""))


def _under_100(spelled: str) -> int:
    return sum(_VALUES[part] for part in re.split(r"[\s-]", spelled) if part)
