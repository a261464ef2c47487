"""One loop for all stages.

What moves, what it waits for, and what unblocks it:

- *dispatch* consumes free slots and prompts; it waits for a slot; a slot comes back when the weights trained on its
  group are live, or when its group is dropped.
- *collect* consumes finished generations, judgements and lessons; it waits for whichever ends first, and begins what
  the stage asks for next: a judge, a teacher, or nothing.
- *train* consumes the `groups_per_step` oldest scored groups; it waits for that many, and for the learner to be idle.
- *sync* follows every step; it waits until every rollout actor serves the new version, and then frees the slots.

Asynchrony is a number: slots = (max_staleness + 1) x groups_per_step. Zero staleness is synchronous training, because
then every slot is held from dispatch until the push. A group's age is read when it is trained, not when it was packed;
one that has grown too old is dropped with that reason. Only the learn loop is finite.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from actors.rollout import Rolled
from cluster.buffer import Lease, Ready, Slots
from cluster.selection import Selection, judged, taught
from cluster.spans import Span, SpanLog
from cluster.window import Window
from speechsum.batching import make_batch
from speechsum.config import RunConfig, StageConfig
from speechsum.data import Draw, PromptStream
from speechsum.errors import RunError
from speechsum.ledger import LedgerRow
from speechsum.pairs import PairIds
from speechsum.types import (
    Batch,
    Completion,
    FailureKind,
    JudgeFailure,
    Lesson,
    Prompt,
    Reward,
    SamplingParams,
    ScoredGroup,
    TrainingSample,
    TrajectoryGroup,
    read_only,
)

Work = Literal["generate", "score", "teach"]

WHERE: Mapping[Work, str] = {"generate": "running", "score": "judging", "teach": "teaching"}
"""What prompts are said to be doing meanwhile."""

DROPS_PER_STEP_LIMIT = 20
"""A step that had to drop this many times its groups is not making progress; the run stops and says why."""

GROUPS_BEFORE_JUDGING_THE_JUDGE = 4
"""Before this many groups' judgements (or a full window) the share of failures says too little to stop a run."""


class Ports(Protocol):
    """What the controller drives. Handles are opaque and can be told apart; each has its result taken once."""

    def generate(self, draws: Sequence[Draw], sampling: SamplingParams, version: int) -> Any:
        """Begin to roll out `draws` on weights no older than `version`; the result is a list of `Rolled`, in order."""

    def score(self, groups: Sequence[TrajectoryGroup]) -> Any:
        """Begin to judge; the result is a list of `ScoredGroup`, in order."""

    def teach(self, groups: Sequence[TrajectoryGroup]) -> Any:
        """Begin to score tokens; the result is a tuple of `Lesson` for each group, in order."""

    def step(self, batch: Batch, version: int) -> Any:
        """Begin an optimizer step on top of `version`; the result is its metrics."""

    def push(self, version: int) -> dict[str, float]:
        """Put the learner's weights in force everywhere as `version`, and give the figures of doing so."""

    def actor(self, handle: Any) -> str:
        """Who has a call that is under way, such as `rollout 0`; empty while nobody has."""

    def given(self, handle: Any) -> float:
        """When that one got it, in seconds since 1970; 0 where it was at once."""

    def wait(self, handles: Sequence[Any]) -> list[Any]:
        """Those of `handles` that are done, at least one."""

    def result(self, handle: Any) -> Any:
        """What a call gave; waits for it."""

    def completion_ids(self, text: str) -> np.ndarray:
        """A reference as response ids [R]."""

    def prompt_ids(self, prompt: Prompt, reads: Literal["audio", "transcript"]) -> list[int]:
        """A prompt's ids, with one placeholder where the audio goes, or with the transcript in its place."""


