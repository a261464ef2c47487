"""Opening recordings that nobody vouches for.

A header is a claim, not a fact: it is used to refuse early, never to allocate. Every file is read up to a byte limit,
decoded in bounded blocks, and refused (not cut, not padded) when it is not what a speech model takes. Decoding is
soundfile; resampling and augmentation are torchaudio, imported where they are used so that checking a manifest costs
no torch import.
"""

from __future__ import annotations

import io
import math
import os
import stat
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import soundfile as sf

from speechsum.config import AugmentConfig
from speechsum.errors import UserError
from speechsum.types import AudioRef, read_only

SAMPLE_RATE = 16_000
"""What the students' feature extractors take."""

BLOCK_FRAMES = 65_536
FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
MAX_PEAK = 16.0
"""Full scale is 1. Float files above this hold integers that were never divided, and would train as noise."""

MIN_RATE_GCD = 25
"""Resampling holds SAMPLE_RATE / gcd filters: 640 for 11025 Hz, but 16000 (a minute of work) for 44101 Hz."""

MAX_ROW_GROUP_BYTES = 512 * 2**20
MAX_WAV_CHUNKS = 4096
WAV_SIZE_UNKNOWN = 0x7FFF_F000
"""Sizes from here on are what ffmpeg and sox write to a pipe, where the length is not known yet."""

UNKNOWN_FRAMES = 2**62


class AudioFault(StrEnum):
    """Why a recording is refused; counted by reason in the validation report."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY_FILE = "empty_file"
    TRUNCATED = "truncated"
    ZERO_LENGTH = "zero_length"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_CHANNELS = "too_many_channels"
    ODD_RATE = "odd_rate"
    NON_FINITE = "non_finite"
    OUT_OF_SCALE = "out_of_scale"


class AudioError(UserError):
    """A recording that is refused. `name` is the file (or manifest#row), `reason` says which check failed."""

    def __init__(self, name: str, reason: AudioFault, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.reason = reason
        self.message = message

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, AudioFault, str]]:
        """Raised inside actors, so it has to survive pickling with its reason."""
        return type(self), (self.name, self.reason, self.message)


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """What is taken. `max_bytes` is of the encoded file: 30 s of 192 kHz stereo in 32 bits is 46 MB."""

    min_s: float = 0.1
    max_s: float = 30.0
    max_bytes: int = 64 * 2**20
    max_channels: int = 2
    min_rate: int = 8_000
    max_rate: int = 192_000


DEFAULT_LIMITS = AudioLimits()


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What was found, by decoding rather than by trusting the header."""

    seconds: float
    rate: int
    channels: int
    format: str


def inspect_audio(ref: AudioRef, limits: AudioLimits = DEFAULT_LIMITS) -> AudioInfo:
    """Run every check that `load_audio` runs, without resampling or torch. Raises `AudioError`."""
    return inspect_encoded(read_encoded(ref, limits), ref.key, limits)


def inspect_encoded(encoded: bytes, name: str, limits: AudioLimits = DEFAULT_LIMITS) -> AudioInfo:
    """`inspect_audio` for bytes already in hand; `name` is what errors call them."""
    return _decode(encoded, name, limits)[1]


def load_audio(ref: AudioRef, limits: AudioLimits = DEFAULT_LIMITS) -> np.ndarray:
    """The recording as float32 mono at 16 kHz [samples], read-only. Raises `AudioError`."""
    samples, info = _decode(read_encoded(ref, limits), ref.key, limits)
    return read_only(_resample(samples, info.rate, SAMPLE_RATE), "float32")


def read_encoded(ref: AudioRef, limits: AudioLimits = DEFAULT_LIMITS) -> bytes:
    """The file's bytes, or those in the manifest's row; never more than `limits.max_bytes`."""
    if ref.row is not None:
        return _row_bytes(ref, ref.row, limits)
    try:
        encoded = _regular_file(ref.path, limits.max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        _refuse(ref.key, AudioFault.MISSING, "there is no such file; correct its path, or data.root for a manifest's")
    except (OSError, ValueError) as error:
        _refuse(ref.key, AudioFault.UNREADABLE, f"cannot be read ({error}); check the path and its permissions")
    if encoded is None:
        _refuse(ref.key, AudioFault.UNREADABLE, "is not a regular file; name a recording")
    return _within_bytes(encoded, ref.key, limits)


def _refuse(name: str, reason: AudioFault, message: str) -> NoReturn:
    raise AudioError(name, reason, message) from None


# --- bytes ---------------------------------------------------------------------------------------------------------


def _regular_file(path: str, at_most: int) -> bytes | None:
    """The first bytes of a file, None for a folder, pipe or device. Opened so that a pipe cannot hang an actor."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(at_most)
    finally:
        os.close(descriptor)


