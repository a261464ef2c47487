"""Ports whose calls end in any order that a test likes, and the account of what they were asked."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actors.rollout import RolloutFailure
from cluster.controller import Controller, StepReport
from speechsum.config import JudgeConfig, LearnerConfig, RolloutConfig, RunConfig, StageConfig, TeacherConfig
from speechsum.data import Draw, PromptStream
from speechsum.ledger import LedgerRow
from speechsum.objectives import GrpoLoss, Loss
from speechsum.types import (
    AudioRef,
    Batch,
    FailureKind,
    FinishReason,
    JudgeFailure,
    Judgement,
    Lesson,
    Prompt,
    Reward,
    SamplingParams,
    ScoredGroup,
    TeacherFailure,
    TeacherLogprobs,
    Trajectory,
    TrajectoryGroup,
    read_only,
    trajectory_id,
)

AUDIO, END = 7, 2
UNREAD = TeacherFailure(FailureKind.TOO_LONG)
LESSON = TeacherLogprobs(
    read_only([-1.0] * 2, "float32"), read_only([[3]] * 2, "int32"), read_only([[-0.1]] * 2, "float32")
)
PROMPTS = [Prompt(f"p{i}", AudioRef(f"/clips/{i}.wav"), f"ask {i}", reference=f"answer {i}") for i in range(5)]
Key = tuple[int, str]
Judge = Callable[[int], list[Judgement]]
"""From the number of groups judged before to the judgements of the next one."""


def run_config(
    *, steps: int = 2, groups: int = 2, size: int = 2, staleness: int = 0, per_request: int = 8,
    failures_allowed: float = 1.0, window: int = 200, loss: Loss | None = None,
) -> RunConfig:  # fmt: skip
    stage = StageConfig(
        name="speak", steps=steps, groups_per_step=groups, group_size=size, max_staleness=staleness,
        loss=loss or GrpoLoss(),
    )  # fmt: skip
    return RunConfig(
        name="fake", stage=(stage,), teacher=TeacherConfig(path="starter"),
        rollout=RolloutConfig(prompts_per_request=per_request),
        judge=JudgeConfig(max_failure_share=failures_allowed, failure_window=window), learner=LearnerConfig(ranks=2),
    )  # fmt: skip


def rewards(*values: float) -> list[Judgement]:
    return [Reward(value, {"a": value}) for value in values]


def ascending(size: int) -> Judge:
    return lambda _: rewards(*range(size))


class FakePorts:
    """Rollout, judge and learner in one thread: a call is done when `finish` picks it, and each is checked as it comes.

    `open` holds the groups that were dispatched and not settled, as this side knows them; the controller must hold
    exactly as many slots whenever it calls.
    """

    def __init__(
        self, config: RunConfig, judge: Judge, *, roll_fails: Callable[[], bool] = lambda: False,
        finish: Callable[[dict[int, str]], list[int]] = lambda pending: [min(pending)],
        age: Callable[[int, int], int] = lambda asked, live: asked, live: int = 0,
        teacher_fails: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.config, self.stage = config, config.stage[0]
        self.judge, self.roll_fails, self.finish, self.age, self.live = judge, roll_fails, finish, age, live
        self.teacher_fails = teacher_fails
        self.controller: Controller | None = None
        self.calls: list[str] = []
        self.pending: dict[int, tuple[str, Callable[[], Any]]] = {}
        self.done: set[int] = set()
        self.number, self.serial, self.scored = itertools.count(), itertools.count(100), 0
        self.dispatched: dict[Key, int] = {}
        self.open: set[Key] = set()
        self.buffered: dict[Key, int] = {}
        self.in_step: list[Key] = []
        self.trained: list[Key] = []
        self.dropped: dict[Key, str] = {}
        self.drops_since_step = 0
        self.made: dict[int, tuple[Key, int]] = {}
        self.judgements: dict[int, Judgement] = {}
        self.batches: list[Batch] = []
        self.overlaps = 0

    # --- what the controller calls ------------------------------------------------------------------------------

    def generate(self, draws: Sequence[Draw], sampling: SamplingParams, version: int) -> int:
        self._settle_stale()
        assert version == self.live
        assert 0 < len(draws) <= self.config.rollout.prompts_per_request
        assert sampling.n == self.stage.group_size
        if self.stage.max_staleness == 0:
            assert not self.in_step
        for draw in draws:
            key = draw.epoch, draw.prompt.id
            assert key not in self.dispatched
            self.dispatched[key] = version
            self.open.add(key)
        self._check_slots()
        return self._begin("generate", lambda: [self._roll(draw) for draw in draws], version)

    def score(self, groups: Sequence[TrajectoryGroup]) -> int:
        assert groups
        return self._begin("score", lambda: [self._score(group) for group in groups])

    def teach(self, groups: Sequence[TrajectoryGroup]) -> int:
        assert groups
        return self._begin("teach", lambda: [self._teach(group) for group in groups])

    def step(self, batch: Batch, version: int) -> int:
        self._settle_stale()
        self._check_slots()
        assert not self.in_step
        assert version == self.live
        samples = [sample for shard in batch.shards for sample in shard]
        assert len(samples) == self.stage.groups_per_step
        for sample in samples:
            keys = set()
            for completion in sample.completions:
                serial = int(completion.token_ids[0])
                key, written_at = self.made[serial]
                keys.add(key)
                if "judge" in self.stage.kind.scorers:
                    assert isinstance(self.judgements[serial], Reward)
                assert (completion.teacher is not None) == ("teacher" in self.stage.kind.scorers)
                assert math.isfinite(completion.advantage)
                assert completion.policy_version == written_at
                assert 0 <= version - written_at <= self.stage.max_staleness
            (key,) = keys
            del self.buffered[key]
            self.in_step.append(key)
        self.batches.append(batch)
        self.overlaps += any(what == "generate" for what, _ in self.pending.values())
        return self._begin("step", lambda: {"learner/loss": 0.5}, version)

    def push(self, version: int) -> dict[str, float]:
        assert version == self.live + 1
        assert self.in_step
        assert all(what != "step" for what, _ in self.pending.values())
        self._check_slots()
        self.calls.append(f"push@{version}")
        self.live = version
        self.trained += self.in_step
        self.open -= set(self.in_step)
        self.in_step = []
        self.drops_since_step = 0
        return {"sync/publish_s": 0.0}

    def actor(self, handle: int) -> str:
        return f"{self.pending[handle][0]} {handle % 2}"

    def given(self, handle: int) -> float:
        return 0.0

    def wait(self, handles: Sequence[int]) -> list[int]:
        assert sorted(handles) == sorted(self.pending)
        done = self.finish({handle: self.pending[handle][0] for handle in handles})
        self.done |= set(done)
        return done

    def result(self, handle: int) -> Any:
        assert handle in self.done
        return self.pending.pop(handle)[1]()

    # --- how it does it -----------------------------------------------------------------------------------------

    def _begin(self, what: str, work: Callable[[], Any], version: int | None = None) -> int:
        handle = next(self.number)
        self.pending[handle] = what, work
        self.calls.append(what if version is None else f"{what}@{version}")
        return handle

    def _roll(self, draw: Draw) -> TrajectoryGroup | RolloutFailure:
        key = draw.epoch, draw.prompt.id
        if self.roll_fails():
            self._drop(key, "rollout")
            return RolloutFailure(draw.prompt.id, "audio unreadable: no such file")
        trajectories = []
        for sample in range(self.stage.group_size):
            serial, version = next(self.serial), self.age(self.dispatched[key], self.live)
            self.made[serial] = key, version
            trajectories.append(Trajectory(
                trajectory_id("run", *key, sample), read_only([serial, END], "int32"),
                read_only([-0.5, -0.25], "float32"), f"text {serial}", FinishReason.STOP, version,
            ))  # fmt: skip
        return TrajectoryGroup(draw.prompt, read_only([1, AUDIO, AUDIO, 3], "int32"), tuple(trajectories))

    def _score(self, group: TrajectoryGroup) -> ScoredGroup:
        judgements = self.judge(self.scored)
        self.scored += 1
        serials = [int(t.token_ids[0]) for t in group.trajectories]
        self.judgements |= dict(zip(serials, judgements, strict=True))
        key = self.made[serials[0]][0]
        known = [j.value for j in judgements if isinstance(j, Reward)]
        if len(known) < 2:
            self._drop(key, "judge_failed")
        elif len(set(known)) == 1:
            self._drop(key, "equal_rewards")
        elif "teacher" not in self.stage.kind.scorers:
            self.buffered[key] = min(self.made[serial][1] for serial in serials)
        return ScoredGroup(group, tuple(judgements), judge="fake/1")

    def _teach(self, group: TrajectoryGroup) -> tuple[Lesson, ...]:
        serials = [int(t.token_ids[0]) for t in group.trajectories]
        lessons = tuple(UNREAD if self.teacher_fails() else LESSON for _ in serials)
        judged = [isinstance(self.judgements.get(serial, Reward(0.0)), Reward) for serial in serials]
        key = self.made[serials[0]][0]
        if any(lesson is LESSON and known for lesson, known in zip(lessons, judged, strict=True)):
            self.buffered[key] = min(self.made[serial][1] for serial in serials)
        else:
            self._drop(key, "teacher_failed")
        return lessons

    def _settle_stale(self) -> None:
        """A call that may only follow the dropping of stale groups."""
        for key, version in list(self.buffered.items()):
            if self.live - version > self.stage.max_staleness:
                del self.buffered[key]
                self._drop(key, "stale")

    def _drop(self, key: Key, reason: str) -> None:
        self.open.remove(key)
        self.dropped[key] = reason
        self.drops_since_step += 1

    def _check_slots(self) -> None:
        assert len(self.open) <= (self.stage.max_staleness + 1) * self.stage.groups_per_step
        if self.controller:
            assert self.controller.slots.held == len(self.open)


class FakeDataPorts:
    """A learner that trains on references: no rollout, no judge, no push."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.stage = config, config.stage[0]
        self.batches: list[Batch] = []
        self.versions: list[int] = []

    def step(self, batch: Batch, version: int) -> dict[str, float]:
        self.batches.append(batch)
        self.versions.append(version)
        return {"learner/loss": 0.5}

    def result(self, handle: dict[str, float]) -> dict[str, float]:
        return handle

    def completion_ids(self, text: str) -> np.ndarray:
        return read_only([len(text), END], "int32")

    def prompt_ids(self, prompt: Prompt, reads: str) -> list[int]:
        return [1, AUDIO, len(prompt.instruction)] if reads == "audio" else [1, len(prompt.transcript)]


