"""What a recipe asks of Ray for its actors, and what pools ask of these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import actors.judge
import actors.recogniser
import actors.teacher
from cluster import pools, ranks
from cluster.elastic import WORK_IN_TIME
from speechsum.audio import AudioLimits
from speechsum.config import RunConfig
from speechsum.errors import RunError
from speechsum.types import (
    AudioRef,
    FinishReason,
    Leaving,
    Prompt,
    SamplingParams,
    Trajectory,
    TrajectoryGroup,
)


class Asked:
    """Stands in for an actor class, its actors and their calls, and keeps what was asked for each actor."""

    def __init__(self) -> None:
        self.options_of: list[dict[str, Any]] = []

    def options(self, **options: Any) -> Asked:
        self.options_of.append(options)
        return self

    def remote(self, *args: Any, **kwargs: Any) -> Asked:
        return self

    @property
    def join(self) -> Asked:
        return self


def test_every_role_asks_for_its_own_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, rollout, judge = Asked(), Asked(), Asked()
    monkeypatch.setattr(ranks, "LearnerWorker", learner)
    monkeypatch.setattr(pools, "RolloutActor", rollout)
    monkeypatch.setattr(actors.judge, "JudgeActor", judge)
    config = RunConfig.model_validate(
        {
            "name": "placed",
            "rollout": {"resources": {"rollout": 1}},
            "judge": {"resources": {"judge": 0.5}},
            "stage": [{"name": "sft", "steps": 1, "loss": {"kind": "sft"}}],
        }
    )
    ranks.LearnerGroup(config, Path("student"))
    pools.RolloutPool(config, Path("student"))
    pools.JudgePool(config, None)
    assert [asked.options_of[0]["resources"] for asked in (learner, rollout, judge)] == [
        {},
        {"rollout": 1},
        {"judge": 0.5},
    ]


# --- pools whose actors answer at once -----------------------------------------------------------------------------


@dataclass(eq=False)
class Answer:
    """A ref whose result is there, or will be."""

    value: Any
    there: bool = True


class FakeActor:
    """Every call is answered at once by the function of its name, which may make the ref as well."""

    def __init__(self, **calls: Callable[..., Any]) -> None:
        self.calls = calls | {"join": lambda: "node"}

    def __getattr__(self, name: str) -> FakeActor:
        return FakeActor(call=self.calls[name])

    def remote(self, *args: Any) -> Answer:
        value = self.calls["call"](*args)
        return value if isinstance(value, Answer) else Answer(value)


class FakeClass:
    """Stands in for an actor class; `make` gives the actor of an index."""

    def __init__(self, make: Callable[[int], FakeActor]) -> None:
        self.make = make
        self.given: list[dict[str, Any]] = []

    def options(self, **options: Any) -> FakeClass:
        return self

    def remote(self, *args: Any, index: int, **kwargs: Any) -> FakeActor:
        self.given.append(kwargs)
        return self.make(index)


@pytest.fixture
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "fetch", lambda ref, who="": ref.value)
    monkeypatch.setattr(pools, "wait_for_one", lambda refs, timeout_s: [ref for ref in refs if ref.there])
    monkeypatch.setattr(pools.RayActors, "leaving_nodes", lambda self: ())
    monkeypatch.setattr(pools.RayActors, "kill", lambda self, actor: None)


def recipe(**sections: Any) -> RunConfig:
    stage = {"name": "sft", "steps": 1, "loss": {"kind": "sft"}}
    return RunConfig.model_validate({"name": "pools", "eval": {"clips": 0}, "stage": [stage]} | sections)


@pytest.mark.usefixtures("_no_ray")
def test_an_elastic_pool_writes_in_order_though_an_actor_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def make(index: int) -> FakeActor:
        def write(prompts: list[Prompt], sampling: SamplingParams, version: int) -> list[str] | Leaving:
            asked.append((index, len(prompts), version))
            return Leaving() if index == 0 else [f"{p.id} by {index}" for p in prompts]

        return FakeActor(write=write)

    monkeypatch.setattr(pools, "RolloutActor", FakeClass(make))
    pool = pools.RolloutPool(recipe(rollout={"pool": {"max": 2}, "prompts_per_request": 3}), Path("student"))
    prompts = [Prompt(f"p{i}", AudioRef("a.wav"), "Sum up.", "Anna calls.", "Anna calls.") for i in range(5)]
    written = pool.write_all(prompts, SamplingParams(n=1, temperature=0.0, max_tokens=8), 7)
    assert written == ["p0 by 1", "p1 by 1", "p2 by 1", "p3 by 1", "p4 by 1"]
    assert sorted(asked) == [(0, 2, 7), (0, 3, 7), (1, 2, 7), (1, 3, 7)]
    assert pool.figures()["rollout/requests_returned"] == 2


@pytest.mark.usefixtures("_no_ray")
def test_a_judge_is_named_and_asked_afresh_by_an_actor_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = FakeActor(ready=lambda: "fake/1", score=lambda tasks, afresh: [afresh] * len(tasks))
    monkeypatch.setattr(actors.judge, "JudgeActor", FakeClass(lambda index: actor))
    pool = pools.JudgePool(recipe(), None)
    assert pool.name() == "fake/1"
    assert pool.score_all(["a", "b"]) == [False, False]
    assert pool.score_all(["a"], afresh=True) == [True]


@pytest.mark.usefixtures("_no_ray")
def test_a_judge_by_the_teachers_model_asks_the_teachers_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    judges = FakeClass(lambda index: FakeActor())
    monkeypatch.setattr(actors.judge, "JudgeActor", judges)
    teachers: Any = SimpleNamespace(actors=["first", "second"])
    for path in ("teacher", "starter"):
        chosen = recipe(judge={"path": path, "actors": 3}, teacher={"path": "starter"})
        pools.JudgePool(chosen, Path("text"), teachers)
    assert [given["teacher"] for given in judges.given] == ["first", "second", "first", None, None, None]


@pytest.mark.usefixtures("_no_ray")
def test_judgements_are_spread_over_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def make(index: int) -> FakeActor:
        return FakeActor(score=lambda tasks, afresh: asked.append(len(tasks)) or [(index, task) for task in tasks])

    monkeypatch.setattr(actors.judge, "JudgeActor", FakeClass(make))
    pool = pools.JudgePool(recipe(judge={"actors": 2}), None)
    answers = pool.score_all(list(range(5)))
    assert [task for _, task in answers] == list(range(5))
    assert {index for index, _ in answers} == {0, 1}
    assert sorted(asked) == [2, 3]


@pytest.mark.usefixtures("_no_ray")
def test_a_teacher_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(pools.time, "monotonic", lambda: now)
    pool = pools.Pool([FakeActor(teach=lambda: Answer("lesson", there=False))], call_timeout_s=10.0)
    first, second = (pool.submit(lambda actor: actor.teach.remote(), work) for work in (1, 2 * WORK_IN_TIME))
    now = 10.0
    pool.stop_if_hanging()
    assert pool.take(first) == "lesson"
    now = 30.0
    pool.stop_if_hanging()  # the second began twenty seconds ago, and is twice what ten seconds are for
    now = 30.5
    with pytest.raises(RunError, match=r"actor 0 has not answered for 20 s; start again, a run with --resume"):
        pool.stop_if_hanging()
    second.there = True  # and nobody has looked at it yet
    pool.stop_if_hanging()
    assert pool.take(second) == "lesson"
    now = 99.0
    pool.stop_if_hanging()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Goes on where somebody waits for what is not there."""
    now = 0.0

    def wait(refs: list[Answer], timeout_s: float) -> list[Answer]:
        nonlocal now
        done = [ref for ref in refs if ref.there]
        now += 0.0 if done else timeout_s
        return done

    monkeypatch.setattr(pools, "fetch", lambda ref, who="": ref.value)
    monkeypatch.setattr(pools, "wait_for_one", wait)
    monkeypatch.setattr(pools.time, "monotonic", lambda: now)
    return lambda: now


