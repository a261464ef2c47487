"""Recordings that must be refused, each a row of a table, and those that must not."""

from __future__ import annotations

import io
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from speechsum import audio
from speechsum.audio import (
    SAMPLE_RATE,
    AudioError,
    AudioFault,
    AudioLimits,
    augment_audio,
    inspect_audio,
    inspect_encoded,
    load_audio,
)
from speechsum.config import AugmentConfig
from speechsum.errors import UserError
from speechsum.types import AudioRef


def tone(seconds: float = 1.0, rate: int = SAMPLE_RATE, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype("float32")


def noise(seconds: float = 1.0) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).standard_normal(int(seconds * SAMPLE_RATE))).astype("float32")


def encode(samples: np.ndarray, kind: str = "WAV", rate: int = SAMPLE_RATE, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def claim_flac_frames(flac: bytes, frames: int) -> bytes:
    """STREAMINFO keeps the total in the low 36 bits of the eight bytes at offset 18."""
    kept = int.from_bytes(flac[18:26], "big") >> 36 << 36
    return flac[:18] + (kept | frames).to_bytes(8, "big") + flac[26:]


def patch(encoded: bytes, marker: bytes, offset: int, new: bytes) -> bytes:
    start = encoded.index(marker) + offset
    return encoded[:start] + new + encoded[start + len(new) :]


def cut(encoded: bytes, share: float = 0.5) -> bytes:
    return encoded[: int(len(encoded) * share)]


def silent_hours() -> bytes:
    """Three hours, 173 MB of samples, in 0.3 MB: the bomb."""
    buffer = io.BytesIO()
    block = np.zeros(8000 * 900, "int16")
    with sf.SoundFile(buffer, "w", 8000, 1, format="FLAC") as file:
        for _ in range(12):
            file.write(block)
    return buffer.getvalue()


def with_sample(value: float) -> bytes:
    samples = tone()
    samples[100] = value
    return encode(samples, subtype="FLOAT")


BAD: dict[str, tuple[AudioFault, Callable[[], bytes]]] = {
    "empty file": (AudioFault.EMPTY_FILE, lambda: b""),
    "text": (AudioFault.UNREADABLE, lambda: b"hello, this is no recording" * 50),
    "AIFF": (AudioFault.UNREADABLE, lambda: encode(tone(), "AIFF")),
    "WAV cut in half": (AudioFault.TRUNCATED, lambda: cut(encode(tone()))),
    "WAV without its last byte": (AudioFault.TRUNCATED, lambda: encode(tone())[:-1]),
    "WAV header only": (AudioFault.TRUNCATED, lambda: encode(tone())[:44]),
    "WAV cut in its header": (AudioFault.TRUNCATED, lambda: encode(tone())[:30]),
    "WAVEX cut in half": (AudioFault.TRUNCATED, lambda: cut(encode(tone(), "WAVEX"))),
    "WAV of tiny chunks only": (AudioFault.TRUNCATED, lambda: encode(tone())[:12] + b"junk\0\0\0\0" * 10_000),
    "FLAC cut in half": (AudioFault.TRUNCATED, lambda: cut(encode(noise(), "FLAC"))),
    "FLAC without its last byte": (AudioFault.TRUNCATED, lambda: encode(noise(), "FLAC")[:-1]),
    "FLAC with a byte flipped": (AudioFault.TRUNCATED, lambda: flip(encode(noise(), "FLAC"), 0.5)),
    "FLAC that claims one second more": (
        AudioFault.TRUNCATED,
        lambda: claim_flac_frames(encode(noise(), "FLAC"), 2 * SAMPLE_RATE),
    ),
    "OGG cut in half": (AudioFault.TRUNCATED, lambda: cut(encode(noise(), "OGG"))),
    "OGG without its last byte": (AudioFault.TRUNCATED, lambda: encode(noise(), "OGG")[:-1]),
    "OGG cut in its first page": (AudioFault.TRUNCATED, lambda: encode(noise(), "OGG")[:20]),
    "OGG with a hole": (AudioFault.TRUNCATED, lambda: hole(encode(noise(3), "OGG"))),
    "OGG without its last page": (AudioFault.TRUNCATED, lambda: last_page_off(encode(noise(3), "OGG"))),
    "OPUS cut in half": (AudioFault.TRUNCATED, lambda: cut(encode(noise(), "OGG", subtype="OPUS"))),
    "MP3 cut in half": (AudioFault.TRUNCATED, lambda: cut(encode(noise(), "MP3"))),
    "no samples": (AudioFault.ZERO_LENGTH, lambda: encode(tone(0))),
    "50 ms": (AudioFault.TOO_SHORT, lambda: encode(tone(0.05))),
    "31 s": (AudioFault.TOO_LONG, lambda: encode(tone(31))),
    "hours of silence": (AudioFault.TOO_LONG, silent_hours),
    "FLAC that claims 6.9e10 frames": (
        AudioFault.TOO_LONG,
        lambda: claim_flac_frames(encode(tone(), "FLAC"), 2**36 - 1),
    ),
    "FLAC of unknown length": (AudioFault.UNREADABLE, lambda: claim_flac_frames(encode(tone(), "FLAC"), 0)),
    "64 channels": (AudioFault.TOO_MANY_CHANNELS, lambda: encode(tone(channels=64))),
    "1 MHz": (AudioFault.ODD_RATE, lambda: encode(tone(rate=1_000_000), rate=1_000_000)),
    "4 kHz": (AudioFault.ODD_RATE, lambda: encode(tone(rate=4000), rate=4000)),
    "44101 Hz, a minute to resample": (AudioFault.ODD_RATE, lambda: encode(tone(rate=44_101), rate=44_101)),
    "0 Hz": (AudioFault.UNREADABLE, lambda: patch(encode(tone()), b"fmt ", 12, b"\0\0\0\0")),
    "NaN": (AudioFault.NON_FINITE, lambda: with_sample(np.nan)),
    "Inf": (AudioFault.NON_FINITE, lambda: with_sample(-np.inf)),
    "integers in a float file": (AudioFault.OUT_OF_SCALE, lambda: encode(tone() * 32768, subtype="FLOAT")),
}


def flip(encoded: bytes, share: float) -> bytes:
    at = int(len(encoded) * share)
    return encoded[:at] + bytes([encoded[at] ^ 0xFF]) + encoded[at + 1 :]


def hole(encoded: bytes) -> bytes:
    middle = len(encoded) // 2
    return encoded[:middle] + bytes(50) + encoded[middle + 50 :]


def last_page_off(ogg: bytes) -> bytes:
    return ogg[: ogg.rindex(b"OggS")]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], AudioRef]:
    def to_disk(encoded: bytes) -> AudioRef:
        path = tmp_path / "clip.audio"
        path.write_bytes(encoded)
        return AudioRef(str(path))

    return to_disk


