"""Manifests with every kind of fault, and a stream that can be interrupted anywhere."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsum.audio import load_audio
from speechsum.data import ManifestError, PromptStream, RowProblem, read_manifest
from speechsum.errors import UserError
from speechsum.types import AudioRef, Prompt


def clip(seconds: float = 0.2) -> bytes:
    buffer = io.BytesIO()
    sf.write(buffer, np.zeros(int(16_000 * seconds), "float32"), 16_000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with good.wav and cut.wav, and secret.wav beside it, out of bounds."""
    folder = tmp_path / "data"
    (folder / "clips").mkdir(parents=True)
    (folder / "good.wav").write_bytes(clip())
    (folder / "clips" / "other one.wav").write_bytes(clip())
    (folder / "cut.wav").write_bytes(clip()[:-100])
    (tmp_path / "secret.wav").write_bytes(clip())
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    (folder / "up").symlink_to(tmp_path)
    return folder


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "audio": "good.wav", "instruction": "Sum up.", **changes}


def jsonl(root: Path, *rows: Any, name: str = "m.jsonl") -> Path:
    lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
    (root / name).write_bytes(b"\n".join(lines))
    return root / name


def parquet(root: Path, columns: dict[str, Any], name: str = "m.parquet") -> Path:
    pq.write_table(pa.table(columns), root / name, row_group_size=2)
    return root / name


def problems(path: Path, **options: Any) -> list[RowProblem]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **options)
    return caught.value.problems


# --- what is read --------------------------------------------------------------------------------------------------


def test_jsonl_gives_prompts(root: Path) -> None:
    full = row(id="b", audio={"path": "clips/other one.wav"}, transcript="t", facts=["f"], clip_facts=None, extra=1)
    first, second = read_manifest(jsonl(root, b"\xef\xbb\xbf" + json.dumps(row()).encode(), b"", full, b""))
    assert first == Prompt("a", AudioRef(os.path.realpath(root / "good.wav")), "Sum up.")
    assert second.audio.path.endswith("clips/other one.wav")
    assert (second.transcript, second.facts, second.clip_facts) == ("t", ("f",), ())


@pytest.mark.parametrize(
    "audio", ["file://{root}/good.wav", "{root}/good.wav", "clips/../good.wav", "up/data/good.wav"]
)
def test_any_way_to_name_a_file_inside_the_root_is_fine(root: Path, audio: str) -> None:
    (prompt,) = read_manifest(jsonl(root, row(audio=audio.format(root=root))))
    assert prompt.audio.path == os.path.realpath(root / "good.wav")


def test_percent_signs_are_decoded_in_uris_only(root: Path) -> None:
    assert read_manifest(jsonl(root, row(audio=f"file://{root}/clips/other%20one.wav")))
    assert "no such file" in problems(jsonl(root, row(audio="clips/other%20one.wav")))[0].message


def test_the_root_may_be_elsewhere(root: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path, row())
    assert len(read_manifest(path, root=root)) == 1
    assert "no such file" in problems(path)[0].message


AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def embedded(root: Path, rows: list[dict[str, Any] | None], **columns: Any) -> Path:
    ids = [f"p{i}" for i in range(len(rows))]
    table = {"id": ids, "audio": pa.array(rows, AUDIO), "instruction": ["Sum up."] * len(rows), **columns}
    return parquet(root, table)


def test_bytes_in_parquet_are_referred_to_by_row(root: Path) -> None:
    lengths = [0.2, 0.3, 0.4, 0.5, 0.6]
    path = embedded(root, [{"bytes": clip(s), "path": "ignored/../../x.wav"} for s in lengths], duration_s=lengths)
    prompts = read_manifest(path)
    assert [p.audio.row for p in prompts] == [0, 1, 2, 3, 4]
    assert [len(load_audio(p.audio)) for p in prompts] == [int(16_000 * s) for s in lengths]


def test_parquet_paths_lists_and_dictionaries(root: Path) -> None:
    columns = {
        "id": pa.array(["a", "b"], pa.large_string()),
        "audio": ["good.wav", "good.wav"],
        "instruction": pa.array(["Sum up.", "Sum up."]).dictionary_encode(),
        "facts": pa.array([["x", "y"], None], pa.list_(pa.string())),
        "reference": pa.nulls(2),
        "licence": ["CC0", None],
    }
    first, second = read_manifest(parquet(root, columns))
    assert (first.facts, first.licence, first.reference) == (("x", "y"), "CC0", "")
    assert (second.facts, second.licence, second.audio.row) == ((), "", None)


