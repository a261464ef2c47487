"""QMSum's queries about AMI's meetings, each with the stretch of the recording that it is about.

QMSum says which turns a query is about and AMI when each word was said, so the turns are aligned with the words
(`alignment`). What is heard and what the transcript says are the same turns: from the first that a query names to the
last, whatever lies between.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import soundfile as sf

from speechsum.audio import SAMPLE_RATE
from speechsum.corpora.alignment import TurnTime, align
from speechsum.corpora.nxt import TimedWord, read_words
from speechsum.corpora.output import (
    AUDIO_FOLDER,
    SPLITS,
    Item,
    Say,
    Split,
    check_out,
    refuse,
    refuse_empty,
    write_manifests,
)
from speechsum.corpora.qmsum import Meeting, Query, SpanFault, Turn, meeting_files, read_meeting
from speechsum.errors import UserError
from speechsum.files import whole_file

T = TypeVar("T")

LICENCE = "CC-BY-4.0 (AMI), MIT (QMSum)"

RECORDING = ".Mix-Headset.wav"
WORDS = ".words.xml"

PAD_S = 0.5
"""Before the first word and after the last: the times are of words, and speech begins and ends softly."""

LEAST_MATCHED = 0.5
"""Share of a stretch's words that need a time; below it, the times of its ends are guesses."""


class Refusal(StrEnum):
    """Why a query is left out, beside `qmsum.SpanFault`; counted by reason."""

    NO_TEXT = "no_text"
    UNALIGNED = "unaligned"
    NO_AUDIO = "no_audio"
    TOO_LONG = "too_long"


@dataclass(frozen=True, slots=True)
class Source:
    """A meeting, when its turns were said, and its recording of so many frames at 16 kHz. `_sources` -> `_item`."""

    meeting: Meeting
    times: tuple[TurnTime, ...]
    recording: Path
    frames: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Frames `start` to `stop` of a recording, and the file below the output folder that they become."""

    recording: Path
    start: int
    stop: int
    audio: str


def build(ami: Path, qmsum: Path, out: Path, max_audio_s: float, say: Say) -> list[Split]:
    """Write the manifests of QMSum's three splits and their recordings below `out`; returns what they hold.

    `ami` holds AMI's headset mixes and manual annotations, in any folders, `qmsum` is a clone of QMSum. Raises one
    `UserError` with all that is wrong with either, before anything is written. The same input gives the same files.
    """
    check_out(out)
    splits = {name: Split(name) for name in SPLITS}
    stretches: dict[str, Stretch] = {}
    for source in _sources(ami, qmsum):
        split = splits[source.meeting.split]
        for query in source.meeting.queries:
            found = _item(source, query, max_audio_s)
            if isinstance(found, tuple):
                split.items.append(found[0])
                stretches[found[1].audio] = found[1]
            else:
                split.refused[found] += 1
    made = list(splits.values())
    refuse_empty(made, "raise --max-audio-s")
    (out / AUDIO_FOLDER).mkdir(parents=True, exist_ok=True)
    for number, stretch in enumerate(stretches.values(), start=1):
        _write(out, stretch)
        if number % 100 == 0 or number == len(stretches):
            say(f"written: {number} of {len(stretches)} recordings")
    write_manifests(out, made, LICENCE)
    return made


# --- what is there -------------------------------------------------------------------------------------------------


def _sources(ami: Path, qmsum: Path) -> list[Source]:
    """Every meeting, with words and recording; or one `UserError` for all that is missing or damaged."""
    files, problems = meeting_files(qmsum)
    if not ami.is_dir():
        refuse([f"--ami: there is no folder {ami}; name the copy of AMI", *problems])
    recordings, words = _by_meeting(ami.rglob(f"*{RECORDING}")), _by_meeting(ami.rglob(f"*{WORDS}"))
    named = [file.stem for _, file in files]
    problems += _missing(f"no recording (MEETING{RECORDING})", named, recordings, ami)
    problems += _missing(f"no words (MEETING.A{WORDS} and so on)", named, words, ami)
    sources = [_source(split, file, recordings[file.stem], words[file.stem], problems) for split, file in files]
    refuse(problems)
    return [source for source in sources if source is not None]


def _source(
    split: str, file: Path, recordings: Sequence[Path], words: Sequence[Path], problems: list[str]
) -> Source | None:
    """A meeting, or None once what is wrong with it is among the `problems`, or was before as something missing."""
    meeting = _tried(problems, lambda: read_meeting(split, file))
    spoken = _tried(problems, lambda: _words(words)) if words else None
    frames = _tried(problems, lambda: _frames(recordings)) if recordings else None
    if meeting is None or spoken is None or frames is None:
        return None
    times = align([turn.words for turn in meeting.turns], spoken)
    return Source(meeting, tuple(times), recordings[0], frames)


def _tried(problems: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None


def _by_meeting(files: Iterable[Path]) -> Mapping[str, list[Path]]:
    """In a fixed order, and an empty list for any other meeting; a meeting's name ends at the first dot."""
    found: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(files):
        found[file.name.partition(".")[0]].append(file)
    return found