def controller_on(ports: Any, *, start: int = 0, version: int = 0) -> Controller:
    stream = PromptStream(PROMPTS, seed=3)
    made = Controller(ports.config, ports.stage, ports, stream, run_id="run", start=start, version=version)
    ports.controller = made
    return made


def check_accounts(ports: FakePorts, reports: Sequence[StepReport], pending: Sequence[LedgerRow]) -> None:
    """dispatched = trained + dropped + in flight, each group once, in the ledger as in the world.

    `pending` are the rows of the window in which a run was stopped.
    """
    fates = Counter([*ports.trained, *ports.dropped, *ports.open])
    assert fates == Counter(dict.fromkeys(ports.dispatched, 1))
    rows = [row for report in reports for row in report.ledger] + list(pending)
    assert len({row.trajectory_id for row in rows}) == len(rows)
    reasons: dict[Key, set[str]] = {}
    for row in rows:
        check_row(ports, row)
        reasons.setdefault((row.epoch, row.prompt_id), set()).add(row.drop_reason)
    expected = {key: reason for key, reason in ports.dropped.items() if reason != "rollout"}
    expected |= dict.fromkeys(ports.trained, "")
    assert set(reasons) == set(expected)
    assert all(reasons[key] <= {reason, "judge_failed", "teacher_failed"} for key, reason in expected.items())
    counted = sum(int(report.metrics["buffer/dropped"]) for report in reports)
    assert counted == len(ports.dropped) - ports.drops_since_step


def check_row(ports: FakePorts, row: LedgerRow) -> None:
    serial = row.token_ids[0]
    key, version = ports.made[serial]
    assert (row.epoch, row.prompt_id, row.policy_version) == (*key, version)
    judgement = ports.judgements[serial]
    if isinstance(judgement, JudgeFailure):
        assert (row.reward, row.advantage, row.group_step, row.drop_reason) == (None, None, None, "judge_failed")
    else:
        assert row.reward == judgement.value
        assert (row.advantage is None) == (row.group_step is None) == bool(row.drop_reason)