@dataclass(frozen=True)
class StepReport:
    """What one step did: its number (from 1), its metrics, the groups it trained on and every settled trajectory.

    `spans` are of the calls that ended since the last report.
    """

    step: int
    metrics: dict[str, float]
    groups: tuple[ScoredGroup, ...]
    ledger: tuple[LedgerRow, ...]
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Call:
    """What was begun when (seconds since 1970), and for which slots. `scored` is what lessons will be added to."""

    work: Work
    leases: tuple[Lease, ...]
    scored: tuple[tuple[ScoredGroup, Selection | None], ...] = ()
    asked: float = field(default_factory=time.time)


class Controller:
    """Runs one stage from step `start` to its end, yielding a `StepReport` after each step is live.

    `pairs` are those that an offline stage trains on, by prompt. `observe` is told how things stand (live metrics)
    whenever the controller is about to wait. `run` raises `RunError` when too many judgements
    fail, or when nearly every group has to be dropped.
    """

    def __init__(
        self, config: RunConfig, stage: StageConfig, ports: Ports, stream: PromptStream, *,
        run_id: str, start: int = 0, version: int = 0, pairs: Mapping[str, Sequence[PairIds]] | None = None,
        observe: Callable[[Mapping[str, float]], None] = lambda figures: None,
    ) -> None:  # fmt: skip
        self.config, self.stage, self.ports, self.stream, self.run_id = config, stage, ports, stream, run_id
        self.kind = stage.kind
        self.pairs = pairs or {}
        self.observe = observe
        self.sampling = SamplingParams(
            n=stage.group_size, temperature=config.rollout.temperature, top_p=config.rollout.top_p,
            max_tokens=config.rollout.max_tokens, seed=config.seed,
        )  # fmt: skip
        self.slots = Slots(stage.max_staleness, stage.groups_per_step)
        self.version = version
        self.done = start
        self.window = Window()
        self._under_way: dict[Any, Call] = {}
        self._busy_since: dict[Work, float] = {}
        self._buffer: list[Ready] = []
        self._training: tuple[Any, list[Ready]] | None = None
        self._step_asked = self._step_began = time.time()
        self._spans = SpanLog(stage.name)
        self._last_judgements: deque[FailureKind | None] = deque(maxlen=config.judge.failure_window)

    def run(self) -> Iterator[StepReport]:
        """The learn loop."""
        if self.kind.completions != "rollout":
            yield from self._run_on_data()
            return
        while self.done < self.stage.steps:
            self._drop_stale()
            self._dispatch()
            self._train_if_ready()
            for handle in self._wait():
                if self._training and handle == self._training[0]:
                    yield self._finish_step()
                else:
                    self._collect(handle)

    def _wait(self) -> list[Any]:
        """What is done. While only teachers work, everybody waits for them."""
        self.observe(self._standing())
        works = {call.work for call in self._under_way.values()}
        started = time.perf_counter()
        done = self.ports.wait(list(self._under_way) + ([self._training[0]] if self._training else []))
        if works == {"teach"} and not self._training:
            self.window.teach_exposed_s += time.perf_counter() - started
        return done

    def _standing(self) -> dict[str, float]:
        """Where the prompts are that hold a slot, and how old what waits for its step is."""
        counts: dict[str, float] = dict.fromkeys(("waiting", "running", "judging", "teaching"), 0)
        engaged: set[str] = {""}
        for handle, call in self._under_way.items():
            where = WHERE[call.work]
            if call.work == "generate":
                actor = self.ports.actor(handle)
                where = "waiting" if actor in engaged else where
                engaged.add(actor)
            counts[where] += len(call.leases)
        counts |= {"scored": len(self._buffer), "training": len(self._training[1]) if self._training else 0}
        return {f"prompts/{where}": n for where, n in counts.items()} | {
            "buffer/staleness_now": max(map(self._age, self._buffer), default=0),
            "buffer/staleness_bound": self.stage.max_staleness,
        }

    def _run_on_data(self) -> Iterator[StepReport]:
        """The completions are there already: nothing to generate, nobody to score, nothing to push."""
        while self.done < self.stage.steps:
            started = time.perf_counter()
            samples = [self._from_data() for _ in range(self.stage.groups_per_step)]
            batch = make_batch(samples, self.config.learner.ranks)
            asked = time.time()
            metrics = dict(self.ports.result(self.ports.step(batch, self.version)))
            self.done += 1
            self._spans.add("train", "learner", asked, self.done, len(samples))
            self.version += 1
            metrics |= {"buffer/trained_groups": len(samples), "wall/step_s": time.perf_counter() - started}
            yield StepReport(self.done, metrics, (), (), self._spans.take())

    def _from_data(self) -> TrainingSample:
        """The next prompt with its reference, or the next that has pairs with one of them, another each epoch."""
        (draw,) = self.stream.take(1)
        if self.kind.completions == "pairs":
            while not (pairs := self.pairs.get(draw.prompt.id)):
                (draw,) = self.stream.take(1)
            answers: Sequence[np.ndarray] = pairs[draw.epoch % len(pairs)]
        else:
            answers = (self.ports.completion_ids(draw.prompt.reference),)
        ids = read_only(self.ports.prompt_ids(draw.prompt, self.stage.reads), "int32")
        nobodys = read_only([], "float32")
        completions = tuple(Completion(answer, nobodys, 0.0, 0) for answer in answers)
        return TrainingSample(draw.prompt.id, draw.prompt.audio, ids, completions)

    def outstanding(self) -> list[Draw]:
        """Draws between dispatch and training, oldest first: what a checkpoint must not count as used."""
        leases = [lease for call in self._under_way.values() for lease in call.leases]
        leases += [ready.lease for ready in self._buffer]
        return [lease.draw for lease in sorted(leases, key=lambda lease: lease.number)]

    def abandon(self) -> list[LedgerRow]:
        """The accounts of a stage that ends before its time: what was judged since the last step."""
        for ready in (*self._buffer, *(self._training[1] if self._training else ())):
            self._record(ready, drop="stopped")
        return self.window.ledger

    # --- dispatch and collect -----------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Fill the free slots that the remaining steps have a use for, `prompts_per_request` prompts at a time."""
        useful = (self.stage.steps - self.done) * self.stage.groups_per_step
        while (room := min(self.slots.free, useful - self.slots.held)) > 0:
            draws = self.stream.take(min(room, self.config.rollout.prompts_per_request))
            leases = tuple(Lease(self.slots.take(), draw) for draw in draws)
            self._begin(self.ports.generate(draws, self.sampling, self.version), Call("generate", leases))

    def _begin(self, handle: Any, call: Call) -> None:
        if all(other.work != call.work for other in self._under_way.values()):
            self._busy_since[call.work] = time.perf_counter()
        self._under_way[handle] = call

    def _collect(self, handle: Any) -> None:
        call = self._under_way.pop(handle)
        actor, asked = self.ports.actor(handle), max(call.asked, self.ports.given(handle))
        result = self.ports.result(handle)
        self._spans.add(call.work, actor or call.work, asked, self.done + 1, len(call.leases))
        now = time.perf_counter()
        self.window.busy_s[call.work] += now - self._busy_since[call.work]
        self._busy_since[call.work] = now
        if call.work == "generate":
            self._generated(call.leases, result)
        elif call.work == "score":
            self._scored(call.leases, result)
        else:
            self._taught(call, result)
        self._stop_if_stuck()

    def _generated(self, leases: Sequence[Lease], rolled: Sequence[Rolled]) -> None:
        kept: list[tuple[Lease, TrajectoryGroup]] = []
        for lease, group in zip(leases, rolled, strict=True):
            if isinstance(group, TrajectoryGroup):
                kept.append((lease, group))
                self.window.generated(group)
            else:
                self.window.last_rollout_failure = f"{group.prompt_id}: {group.reason}"
                self._drop(lease, "rollout")
        if kept and "judge" in self.kind.scorers:
            self._begin(
                self.ports.score([group for _, group in kept]), Call("score", tuple(lease for lease, _ in kept))
            )
        else:
            self._ask_teacher([(lease, ScoredGroup(group, ()), None) for lease, group in kept])

    def _scored(self, leases: Sequence[Lease], result: Sequence[ScoredGroup]) -> None:
        kept: list[tuple[Lease, ScoredGroup, Selection]] = []
        for lease, scored in zip(leases, result, strict=True):
            self.window.judged(scored)
            self._last_judgements += [a.kind if isinstance(a, JudgeFailure) else None for a in scored.answers]
            selection = judged(self.stage.loss, scored)
            if "teacher" in self.kind.scorers and not selection.why_not:
                kept.append((lease, scored, selection))
            else:
                self._settle(lease, scored, selection)
            self._stop_if_judge_fails()
        self._ask_teacher(kept)

    def _ask_teacher(self, asked: Sequence[tuple[Lease, ScoredGroup, Selection | None]]) -> None:
        if asked:
            handle = self.ports.teach([scored.group for _, scored, _ in asked])
            leases, waiting = tuple(a[0] for a in asked), tuple(a[1:] for a in asked)
            self._begin(handle, Call("teach", leases, waiting))

    def _taught(self, call: Call, result: Sequence[Sequence[Lesson]]) -> None:
        for lease, (scored, selection), lessons in zip(call.leases, call.scored, result, strict=True):
            self.window.taught(lessons)
            self._settle(lease, scored, taught(scored.group, lessons, selection))

    def _settle(self, lease: Lease, scored: ScoredGroup, selection: Selection) -> None:
        """Everybody has been asked: the group waits for its step, or is dropped."""
        ready = Ready(lease, scored, selection)
        if selection.why_not:
            self._discard(ready, selection.why_not)
        else:
            self._buffer.append(ready)

    def _drop(self, lease: Lease, reason: str) -> None:
        """A group leaves without being trained on, and its slot is free."""
        self.window.drops[reason] += 1
        self.slots.release(lease.number)

    def _discard(self, ready: Ready, reason: str) -> None:
        """Drop a group whose trajectories have to be accounted for."""
        self._drop(ready.lease, reason)
        self._record(ready, drop=reason)

    # --- train and sync -----------------------------------------------------------------------------------------

    def _drop_stale(self) -> None:
        """Drop what would be too old for the next step. A step's own groups have left the buffer."""
        for ready in [r for r in self._buffer if self._age(r) > self.stage.max_staleness]:
            self._buffer.remove(ready)
            self._discard(ready, "stale")

    def _age(self, ready: Ready) -> int:
        """Optimizer steps between the weights that wrote the group and those it would train."""
        return self.version - min(t.policy_version for t in ready.scored.group.trajectories)

    def _train_if_ready(self) -> None:
        """Start a step on the oldest groups, when there are enough and the learner is idle."""
        if self._training or len(self._buffer) < self.stage.groups_per_step:
            return
        self._buffer.sort(key=lambda ready: ready.lease.number)
        oldest = self._buffer[: self.stage.groups_per_step]
        del self._buffer[: self.stage.groups_per_step]
        batch = make_batch([ready.sample() for ready in oldest], self.config.learner.ranks)
        self._step_asked = time.time()
        self._training = self.ports.step(batch, self.version), oldest

    def _finish_step(self) -> StepReport:
        """The learner is done: push, and only when the new weights are live free the slots."""
        assert self._training is not None
        handle, trained = self._training
        self._training = None
        metrics = dict(self.ports.result(handle))
        self._spans.add("train", "learner", self._step_asked, self.done + 1, len(trained))
        metrics["buffer/staleness_max"] = max(self._age(ready) for ready in trained)
        metrics["buffer/trained_groups"] = len(trained)
        asked = time.time()
        metrics |= self.ports.push(self.version + 1)
        self._spans.add("push", "sync", asked, self.done + 1)
        self.version += 1
        self.done += 1
        for ready in trained:
            self.slots.release(ready.lease.number)
            self._record(ready, step=self.done)
        window, self.window = self.window, Window()
        waited_s = max(0.0, self._step_asked - self._step_began)
        metrics |= window.metrics() | {"sync/version": self.version, "learner/wait_s": waited_s}
        self._spans.add("step", "step", self._step_began, self.done, len(trained))
        self._step_began = time.time()
        scored = tuple(ready.scored for ready in trained)
        return StepReport(self.done, metrics, scored, tuple(window.ledger), self._spans.take())

    # --- accounts and guards ------------------------------------------------------------------------------------

    def _record(self, ready: Ready, *, step: int | None = None, drop: str = "") -> None:
        """A ledger row for every trajectory of a settled group, with its own reason where it was not trained on."""
        group, selection = ready.scored.group, ready.selection
        judgements = ready.scored.judgements or (None,) * len(group.trajectories)
        for sample, (trajectory, judgement) in enumerate(zip(group.trajectories, judgements, strict=True)):
            reward = judgement if isinstance(judgement, Reward) else None
            reason = selection.fates[sample] or drop
            pair = selection.pairs[sample]
            row = LedgerRow(
                trajectory_id=trajectory.id,
                run_id=self.run_id,
                stage=self.stage.name,
                epoch=ready.lease.draw.epoch,
                prompt_id=group.prompt.id,
                sample=sample,
                group_step=None if reason else step,
                drop_reason=reason,
                policy_version=trajectory.policy_version,
                prompt_tokens=len(group.prompt_ids),
                response_tokens=len(trajectory.token_ids),
                finish_reason=trajectory.finish_reason,
                text=trajectory.text,
                token_ids=trajectory.token_ids.tolist(),
                logprobs=trajectory.logprobs.tolist(),
                reward=reward.value if reward else None,
                judge=ready.scored.judge,
                breakdown=reward.breakdown if reward else {},
                judge_failure=_told(judgement) if isinstance(judgement, JudgeFailure) else "",
                gate=reward.gate if reward else "",
                advantage=None if reason else selection.advantages[sample],
                pair=pair[0] if pair and not reason else None,
                preferred=pair[1] if pair and not reason else None,
            )
            self.window.ledger.append(row)

    def _stop_if_judge_fails(self) -> None:
        """Compare the last `judge.failure_window` judgements with the limit, once a few groups have been judged."""
        last, limit = self._last_judgements, self.config.judge.max_failure_share
        if len(last) < min(self.config.judge.failure_window, GROUPS_BEFORE_JUDGING_THE_JUDGE * self.stage.group_size):
            return
        failures = Counter(kind for kind in last if kind)
        share = failures.total() / len(last)
        if share > limit:
            raise RunError(
                f"{share:.0%} of the last {len(last)} judgements failed ({_counts(failures)}); "
                f"judge.max_failure_share is {limit:.0%}: mend the judge and go on with --resume"
            )

    def _stop_if_stuck(self) -> None:
        drops = self.window.drops
        if drops.total() > DROPS_PER_STEP_LIMIT * self.stage.groups_per_step:
            last = self.window.last_rollout_failure
            raise RunError(
                f"{drops.total()} groups were dropped without a step ({_counts(drops)}); "
                f"no progress is possible this way{f'; the last rollout to fail: {last}' if last else ''}"
            )


def _counts(counter: Counter[Any]) -> str:
    return ", ".join(f"{n} {what}" for what, n in counter.most_common(3))


def _told(failure: JudgeFailure) -> str:
    """A failed judgement as the ledger has it."""
    return f"{failure.kind}: {failure.detail}" if failure.detail else str(failure.kind)