@pytest.mark.parametrize("case", BAD)
def test_bad_recordings_are_refused_with_their_reason(case: str, write: Callable[[bytes], AudioRef]) -> None:
    reason, make = BAD[case]
    ref = write(make())
    with pytest.raises(AudioError) as caught:
        inspect_audio(ref)
    assert caught.value.reason == reason
    assert str(caught.value).startswith(ref.path)
    with pytest.raises(AudioError) as again:
        load_audio(ref)
    assert again.value.reason == reason


def test_every_reason_has_a_case() -> None:
    elsewhere = {AudioFault.MISSING, AudioFault.TOO_MANY_BYTES}
    assert {reason for reason, _ in BAD.values()} | elsewhere == set(AudioFault)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path / "none" / "none.wav"):
        with pytest.raises(AudioError, match=r"none\.wav: there is no such file") as caught:
            inspect_audio(AudioRef(str(path)))
        assert caught.value.reason == AudioFault.MISSING


def test_what_is_no_file_neither_opens_nor_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", tmp_path, Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(AudioError) as caught:
            inspect_audio(AudioRef(str(path)))
        assert caught.value.reason == AudioFault.UNREADABLE


def test_too_many_bytes_are_not_read(write: Callable[[bytes], AudioRef]) -> None:
    with pytest.raises(AudioError) as caught:
        inspect_audio(write(encode(tone())), AudioLimits(max_bytes=1000))
    assert caught.value.reason == AudioFault.TOO_MANY_BYTES


