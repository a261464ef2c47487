"""Made-up shards in the format of FLORAS: which rows become items, and why the others do not."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from speechsum import cli
from speechsum.audio import AudioLimits
from speechsum.corpora.floras import INSTRUCTIONS, LICENCE, build
from speechsum.corpora.output import Split
from speechsum.data import read_manifest
from speechsum.errors import UserError
from speechsum.obeying import request_kind

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLUMNS = ("id", "language", "score", "audio", "text", "summary", "translation")


def clip(seconds: float = 1.0, kind: str = "FLAC") -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, 0.1 * np.sin(np.arange(int(16_000 * seconds)) / 10), 16_000, format=kind)
    return buffer.getvalue()


def row(name: str, **changes: Any) -> dict[str, Any]:
    texts = {
        "language": "en",
        "score": "0.5",
        "text": f"Speech {name}.",
        "summary": f"About {name}.",
        "translation": "",
    }
    return {"id": name, "audio": {"bytes": clip(), "path": f"{name}.flac"}, **texts, **changes}


def shard(floras: Path, name: str, rows: Sequence[dict[str, Any]], folder: str = "monolingual") -> Path:
    """Two rows in each row group."""
    columns = {key: [each[key] for each in rows] for key in COLUMNS}
    file = floras / folder / f"{name}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({**columns, "audio": pa.array(columns["audio"], AUDIO)})
    pq.write_table(table, file, row_group_size=2)
    return file


@pytest.fixture
def floras(tmp_path: Path) -> Path:
    """A train set without summaries, as it may be; ten rows of dev, of which two are held out; two of test."""
    floras = tmp_path / "floras"
    shard(floras, "train", [row(f"t{at}", summary="") for at in range(3)])
    shard(floras, "dev", [row(f"d{at}") for at in range(10)])
    shard(floras, "test", [row(f"e{at}") for at in range(2)])
    return floras


def built(floras: Path, max_audio_s: float = 300.0, languages: Sequence[str] = ()) -> tuple[Path, dict[str, Split]]:
    out = floras.parent / "out"
    splits = build(floras, out, max_audio_s, languages, lambda text: None)
    return out, {split.name: split for split in splits}


def ids(split: Split) -> list[str]:
    return [item.id for item in split.items]


# --- what is written -----------------------------------------------------------------------------------------------


def test_dev_is_shared_out_where_train_has_no_summaries(floras: Path) -> None:
    out, splits = built(floras)
    held_out, train = ids(splits["eval"]), ids(splits["train"])
    assert sorted(held_out + train) == [f"d{at}" for at in range(10)]
    assert 0 < len(held_out) < len(train)
    assert ids(splits["test"]) == ["e0", "e1"]
    assert splits["train"].refused == {"no_summary": 3}
    shutil.rmtree(out)
    shard(floras, "dev", [row(f"d{at}") for at in range(20)])
    _, more = built(floras)
    assert set(held_out) <= set(ids(more["eval"]))
    assert set(train) <= set(ids(more["train"]))


def test_data_check_accepts_what_is_written(floras: Path) -> None:
    out, splits = built(floras)
    for name, split in splits.items():
        prompts = read_manifest(out / f"{name}.parquet", root=out, limits=AudioLimits(max_s=300))
        assert [prompt.id for prompt in prompts] == ids(split)
        for prompt in prompts:
            assert (prompt.transcript, prompt.reference) == (f"Speech {prompt.id}.", f"About {prompt.id}.")
            assert (prompt.facts, prompt.licence) == ((), LICENCE)
            assert prompt.instruction in INSTRUCTIONS
            assert Path(prompt.audio.path).read_bytes() == clip()
    assert len({item.instruction for split in splits.values() for item in split.items}) > 1


def test_the_requests_have_no_rule_that_a_summary_could_break() -> None:
    assert {request_kind(instruction) for instruction in INSTRUCTIONS} == {"free"}


def test_train_is_train_where_it_has_summaries(floras: Path) -> None:
    shard(floras, "train", [row("t0"), row("t1", summary=None)])
    _, splits = built(floras)
    assert ids(splits["train"]) == ["t0"]
    assert len(ids(splits["eval"])) == 10


def test_a_copy_without_train_will_do(floras: Path) -> None:
    shutil.rmtree(floras)
    shard(floras, "dev", [row(f"d{at}") for at in range(10)], "multilingual")
    shard(floras, "test", [row("e0")], "multilingual")
    _, splits = built(floras)
    assert ids(splits["test"]) == ["e0"]
    assert ids(splits["train"])


def test_recordings_are_written_as_they_came(floras: Path) -> None:
    kinds = {"WAV": "wav", "FLAC": "flac", "OGG": "ogg"}
    encoded = {ending: clip(kind=kind) for kind, ending in kinds.items()}
    shard(floras, "test", [row(ending, audio={"bytes": data, "path": None}) for ending, data in encoded.items()])
    out, _ = built(floras)
    for ending, data in encoded.items():
        assert (out / "audio" / f"{ending}.{ending}").read_bytes() == data


def test_the_same_copy_gives_the_same_files(floras: Path) -> None:
    out, _ = built(floras)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    shutil.rmtree(out)
    built(floras)
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"summary": None}, "no_summary"),
        ({"summary": " "}, "no_summary"),
        ({"language": "de"}, "language"),
        ({"language": None}, "language"),
        ({"text": ""}, "no_transcript"),
        ({"audio": None}, "no_audio"),
        ({"audio": {"bytes": None, "path": "x.flac"}}, "no_audio"),
        ({"audio": {"bytes": b"no audio at all", "path": None}}, "unreadable"),
        ({"audio": {"bytes": clip()[:-2000], "path": None}}, "truncated"),
        ({"audio": {"bytes": clip(2.5), "path": None}}, "too_long"),
        ({"audio": {"bytes": clip(0.05), "path": None}}, "too_short"),
        ({"id": "../up"}, "bad_id"),
        ({"id": ".hidden"}, "bad_id"),
        ({"id": None}, "bad_id"),
        ({"id": "e0"}, "duplicate"),
    ],
)
def test_each_reason_to_refuse_a_row(floras: Path, changes: dict[str, Any], reason: str) -> None:
    shard(floras, "test", [row("e0"), row("e1") | changes, row("e2", language="EN")])
    out, splits = built(floras, max_audio_s=2.0, languages=["en", "fr"])
    assert splits["test"].refused == {reason: 1}
    assert ids(splits["test"]) == ["e0", "e2"]
    assert len(list((out / "audio").iterdir())) == 12
    assert len(list(out.parent.iterdir())) == 2


def test_a_recording_of_the_test_set_is_not_trained_on(floras: Path) -> None:
    shard(floras, "test", [row("d1"), row("e1")], "multilingual")
    _, splits = built(floras)
    assert "d1" in ids(splits["test"])
    assert "d1" not in ids(splits["train"]) + ids(splits["eval"])
    assert splits["eval"].refused == {"duplicate": 1}


def test_a_file_that_no_manifest_could_name(floras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard(floras, "test", [row("e0"), row("e1", audio={"bytes": clip(9.0, "WAV"), "path": None})])
    monkeypatch.setattr(
        "speechsum.corpora.floras.AudioLimits", lambda max_s: AudioLimits(max_s=max_s, max_bytes=200_000)
    )
    _, splits = built(floras)
    assert splits["test"].refused == {"too_many_bytes": 1}


def test_recordings_of_groups_without_a_row_are_not_read(floras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    iterate = pq.ParquetFile.iter_batches

    def noting(self: pq.ParquetFile, *arguments: Any, **named: Any) -> Any:
        read.extend(named["row_groups"])
        return iterate(self, *arguments, **named)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noting)
    shard(floras, "test", [row(f"e{at}", summary="" if at < 2 else "Yes.") for at in range(4)])
    built(floras)
    assert read == [1, *range(5)]


def test_the_languages_that_are_there_are_told(floras: Path) -> None:
    with pytest.raises(UserError) as caught:
        built(floras, languages=["eng"])
    assert str(caught.value).count("nothing is left of a split") == 3
    assert "(rows with a summary: en 12)" in str(caught.value)


def test_all_that_is_wrong_with_the_copy_is_said_at_once(floras: Path) -> None:
    shutil.rmtree(floras)
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), shard(floras, "train", [row("t0")]))
    shard(floras, "dev", [row("d0")]).write_bytes(b"PAR1")
    with pytest.raises(UserError) as caught:
        built(floras)
    message = str(caught.value)
    assert message.startswith("the input has 3 problems:\n")
    assert f"{floras} has no monolingual or multilingual/test-*.parquet; download espnet/floras there" in message
    assert "dev-00000-of-00001.parquet is not Parquet that can be read" in message
    assert "train-00000-of-00001.parquet has no column language, summary, audio" in message
    assert not (floras.parent / "out").exists()


def test_a_column_of_paths_alone(floras: Path) -> None:
    pq.write_table(pa.table({**{key: ["a"] for key in COLUMNS}}), shard(floras, "test", [row("e0")]))
    with pytest.raises(UserError, match="has no bytes in its column audio"):
        built(floras)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_once(floras: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = floras.parent / "out"
    command = ["data", "build", "floras", "--floras", str(floras), "--out", str(out), "--languages", "en,de"]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "dev is shared out between train and eval" in printed.err
    assert "test: 2 items, 0 refused\n" in printed.err
    assert cli.main(command) == 2
    assert "already; name another folder, or move them away" in capsys.readouterr().err


def test_the_command_refuses_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "build", "floras", "--floras", "gone", "--out", str(tmp_path / "out")]) == 2
    assert "error: the input has 2 problems:\n  --floras: gone has no" in capsys.readouterr().err
