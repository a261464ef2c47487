"""QMSum's meetings: turns, and queries about stretches of them, from a clone of its repository.

Text there is tokenised, with a space before each mark of punctuation, and has marks for what is no word, such as
{vocalsound} and {disfmarker}. Neither belongs into a transcript that a judge reads or a reference to learn from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from speechsum.corpora.nxt import normalised
from speechsum.corpora.output import SAFE_NAME
from speechsum.errors import UserError

FOLDERS = {"train": "train", "eval": "val", "test": "test"}
"""Of each split, below `PRODUCT`."""

PRODUCT = Path("data", "Product")
"""The part of QMSum whose meetings are AMI's."""

MARK = re.compile(r"\{[^{}]*\}")
BEFORE_PUNCTUATION = re.compile(r"\s+([.,;:?!])")
BEFORE_CLITIC = re.compile(r"(?<=\w)\s+('(?:s|re|ve|ll|d|m)|n't)\b", re.IGNORECASE)


class SpanFault(StrEnum):
    """Why a query's turns cannot be told; counted by reason."""

    NO_SPAN = "no_span"
    OUT_OF_RANGE = "out_of_range"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says at a time: as people write it, and as words to be matched."""

    speaker: str
    text: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """A request and its answer. `number` counts all of the meeting; `spans` are as the file has them, None for general
    queries, which ask about the whole meeting.
    """

    number: int
    instruction: str
    reference: str
    spans: Any

    def turns(self, count: int) -> tuple[int, int] | SpanFault:
        """The first and the last of a meeting's `count` turns that the query is about."""
        if self.spans is None:
            return 0, count - 1
        try:
            ends = [(int(first), int(last)) for first, last in self.spans]
        except (TypeError, ValueError, OverflowError):  # Infinity is a number to `json`
            return SpanFault.OUT_OF_RANGE
        if not ends:
            return SpanFault.NO_SPAN
        if not all(0 <= first <= last < count for first, last in ends):
            return SpanFault.OUT_OF_RANGE
        return min(first for first, _ in ends), max(last for _, last in ends)


@dataclass(frozen=True, slots=True)
class Meeting:
    """A meeting of one split, under AMI's name for it. `read_meeting` -> `ami_qmsum`."""

    name: str
    split: str
    turns: tuple[Turn, ...]
    queries: tuple[Query, ...]


def meeting_files(clone: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Each split and file of QMSum's AMI meetings, in a fixed order; and what is wrong with the clone."""
    found: list[tuple[str, Path]] = []
    problems: list[str] = []
    for split, name in FOLDERS.items():
        folder = clone / PRODUCT / name
        files = sorted(folder.glob("*.json"))
        found += [(split, file) for file in files]
        if not files:
            problems.append(f"--qmsum: {folder} has no meetings (*.json); clone github.com/Yale-LILY/QMSum there")
    stems = [file.stem for _, file in found]
    for name in sorted({stem for stem in stems if stems.count(stem) > 1}):
        problems.append(f"--qmsum: {name} is in more than one of the splits; check out the clone again")
    return found, problems


def read_meeting(split: str, file: Path) -> Meeting:
    """A meeting with its turns and queries. Raises `UserError` where the file is not as QMSum's are."""
    try:
        if not SAFE_NAME.fullmatch(file.stem):
            raise ValueError("its name is no meeting's")
        data = json.loads(file.read_text(encoding="utf-8"))
        turns = tuple(_turn(each) for each in data["meeting_transcripts"])
        queries = tuple(_queries(data))
        if not turns:
            raise ValueError("no turns")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"--qmsum: {file} is not a meeting of QMSum ({what}); check out the clone again") from None
    return Meeting(file.stem, split, turns, queries)


def _turn(entry: Any) -> Turn:
    content = entry["content"]
    words = tuple(word for word in map(normalised, MARK.sub(" ", content).split()) if word)
    return Turn(detokenised(entry["speaker"]), detokenised(content), words)


def _queries(data: Any) -> Iterator[Query]:
    """The general ones first. Numbered before anything is refused, so that a limit does not change an id."""
    entries = [(entry, None) for entry in data["general_query_list"]]
    entries += [(entry, entry["relevant_text_span"]) for entry in data["specific_query_list"]]
    for number, (entry, spans) in enumerate(entries):
        yield Query(number, detokenised(entry["query"]), detokenised(entry["answer"]), spans)


def detokenised(text: str) -> str:
    """Without marks, and without the spaces before punctuation that tokenising put there."""
    text = BEFORE_PUNCTUATION.sub(r"\1", MARK.sub(" ", text))
    return " ".join(BEFORE_CLITIC.sub(r"\1", text).split()).lstrip(".,;:?! ")
