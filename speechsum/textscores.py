"""Scores of a summary that need no judge: which facts it holds, which it makes up, how close it is to a reference.

They are the yardstick beside the judge: a reward that climbs while `fact_recall` falls is a reward being fooled. None
is no score: it says that the rule cannot tell, and is left out of averages.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from speechsum import wording
from speechsum.asking import asked_words

RUN = 4
"""So many words in a row, taken from the transcript, are copied; fewer are what two texts on one subject share."""

ENDINGS = ("s", "es", "d", "ed", "ing")
LEAST_STEM = 3

_APOSTROPHES = re.compile(r"['\u2018]")
_SPACE = re.compile(r"(\s+)")


@lru_cache(maxsize=65536)
def words(text: str) -> tuple[str, ...]:
    """The words of `text` as `wording.words` has them, parted by all that is no letter, digit or mark on a letter.

    So a hyphen parts words ("twenty-five" is "twenty five"), and an apostrophe does not ("o'clock" is one word).
    """
    bare = _APOSTROPHES.sub("", wording.folded(text))
    return tuple(
        wording.words("".join(ch if ch.isalnum() or unicodedata.category(ch)[0] == "M" else " " for ch in bare))
    )


def _holds(text: Sequence[str], fact: Sequence[str]) -> bool:
    return any(tuple(text[start : start + len(fact)]) == tuple(fact) for start in range(len(text) - len(fact) + 1))


def fact_recall(summary: str, facts: Iterable[str]) -> float:
    """Share in [0, 1] of `facts` that stand in `summary` as whole words in a row; 1.0 where there are no facts.

    A fact given twice counts once. Raises ValueError on a fact without a letter or digit.
    """
    wanted = {words(fact) for fact in facts}
    if () in wanted:
        raise ValueError("a fact has no word in it: every fact needs at least one letter or digit")
    if not wanted:
        return 1.0
    text = words(summary)
    return sum(_holds(text, fact) for fact in wanted) / len(wanted)


def fact_precision(summary: str, facts: Iterable[str], vocabulary: Iterable[str]) -> float | None:
    """Share in [0, 1] of the facts `summary` states that are true of the clip; None where it states none.

    `facts` are all facts of the clip, not only the asked ones: saying more than was asked is not making things up.
    `vocabulary` holds every surface form a fact can take; what it lacks cannot be seen as a claim. The summary is read
    from left to right and the longest form that fits is taken, so "twenty five" is not also "twenty" and "five". A form
    stated twice counts once. None is no score: leave it out of averages and report how often it occurs, or a
    summary that says nothing looks either perfect or worthless.
    """
    true = {words(fact) for fact in facts}
    forms = true | {words(form) for form in vocabulary}
    longest = max((len(form) for form in forms), default=0)
    text = words(summary)
    stated: set[tuple[str, ...]] = set()
    at = 0
    while at < len(text):
        lengths = range(min(longest, len(text) - at), 0, -1)
        found = next((length for length in lengths if text[at : at + length] in forms), 0)
        if found:
            stated.add(text[at : at + found])
        at += max(found, 1)
    return len(stated & true) / len(stated) if stated else None


def rouge_l(summary: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, "ROUGE", 2004), in [0, 1]; 0.0 where either is empty."""
    said, wanted = words(summary), words(reference)
    common = _longest_common_subsequence(said, wanted)
    if common == 0:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def word_error_rate(heard: str, said: str) -> float | None:
    """Words to be put in, left out or changed to make `heard` what was `said`, per word said; None where nothing was.

    The edit distance of Levenshtein 1966 over words; 0 is perfect, and what was made up can take it beyond 1.
    """
    own, wanted = words(heard), words(said)
    if not wanted:
        return None
    row = list(range(len(wanted) + 1))
    for count, word in enumerate(own, start=1):
        diagonal, row[0] = row[0], count
        for column, other in enumerate(wanted, start=1):
            changed = diagonal + (word != other)
            diagonal, row[column] = row[column], min(changed, row[column] + 1, row[column - 1] + 1)
    return row[-1] / len(wanted)


def length_obeyed(summary: str, instruction: str) -> float | None:
    """1.0 where the summary has as many words as were asked for, 0.0 where not, None where `asked_words` has none."""
    asked = asked_words(instruction)
    if asked is None:
        return None
    least, most = asked
    return float(least <= len(wording.words(summary)) <= most)


def copied_share(summary: str, transcript: str) -> float | None:
    """Share in [0, 1] of the summary's words that stand in runs of `RUN` words and more taken from the transcript.

    The coverage by extractive fragments of Grusky et al. 2018 ("Newsroom", arXiv 1804.11283), counting long fragments
    only. None where either text is shorter than a run.
    """
    own, source = words(summary), words(transcript)
    if min(len(own), len(source)) < RUN:
        return None
    heard = {source[at : at + RUN] for at in range(len(source) - RUN + 1)}
    copied = {at + i for at in range(len(own) - RUN + 1) if own[at : at + RUN] in heard for i in range(RUN)}
    return len(copied) / len(own)


def marked(summary: str, transcript: str) -> list[tuple[str, bool]]:
    """The summary in pieces that join to it again, each with whether it holds a content word that was not said.

    Words are compared as `wording.words` folds them, hyphens parting them, and an ending makes no other word: "sends"
    was said where "send" was. A reader's aid and no verdict: "25" is marked where "twenty five" was said, and a
    swapped name that stands elsewhere in the transcript is not.
    """
    heard = {word.removesuffix("'s") for word in wording.words(transcript.replace("-", " "))}
    pieces = [piece for piece in _SPACE.split(summary) if piece]
    return [(piece, any(not _was_said(word, heard) for word in _content(piece))) for piece in pieces]


def _content(piece: str) -> list[str]:
    return wording.content_words(piece.replace("-", " "))


def _was_said(word: str, heard: set[str]) -> bool:
    """Itself, or with one of `ENDINGS` more or less."""
    bare = word.removesuffix("'s")
    stems = {bare.removesuffix(ending) for ending in ENDINGS if len(bare) >= LEAST_STEM + len(ending)} | {bare}
    return any(form in heard for stem in stems for form in (stem, *(stem + ending for ending in ENDINGS)))


def _longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length in words; one row of the usual table at a time, so memory is that of the shorter walk."""
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = diagonal + 1 if word == other else max(above, row[column - 1])
            diagonal = above
    return row[-1]
