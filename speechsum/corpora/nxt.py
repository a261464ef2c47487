"""AMI's words with their times, as its manual annotations have them: an NXT file for each speaker of a meeting.

A file is XML with an element for each token: `w` for words (`punc="true"` for punctuation), others for sounds, gaps and
broken-off speech. Times are seconds of the meeting's recordings; some words have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from speechsum.errors import UserError


@dataclass(frozen=True, slots=True)
class TimedWord:
    """A word as `normalised` writes it, and when it was said."""

    word: str
    start_s: float
    end_s: float


def normalised(text: str) -> str:
    """Lower case without anything but letters and digits; empty for punctuation."""
    return "".join(character for character in text.lower() if character.isalnum())


def read_words(files: Sequence[Path]) -> list[TimedWord]:
    """The timed words of a meeting out of the file of each speaker, by the time at which they start.

    Raises `UserError` for a file that cannot be read.
    """
    return sorted((word for file in files for word in _timed(file)), key=lambda word: (word.start_s, word.end_s))


def _timed(file: Path) -> Iterator[TimedWord]:
    try:
        root = ET.parse(file).getroot()
    except (ET.ParseError, OSError, ValueError, LookupError) as error:
        raise UserError(
            f"--ami: {file} is not XML that can be read ({error}); unpack AMI's annotations again"
        ) from None
    for element in root.iter("w"):
        word = normalised(element.text or "")
        start, end = _seconds(element.get("starttime")), _seconds(element.get("endtime"))
        if word and element.get("punc") != "true" and 0 <= start <= end < math.inf:
            yield TimedWord(word, start, end)


def _seconds(text: str | None) -> float:
    """Not a number where there is none, which no comparison lets pass."""
    try:
        return math.nan if text is None else float(text)
    except ValueError:
        return math.nan
