"""One loop for all stages.

What moves, what it waits for, and what unblocks it:

- *dispatch* consumes free slots and prompts; it waits for a slot; a slot comes back when the weights trained on its
  group are live, or when its group is dropped.
- *collect* consumes finished generations and judgements; it waits for whichever ends first.
- *train* consumes the `groups_per_step` oldest scored groups; it waits for that many, and for the learner to be idle.
- *sync* follows every step; it waits until every rollout actor serves the new version, and then frees the slots.

Asynchrony is a number: slots = (max_staleness + 1) x groups_per_step. Zero staleness is synchronous training, because
then every slot is held from dispatch until the push. A group's age is read when it is trained, not when it was packed;
one that has grown too old is dropped with that reason. Only the learn loop is finite.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cluster.stages import kind_of
from speechsum.advantage import group_advantages
from speechsum.batching import make_batch
from speechsum.config import RunConfig, StageConfig
from speechsum.data import Draw, PromptStream
from speechsum.errors import RunError
from speechsum.ledger import LedgerRow
from speechsum.types import (
    Batch,
    Completion,
    JudgeFailure,
    Reward,
    SamplingParams,
    ScoredGroup,
    TrainingSample,
    Trajectory,
    TrajectoryGroup,
    read_only,
)

DROPS_PER_STEP_LIMIT = 20
"""A step that had to drop this many times its groups is not making progress; the run stops and says why."""


class Ports(Protocol):
    """What the controller drives. Handles are opaque; `wait` gives those that are done, at least one."""

    def generate(self, draws: Sequence[Draw], sampling: SamplingParams, version: int) -> Any: ...
    def score(self, groups: Sequence[TrajectoryGroup]) -> Any: ...
    def step(self, batch: Batch, version: int) -> Any: ...
    def push(self, version: int) -> dict[str, float]: ...
    def wait(self, handles: Sequence[Any]) -> list[Any]: ...
    def result(self, handle: Any) -> Any: ...
    def completion_ids(self, text: str) -> Any: ...
    def request_ids(self, instruction: str) -> Any: ...


@dataclass(frozen=True)
class Lease:
    """A slot in use: which draw holds it, and the version that was live when it was taken."""

    number: int
    draw: Draw
    version: int


class Slots:
    """The budget that bounds staleness: at most `(max_staleness + 1) x groups_per_step` groups are under way."""

    def __init__(self, max_staleness: int, groups_per_step: int) -> None:
        self.size = (max_staleness + 1) * groups_per_step
        self._held: set[int] = set()
        self._next = 0

    @property
    def free(self) -> int:
        """Slots nobody holds."""
        return self.size - len(self._held)

    def take(self) -> int:
        """Hold a slot; gives its number, which is never used twice."""
        assert self.free > 0, "dispatch beyond the slot budget"
        self._held.add(self._next)
        self._next += 1
        return self._next - 1

    def release(self, number: int) -> None:
        """Give a slot back, once."""
        self._held.remove(number)


@dataclass(frozen=True)
class Ready:
    """A scored group that may be trained on, with the advantage (or None) of every trajectory."""

    lease: Lease
    scored: ScoredGroup
    advantages: tuple[float | None, ...]

    def sample(self) -> TrainingSample:
        """What the learner gets: trajectories without an advantage are masked by leaving them out."""
        group = self.scored.group
        kept = zip(group.trajectories, self.advantages, strict=True)
        completions = tuple(Completion(t.token_ids, t.logprobs, a, t.policy_version) for t, a in kept if a is not None)
        return TrainingSample(group.prompt.id, group.prompt.audio, group.prompt_ids, completions)


@dataclass(frozen=True)
class StepReport:
    """What one step did: its number (from 1), its metrics, the groups it trained on and every settled trajectory."""

    step: int
    metrics: dict[str, float]
    groups: tuple[ScoredGroup, ...]
    ledger: tuple[LedgerRow, ...]


@dataclass
class _Window:
    """Sums between two steps."""

    started: float = field(default_factory=time.perf_counter)
    rewards: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    gated: int = 0
    tokens: int = 0
    truncated: int = 0
    trajectories: int = 0
    generate_s: float = 0.0
    score_s: float = 0.0
    ledger: list[LedgerRow] = field(default_factory=list)


class Controller:
    """Runs one stage from step `start` to its end, yielding a `StepReport` after each step is live."""

    def __init__(
        self, config: RunConfig, stage: StageConfig, ports: Ports, stream: PromptStream, *,
        run_id: str, start: int = 0, version: int = 0,
    ) -> None:  # fmt: skip
        self.config, self.stage, self.ports, self.stream, self.run_id = config, stage, ports, stream, run_id
        self.kind = kind_of(stage)
        self.sampling = SamplingParams(
            n=stage.group_size, temperature=config.rollout.temperature, top_p=config.rollout.top_p,
            max_tokens=config.rollout.max_tokens, seed=config.seed,
        )  # fmt: skip
        self.slots = Slots(stage.max_staleness, stage.groups_per_step)
        self.version = version
        self.done = start
        self.window = _Window()
        self._under_way: dict[Any, tuple[str, tuple[Lease, ...], float]] = {}
        self._buffer: deque[Ready] = deque()
        self._training: tuple[Any, list[Ready]] | None = None
        self._judged: deque[bool] = deque(maxlen=config.judge.failure_window)

    def run(self) -> Iterator[StepReport]:
        """The learn loop."""
        if self.kind.completions == "data":
            yield from self._run_on_data()
            return
        while self.done < self.stage.steps:
            self._dispatch()
            self._train_if_ready()
            handles = list(self._under_way) + ([self._training[0]] if self._training else [])
            for handle in self.ports.wait(handles):
                if self._training and handle == self._training[0]:
                    yield self._finish_step()
                else:
                    self._collect(handle)

    def _run_on_data(self) -> Iterator[StepReport]:
        """References are the completions: nothing to generate, nobody to score, nothing to push."""
        while self.done < self.stage.steps:
            draws = self.stream.take(self.stage.groups_per_step)
            samples = [
                TrainingSample(
                    d.prompt.id, d.prompt.audio, read_only(self.ports.request_ids(d.prompt.instruction), "int32"),
                    (Completion(self.ports.completion_ids(d.prompt.reference), read_only([], "float32"), 0.0, 0),),
                )
                for d in draws
            ]  # fmt: skip
            batch = make_batch(samples, self.config.learner.ranks)
            metrics = self.ports.result(self.ports.step(batch, self.version))
            self.done += 1
            self.version += 1
            yield StepReport(self.done, metrics | {"buffer/trained_groups": len(samples)}, (), ())

    # --- dispatch and collect -----------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Fill every free slot, in requests of at most `prompts_per_request`."""
        while self.slots.free:
            count = min(self.slots.free, self.config.rollout.prompts_per_request)
            leases = tuple(Lease(self.slots.take(), draw, self.version) for draw in self.stream.take(count))
            handle = self.ports.generate([lease.draw for lease in leases], self.sampling, self.version)
            self._under_way[handle] = ("generate", leases, time.perf_counter())

    def _collect(self, handle: Any) -> None:
        what, leases, since = self._under_way.pop(handle)
        result = self.ports.result(handle)
        seconds = time.perf_counter() - since
        if what == "generate":
            self.window.generate_s += seconds
            self._generated(leases, result)
        else:
            self.window.score_s += seconds
            for lease, scored in zip(leases, result, strict=True):
                self._scored(lease, scored)
        self._stop_if_stuck()

    def _generated(self, leases: Sequence[Lease], rolled: Sequence[Any]) -> None:
        kept: list[tuple[Lease, TrajectoryGroup]] = []
        for lease, group in zip(leases, rolled, strict=True):
            if isinstance(group, TrajectoryGroup):
                kept.append((lease, group))
                self.window.trajectories += len(group.trajectories)
                self.window.tokens += sum(len(t.token_ids) for t in group.trajectories)
                self.window.truncated += sum(t.finish_reason == "length" for t in group.trajectories)
            else:
                self._drop(lease, f"rollout: {group.reason}")
        if kept:
            handle = self.ports.score([group for _, group in kept])
            self._under_way[handle] = ("score", tuple(lease for lease, _ in kept), time.perf_counter())

    def _scored(self, lease: Lease, scored: ScoredGroup) -> None:
        for judgement in scored.judgements:
            failed = isinstance(judgement, JudgeFailure)
            self._judged.append(failed)
            if isinstance(judgement, JudgeFailure):
                self.window.failures[judgement.kind] += 1
            else:
                self.window.rewards.append(judgement.value)
                self.window.gated += bool(judgement.gate)
        self._stop_if_judge_fails()
        rewards = [j.value if isinstance(j, Reward) else None for j in scored.judgements]
        scale = getattr(self.stage.loss, "scale_by_std", True)
        advantages = tuple(group_advantages(rewards, scale_by_std=scale))
        if all(a is None for a in advantages):
            known = sum(r is not None for r in rewards)
            self._drop(lease, "judge_failed" if known < 2 else "equal_rewards", scored)
        else:
            self._buffer.append(Ready(lease, scored, advantages))

    def _drop(self, lease: Lease, reason: str, scored: ScoredGroup | None = None) -> None:
        """A group leaves without being trained on: its slot is free, its trajectories are accounted for."""
        self.window.drops[reason.partition(":")[0]] += 1
        self.slots.release(lease.number)
        if scored is not None:
            self.window.ledger += self._rows(lease, scored, step=None, drop=reason, advantages=None)

    # --- train and sync -----------------------------------------------------------------------------------------

    def _train_if_ready(self) -> None:
        """Start a step on the oldest groups, when there are enough and the learner is idle."""
        if self._training or self.done >= self.stage.steps:
            return
        for ready in [r for r in self._buffer if self._age(r) > self.stage.max_staleness]:
            self._buffer.remove(ready)
            self._drop(ready.lease, "stale", ready.scored)
        if len(self._buffer) < self.stage.groups_per_step:
            self._dispatch()
            return
        oldest = sorted(self._buffer, key=lambda r: r.lease.number)[: self.stage.groups_per_step]
        for ready in oldest:
            self._buffer.remove(ready)
        batch = make_batch([r.sample() for r in oldest], self.config.learner.ranks)
        self._training = self.ports.step(batch, self.version), oldest

    def _age(self, ready: Ready) -> int:
        """Optimizer steps between the weights that wrote the group and those it would train."""
        return self.version - min(t.policy_version for t in ready.scored.group.trajectories)

    def _finish_step(self) -> StepReport:
        """The learner is done: push, and only when the new weights are live free the slots."""
        assert self._training is not None
        handle, trained = self._training
        self._training = None
        metrics = dict(self.ports.result(handle))
        staleness = max(self._age(r) for r in trained)
        metrics |= self.ports.push(self.version + 1)
        self.version += 1
        self.done += 1
        for ready in trained:
            self.slots.release(ready.lease.number)
            self.window.ledger += self._rows(
                ready.lease, ready.scored, step=self.done, drop="", advantages=ready.advantages
            )
        window, self.window = self.window, _Window()
        metrics |= self._window_metrics(window) | {"buffer/staleness_max": staleness, "sync/version": self.version}
        metrics["buffer/trained_groups"] = len(trained)
        return StepReport(self.done, metrics, tuple(r.scored for r in trained), tuple(window.ledger))

    # --- figures and guards -------------------------------------------------------------------------------------

    def _window_metrics(self, w: _Window) -> dict[str, float]:
        judged = len(w.rewards) + sum(w.failures.values())
        mean = sum(w.rewards) / len(w.rewards) if w.rewards else float("nan")
        spread = sum((r - mean) ** 2 for r in w.rewards) / max(len(w.rewards), 1)
        metrics = {
            "judge/reward_mean": mean,
            "judge/reward_std": spread**0.5,
            "judge/failure_share": sum(w.failures.values()) / max(judged, 1),
            "judge/gated_share": w.gated / max(judged, 1),
            "judge/score_s": w.score_s,
            "rollout/tokens": w.tokens,
            "rollout/tokens_per_s": w.tokens / w.generate_s if w.generate_s else 0.0,
            "rollout/response_tokens_mean": w.tokens / max(w.trajectories, 1),
            "rollout/truncated_share": w.truncated / max(w.trajectories, 1),
            "buffer/dropped": sum(w.drops.values()),
            "wall/step_s": time.perf_counter() - w.started,
        }
        metrics |= {f"judge/failed_{kind}": n for kind, n in w.failures.items()}
        return metrics | {f"buffer/dropped_{reason}": n for reason, n in w.drops.items()}

    def _rows(
        self, lease: Lease, scored: ScoredGroup, *, step: int | None, drop: str,
        advantages: tuple[float | None, ...] | None,
    ) -> list[LedgerRow]:  # fmt: skip
        """A ledger row for every trajectory of a settled group; one that failed its judgement has its own reason."""
        group = scored.group
        rows = []
        for i, (trajectory, judgement) in enumerate(zip(group.trajectories, scored.judgements, strict=True)):
            advantage = advantages[i] if advantages else None
            reason = drop if advantages is None else ("" if advantage is not None else "judge_failed")
            rows.append(_ledger_row(self, lease, trajectory, judgement, i, None if reason else step, reason, advantage))
        return rows

    def _stop_if_judge_fails(self) -> None:
        limit = self.config.judge.max_failure_share
        if len(self._judged) < self._judged.maxlen and len(self._judged) < 4 * self.stage.group_size:  # type: ignore[operator]
            return
        share = sum(self._judged) / len(self._judged)
        if share > limit:
            kinds = ", ".join(f"{n} {kind}" for kind, n in self.window.failures.most_common(3))
            raise RunError(
                f"{share:.0%} of the last {len(self._judged)} judgements failed ({kinds}); "
                f"judge.max_failure_share is {limit:.0%}: mend the judge and go on with --resume"
            )

    def _stop_if_stuck(self) -> None:
        dropped = sum(self.window.drops.values())
        if dropped > DROPS_PER_STEP_LIMIT * self.stage.groups_per_step:
            why = ", ".join(f"{n} {reason}" for reason, n in self.window.drops.most_common(3))
            raise RunError(f"{dropped} groups were dropped without a step ({why}); no progress is possible this way")


def _ledger_row(
    controller: Controller, lease: Lease, trajectory: Trajectory, judgement: Reward | JudgeFailure, sample: int,
    step: int | None, drop: str, advantage: float | None,
) -> LedgerRow:  # fmt: skip
    scored = isinstance(judgement, Reward)
    return LedgerRow(
        trajectory_id=trajectory.id,
        run_id=controller.run_id,
        stage=controller.stage.name,
        epoch=lease.draw.epoch,
        prompt_id=lease.draw.prompt.id,
        sample=sample,
        group_step=step,
        drop_reason=drop,
        policy_version=trajectory.policy_version,
        prompt_tokens=0,
        response_tokens=len(trajectory.token_ids),
        finish_reason=trajectory.finish_reason,
        text=trajectory.text,
        token_ids=trajectory.token_ids,
        logprobs=trajectory.logprobs,
        reward=judgement.value if isinstance(judgement, Reward) else None,
        breakdown=judgement.breakdown if isinstance(judgement, Reward) else {},
        judge_failure="" if scored else str(judgement.kind),  # type: ignore[union-attr]
        advantage=advantage,
    )