@pytest.mark.parametrize("case", ["FLAC that claims 6.9e10 frames", "FLAC that claims one second more"])
def test_memory_follows_the_samples_not_the_header(case: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AudioError):
        inspect_encoded(BAD[case][1](), "forged", AudioLimits(max_s=1e9))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *(("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW")),
        *(("WAVEX", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)),
    ],
)
def test_the_usual_formats_load(kind: str, subtype: str | None, write: Callable[[bytes], AudioRef]) -> None:
    ref = write(encode(tone(), kind, subtype=subtype))
    samples = load_audio(ref)
    assert samples.shape == (SAMPLE_RATE,)
    assert samples.dtype == np.float32
    assert not samples.flags.writeable
    assert inspect_audio(ref).seconds == 1.0
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000])
def test_usual_rates_become_16_khz_and_keep_their_pitch(rate: int, write: Callable[[bytes], AudioRef]) -> None:
    samples = load_audio(write(encode(tone(1, rate), rate=rate)))
    assert samples.shape == (SAMPLE_RATE,)
    assert np.argmax(np.abs(np.fft.rfft(samples))) == 440


def test_stereo_is_averaged(write: Callable[[bytes], AudioRef]) -> None:
    left_only = tone(channels=2)
    left_only[:, 1] = 0
    mono = load_audio(write(encode(tone(), subtype="FLOAT")))
    np.testing.assert_allclose(load_audio(write(encode(left_only, subtype="FLOAT"))), mono / 2, atol=1e-6)


