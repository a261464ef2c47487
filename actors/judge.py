"""One door to every judge: `make_judge` picks by configuration, `JudgeActor` is the Ray shell around the choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import ray

from actors.likelihood_judge import LikelihoodJudge, Scorer, revision
from actors.notice import Notice
from actors.published import Published
from actors.teacher import TeachersEngine
from speechsum.config import JudgeConfig
from speechsum.errors import UserError
from speechsum.pairs import all_pairs, fared
from speechsum.rewards import apply_gates
from speechsum.types import (
    JudgeFailure,
    Judgement,
    JudgeTask,
    Leaving,
    PairTask,
    Preference,
    Reward,
    ScoredGroup,
    TrajectoryGroup,
)

Task = TypeVar("Task", contravariant=True)


class JudgeOf(Protocol[Task]):
    """Scores tasks against their source. Scores compare only within one `name` and `version`."""

    name: str
    version: str

    def score(self, tasks: Sequence[Task]) -> list[Judgement]:
        """One judgement per task, in order; a task that cannot be judged is a `JudgeFailure`, never a number."""

    def close(self) -> None:
        """Release what the judge holds. Safe to call twice."""


Judge = JudgeOf[JudgeTask]
"""Gives each summary a reward of its own."""

PairJudge = JudgeOf[PairTask]
"""Gives every two summaries the probability that the first is the better one."""


@runtime_checkable
class Observed(Protocol):
    """What a judge can tell of itself besides, if it asks an endpoint or a cache."""

    @property
    def served_models(self) -> tuple[str, ...]:
        """What the endpoint said that it serves, so far."""

    def counts(self) -> dict[str, float]:
        """Totals since the start, by metric name."""


@runtime_checkable
class Remembering(Protocol):
    """A judge that keeps its judgements, and can be asked as if it did not."""

    def score_afresh(self, tasks: Sequence[Any]) -> list[Judgement]:
        """See `JudgeOf.score`; nothing is taken from what is kept, and nothing added to it."""


def make_judge(config: JudgeConfig, path: str | None, scorer: Scorer | None = None) -> Judge:
    """The judge of single summaries that `config.kind` names; `path` is the checkpoint folder of `likelihood`.

    With `scorer`, an engine that has that checkpoint already, no other is loaded.
    With `config.cache` it asks nothing twice. Raises `UserError` for what the configuration lacks, the cache first:
    a file that cannot be used is told before a model loads.
    """
    if config.kind == "pairwise":
        raise UserError("judge.kind = 'pairwise' gives no summary a reward of its own; set it to 'rubric'")
    if not config.cache:
        return _uncached(config, path, scorer)[0]
    from actors.judge_cache import CachedJudge, JudgementCache, checkpoint_digest

    cache = JudgementCache(config.cache)
    judge, settings = _uncached(config, path, scorer)
    if isinstance(judge, LikelihoodJudge):
        assert path is not None
        settings = {"checkpoint": checkpoint_digest(Path(path)), "dtype": judge.dtype}
    return CachedJudge(judge, cache, settings)


def make_pair_judge(config: JudgeConfig) -> PairJudge:
    """The judge of two summaries, for `config.kind` `pairwise`. Raises `UserError` as `make_judge` does."""
    from actors.pairwise_judge import PairwiseJudge

    if not config.cache:
        return PairwiseJudge(config.endpoint)
    from actors.judge_cache import CachedJudge, JudgementCache

    cache = JudgementCache(config.cache)
    judge = PairwiseJudge(config.endpoint)
    return CachedJudge(judge, cache, judge.decoding)


def _uncached(config: JudgeConfig, path: str | None, scorer: Scorer | None) -> tuple[Judge, dict[str, Any]]:
    """The judge, and how it decodes."""
    if config.kind == "likelihood":
        if path is None:
            raise UserError("judge.kind = 'likelihood' needs a causal language model; set judge.path")
        loaded = LikelihoodJudge(scorer, revision(Path(path))) if scorer else LikelihoodJudge.load(path, config.engine)
        return loaded, {}
    from actors.rubric_judge import LexicalJudge, RubricJudge

    if config.kind == "lexical":
        return LexicalJudge(), {}
    judge = RubricJudge(config.endpoint)
    return judge, judge.decoding


def tasks_of(group: TrajectoryGroup) -> list[JudgeTask]:
    """What a group asks of its judge: every completion against the transcript that the student never saw."""
    prompt = group.prompt
    return [JudgeTask(prompt.transcript, prompt.instruction, t.text) for t in group.trajectories]


def identity(judge: JudgeOf[Any]) -> str:
    """Name and version: what a score has to be compared within."""
    return f"{judge.name}/{judge.version}"


def score_groups(judge: Judge, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup]:
    """Judge all completions of all groups in one call, so that an engine can batch them."""
    tasks = [tasks_of(group) for group in groups]
    judgements = iter(judge.score([task for own in tasks for task in own]))
    return [
        ScoredGroup(group, tuple(next(judgements) for _ in own), judge=identity(judge))
        for group, own in zip(groups, tasks, strict=True)
    ]


def compare_groups(judge: PairJudge, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup]:
    """Compare every two completions of each group, all in one call."""
    tasks = [_pair_tasks(group) for group in groups]
    judgements = iter(judge.score([task for own in tasks for task in own.values()]))
    return [
        _compared(group, [Preference(*places, next(judgements)) for places in own], identity(judge))
        for group, own in zip(groups, tasks, strict=True)
    ]


def _pair_tasks(group: TrajectoryGroup) -> dict[tuple[int, int], PairTask]:
    prompt, texts = group.prompt, [t.text for t in group.trajectories]
    return {
        (i, j): PairTask(prompt.transcript, prompt.instruction, texts[i], texts[j]) for i, j in all_pairs(len(texts))
    }


def _compared(group: TrajectoryGroup, preferences: Sequence[Preference], judge: str) -> ScoredGroup:
    """How each completion fared, with the gate that turned it down, if one did."""
    judgements: list[Judgement] = []
    for task, judgement in zip(tasks_of(group), fared(len(group.trajectories), preferences), strict=True):
        gated = apply_gates(task)
        gate = gated.gate if gated else ""
        judgements.append(replace(judgement, gate=gate) if isinstance(judgement, Reward) else judgement)
    return ScoredGroup(group, tuple(judgements), tuple(preferences), judge)


@ray.remote
class JudgeActor:
    """A judge in a Ray actor, with its metrics on Ray's Prometheus endpoint. `index` tells actors of one run apart.

    A `likelihood` judge given a `teacher` actor, which has to hold the checkpoint in `path`, asks that one's engine.
    """

    def __init__(self, config: JudgeConfig, path: str | None, *, index: int = 0, teacher: Any = None) -> None:
        self._pairwise = config.kind == "pairwise"
        scorer = TeachersEngine(teacher, Path(path)) if teacher and path else None
        self._judge: JudgeOf[Any] = make_pair_judge(config) if self._pairwise else make_judge(config, path, scorer)
        tags = {"actor": str(index), "judge": self._judge.name, "version": self._judge.version}
        self._published = Published(tags)
        self._notice = Notice()

    def join(self) -> str:
        """See `Notice.listen`."""
        return self._notice.listen()

    def ready(self) -> str:
        """Name and version of the judge; answers once it is loaded."""
        return identity(self._judge)

    def score(self, tasks: Sequence[JudgeTask] | Sequence[PairTask], afresh: bool = False) -> list[Judgement] | Leaving:
        """See `JudgeOf.score`; the tasks are those of the configured kind. `afresh` is what an audit wants."""
        if self._notice.given:
            return Leaving()
        started = time.perf_counter()
        if afresh and isinstance(self._judge, Remembering):
            judgements = self._judge.score_afresh(tasks)
        else:
            judgements = self._judge.score(tasks)
        self._publish(judgements, time.perf_counter() - started)
        return judgements

    def score_groups(self, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup] | Leaving:
        """Several groups in one engine call."""
        if self._notice.given:
            return Leaving()
        started = time.perf_counter()
        scored = compare_groups(self._judge, groups) if self._pairwise else score_groups(self._judge, groups)
        self._publish([answer for own in scored for answer in own.answers], time.perf_counter() - started)
        return scored

    def _publish(self, judgements: Sequence[Judgement], seconds: float) -> None:
        """One call, and what has changed in the judge's own counts since the last."""
        self._published.observe("judge/call_s", seconds)
        self._published.add("judge/scored", len(judgements))
        for judgement in judgements:
            if isinstance(judgement, JudgeFailure):
                self._published.add("judge/failures", 1, kind=judgement.kind.value)
            elif judgement.gate:
                self._published.add("judge/gated", 1, gate=judgement.gate)
        if isinstance(self._judge, Observed):
            self._published.tell_totals(self._judge.counts())