def _within_bytes(encoded: bytes, name: str, limits: AudioLimits) -> bytes:
    if len(encoded) > limits.max_bytes:
        _refuse(
            name,
            AudioFault.TOO_MANY_BYTES,
            f"is larger than the {limits.max_bytes} bytes allowed for one recording; split it, or store it as FLAC",
        )
    return encoded


def _row_bytes(ref: AudioRef, row: int, limits: AudioLimits) -> bytes:
    try:
        version = os.stat(ref.path)
        column, first = _row_group(ref.path, version.st_mtime_ns, version.st_size, row)
    except FileNotFoundError:
        _refuse(ref.key, AudioFault.MISSING, "the manifest is gone; restore it or start from another")
    except (OSError, pa.ArrowException) as error:
        _refuse(ref.key, AudioFault.UNREADABLE, f"the manifest cannot be read ({error}); write it anew")
    except _RowUnavailable as error:
        _refuse(ref.key, error.reason, error.message)
    value = column[row - first]
    if not value.is_valid:
        _refuse(ref.key, AudioFault.MISSING, "the row holds no audio bytes; the manifest changed since it was read")
    return _within_bytes(value.as_buffer().to_pybytes(), ref.key, limits)


class _RowUnavailable(Exception):
    """Between the cached reader and `_row_bytes`, which alone knows the name that the user should see."""

    def __init__(self, reason: AudioFault, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def _row_group(path: str, mtime_ns: int, size: int, row: int) -> tuple[pa.ChunkedArray, int]:
    """The audio bytes of the row group that holds `row`, and the number of its first row."""
    starts = _row_group_starts(path, mtime_ns, size)
    if not 0 <= row < starts[-1]:
        message = f"the manifest has {starts[-1]} rows; it changed since it was read, start again"
        raise _RowUnavailable(AudioFault.MISSING, message)
    index = bisect_right(starts, row) - 1
    return _row_group_audio(path, mtime_ns, size, index), starts[index]


@lru_cache(maxsize=16)
def _row_group_starts(path: str, mtime_ns: int, size: int) -> list[int]:
    """First row of each row group, then the number of rows. Time and size are in the key so that a rewrite is seen."""
    with pq.ParquetFile(path) as file:
        starts = [0]
        for index in range(file.metadata.num_row_groups):
            starts.append(starts[-1] + file.metadata.row_group(index).num_rows)
        return starts


@lru_cache(maxsize=4)
def _row_group_audio(path: str, mtime_ns: int, size: int, index: int) -> pa.ChunkedArray:
    """A few groups stay in memory: a shuffled epoch of one small manifest then reads each group once."""
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(index)
        chunks = [group.column(i) for i in range(group.num_columns)]
        sizes = [c.total_uncompressed_size for c in chunks if c.path_in_schema == "audio.bytes"]
        if not sizes:
            raise _RowUnavailable(AudioFault.MISSING, "the manifest has no column audio.bytes any more; start again")
        if sizes[0] > MAX_ROW_GROUP_BYTES:
            message = f"its row group holds {sizes[0]} bytes; write the manifest with row_group_size=64"
            raise _RowUnavailable(AudioFault.TOO_MANY_BYTES, message)
        table = file.read_row_group(index, columns=["audio.bytes"])
    return pc.struct_field(table.column("audio"), "bytes")


# --- decoding ------------------------------------------------------------------------------------------------------


def _decode(encoded: bytes, name: str, limits: AudioLimits) -> tuple[np.ndarray, AudioInfo]:
    """Mono float32 at the file's own rate, with every check made."""
    if not encoded:
        _refuse(name, AudioFault.EMPTY_FILE, "is empty; restore it or drop the row")
    _check_container(encoded, name)
    try:
        file = sf.SoundFile(io.BytesIO(encoded))
    except (sf.LibsndfileError, RuntimeError):
        _refuse(name, AudioFault.UNREADABLE, "is not audio that libsndfile reads; convert it to WAV or FLAC")
    with file:
        _check_header(file, name, limits)
        samples = _mono(file, name, limits)
        info = AudioInfo(len(samples) / file.samplerate, file.samplerate, file.channels, file.format)
    if info.seconds < limits.min_s:
        _refuse(name, AudioFault.TOO_SHORT, f"lasts {info.seconds:.3f} s, less than {limits.min_s:g} s; drop the row")
    return samples, info


def _check_header(file: sf.SoundFile, name: str, limits: AudioLimits) -> None:
    """All that can be refused before a sample is decoded."""
    if file.format not in FORMATS:
        _refuse(name, AudioFault.UNREADABLE, f"is {file.format}; convert it to WAV, FLAC, OGG or MP3")
    if file.channels > limits.max_channels:
        message = f"has {file.channels} channels, more than {limits.max_channels}; mix it down to mono"
        _refuse(name, AudioFault.TOO_MANY_CHANNELS, message)
    if not limits.min_rate <= file.samplerate <= limits.max_rate:
        message = f"has a rate of {file.samplerate} Hz, outside {limits.min_rate}..{limits.max_rate}"
        _refuse(name, AudioFault.ODD_RATE, f"{message}; resample it to {SAMPLE_RATE} Hz")
    if math.gcd(file.samplerate, SAMPLE_RATE) < MIN_RATE_GCD:
        message = f"has a rate of {file.samplerate} Hz, which no recorder uses; resample it to {SAMPLE_RATE} Hz"
        _refuse(name, AudioFault.ODD_RATE, message)
    if file.frames == 0:
        _refuse(name, AudioFault.ZERO_LENGTH, "holds no samples; drop the row")
    if file.frames > UNKNOWN_FRAMES:
        _refuse(name, AudioFault.UNREADABLE, "has a header without a length (written to a pipe?); encode it again")
    if file.frames > limits.max_s * file.samplerate:
        _refuse_long(name, f"lasts {file.frames / file.samplerate:.1f} s", limits)


def _refuse_long(name: str, what: str, limits: AudioLimits) -> NoReturn:
    """Cutting would leave a reference that speaks of what the model never hears."""
    _refuse(name, AudioFault.TOO_LONG, f"{what}, more than the {limits.max_s:g} s the model takes; split it")


def _mono(file: sf.SoundFile, name: str, limits: AudioLimits) -> np.ndarray:
    """Channels averaged, block by block; memory follows what is decoded, never what the header says."""
    blocks: list[np.ndarray] = []
    decoded = 0
    for block in _blocks(file, name):
        decoded += len(block)
        if decoded > limits.max_s * file.samplerate:
            _refuse_long(name, f"decodes to more than {limits.max_s:g} s", limits)
        blocks.append(_checked_mono(block, name))
    if decoded < file.frames:
        _refuse_truncated(name, file.frames / file.samplerate, decoded / file.samplerate)
    return np.concatenate(blocks)


def _blocks(file: sf.SoundFile, name: str) -> Iterator[np.ndarray]:
    """Blocks [frames, channels]. libsndfile reports a damaged FLAC frame as a failed seek, so an error means damage."""
    decoded = 0
    while True:
        try:
            block = file.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        except (sf.LibsndfileError, RuntimeError):
            _refuse_truncated(name, file.frames / file.samplerate, decoded / file.samplerate)
        if not len(block):
            return
        decoded += len(block)
        yield block


def _refuse_truncated(name: str, promised_s: float, found_s: float) -> NoReturn:
    message = f"is truncated or damaged: the header says {promised_s:.2f} s, {found_s:.2f} s decode; copy it again"
    _refuse(name, AudioFault.TRUNCATED, message)


def _checked_mono(block: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(block).all():
        _refuse(name, AudioFault.NON_FINITE, "holds NaN or infinite samples; export it again as 16-bit PCM")
    peak = float(np.abs(block).max())
    if peak > MAX_PEAK:
        message = f"has samples up to {peak:g} where full scale is 1; divide by the integer range and export again"
        _refuse(name, AudioFault.OUT_OF_SCALE, message)
    mono: np.ndarray = block.mean(axis=1, dtype=np.float32)
    return mono


# --- containers that libsndfile forgives ---------------------------------------------------------------------------


def _check_container(encoded: bytes, name: str) -> None:
    """libsndfile loads a cut WAV, and a cut or holed Ogg, silently short; the container knows better."""
    if encoded[:4] == b"RIFF" and _wav_is_cut(encoded):
        _refuse(name, AudioFault.TRUNCATED, "is truncated: shorter than its WAV header says; copy it again")
    if encoded[:4] == b"OggS" and not _ogg_is_whole(encoded):
        _refuse(name, AudioFault.TRUNCATED, "is truncated or damaged: an Ogg page is cut or altered; copy it again")


def _wav_is_cut(encoded: bytes) -> bool:
    """Walk the RIFF chunks to `data` and compare its size with what follows."""
    offset = 12
    for _ in range(MAX_WAV_CHUNKS):
        if offset + 8 > len(encoded):
            return True
        size = int.from_bytes(encoded[offset + 4 : offset + 8], "little")
        if encoded[offset : offset + 4] == b"data":
            return size < WAV_SIZE_UNKNOWN and offset + 8 + size > len(encoded)
        offset += 8 + size + size % 2
    return True


def _ogg_is_whole(encoded: bytes) -> bool:
    """Every page complete with its checksum right, the last one flagged as the end (RFC 3533, section 6)."""
    offset, flags = 0, 0
    while offset < len(encoded):
        segments = encoded[offset + 26] if offset + 27 <= len(encoded) else 0
        lacing = offset + 27
        end = lacing + segments + sum(encoded[lacing : lacing + segments])
        page = encoded[offset:end]
        if page[:4] != b"OggS" or end > len(encoded) or _ogg_checksum(page) != page[22:26]:
            return False
        offset, flags = end, page[5]
    return bool(flags & 4)


REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> bytes:
    """Ogg's CRC is zlib's polynomial with bits the other way round, no inversion, and its own field taken as zero."""
    data = (page[:22] + bytes(4) + page[26:]).translate(REVERSED)
    crc = zlib.crc32(data, 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return crc.to_bytes(4, "little").translate(REVERSED)[::-1]


# --- resampling and augmentation -----------------------------------------------------------------------------------


def _resample(samples: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Windowed-sinc resampling of [samples]; only the ratio of the rates matters."""
    if from_rate == to_rate:
        return samples
    import torch
    import torchaudio.functional as F

    resampled: np.ndarray = F.resample(torch.tensor(samples), from_rate, to_rate).numpy()
    return resampled


def augment_audio(samples: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> np.ndarray:
    """Noise, then gain, each drawn uniformly from its range; a new read-only array of the same length [samples].

    The same generator state gives the same samples. A result beyond full scale is scaled back: augmentation must not
    make a clip that would be refused.
    """
    if config.noise_snr_db is not None:
        samples = _add_noise(samples, rng.uniform(*config.noise_snr_db), rng)
    if config.gain_db is not None:
        samples = _change_gain(samples, rng.uniform(*config.gain_db))
    return read_only(samples, "float32")


def _add_noise(samples: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """White noise from the caller's generator, never torch's global one, which other code draws from too."""
    import torch
    import torchaudio.functional as F

    noise = rng.standard_normal(len(samples), dtype=np.float32)
    return _limited(F.add_noise(torch.tensor(samples), torch.from_numpy(noise), torch.tensor(snr_db)).numpy())


def _change_gain(samples: np.ndarray, gain_db: float) -> np.ndarray:
    import torch
    import torchaudio.functional as F

    return _limited(F.gain(torch.tensor(samples), gain_db).numpy())


def _limited(samples: np.ndarray) -> np.ndarray:
    peak = float(np.abs(samples).max(initial=0.0))
    return samples / np.float32(peak) if peak > 1.0 else samples
