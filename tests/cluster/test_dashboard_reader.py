"""What the dashboard reads out of a run folder, while somebody else writes it."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.dashboard.groups import LedgerReader
from cluster.dashboard.library import RunLibrary
from cluster.dashboard.query import Query
from cluster.dashboard.run_reader import RunReader
from cluster.dashboard.tail import JsonlTail
from cluster.dashboard.waits import DERIVED, busy_shares
from cluster.run_folder import RunFolder
from cluster.watch import _cut
from speechsum.errors import UserError
from speechsum.ledger import Ledger
from tests.cluster.fake_runs import (
    INJECTED,
    SIZE,
    append,
    config,
    figures,
    groups,
    make_run,
    row,
    sample_row,
    write_data,
)


def steps(tail: JsonlTail) -> list[int]:
    tail.poll()
    return [r["step"] for r in tail.rows]


def line(step: int, stage: str = "reward") -> str:
    return json.dumps({"stage": stage, "step": step}) + "\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def reader(tmp_path: Path, data: Path) -> RunReader:
    return RunReader(make_run(tmp_path / "made", data))


def ids(reader: RunReader, **fields: str) -> list[tuple[str, str]]:
    return [(g["stage"], g["prompt_id"]) for g in reader.groups(Query.read(fields))["groups"]]


def group_id(reader: RunReader, prompt: str, stage: str = "reward") -> str:
    (group,) = reader.groups(Query(stage=stage, prompt=prompt))["groups"]
    return str(group["id"])


# --- the tail ------------------------------------------------------------------------------------------------------


def test_a_file_is_read_as_it_grows_and_half_a_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = JsonlTail(path)
    assert steps(tail) == []
    path.write_text(line(1) + line(2)[:9])
    assert steps(tail) == [1]
    generation = tail.generation
    with path.open("a") as file:
        file.write(line(2)[9:] + line(3))
    assert steps(tail) == [1, 2, 3]
    assert tail.generation == generation
    assert tail.broken == 0


def test_a_rewind_begins_another_generation_even_if_the_file_is_longer_by_then(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(line(n) for n in (1, 2, 3)))
    tail = JsonlTail(path)
    assert steps(tail) == [1, 2, 3]
    before = tail.generation
    _cut(path, {"reward": 0}, (0, 1))
    with path.open("a") as file:
        file.write("".join(line(n) for n in (2, 3, 4, 5)))
    assert steps(tail) == [1, 2, 3, 4, 5]
    assert tail.generation != before


def test_a_file_rewritten_in_place_is_noticed_by_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + line(2))
    tail = JsonlTail(path)
    assert steps(tail) == [1, 2]
    number = path.stat().st_ino
    path.write_text(line(1) + line(7) + line(8))
    assert path.stat().st_ino == number
    assert steps(tail) == [1, 7, 8]


def test_lines_that_are_no_row_are_counted_and_a_file_that_goes_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('nonsense\n[1]\n{"stage": 1, "step": 1}\n{"stage": "a"}\n' + line(4))
    tail = JsonlTail(path)
    assert steps(tail) == [4]
    assert tail.broken == 4
    path.unlink()
    assert steps(tail) == []
    assert tail.broken == 0


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "step": 1, "x": NaN, "y": -Infinity}\n')
    tail = JsonlTail(path)
    tail.poll()
    assert tail.rows == [{"stage": "a", "step": 1, "x": None, "y": None}]


# --- who waits -----------------------------------------------------------------------------------------------------


def test_shares_of_a_step() -> None:
    shares = busy_shares(figures("reward", 1))
    assert shares == {"busy/rollout": 0.3, "busy/judge": 0.25, "busy/learner": 0.4, "busy/sync": 0.1}
    assert busy_shares(figures("align", 1)) == {"busy/learner": 0.4}
    assert busy_shares({"learner/step_s": 1.0, "wall/step_s": None}) == {}
    assert set(shares) <= set(DERIVED)


# --- the ledger ----------------------------------------------------------------------------------------------------


def test_each_part_is_read_once_and_those_cut_off_are_forgotten(tmp_path: Path, monkeypatch: Any) -> None:
    ledger = Ledger(tmp_path)
    for step in (1, 2):
        ledger.record([row(step, i, step=step) for i in range(SIZE)])
        ledger.flush()
    reads: list[str] = []
    kept = pq.read_table
    monkeypatch.setattr("speechsum.ledger.pq.read_table", lambda part, **k: reads.append(part.name) or kept(part, **k))
    reader = LedgerReader(tmp_path / "trajectories")
    assert reader.poll()
    assert not reader.poll()
    assert [g.prompt_id for g in reader.groups] == ["p1", "p2"]
    ledger.rewind(1)
    ledger.record([row(5, i, step=2) for i in range(SIZE)])
    ledger.flush()
    assert reader.poll()
    assert [g.prompt_id for g in reader.groups] == ["p1", "p5"]
    assert reads == ["part-00000.parquet", "part-00001.parquet", "part-00001.parquet"]


def test_a_damaged_part_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record([row(1, i) for i in range(SIZE)])
    ledger.flush()
    (tmp_path / "trajectories/part-00001.parquet").write_bytes(b"not parquet")
    reader = LedgerReader(tmp_path / "trajectories")
    reader.poll()
    assert len(reader.groups) == 1
    assert "part-00001.parquet cannot be read" in reader.problems[0]


# --- a run ---------------------------------------------------------------------------------------------------------


def test_overview(reader: RunReader) -> None:
    overview = reader.overview()
    assert [(s["name"], s["loss"], s["completions"], s["scorers"]) for s in overview["stages"]] == [
        ("align", "sft", "data", []), ("distil", "opd", "rollout", ["teacher"]),
        ("prefer", "dpo", "rollout", ["judge"]), ("reward", "grpo", "rollout", ["judge"]),
    ]  # fmt: skip
    assert (overview["stage"], overview["step"], overview["done"], overview["steps"]) == ("reward", 3, 12, 12)
    assert not overview["finished"]
    pool = {part["part"]: (part["actors"], part["busy"]) for part in overview["pool"]}
    assert pool["rollout"] == (3, pytest.approx(0.3))
    assert pool["teacher"] == (1, pytest.approx(0.2))
    assert pool["learner"] == (2, pytest.approx(0.4))
    assert pool["sync"][0] is None


def test_of_a_pool_that_changes_those_that_serve_now_are_counted(reader: RunReader, tmp_path: Path) -> None:
    append(tmp_path / "made/metrics.jsonl", [figures("reward", 4, **{"rollout/actors_serving": 7.0})])
    sizes = {part["part"]: part["actors"] for part in reader.overview()["pool"]}
    assert (sizes["rollout"], sizes["judge"]) == (7, 1)


def test_a_run_is_finished_until_it_is_gone_on_with(reader: RunReader, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "made")
    folder.write_summary({"steps": 12})
    os.utime(folder.metrics, (1, 1))
    assert reader.overview()["finished"]
    assert reader.details()["summary"] == {"steps": 12}
    os.utime(folder.summary, (0, 0))
    assert not reader.overview()["finished"]


def test_steps_come_once_and_all_of_them_after_a_rewind(reader: RunReader, tmp_path: Path) -> None:
    first = reader.steps("", 0)
    assert [(r["stage"], r["overall"]) for r in first["rows"]][::4] == [("align", 1), ("distil", 5), ("prefer", 9)]
    assert first["rows"][-1]["busy/judge"] == 0.25
    metrics = tmp_path / "made/metrics.jsonl"
    append(metrics, [figures("reward", 4)])
    more = reader.steps(first["generation"], 12)
    assert (more["start"], [r["step"] for r in more["rows"]]) == (12, [4])
    _cut(metrics, {"align": 0, "distil": 1, "prefer": 2, "reward": 3}, (3, 1))
    again = reader.steps(first["generation"], 13)
    assert again["generation"] != first["generation"]
    assert (again["start"], len(again["rows"])) == (0, 10)


def test_criteria_are_means_over_what_was_trained(reader: RunReader) -> None:
    means = {(r["stage"], r["step"]): r for r in reader.criteria()}
    assert set(means) == {("prefer", 1), ("prefer", 2), ("prefer", 3), ("reward", 1), ("reward", 2), ("reward", 3)}
    assert means["reward", 1]["criteria"] == {"clear": 1.0, "faithful": 0.375}
    # step 2 has group p2 (0, 1/4, 1/2, 3/4) and, of p4, the samples 2 and 3 (1/2, 3/4): the others have no breakdown
    assert means["reward", 2]["criteria"]["faithful"] == pytest.approx((1.5 + 1.25) / 6)
    assert means["reward", 2]["overall"] == 11


def test_filters(reader: RunReader) -> None:
    assert len(ids(reader)) == 12
    assert ids(reader, stage="distil") == [("distil", "p3"), ("distil", "p2"), ("distil", "p1")]
    assert ids(reader, fate="stale") == [("reward", "p0")]
    assert ids(reader, gate="echo") == [("reward", "p4")]
    assert ids(reader, reward_min="0.8") == [("reward", "p4")]
    assert ids(reader, stage="reward", step_from="2", step_to="2") == [("reward", "p4"), ("reward", "p2")]
    assert ids(reader, text="ONERROR") == [("reward", "p4")]
    assert ids(reader, text="talk 3", stage="reward") == [("reward", "p3")]
    assert ids(reader, gate="echo", reward_min="0.5") == []  # of one and the same summary
    assert ids(reader, order="best")[:2] == [("reward", "p4"), ("prefer", "p1")]  # 0.9, then the first of 0.75
    assert ids(reader, order="worst", stage="reward")[-1] == ("reward", "p5")  # one summary of 0.75, no 0
    assert ids(reader, order="widest")[0] == ("reward", "p4")
    assert ids(reader, offset="11") == [("distil", "p1")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "/etc/passwd"}, "unknown filter 'path'"),
        ({"step_from": "two"}, "step_from = 'two' is not a number"),
        ({"order": "loudest"}, "order = 'loudest'; choose from"),
        ({"offset": "-1"}, "below 0"),
    ],
)
def test_filters_that_make_no_sense(fields: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Query.read(fields)


def test_the_tally_lists_why_summaries_were_dropped(reader: RunReader) -> None:
    found = reader.groups(Query())
    assert found["tally"] == {
        "stages": {"distil": 12, "prefer": 12, "reward": 21},
        "fates": {"trained": 40, "stale": 4, "judge_failed": 1},
        "gates": {"echo": 1},
        "failures": {"timeout": 1},
    }
    assert found["problems"] == []


def test_a_group_has_every_summary_with_what_became_of_it(reader: RunReader) -> None:
    group = reader.group(group_id(reader, "p4"))
    assert (group["instruction"], group["reference"]) == ("Summarize talk 4.", "Tone 4 sounds.")
    gated, failed, harmful, cut = group["summaries"]
    assert (gated["reward"], gated["gate"], gated["fate"]) == (0.0, "echo", "trained")
    assert (failed["reward"], failed["judge_failure"], failed["fate"]) == (None, "timeout: 60 s", "judge_failed")
    assert harmful["text"] == INJECTED
    assert cut["finish_reason"] == "length"
    pairs = reader.group(group_id(reader, "p1", "prefer"))["summaries"]
    assert [(s["pair"], s["preferred"]) for s in pairs] == [(0, False), (0, True), (1, False), (1, True)]
    with pytest.raises(LookupError):
        reader.group("0000")


def test_the_best_summary_is_shown_before_the_ledger_has_the_group(tmp_path: Path, data: Path) -> None:
    folder = make_run(tmp_path / "made", data, rows=[])
    reader = RunReader(folder)
    (early,) = reader.groups(Query())["groups"]
    assert (early["prompt_id"], early["step"], early["epoch"], early["summaries"]) == ("p5", 3, None, 1)
    assert reader.group(early["id"])["summaries"][0]["text"] == "The best of them."
    ledger = Ledger(folder.path)
    ledger.record([row(5, i, step=3) for i in range(SIZE)])
    ledger.flush()
    (whole,) = reader.groups(Query())["groups"]
    assert (whole["epoch"], whole["summaries"]) == (0, SIZE)


def test_a_run_that_has_just_begun_and_one_of_another_version(tmp_path: Path, data: Path) -> None:
    folder = RunFolder.create(tmp_path / "new", config(data))
    reader = RunReader(folder)
    overview = reader.overview()
    assert (overview["stage"], overview["done"], overview["age_s"]) == (None, 0, None)
    assert reader.groups(Query())["total"] == 0
    assert reader.criteria() == []
    assert reader.details()["summary"] is None
    folder.config.write_text('{"name": "odd", "from_the_future": 1}')
    append(folder.metrics, [figures("reward", 1)])
    overview = reader.overview()
    assert "from_the_future" in overview["problem"]
    assert (overview["stages"], overview["step"]) == ([], 1)
    assert reader.steps("", 0)["rows"][0]["overall"] == 1


# --- recordings ----------------------------------------------------------------------------------------------------


def test_a_recording_is_that_of_the_manifest(reader: RunReader, data: Path) -> None:
    content, media_type = reader.recording(group_id(reader, "p4"))
    assert media_type == "audio/wav"
    assert content == (data / "p4.wav").read_bytes()


def test_a_recording_in_a_row_of_the_manifest(tmp_path: Path, data: Path) -> None:
    encoded = (data / "p3.wav").read_bytes()
    rows = [{"id": f"p{n}", "instruction": "S", "audio": {"bytes": encoded, "path": None}} for n in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "embedded.parquet")
    root = tmp_path / "elsewhere"
    root.mkdir()
    reader = RunReader(make_run(tmp_path / "made", data, train=str(tmp_path / "embedded.parquet"), root=str(root)))
    assert reader.recording(group_id(reader, "p4")) == (encoded, "audio/wav")


def claim(tmp_path: Path, data: Path, audio: str) -> RunReader:
    """A run whose samples name `audio` for a prompt that the manifest lacks."""
    folder = make_run(tmp_path / "claims", data, rows=[])
    append(folder.samples, [sample_row(99, "reward", 2, audio)])
    return RunReader(folder)


def test_samples_may_name_a_recording_inside_the_data_root_only(tmp_path: Path, data: Path) -> None:
    reader = claim(tmp_path, data, str(data / "p1.wav"))
    assert reader.recording(group_id(reader, "p99"))[1] == "audio/wav"


@pytest.mark.parametrize("how", ["absolute", "dots", "link", "manifest of another"])
def test_nothing_outside_the_data_root_is_played(tmp_path: Path, data: Path, how: str) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes((data / "p1.wav").read_bytes())
    (data / "link.wav").symlink_to(secret)
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"audio": [{"bytes": b"RIFF", "path": ""}]}), other)
    named = {
        "absolute": str(secret), "dots": f"{data}/../secret.wav", "link": str(data / "link.wav"),
        "manifest of another": f"{other}#0",
    }  # fmt: skip
    reader = claim(tmp_path, data, named[how])
    with pytest.raises(UserError, match="outside the run's data root"):
        reader.recording(group_id(reader, "p99"))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("manifest.jsonl", "is not WAV, FLAC, Ogg or MP3"),
        ("gone.wav", "there is no such file"),
        ("", "no recording is known"),
        ("\0", "no recording is known"),
    ],
)
def test_what_cannot_be_played_is_told(tmp_path: Path, data: Path, audio: str, message: str) -> None:
    reader = claim(tmp_path, data, str(data / audio) if audio.strip("\0") else audio)
    with pytest.raises(UserError, match=message):
        reader.recording(group_id(reader, "p99"))


def test_a_manifest_that_is_gone_is_told_and_read_once_it_is_back(tmp_path: Path, data: Path) -> None:
    reader = RunReader(make_run(tmp_path / "made", data))
    (data / "manifest.jsonl").rename(tmp_path / "aside")
    assert "is not to be had here" in reader.groups(Query())["problems"][0]
    with pytest.raises(UserError, match="no recording is known for prompt 'p4': the manifest"):
        reader.recording(group_id(reader, "p4"))
    (tmp_path / "aside").rename(data / "manifest.jsonl")
    assert reader.groups(Query())["problems"] == []
    assert reader.recording(group_id(reader, "p4"))[1] == "audio/wav"


# --- which runs ----------------------------------------------------------------------------------------------------


def test_runs_are_found_in_folders_and_their_names_stay(tmp_path: Path, data: Path) -> None:
    for number, path in enumerate(("a/one", "a/two", "b/one"), start=1):
        make_run(tmp_path / path, data, rows=[])
        os.utime(tmp_path / path / "config.json", (number, number))
    (tmp_path / "a/no-run").mkdir()
    library = RunLibrary([tmp_path / "a", tmp_path / "b/one", tmp_path / "a/two"])
    assert list(library.runs()) == ["one (2)", "two", "one"]
    assert library.get("one (2)").overview()["path"] == str(tmp_path / "b/one")
    make_run(tmp_path / "a/three", data, rows=groups())
    assert list(library.runs()) == ["three", "one (2)", "two", "one"]
    with pytest.raises(LookupError):
        library.get("no-run")


def test_a_library_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run at"):
        RunLibrary([tmp_path / "none"])
    with pytest.raises(UserError, match="no run in"):
        RunLibrary([tmp_path])