def test_without_bytes_the_path_is_used(root: Path) -> None:
    (prompt,) = read_manifest(embedded(root, [{"bytes": None, "path": "good.wav"}]))
    assert prompt.audio == AudioRef(os.path.realpath(root / "good.wav"))


def test_unchecked_audio_may_be_bad_but_not_out_of_bounds(root: Path) -> None:
    assert len(read_manifest(jsonl(root, row(audio="cut.wav")), check_audio=False)) == 1
    assert problems(jsonl(root, row(audio="link.wav")), check_audio=False)


# --- what is refused -----------------------------------------------------------------------------------------------

BAD_ROWS: dict[str, tuple[Any, str, str]] = {
    "bad JSON": (b'{"id": ', "", "is not JSON"),
    "nested without end": (b"[" * 200_000, "", "is not JSON"),
    "a number without end": (b'{"id": ' + b"9" * 10_000 + b"}", "", "is not JSON"),
    "not an object": (["a"], "", "is a JSON list"),
    "bad UTF-8": (b'{"id": "\xff"}', "", "is not UTF-8"),
    "lone surrogate": (row(transcript="\ud800"), "transcript", "is not UTF-8"),
    "no id": (row(id=None), "id", "missing or empty"),
    "empty id": (row(id=" "), "id", "missing or empty"),
    "number as id": (row(id=7), "id", "is a int; write a string"),
    "no audio": ({"id": "a", "instruction": "x"}, "audio", "missing or empty"),
    "no instruction": ({"id": "a", "audio": "good.wav"}, "instruction", "missing or empty"),
    "empty instruction": (row(instruction="\n"), "instruction", "missing or empty"),
    "list as reference": (row(reference=["x"]), "reference", "is a list; write a string"),
    "string as facts": (row(facts="x"), "facts", "is a str; write a list of strings"),
    "number among facts": (row(facts=["x", 1]), "facts", "is a int; write a string"),
    "null among facts": (row(clip_facts=[None]), "clip_facts", "missing or empty"),
    "fact without a word": (row(facts=["x", "!"]), "facts", "'!' has no letter or digit; write the fact in words"),
    "no such file": (row(audio="none.wav"), "audio", "no such file"),
    "truncated audio": (row(audio="cut.wav"), "audio", "is truncated"),
    "audio folder": (row(audio="clips"), "audio", "not a regular file"),
    "traversal": (row(audio="../secret.wav"), "audio", "leads outside the data root"),
    "traversal by URI": (row(audio="file:///x/%2e%2e/etc/passwd"), "audio", "leads outside the data root"),
    "absolute": (row(audio="/etc/passwd"), "audio", "leads outside the data root"),
    "symlink": (row(audio="link.wav"), "audio", "symbolic link that leads outside"),
    "symlinked folder": (row(audio="up/secret.wav"), "audio", "symbolic link that leads outside"),
    "null character": (row(audio="a\0.wav"), "audio", "is not a path"),
    "overlong name": (row(audio="a" * 5000), "audio", "cannot be read"),
    "http": (row(audio="http://169.254.169.254/x.wav"), "audio", "is not fetched; download it or mount"),
    "s3": (row(audio={"path": "S3://bucket/x.wav"}), "audio", "is not fetched"),
    "file on a host": (row(audio="file://host/x.wav"), "audio", "is on another host"),
    "bytes in JSONL": (row(audio={"bytes": "UklGRg=="}), "audio", "bytes cannot live in JSONL"),
    "audio as list": (row(audio=["good.wav"]), "audio", "is a list"),
    "struct without either": (row(audio={}), "audio", "missing or empty"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_reported_by_line_and_field(case: str, root: Path) -> None:
    bad, field, message = BAD_ROWS[case]
    (problem,) = problems(jsonl(root, row(id="fine"), bad))
    assert (problem.row, problem.field) == (2, field)
    assert message in problem.message


def test_all_problems_come_in_one_pass(root: Path) -> None:
    rows = [row(), row(), row(id="b", audio="cut.wav", instruction=""), b"{", row(id="c", audio="none.wav")]
    with pytest.raises(ManifestError) as caught:
        read_manifest(jsonl(root, *rows))
    found = [(p.row, p.id, p.field) for p in caught.value.problems]
    assert found == [(2, "", "id"), (3, "b", "audio"), (3, "b", "instruction"), (4, "", ""), (5, "c", "audio")]
    text = str(caught.value)
    assert "5 problem(s), lines from 1" in text
    assert "line 2, id: 'a' was used before, at line 1; ids must differ" in text
    assert "line 3, id 'b', audio: " in text


def test_a_long_report_is_cut_short_but_kept_whole(root: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(jsonl(root, *[row(id=str(i), audio="cut.wav") for i in range(50)]))
    assert len(caught.value.problems) == 50
    assert str(caught.value).count("\n  line ") == 20
    assert str(caught.value).endswith("and 30 more; `speechsum data check MANIFEST --recipe RECIPE` lists them all")
    assert caught.value.text(shown=None).count("\n  line ") == 50


def test_the_caller_can_refuse_prompts(root: Path) -> None:
    def at_most_four_words(prompt: Prompt) -> str | None:
        return "instruction is too long" if len(prompt.instruction.split()) > 4 else None

    path = jsonl(root, row(), row(id="b", instruction="Please sum it up now"), row(id="c", instruction=""))
    found = problems(path, check_prompt=at_most_four_words)
    assert [(p.row, p.message.split(";")[0]) for p in found] == [
        (2, "instruction is too long"),
        (3, "is missing or empty"),
    ]


BAD_FILES: dict[str, tuple[str, bytes | None, str]] = {
    "missing": ("none.jsonl", None, "no such manifest"),
    "folder": ("clips", None, "is not a file"),
    "ending": ("m.csv", b"id,audio", "ending '.csv'; a manifest is .parquet or .jsonl"),
    "no lines": ("m.jsonl", b"", "has no rows"),
    "blank lines": ("m.jsonl", b"\n \n\n", "has no rows"),
    "one endless line": ("m.jsonl", b" " * (9 * 2**20), "line 1 is longer than"),
    "empty Parquet": ("m.parquet", b"", "is not Parquet"),
    "no Parquet": ("m.parquet", b"id,audio\n" * 100, "is not Parquet"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_as_a_whole(case: str, root: Path) -> None:
    name, content, message = BAD_FILES[case]
    if content is not None:
        (root / name).write_bytes(content)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(root / name)
    assert [p.row for p in caught.value.problems] == [None]
    assert str(caught.value).startswith(f"{root / name}: ")


def test_a_bad_root_is_refused(root: Path) -> None:
    assert "is not a folder" in problems(jsonl(root, row()), root=root / "none")[0].message


TEXT = ["x", "y"]
BAD_COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "two missing": ({"id": TEXT}, "column 'audio' is missing; add it; column 'instruction' is missing"),
    "number as id": ({"id": [1, 2], "audio": TEXT, "instruction": TEXT}, "column 'id' is int64; make it string"),
    "audio as list": (
        {"id": TEXT, "audio": [TEXT, TEXT], "instruction": TEXT},
        "make it string \\(a path\\) or struct",
    ),
    "facts as string": (
        {"id": TEXT, "audio": TEXT, "instruction": TEXT, "facts": TEXT},
        "'facts' is string; make it list<string>",
    ),
    "struct of others": (
        {"id": TEXT, "audio": [{"array": [0.1]}] * 2, "instruction": TEXT},
        "column 'audio' is struct",
    ),
    "no rows": ({c: pa.array([], pa.string()) for c in ("id", "audio", "instruction")}, "has no rows"),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_bad_columns_are_refused(case: str, root: Path) -> None:
    columns, message = BAD_COLUMNS[case]
    with pytest.raises(ManifestError, match=message):
        read_manifest(parquet(root, columns))


def test_a_column_that_appears_twice_is_refused(root: Path) -> None:
    text = pa.array(TEXT)
    table = pa.Table.from_arrays([text, text, text, text], names=["id", "id", "audio", "instruction"])
    pq.write_table(table, root / "m.parquet")
    assert "column 'id' appears twice" in problems(root / "m.parquet")[0].message


def test_bad_utf8_in_parquet_is_found_in_its_row(root: Path) -> None:
    unchecked = pa.array([b"fine", b"\xff\xfe"], pa.binary()).view(pa.string())
    columns = {"id": ["a", "b"], "audio": ["good.wav"] * 2, "instruction": unchecked}
    found = problems(parquet(root, columns))
    assert [(p.row, p.id, p.field) for p in found] == [(1, "b", "instruction")]
    assert "is not UTF-8" in found[0].message


def test_bad_embedded_audio_is_found_in_its_row(root: Path) -> None:
    rows: list[dict[str, Any] | None] = [
        {"bytes": clip(), "path": None},
        {"bytes": clip()[:-50], "path": None},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": None},
        None,
    ]
    with pytest.raises(ManifestError, match="rows from 0") as caught:
        read_manifest(embedded(root, rows))
    assert [(p.row, p.field) for p in caught.value.problems] == [(i, "audio") for i in (1, 2, 3, 4)]


def test_damage_inside_parquet_keeps_the_problems_found_before(root: Path) -> None:
    path = embedded(root, [{"bytes": os.urandom(50_000), "path": None} for _ in range(100)])
    content = path.read_bytes()
    middle = len(content) * 9 // 10
    path.write_bytes(content[:middle] + bytes(20_000) + content[middle + 20_000 :])
    assert len(problems(path)) >= 64


def test_manifest_errors_pickle(root: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        read_manifest(jsonl(root, row(audio="cut.wav")))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.problems) == (str(caught.value), caught.value.problems)
    assert isinstance(copy, UserError)


# --- the stream ----------------------------------------------------------------------------------------------------


def prompts(n: int, prefix: str = "p") -> list[Prompt]:
    return [Prompt(f"{prefix}{i}", AudioRef(f"/{i}"), "Sum up.") for i in range(n)]


@given(
    size=st.integers(1, 20),
    seed=st.integers(0, 2**63),
    pieces=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    after=st.integers(0, 40),
)
@settings(max_examples=60, deadline=None)
def test_an_interrupted_stream_goes_on_as_if_it_had_not_been(
    size: int, seed: int, pieces: list[int], after: int
) -> None:
    whole = PromptStream(prompts(size), seed).take(sum(pieces) + after)
    taken = []
    state = PromptStream(prompts(size), seed).state()
    for n in [*pieces, after]:
        stream = PromptStream(prompts(size), seed)
        stream.restore(json.loads(json.dumps(state)))
        taken += stream.take(n)
        state = stream.state()
    assert taken == whole


@given(size=st.integers(1, 20), seed=st.integers(0, 1000), epochs=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_each_epoch_visits_each_prompt_once(size: int, seed: int, epochs: int) -> None:
    visits = Counter((d.epoch, d.prompt.id) for d in PromptStream(prompts(size), seed).take(size * epochs))
    assert visits == {(e, p.id): 1 for e in range(epochs) for p in prompts(size)}


def test_order_depends_on_seed_and_epoch() -> None:
    first = [d.prompt.id for d in PromptStream(prompts(50), 0).take(100)]
    assert first[:50] != first[50:]
    assert first[:50] != [d.prompt.id for d in PromptStream(prompts(50), 1).take(50)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "other"}, "other data"),
        ({"seed": 9}, "seed is 9, not 0"),
        ({"position": 6}, "damaged"),
        ({"position": -1}, "damaged"),
        ({"epoch": "1"}, "damaged"),
        ({"epoch": None}, "damaged"),
        ({"epoch": True}, "damaged"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change: dict[str, Any], message: str) -> None:
    stream = PromptStream(prompts(5), 0)
    stream.take(3)
    before = stream.state()
    with pytest.raises(UserError, match=message):
        stream.restore({**before, **change})
    assert stream.state() == before


@given(size=st.integers(1, 6), taken=st.integers(0, 20), unfinished=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_draws_that_nothing_came_of_are_drawn_again_first(size: int, taken: int, unfinished: int) -> None:
    whole = PromptStream(prompts(size), 3).take(taken + 10)
    stream = PromptStream(prompts(size), 3)
    draws = stream.take(taken)
    lost = draws[max(0, taken - unfinished) :]
    resumed = PromptStream(prompts(size), 3)
    resumed.restore(json.loads(json.dumps(stream.state(lost))))
    again = PromptStream(prompts(size), 3)
    again.restore(resumed.state())  # saved once more before anything was drawn
    assert again.take(len(lost) + 10) == whole[taken - len(lost) :]


@pytest.mark.parametrize("other", [prompts(4), prompts(6), prompts(5, "q"), prompts(5)[::-1]])
def test_a_state_from_other_data_is_refused(other: list[Prompt]) -> None:
    with pytest.raises(UserError, match="other data"):
        PromptStream(other, 0).restore(PromptStream(prompts(5), 0).state())


def test_a_stream_needs_prompts_and_a_seed() -> None:
    with pytest.raises(UserError, match="no prompts"):
        PromptStream([], 0)
    with pytest.raises(UserError, match="negative"):
        PromptStream(prompts(1), -1)