def test_a_teacher_that_hangs_while_it_writes_is_not_waited_for_for_ever(
    clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(index: int) -> FakeActor:
        return FakeActor(write=lambda part, sampling: Answer([f"{p} by {index}" for p in part], there=index == 0))

    monkeypatch.setattr(actors.teacher, "TeacherActor", FakeClass(make))
    config = recipe(teacher={"path": "starter", "actors": 2, "call_timeout_s": 10})
    pool = pools.TeacherPool(config, Path("teacher"), audio=False, top_k=1, vocabulary=1)
    sampling = SamplingParams(n=1, temperature=0.0, max_tokens=8)
    assert pool.write_all(["a"], sampling) == ["a by 0"]
    with pytest.raises(RunError, match=r"^teacher 1 has not answered for 11 s; start again, a run with --resume$"):
        pool.write_all(["a", "b"], sampling)
    assert clock() == 11.0


def test_a_recogniser_has_more_time_the_more_it_hears(
    clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = FakeActor(transcribe=lambda part, limits: Answer([], there=False))
    made = SimpleNamespace(remote=lambda *args: never)
    monkeypatch.setattr(actors.recogniser, "RecogniserActor", SimpleNamespace(options=lambda **options: made))
    pool = pools.RecogniserPool(recipe(rollout={"call_timeout_s": 10}), Path("whisper"))
    with pytest.raises(RunError, match=r"^recogniser 0 has not answered for 21 s; start again, a run with --resume$"):
        pool.transcribe_all([AudioRef(f"{i}.wav") for i in range(16)], AudioLimits(max_s=30.0))
    assert clock() == 21.0


@pytest.mark.usefixtures("_no_ray")
@pytest.mark.parametrize(("kind", "work"), [("lexical", 4 + 3), ("pairwise", 6 + 3)])
def test_work_is_counted_in_what_is_judged(kind: str, work: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors.judge, "JudgeActor", FakeClass(lambda index: FakeActor(score_groups=list)))
    endpoint = {"url": "http://localhost:1/v1", "model": "m"}
    pool = pools.JudgePool(recipe(judge={"kind": kind, "endpoint": endpoint}), None)
    assert pool.score_groups([group_of(4), group_of(3)]).work == work


def group_of(size: int) -> TrajectoryGroup:
    none = np.zeros(0)
    prompt = Prompt("p", AudioRef("a.wav"), "Sum up.", "Anna calls.", "Anna calls.")
    return TrajectoryGroup(prompt, none, (Trajectory("t", none, none, "Anna.", FinishReason.STOP, 0),) * size)
