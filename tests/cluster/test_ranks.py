"""Calls that every rank of the learner has to answer: one fails, dies or hangs while the others are silent."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster import calls, ports, ranks
from cluster.elastic import START_TIMEOUT_S
from cluster.memory import MemoryWatch
from cluster.ports import RayPorts
from cluster.ranks import LearnerGroup, RankCall
from cluster.runtime import ray_session
from speechsum.config import RunConfig
from speechsum.errors import RunError
from speechsum.types import Batch

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class FakeWorker:
    """A rank whose calls are refs that name it."""

    rank: int

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *args: (self.rank, method))


@dataclass
class FakeRay:
    """What each rank has answered, by its number. Whoever waits for one that is silent sees the clock go on."""

    answers: dict[int, Any] = field(default_factory=dict)
    now: float = 0.0

    def wait_for_one(self, refs: list[tuple[int, str]], timeout_s: float) -> list[tuple[int, str]]:
        done = [ref for ref in refs if ref[0] in self.answers]
        self.now += 0.0 if done else timeout_s
        return done

    def get(self, ref: tuple[int, str], timeout: float | None = None) -> Any:
        answer = self.answers[ref[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    workers = SimpleNamespace(remote=lambda config, rank, checkpoint: FakeWorker(rank))
    monkeypatch.setattr(ranks, "deployed", lambda *args: workers)
    monkeypatch.setattr(ranks.time, "monotonic", lambda: fake.now)
    monkeypatch.setattr(calls.ray, "get", fake.get)
    monkeypatch.setattr(ranks.ray, "put", lambda shard: shard)
    for module in (calls, ranks, ports):
        monkeypatch.setattr(module, "wait_for_one", fake.wait_for_one)
    return fake


def learner(ranks: int = 2) -> LearnerGroup:
    stage = {"name": "sft", "steps": 1, "loss": {"kind": "sft"}}
    chosen = {"ranks": ranks, "call_timeout_s": TIMEOUT_S}
    tree = {"name": "ranks", "eval": {"clips": 0}, "stage": [stage], "learner": chosen}
    return LearnerGroup(RunConfig.model_validate(tree), Path("student"))


def step(ranks: int = 2) -> Any:
    """What the controller gets of a step."""
    builder: Any = None
    made = RayPorts(builder, learner(ranks), None, None, None, run_id="run", sync="adapter")
    handle = made.step(Batch(((),) * ranks, 1, 1), 0)
    assert made.wait([handle]) == [handle]
    return made.result(handle)


def test_a_step_is_done_when_every_rank_is(fake_ray: FakeRay) -> None:
    fake_ray.answers = {0: {"learner/loss": 0.5}, 1: {"learner/loss": 0.5}}
    assert step() == {"learner/loss": 0.5}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_is_told_while_its_peer_stands_still(rank: int, fake_ray: FakeRay) -> None:
    fake_ray.answers = {rank: RayTaskError("step", "", RuntimeError("a collective timed out"), "rank", 1, "ip")}
    with pytest.raises(RunError, match=f"^learner rank {rank} failed: RuntimeError: a collective timed out$"):
        step()
    assert fake_ray.now == ranks.DEATH_S


def test_a_rank_that_dies_is_named_with_the_remedy(fake_ray: FakeRay) -> None:
    fake_ray.answers = {0: {}, 1: RayActorError(error_msg="It was killed.")}
    with pytest.raises(RunError, match=r"^learner rank 1 died: It was killed; start again, a run with --resume$"):
        step()


def test_a_rank_that_dies_is_named_in_place_of_those_whose_collectives_it_fails(fake_ray: FakeRay) -> None:
    closed = RayTaskError("step", "", RuntimeError("connection closed by peer"))
    fake_ray.answers = {0: closed, 1: RayActorError(error_msg="It was killed.")}
    with pytest.raises(RunError, match=r"^learner rank 1 died: It was killed; start again"):
        step()


@pytest.mark.parametrize(("answers", "silent"), [({}, "0, 1"), ({0: {}}, "1")])
def test_ranks_that_never_answer_a_step_are_named(answers: dict[int, Any], silent: str, fake_ray: FakeRay) -> None:
    fake_ray.answers = answers
    with pytest.raises(
        RunError, match=rf"^the learner has not answered 'step' for 61 s \(rank {silent}\); .* --resume$"
    ):
        step()


def test_a_single_rank_that_hangs_while_it_saves_is_not_waited_for_for_ever(fake_ray: FakeRay) -> None:
    with pytest.raises(RunError, match=r"^the learner has not answered 'save' for 61 s \(rank 0\); go on"):
        learner(ranks=1).save(Path("checkpoints"), 1, {})


def test_a_driver_that_was_busy_looks_for_the_answer_first(fake_ray: FakeRay) -> None:
    call = learner().step(Batch(((), ()), 1, 1), 0)
    fake_ray.answers, fake_ray.now = {0: "first", 1: "second"}, 10 * TIMEOUT_S
    call.tend()
    assert call.take() == ["first", "second"]


def test_a_learner_without_a_place_is_told(fake_ray: FakeRay) -> None:
    with pytest.raises(RunError, match=r"no model has loaded for 1800 s, .* waited for: learner 1; do the nodes offer"):
        learner().ready()
    assert fake_ray.now == START_TIMEOUT_S


# --- on real processes -------------------------------------------------------------------------------------------


@ray.remote
class Rank:
    """One that fails as a collective does, or stands still without dying."""

    def step(self, stops: bool) -> None:
        if stops:
            os.kill(os.getpid(), signal.SIGSTOP)
        raise RuntimeError("a collective timed out")


@pytest.mark.slow
def test_a_rank_that_is_stopped_hides_nobodys_error() -> None:
    with ray_session(None, MemoryWatch(), lambda text: None):
        ranks = [Rank.options(num_cpus=0).remote() for _ in range(2)]
        refs = [rank.step.remote(stops) for rank, stops in zip(ranks, (False, True), strict=True)]
        with pytest.raises(RunError, match=r"^learner rank 0 failed: RuntimeError: a collective timed out$"):
            RankCall("step", refs, TIMEOUT_S).take()
        with pytest.raises(RunError, match=r"^the learner has not answered 'step' for \d s \(rank 0\)"):
            RankCall("step", refs[1:], 1.0).take()
