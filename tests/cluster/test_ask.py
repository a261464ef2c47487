"""`data ask` against a scripted server on this machine, which is named as one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.ask import AskOptions, Tally, ask
from cluster.manifest_copy import write_copy
from speechsum.config import EndpointConfig
from speechsum.data import read_manifest
from speechsum.errors import RunError, UserError

Say = Callable[[str], None]


class FakeModel:
    """An endpoint that writes "Request i about <transcript>" and marks by a function of the request."""

    def __init__(self) -> None:
        self.marks: Callable[[str], tuple[int, int]] = lambda query: (5, 5)
        self.breaks: Callable[[str, str], bool] = lambda what, transcript: False
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = fake.answer(body)
                data = json.dumps({"choices": [{"message": {"content": answer}}], "model": "fake"}).encode()
                self.send_response(200 if answer else 400)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def config(self) -> EndpointConfig:
        return EndpointConfig(url=f"http://127.0.0.1:{self._http.server_address[1]}/v1", model="fake", retries=0)

    def answer(self, body: dict[str, Any]) -> str:
        material = json.loads(body["messages"][1]["content"].splitlines()[1])
        transcript, texts = material.pop("transcript"), list(material.values())
        what = "write" if "style 1" in material else "rate"
        self.asked.append(f"{what} {transcript}")
        if self.breaks(what, transcript):
            return ""
        if what == "write":
            return json.dumps({"queries": [f"Request {i} about {transcript}, in JSON." for i in range(len(texts))]})
        marks = [dict(zip(("importance", "answered"), self.marks(text), strict=True)) for text in texts]
        return json.dumps({"ratings": marks})

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeModel]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    fake = FakeModel()
    yield fake
    fake.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three rows about two recordings."""
    rows = [
        {"id": name, "audio": f"{name[0]}.wav", "instruction": "Sum up.", "transcript": f"talk {name[0]}",
         "reference": "old", "facts": ["anna"], "clip_facts": ["bob"], "licence": "CC0-1.0", "voice": "low"}
        for name in ("a1", "a2", "b1")
    ]  # fmt: skip
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def run(model: FakeModel, data: Path, **options: Any) -> Tally:
    out = data.with_name(f"asked{data.suffix}")
    return ask(data, out, model.config, data.with_name("cache"), AskOptions(**options), lambda text: None)


def rows_of(data: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.with_name("asked.jsonl").read_text().splitlines()]


def test_a_row_for_each_recording_and_kept_request(model: FakeModel, data: Path) -> None:
    model.marks = lambda query: (5, 2) if "Request 1" in query else (4, 4)
    tally = run(model, data, per_clip=3)
    rows = rows_of(data)
    assert [row["id"] for row in rows] == ["a1/q0", "a1/q2", "b1/q0", "b1/q2"]
    assert rows[0] == {
        "id": "a1/q0", "audio": "a.wav", "instruction": "Request 0 about talk a, in JSON.", "transcript": "talk a",
        "reference": "", "facts": [], "clip_facts": ["bob", "anna"], "licence": "CC0-1.0", "voice": "low",
        "request": "json", "importance": 4, "answered": 4,
    }  # fmt: skip
    assert (tally.clips, tally.written, tally.kept, tally.dropped) == (2, 6, 4, {"unanswered": 2})
    prompts = read_manifest(data.with_name("asked.jsonl"), check_audio=False)
    assert [p.request for p in prompts] == ["json"] * 4


def test_what_was_answered_is_not_asked_again(model: FakeModel, data: Path) -> None:
    model.breaks = lambda what, transcript: (what, transcript) == ("rate", "talk b")
    first = run(model, data, per_clip=2)
    assert first.failures == {"rate/http_error": 1}
    assert "HTTP 400" in first.first["rate/http_error"]
    assert [row["id"] for row in rows_of(data)] == ["a1/q0", "a1/q1"]
    assert "failed, rate/http_error: 1 recordings" in "\n".join(first.lines())
    assert sorted(model.asked) == ["rate talk a", "rate talk b", "write talk a", "write talk b"]

    model.breaks, model.asked = lambda what, transcript: False, []
    assert not run(model, data, per_clip=2).failures
    assert model.asked == ["rate talk b"]
    assert len(rows_of(data)) == 4
    model.asked = []
    run(model, data, per_clip=2, seed=1)  # other styles are other questions
    assert len(model.asked) == 4 - 2  # but the fake writes the same requests, whose marks are known


def test_nothing_at_all_leaves_no_manifest(model: FakeModel, data: Path) -> None:
    model.marks = lambda query: (1, 5)
    with pytest.raises(UserError, match="none of 4 requests has both marks from 4 on"):
        run(model, data, per_clip=2)
    model.breaks = lambda what, transcript: what == "write"
    with pytest.raises(RunError, match="no request came of 2 recordings: 2 times write/http_error"):
        run(model, data, per_clip=3)
    assert not data.with_name("asked.jsonl").exists()


def test_refusals_come_before_any_question(model: FakeModel, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"another \.jsonl file in the folder"):
        ask(data, tmp_path / "deep" / "o.jsonl", model.config, tmp_path / "c", AskOptions(), lambda text: None)
    (tmp_path / "taken").write_text("no database at all, and long enough to be looked into")
    with pytest.raises(UserError, match=r"--cache = .* cannot be used"):
        ask(data, tmp_path / "o.jsonl", model.config, tmp_path / "taken", AskOptions(), lambda text: None)
    data.write_text(data.read_text().replace("talk b", " "))
    with pytest.raises(UserError, match=r"line 3.*transcript missing or empty"):
        run(model, data)
    assert model.asked == []


def test_a_copy_reads_lines_as_the_manifest_does(tmp_path: Path) -> None:
    source, out = tmp_path / "m.jsonl", tmp_path / "o.jsonl"
    source.write_text('\ufeff{"id": "a", "said": "so\u2028on"}\n\n{"id": "b"}\n', encoding="utf-8")
    write_copy(source, out, [1, 0], {"n": [1, 2]})
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"id": "b", "n": 1}, {"id": "a", "said": "so\u2028on", "n": 2},
    ]  # fmt: skip


def test_parquet_keeps_its_types_and_what_it_embeds(tmp_path: Path) -> None:
    table = pa.table({
        "id": ["a", "b"], "audio": [{"bytes": b"\x00\x01", "path": None}, {"bytes": b"\x02", "path": None}],
        "instruction": ["x", "y"], "facts": [["f"], []], "n": pa.array([1, 2], pa.int8()),
    })  # fmt: skip
    source, out = tmp_path / "m.parquet", tmp_path / "o.parquet"
    pq.write_table(table, source)
    write_copy(source, out, [1, 0, 1], {"id": ["b0", "a0", "b1"], "facts": [[], [], []]})
    copy = pq.read_table(out)
    assert copy.column("id").to_pylist() == ["b0", "a0", "b1"]
    assert [audio["bytes"] for audio in copy.column("audio").to_pylist()] == [b"\x02", b"\x00\x01", b"\x02"]
    assert (copy.schema.field("n").type, copy.schema.field("facts").type) == (pa.int8(), pa.list_(pa.string()))
