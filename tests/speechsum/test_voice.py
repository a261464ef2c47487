"""The voices speak what they should, and a set is the same bytes each time it is made."""

import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from speechsum.audio import SAMPLE_RATE
from speechsum.starter.grammar import TALK_KINDS
from speechsum.starter.voice import VOICES_HELD_OUT, VOICES_TRAIN, Speaker, resampled

pytest.importorskip("espeakng_loader", reason="the starter speech needs espeakng-loader")
soundfile = pytest.importorskip("soundfile")

from speechsum.starter import speech  # noqa: E402

SENTENCE = "Anna will send the report by Thursday at half past two, for the travel budget."


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker()


def test_training_and_held_out_voices_are_disjoint() -> None:
    assert len(set(VOICES_TRAIN)) >= 12
    assert len(set(VOICES_HELD_OUT)) >= 4
    assert not set(VOICES_TRAIN) & set(VOICES_HELD_OUT)


@pytest.mark.parametrize("voice", [*VOICES_TRAIN, *VOICES_HELD_OUT])
def test_each_voice_speaks_loud_enough_and_unclipped(speaker: Speaker, voice: str) -> None:
    samples = speaker.say(SENTENCE, voice, 165, 50)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert 3.5 < samples.size / SAMPLE_RATE < 7
    assert 0.1 < np.abs(samples).max() < 1.0
    assert 0.02 < np.sqrt(np.mean(samples**2)) < 0.3


def test_voices_do_not_sound_alike(speaker: Speaker) -> None:
    def spectrum(voice: str) -> np.ndarray:
        samples = speaker.say(SENTENCE, voice, 165, 50)[: 3 * SAMPLE_RATE]
        power = np.abs(np.fft.rfft(samples)).reshape(-1)[:24000].reshape(-1, 100).mean(axis=1)
        return power / np.linalg.norm(power)

    spectra = np.stack([spectrum(voice) for voice in (*VOICES_TRAIN, *VOICES_HELD_OUT)])
    alike = spectra @ spectra.T - np.eye(len(spectra))
    assert alike.max() < 0.999


def test_a_faster_rate_is_shorter(speaker: Speaker) -> None:
    slow, fast = (speaker.say(SENTENCE, "en-us", rate, 50) for rate in (150, 185))
    assert fast.size < 0.9 * slow.size


def test_it_tells_when_each_word_starts(speaker: Speaker) -> None:
    samples = speaker.say(SENTENCE, "en-us", 165, 50)
    words = [word.text for word in speaker.words]
    # espeak-ng speaks some pairs of small words as one, such as "for the"
    assert [w for w in words if w != "the"] == SENTENCE.replace(",", "").replace(" the", "").removesuffix(".").split()
    starts = [word.start_s for word in speaker.words]
    assert starts == sorted(starts)
    assert starts[0] < 0.1
    assert samples.size / SAMPLE_RATE - 1.5 < starts[-1] < samples.size / SAMPLE_RATE
    speaker.say("Anna.", "en-us", 165, 50)
    assert [word.text for word in speaker.words] == ["Anna"]


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ModuleNotFoundError, match="pip install espeakng-loader"):
        Speaker()


@pytest.mark.parametrize("voice", ["en-us+nobody", "xx-nowhere"])
def test_an_unknown_voice_is_named(speaker: Speaker, voice: str) -> None:
    with pytest.raises(ValueError, match=voice.replace("+", r"\+")):
        speaker.say(SENTENCE, voice, 165, 50)


@pytest.mark.parametrize(("rate", "wanted"), [(22_050, 16_000), (8_000, 16_000)])
def test_resampling_keeps_a_tone(rate: int, wanted: int) -> None:
    def tone(at: int) -> np.ndarray:
        seconds = np.arange(at) / at
        return (0.5 * np.sin(2 * np.pi * 440 * seconds) * np.sin(np.pi * seconds) ** 2).astype(np.float32)

    result = resampled(tone(rate), rate, wanted)
    assert result.shape == (wanted,)
    np.testing.assert_allclose(result, tone(wanted), atol=1e-3)


def test_resampling_removes_what_the_new_rate_cannot_hold() -> None:
    seconds = np.arange(22_050) / 22_050
    high = (0.5 * np.sin(2 * np.pi * 10_000 * seconds) * np.sin(np.pi * seconds) ** 2).astype(np.float32)
    assert np.abs(resampled(high, 22_050, 16_000)).max() < 1e-3


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_set_is_complete_and_the_same_bytes_for_any_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "CLIPS_PER_BLOCK", 25)
    order = {"clips": 40, "seed": 4, "held_out": False, "kinds": None}
    progress: list[tuple[int, int]] = []
    manifest = speech.synthesize(tmp_path / "one", **order, progress=lambda *done: progress.append(done))
    assert progress == [(25, 40), (40, 40)]
    rows = pq.read_table(manifest).to_pylist()
    assert len({row["id"] for row in rows}) == 40
    assert {row["kind"] for row in rows} == set(TALK_KINDS)
    assert {row["request"] for row in rows} == {"sentence", "bullets", "task", "keywords"}
    assert {row["voice"] for row in rows} <= set(VOICES_TRAIN)
    for row in rows:
        info = soundfile.info(manifest.parent / row["audio"]["path"])
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
        assert info.duration == pytest.approx(row["duration_s"])
        assert 2 < row["duration_s"] < 9
        assert set(row["facts"]) <= set(row["clip_facts"])
    speech.synthesize(tmp_path / "two", **order, workers=2)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")


def test_a_finished_set_is_kept_and_another_order_replaces_it(tmp_path: Path) -> None:
    manifest = speech.synthesize(tmp_path, clips=2, seed=1, held_out=True, kinds=["task"])
    made = manifest.stat().st_mtime_ns
    speech.synthesize(tmp_path, clips=2, seed=1, held_out=True, kinds=["task"])
    assert manifest.stat().st_mtime_ns == made
    speech.synthesize(tmp_path, clips=2, seed=1, held_out=True, kinds=["transcription"])
    rows = pq.read_table(manifest).to_pylist()
    assert [row["request"] for row in rows] == ["transcription"] * 2
    assert all(row["reference"] == row["transcript"] and row["voice"] in VOICES_HELD_OUT for row in rows)


def test_an_interrupted_run_leaves_no_manifest(tmp_path: Path) -> None:
    manifest = speech.synthesize(tmp_path, clips=1, seed=1, held_out=False, kinds=None)

    def interrupt(done: int, clips: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        speech.synthesize(tmp_path, clips=1, seed=2, held_out=False, kinds=None, progress=interrupt)
    assert not manifest.exists()


def test_a_manifest_is_on_disk_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", lambda file: flushed.append(os.fstat(file).st_size))
    manifest = speech.synthesize(tmp_path, clips=1, seed=1, held_out=False, kinds=None)
    assert flushed == [manifest.stat().st_size]
    assert {path.name for path in tmp_path.iterdir()} == {manifest.name, "audio"}


@pytest.mark.parametrize("wrong", [{"clips": 0}, {"workers": 0}, {"kinds": ["haiku"]}, {"kinds": []}, {"terse": 1.5}])
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    arguments: dict[str, object] = {"clips": 1, "seed": 0, "held_out": False, "kinds": None}
    with pytest.raises(ValueError, match=r"haiku|at least one|from 0 to 1"):
        speech.synthesize(tmp_path, **(arguments | wrong))  # type: ignore[arg-type]
