"""FLORAS, summaries of long recordings in many languages, from a local copy of espnet/floras.

The copy has Parquet shards by split, with the recordings' bytes in them. Its card does not say, as far as it could be
read, in which language the summaries are; so the recording's own is asked for. Look at some rows before you train.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechsum.audio import AudioError, AudioFault, AudioLimits, inspect_encoded
from speechsum.corpora.output import (
    AUDIO_FOLDER,
    SAFE_NAME,
    SPLITS,
    Item,
    Say,
    Split,
    check_out,
    refuse,
    refuse_empty,
    write_manifests,
)
from speechsum.errors import UserError
from speechsum.files import whole_file

LICENCE = "CC-BY-3.0 (FLORAS)"

FOLDERS = ("monolingual", "multilingual")
"""Of the copy; one is enough."""

SHARDS = {"test": "test", "eval": "dev", "train": "train"}
"""What FLORAS calls each split. Its test set comes first: a recording that is there twice stays in it."""

TEXTS = ("id", "language", "text", "summary")
AUDIO = "audio"

INSTRUCTIONS = (
    "Summarize this recording in the language that is spoken in it.",
    "What is this recording about? Answer with a summary in its own language.",
    "Give a summary of what is said, in the language of the speakers.",
    "Write a summary of this recording, in the language in which it is held.",
    "Sum up what is said here. Use the language that you hear.",
)

SEED = 0
EVAL_SHARE = 0.2
"""Of FLORAS' own dev set, where it has to serve for both."""

BUFFER_BYTES = 2**20
ENDINGS = {"WAV": "wav", "WAVEX": "wav", "FLAC": "flac", "OGG": "ogg", "MP3": "mp3"}


class Refusal(StrEnum):
    """Why a row is left out, beside `audio.AudioFault`; counted by reason."""

    LANGUAGE = "language"
    NO_SUMMARY = "no_summary"
    NO_TRANSCRIPT = "no_transcript"
    NO_AUDIO = "no_audio"
    BAD_ID = "bad_id"
    DUPLICATE = "duplicate"


def build(floras: Path, out: Path, max_audio_s: float, languages: Collection[str], say: Say) -> list[Split]:
    """Write the manifests of three splits and their recordings below `out`; returns what they hold.

    `floras` is the copy; `languages` as its column `language` has them, none for all. Where nothing of its train set
    can be used, its dev set is shared out between train and eval, by id. Raises one `UserError` with all that is wrong
    with the copy before anything is written. The same input gives the same files.
    """
    check_out(out)
    shards = {split: _shards(floras, name) for split, name in SHARDS.items()}
    _check(floras, shards)
    (out / AUDIO_FOLDER).mkdir(parents=True, exist_ok=True)
    builder = _Builder(out, AudioLimits(max_s=max_audio_s), {language.lower() for language in languages})
    splits: dict[str, Split] = {}
    for split, files in shards.items():
        splits[split] = builder.split(split, files)
        say(f"read: {SHARDS[split]}, {len(files)} files")
    if not splits["train"].items:
        say("nothing of train can be used; dev is shared out between train and eval")
        _share_out(splits["eval"], splits["train"])
    made = [splits[name] for name in SPLITS]
    there = ", ".join(f"{language} {count}" for language, count in builder.spoken.most_common())
    refuse_empty(made, f"raise --max-audio-s, or choose other --languages (rows with a summary: {there or 'none'})")
    write_manifests(out, made, LICENCE)
    return made


def _share_out(dev: Split, train: Split) -> None:
    """Move most of `dev` into `train`. By the id alone, so that neither a limit nor another row moves one across."""
    train.items = [item for item in dev.items if not _stays(item.id)]
    dev.items = [item for item in dev.items if _stays(item.id)]