def _missing(what: str, named: Sequence[str], there: Mapping[str, list[Path]], ami: Path) -> list[str]:
    missing = [name for name in named if not there[name]]
    return [f"--ami: {ami} has {what} of {', '.join(missing)}; download them from AMI"] if missing else []


def _words(files: Sequence[Path]) -> list[TimedWord]:
    _no_name_twice(files)
    words = read_words(files)
    if not words:
        raise UserError(f"--ami: {files[0]} and the like have no word with a time; unpack AMI's annotations again")
    return words


def _frames(recordings: Sequence[Path]) -> int:
    """The length of the only recording."""
    _no_name_twice(recordings)
    recording = recordings[0]
    try:
        info = sf.info(recording)
    except (sf.LibsndfileError, RuntimeError) as error:
        raise UserError(f"--ami: {recording} cannot be read ({error}); download it again") from None
    if (info.samplerate, info.channels) != (SAMPLE_RATE, 1):
        found = f"{info.channels} channels at {info.samplerate} Hz"
        raise UserError(f"--ami: {recording} has {found}, and AMI's mix one at {SAMPLE_RATE}; download it again")
    return int(info.frames)


def _no_name_twice(files: Sequence[Path]) -> None:
    """Another version beside it would give every word twice."""
    names = [file.name for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--ami: {', '.join(twice)} is there more than once; keep one of each")


# --- what becomes of it --------------------------------------------------------------------------------------------


def _item(source: Source, query: Query, max_audio_s: float) -> tuple[Item, Stretch] | SpanFault | Refusal:
    """A query's row and recording, or why it is refused."""
    meeting = source.meeting
    asked = query.turns(len(meeting.turns))
    if isinstance(asked, SpanFault):
        return asked
    first, last = asked
    transcript = _transcript(meeting.turns[first : last + 1])
    if not (query.instruction and query.reference and transcript):
        return Refusal.NO_TEXT
    stretch = _whole(source) if query.spans is None else _stretch(source, first, last)
    if isinstance(stretch, Refusal):
        return stretch
    if stretch.stop - stretch.start > max_audio_s * SAMPLE_RATE:
        return Refusal.TOO_LONG
    name = f"{meeting.name}-{query.number}"
    return Item(name, stretch.audio, query.instruction, transcript, query.reference), stretch


def _whole(source: Source) -> Stretch:
    return Stretch(source.recording, 0, source.frames, f"{AUDIO_FOLDER}/{source.meeting.name}.flac")


def _stretch(source: Source, first: int, last: int) -> Stretch | Refusal:
    """What is heard of the turns from `first` to `last`; the recording may end before them by no more than padding."""
    asked = source.times[first : last + 1]
    words = sum(time.words for time in asked)
    if not words or sum(time.matched for time in asked) < LEAST_MATCHED * words:
        return Refusal.UNALIGNED
    start, end = min(time.start_s for time in asked), max(time.end_s for time in asked)
    if end > source.frames / SAMPLE_RATE + PAD_S:
        return Refusal.NO_AUDIO
    return Stretch(
        source.recording,
        max(0, round((start - PAD_S) * SAMPLE_RATE)),
        min(source.frames, round((end + PAD_S) * SAMPLE_RATE)),
        f"{AUDIO_FOLDER}/{source.meeting.name}-{first}-{last}.flac",
    )


def _transcript(turns: Sequence[Turn]) -> str:
    """A line for each turn in which a word is said."""
    return "\n".join(f"{turn.speaker}: {turn.text}" for turn in turns if turn.words)


def _write(out: Path, stretch: Stretch) -> None:
    """As 16 bits, which is what AMI's recordings have."""
    samples, _ = sf.read(stretch.recording, start=stretch.start, stop=stretch.stop, dtype="int16")
    with whole_file(out / stretch.audio) as sink:
        sf.write(sink, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
