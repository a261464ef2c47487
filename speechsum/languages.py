"""Which language a text is in, as far as a small rule can tell: by script, and in Latin script by its commonest words.

Enough to say whether "in German" was obeyed, and no language identification: it knows seven languages of Latin script
and eight scripts, and says that it cannot tell where a text has too few common words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from speechsum.wording import folded, words

LEAST_HITS = 2
LEAST_SHARE = 0.5

COMMON: Mapping[str, frozenset[str]] = {
    "english": frozenset("the and of to is was that with for by will has have from at this not be are an it".split()),
    "german": frozenset("der die das und ist nicht mit von für auf dem den ein eine zu wird hat im sich bis".split()),
    "french": frozenset("le la les et est des du une un dans pour que qui pas par sur avec au aux ce".split()),
    "spanish": frozenset("el la los las y es de que en una un por para con del se su al lo".split()),
    "italian": frozenset("il lo la gli è di che un una per con del della non si alla nel sono".split()),
    "portuguese": frozenset("os é de que em um uma para com não se ao dos das pelo pela mais foi".split()),
    "dutch": frozenset("de het een en van is dat niet met op voor te aan zijn er door bij wordt heeft naar".split()),
}
"""Words of each language; one that stands in several counts for each, and the most hits win. Left out are those of many
languages, as "a", "do" and "no" are."""

SCRIPTS: Mapping[str, tuple[str, ...]] = {
    "chinese": ("CJK",),
    "mandarin": ("CJK",),
    "japanese": ("HIRAGANA", "KATAKANA", "CJK"),
    "korean": ("HANGUL",),
    "russian": ("CYRILLIC",),
    "ukrainian": ("CYRILLIC",),
    "greek": ("GREEK",),
    "arabic": ("ARABIC",),
    "hebrew": ("HEBREW",),
    "hindi": ("DEVANAGARI",),
    "thai": ("THAI",),
}
"""How Unicode's names of a language's letters begin. Languages that share a script are not told apart."""

_NEXT = (
    "about and as at bullet bullets but even for how if in instead is keywords language no not of on only or please "
    "prose sentence sentences summary text that to translation using version what when where which who why with words"
)
_ASKED = re.compile(
    rf"\b(?:in(?:to)?|auf|using)\s+(?:\w+\s+)?({'|'.join((*COMMON, *SCRIPTS))})\b"
    rf"(?=\W*(?:\Z|\b(?:{'|'.join(_NEXT.split())})\b)|\s*[^\w\s-])"
)
"""A language that an answer is to be in, and not one that something else is called by, as in "the German office"."""


def asked_language(instruction: str) -> str | None:
    """The language that a request wants its answer in; None where it names none, or several."""
    found = set(_ASKED.findall(folded(instruction)))
    return found.pop() if len(found) == 1 else None


def has_language(text: str, language: str, least: int = LEAST_HITS) -> bool | None:
    """Whether `text` is in `language`; None where the rule cannot tell, from `least` common words in Latin script."""
    if language in SCRIPTS:
        return _script_share(text, SCRIPTS[language]) >= LEAST_SHARE
    if _script_share(text, ("LATIN",)) < LEAST_SHARE:
        return False
    told = latin_language(text, least)
    return told == language if told else None


def latin_language(text: str, least: int = LEAST_HITS) -> str | None:
    """The language most of whose common words stand in `text`; None for fewer than `least`, and where two are even."""
    said = words(text)
    hits = {name: sum(word in common for word in said) for name, common in COMMON.items()}
    best = max(hits.values())
    winners = [name for name, count in hits.items() if count == best]
    return winners[0] if best >= least and len(winners) == 1 else None


def _script_share(text: str, scripts: tuple[str, ...]) -> float:
    letters = [character for character in text if character.isalpha()]
    return sum(unicodedata.name(c, "").startswith(scripts) for c in letters) / max(1, len(letters))
