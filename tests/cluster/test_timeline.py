"""The Chrome trace of a run's steps."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.spans import Span
from cluster.timeline import chrome_trace, write_timeline
from speechsum.errors import UserError

SPANS = [
    Span("warm", 1, "train", "learner", 90.0, 95.0, 4),
    *(Span("speak", step, "generate", "rollout 0", 100.0 * step, 100.0 * step + 10, 2) for step in range(1, 15)),
    *(Span("speak", step, "generate", "rollout 10", 100.0 * step, 100.0 * step + 9, 2) for step in range(1, 15)),
    *(Span("speak", step, "score", "judge 0", 100.0 * step + 10, 100.0 * step + 12.5, 2) for step in range(1, 15)),
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "spans.jsonl").write_text("".join(json.dumps(asdict(span)) + "\n" for span in SPANS))
    return folder


def test_the_last_ten_steps_of_the_latest_stage(run: Path) -> None:
    said = write_timeline(run, run / "new" / "trace.json", stage=None, first=None, steps=10)
    trace = json.loads((run / "new" / "trace.json").read_text())
    drawn = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["args"]["step"] for event in drawn} == set(range(5, 15))
    assert "steps 5 to 14 of speak, 30 spans of 3 actors" in said
    assert trace["otherData"]["began_unix_s"] == 500.0


def test_times_are_microseconds_from_the_first_span(run: Path) -> None:
    write_timeline(run, run / "trace.json", stage="speak", first=3, steps=1)
    trace = json.loads((run / "trace.json").read_text())
    score = next(event for event in trace["traceEvents"] if event["name"] == "score")
    assert (score["ts"], score["dur"]) == (10_000_000, 2_500_000)
    assert score["args"] == {"stage": "speak", "step": 3, "groups": 2}


def test_lanes_are_in_the_order_of_the_work() -> None:
    events = chrome_trace([*SPANS, Span("speak", 1, "look", "visitor 1", 1.0, 2.0)])["traceEvents"]
    named = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert [named[thread] for thread in sorted(named)] == ["rollout 0", "rollout 10", "judge 0", "learner", "visitor 1"]
    process = {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}
    assert process["rollout"] < process["judge"] < process["learner"] < process["visitor"]


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        ({"stage": "dpo", "first": None}, "has no stage 'dpo'; it has warm, speak"),
        ({"stage": None, "first": 15}, "has spans of steps 1 to 14, and none from 15 on"),
    ],
)
def test_what_there_is_not_is_refused(run: Path, asked: dict[str, None], refusal: str) -> None:
    with pytest.raises(UserError, match=refusal):
        write_timeline(run, run / "trace.json", **asked, steps=10)


def test_a_folder_without_spans_is_refused(run: Path) -> None:
    (run / "spans.jsonl").unlink()
    with pytest.raises(UserError, match="has no spans"):
        write_timeline(run, run / "trace.json", stage=None, first=None, steps=10)
