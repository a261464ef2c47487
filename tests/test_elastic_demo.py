"""The elastic demo's account: what is lost, doubled or cut is told."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from speechsum.data import PromptStream
from speechsum.ledger import Ledger, LedgerRow
from speechsum.types import AudioRef, Prompt, trajectory_id
from tools import elastic_demo
from tools.elastic_demo import CLIPS, LOAD, SEED, Observer, account, check, draw, throughput

Key = tuple[int, str]
STEPS, GROUPS, SIZE = LOAD["steps"], LOAD["groups_per_step"], LOAD["group_size"]


def drawn(count: int) -> list[Key]:
    stream = PromptStream([Prompt(f"clip-{i}", AudioRef(""), "") for i in range(CLIPS)], SEED)
    return [(draw.epoch, draw.prompt.id) for draw in stream.take(count)]


def rows_of(key: Key, step: int) -> list[LedgerRow]:
    return [
        LedgerRow(
            trajectory_id=trajectory_id("run", *key, sample), run_id="run", stage="load", epoch=key[0],
            prompt_id=key[1], sample=sample, group_step=step, drop_reason="", policy_version=0, prompt_tokens=1,
            response_tokens=1, finish_reason="stop", text="", token_ids=[1], logprobs=[-1.0], reward=1.0,
            judge="", breakdown={}, judge_failure="", gate="", advantage=0.0,
        )
        for sample in range(SIZE)
    ]  # fmt: skip


def finished(folder: Path, rows: Sequence[LedgerRow]) -> dict[str, Any]:
    """The account of a run with this ledger, otherwise as it should be: two seconds, two tokens in each."""
    ledger = Ledger(folder / "run")
    ledger.record(rows)
    ledger.flush()
    figures = {"actors_lost": 1.0, "starts_failed": 0.0, "requests_returned": 2.0, "actors_serving": 1.0}
    pool = {f"rollout/{name}": value for name, value in figures.items()}
    lines = [{"time": 101.0 + i, "wall/step_s": 1.0, "rollout/tokens": 2.0, **pool} for i in range(2)]
    (folder / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    observer = Observer()
    observer.seen += [{"time": 100.0 + i, "actors": n, "nodes": n} for i, n in enumerate((1, 3, 1))]
    observer.killed_at = 101.0
    return account(folder, observer)


@pytest.fixture
def whole() -> list[LedgerRow]:
    return [row for i, key in enumerate(drawn(STEPS * GROUPS)) for row in rows_of(key, 1 + i // GROUPS)]


def test_a_whole_run_is_accounted_for_and_drawn(tmp_path: Path, whole: list[LedgerRow]) -> None:
    figures = finished(tmp_path, whole)
    assert check(figures) == []
    assert (figures["prompts drawn"], figures["trajectories"]) == (STEPS * GROUPS, STEPS * GROUPS * SIZE)
    draw(tmp_path, figures)
    assert "a node is killed" in (tmp_path / "elastic.svg").read_text()


def test_a_prompt_that_is_lost_is_told(tmp_path: Path, whole: list[LedgerRow]) -> None:
    key = drawn(1)[0]
    later = drawn(STEPS * GROUPS + 1)[-1]  # trained on in its place
    rows = [row for row in whole if (row.epoch, row.prompt_id) != key] + rows_of(later, 1)
    assert check(finished(tmp_path, rows)) == ["prompts lost is 1, not 0", "prompts not drawn is 1, not 0"]


def test_what_is_there_twice_or_not_whole_is_told(tmp_path: Path, whole: list[LedgerRow]) -> None:
    assert check(finished(tmp_path / "a", [*whole, whole[0]])) == [
        "twice in the ledger is 1, not 0", "incomplete groups is 1, not 0",
    ]  # fmt: skip
    assert check(finished(tmp_path / "b", whole[1:])) == ["incomplete groups is 1, not 0"]


def test_processes_that_end_meanwhile_do_not_keep_a_node_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr("os.kill", lambda process, sent: killed.append((process, sent)))
    for process in ("1", "2", "3", "self"):
        (tmp_path / process).mkdir()
    for process in ("2", "3"):
        (tmp_path / process / "cmdline").write_bytes(b"/ray/core/src/ray/raylet/raylet\0--static")
    with pytest.raises(AssertionError, match="no raylet of node ab"):
        elastic_demo._kill_node("ab", tmp_path)
    (tmp_path / "3" / "environ").write_bytes(b"HOME=/\0RAY_OVERRIDE_NODE_ID_FOR_TESTING=ab\0")
    elastic_demo._kill_node("ab", tmp_path)
    assert killed == [(3, signal.SIGKILL)]


def test_throughput_by_hand() -> None:
    lines = [
        {"time": 14.0, "wall/step_s": 4.0, "rollout/tokens": 40.0},
        {"time": 16.0, "wall/step_s": 2.0, "rollout/tokens": 60.0},
        {"time": 17.0, "wall/step_s": 1.0},
    ]
    assert throughput(lines) == [(10.0, 10.0), (14.0, 10.0), (14.0, 30.0), (16.0, 30.0), (16.0, 0.0), (17.0, 0.0)]


def test_the_demo_s_cluster_has_room_for_one_actor_on_a_node() -> None:
    cluster = elastic_demo._autoscaler()
    kinds = dict(cluster["available_node_types"])
    assert "rollout" not in kinds.pop(cluster["head_node_type"])["resources"]
    assert [kind["resources"]["rollout"] for kind in kinds.values()] == [1]