def test_the_limit_itself_is_allowed(write: Callable[[bytes], AudioRef]) -> None:
    assert load_audio(write(encode(tone(30)))).shape == (30 * SAMPLE_RATE,)
    assert load_audio(write(encode(tone(0.1)))).shape == (SAMPLE_RATE // 10,)


@pytest.mark.parametrize("size", [b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"])
def test_a_wav_from_a_pipe_has_no_size_and_loads(size: bytes, write: Callable[[bytes], AudioRef]) -> None:
    assert load_audio(write(patch(encode(tone()), b"data", 4, size))).shape == (SAMPLE_RATE,)


def test_errors_keep_their_reason_across_processes() -> None:
    error = pickle.loads(pickle.dumps(AudioError("a.wav", AudioFault.TRUNCATED, "is cut")))
    assert (error.name, error.reason, str(error)) == ("a.wav", AudioFault.TRUNCATED, "a.wav: is cut")
    assert isinstance(error, UserError)


def test_import_and_inspection_need_no_torch(write: Callable[[bytes], AudioRef]) -> None:
    ref = write(encode(tone()))
    code = f"import sys; from speechsum import audio, data, types; audio.inspect_audio(types.AudioRef({ref.path!r}))"
    check = "; assert not {'torch', 'torchaudio', 'ray', 'vllm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code + check], check=True, cwd=Path(audio.__file__).parents[1])


# --- bytes in a manifest ---------------------------------------------------------------------------------------------


def write_rows(path: Path, encoded: list[bytes | None], row_group_size: int = 2) -> Path:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": e, "path": None} for e in encoded]
    pq.write_table(pa.table({"audio": pa.array(rows, kind)}), path, row_group_size=row_group_size)
    return path


def test_rows_of_a_manifest_are_found_across_row_groups(tmp_path: Path) -> None:
    lengths = [0.2, 0.3, 0.4, 0.5, 0.6]
    path = write_rows(tmp_path / "m.parquet", [encode(tone(s), "FLAC") for s in lengths])
    for row in (4, 0, 3, 1, 2, 4):
        assert len(load_audio(AudioRef(str(path), row))) == int(lengths[row] * SAMPLE_RATE)


def test_a_rewritten_manifest_is_read_anew(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.parquet", [encode(tone(1), "FLAC")])
    assert len(load_audio(AudioRef(str(path), 0))) == SAMPLE_RATE
    write_rows(path, [encode(tone(2), "FLAC")])
    assert len(load_audio(AudioRef(str(path), 0))) == 2 * SAMPLE_RATE


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (0, AudioFault.MISSING),
        (1, AudioFault.EMPTY_FILE),
        (2, AudioFault.TRUNCATED),
        (3, AudioFault.TOO_MANY_BYTES),
        (4, AudioFault.MISSING),
        (-1, AudioFault.MISSING),
    ],
)
def test_bad_rows_are_named_by_number(tmp_path: Path, row: int, reason: AudioFault) -> None:
    path = write_rows(tmp_path / "m.parquet", [None, b"", cut(encode(tone())), encode(tone(5))])
    with pytest.raises(AudioError, match=rf"m\.parquet#{row}: ") as caught:
        load_audio(AudioRef(str(path), row), AudioLimits(max_bytes=100_000))
    assert caught.value.reason == reason


def test_a_manifest_that_is_gone_or_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(b"PAR1 but no more")
    for name, reason in (("m.parquet", AudioFault.UNREADABLE), ("none.parquet", AudioFault.MISSING)):
        with pytest.raises(AudioError) as caught:
            load_audio(AudioRef(str(tmp_path / name), 0))
        assert caught.value.reason == reason


def test_a_row_group_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "m.parquet", [encode(tone(), "FLAC")])
    monkeypatch.setattr(audio, "MAX_ROW_GROUP_BYTES", 100)
    with pytest.raises(AudioError, match="row_group_size") as caught:
        load_audio(AudioRef(str(path), 0))
    assert caught.value.reason == AudioFault.TOO_MANY_BYTES


# --- augmentation ----------------------------------------------------------------------------------------------------

ALL = AugmentConfig(noise_snr_db=(10, 30), gain_db=(-6, 6))


def augmented(config: AugmentConfig, seed: int, seconds: float = 1.0) -> np.ndarray:
    return augment_audio(tone(seconds)[:, 0], config, np.random.default_rng(seed))


def test_augmentation_is_decided_by_the_generator_alone() -> None:
    import torch

    torch.manual_seed(1)
    first = augmented(ALL, seed=3)
    torch.manual_seed(2)
    np.testing.assert_array_equal(first, augmented(ALL, seed=3))
    assert not np.array_equal(first, augmented(ALL, seed=4))


def test_no_augmentation_changes_nothing() -> None:
    np.testing.assert_array_equal(augmented(AugmentConfig(), 0), tone()[:, 0])


@pytest.mark.parametrize("config", [ALL, AugmentConfig(gain_db=(60, 60)), AugmentConfig(noise_snr_db=(-20, -20))])
def test_what_was_a_good_clip_stays_one_of_the_same_length(config: AugmentConfig) -> None:
    for seed in range(3):
        samples = augmented(config, seed)
        assert len(samples) == SAMPLE_RATE
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1.0 + 1e-6
        assert samples.dtype == np.float32
        assert not samples.flags.writeable


def test_gain_and_noise_do_what_they_say() -> None:
    clean = tone()[:, 0]
    np.testing.assert_allclose(augmented(AugmentConfig(gain_db=(-20, -20)), 0), clean / 10, atol=1e-6)
    added = augmented(AugmentConfig(noise_snr_db=(10, 10)), 0) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(added**2)) == pytest.approx(10, abs=0.01)


def test_silence_survives_noise() -> None:
    silent = np.zeros(SAMPLE_RATE, "float32")
    assert np.isfinite(augment_audio(silent, ALL, np.random.default_rng(0))).all()


@pytest.mark.parametrize("bounds", [(1.1, 0.9), (1.0, np.inf), (np.nan, 1.0)])
def test_ranges_that_are_none_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="noise_snr_db"):
        AugmentConfig(noise_snr_db=bounds)