def _stays(name: str) -> bool:
    digest = hashlib.blake2b(f"{SEED}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < EVAL_SHARE * 2**64


# --- what is there -------------------------------------------------------------------------------------------------


def _shards(floras: Path, name: str) -> list[Path]:
    return [shard for folder in FOLDERS for shard in sorted((floras / folder).glob(f"{name}-*.parquet"))]


def _check(floras: Path, shards: Mapping[str, Sequence[Path]]) -> None:
    """A train set need not be there: as far as is known, its rows have no summaries."""
    problems = [
        f"--floras: {floras} has no {' or '.join(FOLDERS)}/{SHARDS[split]}-*.parquet; download espnet/floras there"
        for split in ("eval", "test")
        if not shards[split]
    ]
    for shard in chain.from_iterable(shards.values()):
        try:
            schema = pq.read_schema(shard)
        except (pa.ArrowException, OSError) as error:
            problems.append(f"--floras: {shard} is not Parquet that can be read ({error}); download it again")
            continue
        missing = [name for name in (*TEXTS, AUDIO) if name not in schema.names]
        if missing:
            problems.append(f"--floras: {shard} has no column {', '.join(missing)}; download espnet/floras again")
        elif not pa.types.is_struct(schema.field(AUDIO).type) or schema.field(AUDIO).type.get_field_index("bytes") < 0:
            problems.append(f"--floras: {shard} has no bytes in its column {AUDIO}; download espnet/floras again")
    refuse(problems)


# --- what becomes of it --------------------------------------------------------------------------------------------


@dataclass
class _Builder:
    """One pass over the copy: recordings are written as they come, and only text stays in memory."""

    out: Path
    limits: AudioLimits
    languages: Collection[str]
    seen: set[str] = field(default_factory=set)
    spoken: Counter[str] = field(default_factory=Counter)

    def split(self, name: str, shards: Sequence[Path]) -> Split:
        """The items of one split. Raises `UserError` for a file that ends or changes under our hands."""
        split = Split(name)
        for shard in shards:
            try:
                self._add(split, shard)
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise UserError(f"--floras: {shard} cannot be read ({error}); download it again") from None
        return split

    def _add(self, split: Split, shard: Path) -> None:
        """Row group by row group, texts first: where no row can be used, no recording is read.

        Never a row group at once, but a page of it: as packed and unpacked, twice what its recordings take.
        """
        with pq.ParquetFile(shard, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, columns=list(TEXTS)).to_pylist()
                reasons = [self._reason_to_skip(row) for row in rows]
                split.refused.update(reason for reason in reasons if reason)
                if all(reasons):
                    continue
                recordings = file.iter_batches(1, row_groups=[group], columns=[f"{AUDIO}.bytes"])
                for row, reason, batch in zip(rows, reasons, recordings, strict=True):
                    if not reason:
                        self._add_row(split, row, batch.column(0))

    def _reason_to_skip(self, row: Mapping[str, str | None]) -> Refusal | None:
        """Of what can be told from the texts alone."""
        name, language = row["id"] or "", row["language"] or ""
        if not (row["summary"] or "").strip():
            return Refusal.NO_SUMMARY
        self.spoken[language] += 1
        if self.languages and language.lower() not in self.languages:
            return Refusal.LANGUAGE
        if not (row["text"] or "").strip():
            return Refusal.NO_TRANSCRIPT
        if not SAFE_NAME.fullmatch(name):
            return Refusal.BAD_ID
        if name in self.seen:
            return Refusal.DUPLICATE
        self.seen.add(name)
        return None

    def _add_row(self, split: Split, row: Mapping[str, Any], recording: pa.Array) -> None:
        """`recording` is the struct with the bytes, of this row alone; written as it came, once it is known fit."""
        encoded = (recording[0].as_py() or {}).get("bytes")
        if not encoded:
            split.refused[Refusal.NO_AUDIO] += 1
            return
        if len(encoded) > self.limits.max_bytes:
            split.refused[AudioFault.TOO_MANY_BYTES] += 1
            return
        try:
            ending = ENDINGS[inspect_encoded(encoded, row["id"], self.limits).format]
        except AudioError as error:
            split.refused[error.reason] += 1
            return
        audio = f"{AUDIO_FOLDER}/{row['id']}.{ending}"
        with whole_file(self.out / audio) as sink:
            sink.write(encoded)
        split.items.append(Item(row["id"], audio, _instruction(row["id"]), row["text"].strip(), row["summary"].strip()))


def _instruction(name: str) -> str:
    return random.Random(f"{SEED}/{name}").choice(INSTRUCTIONS)
