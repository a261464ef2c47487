"""Texts as rules compare them: folded, in words, without the words that carry only grammar. Any script."""

from __future__ import annotations

import re
import unicodedata

_SPACELESS = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
_BREAK = re.compile(
    r"[\s;:!?()\[\]{}\"\u201c\u201d\u00ab\u00bb\u2014\u2013/|\u2022\u00b7*_\u2026\u3002\u3001]+|[.,](?!\d)"
)
_STOP_WORD_LIST = """
    a about after all also an and any are as at be because been before being but by can could did do does for from
    get go going had has have he her here him his how i if in into is it its just like may me more most my no not now
    of off on one only or other our out over said say says she should so some such than that the their them then
    there these they this those to too up us very was we well were what when where which while who will with would
    you your yes
"""
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())


def words(text: str) -> list[str]:
    """Case-folded words without punctuation; scripts written without spaces count by character.

    Compatibility forms are folded and invisible characters dropped, so a gate cannot be passed by spelling a phrase
    in full-width letters or with zero-width joints.
    """
    return [word for chunk in _BREAK.split(folded(text)) for word in _WORD.findall(chunk) if has_letter(word)]


def content_words(text: str) -> list[str]:
    """`words` without those that carry grammar rather than content, such as "the" and "of"."""
    return [word for word in words(text) if word not in _STOP_WORDS]


def folded(text: str) -> str:
    """`text` as rules compare it: NFKC, without format characters, case-folded, straight apostrophes."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    return "".join(ch for ch in text if unicodedata.category(ch) != "Cf").casefold()


def has_letter(text: str) -> bool:
    """Whether anything is written at all: a letter or a digit."""
    return any(ch.isalnum() for ch in text)
