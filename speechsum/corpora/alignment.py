"""When each turn of a transcript was said, from words whose times are known.

Both are the same speech written down twice, so the longest runs of equal words are matched first and the rest between
them (`difflib.SequenceMatcher`). Its rule for popular words is wanted here: "the" and "yeah" match beside other words
and not alone, which keeps them from matching far away and keeps it fast: a meeting of 10,000 words takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain

from speechsum.corpora.nxt import TimedWord


@dataclass(frozen=True, slots=True)
class TurnTime:
    """From when to when a turn was said, how many words it has, and for how many of them a time was found."""

    start_s: float
    end_s: float
    words: int
    matched: int


def align(turns: Sequence[Sequence[str]], spoken: Sequence[TimedWord]) -> list[TurnTime]:
    """The time of each of the `turns`, given as words that `nxt.normalised` wrote, in the order of the meeting.

    From its first matched word to its last. A turn without one has the gap between its neighbours; before the first
    and after the last that have a time, it has their edge.
    """
    found = _matched(turns, spoken)
    starts = [min((word.start_s for word in words), default=None) for words in found]
    ends = [max((word.end_s for word in words), default=None) for words in found]
    before = _carried(ends)
    after = _carried(starts[::-1])[::-1]
    times: list[TurnTime] = []
    for turn, words, start, end, last, following in zip(turns, found, starts, ends, before, after, strict=True):
        if start is None or end is None:
            edges = [edge for edge in (last, following) if edge is not None] or [0.0]
            start, end = min(edges), max(edges)
        times.append(TurnTime(start, end, len(turn), len(words)))
    return times


def _matched(turns: Sequence[Sequence[str]], spoken: Sequence[TimedWord]) -> list[list[TimedWord]]:
    """For each turn the timed words that match its own."""
    owners = [at for at, turn in enumerate(turns) for _ in turn]
    matcher = SequenceMatcher(None, [word.word for word in spoken], list(chain.from_iterable(turns)))
    found: list[list[TimedWord]] = [[] for _ in turns]
    for block in matcher.get_matching_blocks():
        for step in range(block.size):
            found[owners[block.b + step]].append(spoken[block.a + step])
    return found


def _carried(times: Sequence[float | None]) -> list[float | None]:
    """At each place the latest time there was up to it, itself included."""
    carried: list[float | None] = []
    latest: float | None = None
    for time in times:
        latest = latest if time is None else time
        carried.append(latest)
    return carried
