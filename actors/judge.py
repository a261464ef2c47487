"""One door to every judge: `make_judge` picks by configuration, `JudgeActor` is the Ray shell around the choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from actors.notice import Notice
from speechsum.config import JudgeConfig
from speechsum.errors import UserError
from speechsum.metrics import describe, ray_name
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
M = TypeVar("M", Counter, Gauge, Histogram)


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


def make_judge(config: JudgeConfig, path: str | None) -> Judge:
    """The judge of single summaries that `config.kind` names; `path` is the checkpoint folder of `likelihood`.

    With `config.cache` it asks nothing twice. Raises `UserError` for what the configuration lacks, the cache first:
    a file that cannot be used is told before a model loads.
    """
    if config.kind == "pairwise":
        raise UserError("judge.kind = 'pairwise' gives no summary a reward of its own; set it to 'rubric'")
    if not config.cache:
        return _uncached(config, path)[0]
    from actors.judge_cache import CachedJudge, JudgementCache, checkpoint_digest

    cache = JudgementCache(config.cache)
    judge, settings = _uncached(config, path)
    if config.kind == "likelihood":
        assert path is not None
        settings = {"checkpoint": checkpoint_digest(Path(path))}
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


def _uncached(config: JudgeConfig, path: str | None) -> tuple[Judge, dict[str, Any]]:
    """The judge, and how it decodes."""
    if config.kind == "likelihood":
        if path is None:
            raise UserError("judge.kind = 'likelihood' needs a causal language model; set judge.path")
        from actors.likelihood_judge import LikelihoodJudge

        return LikelihoodJudge.load(path, config.engine), {}
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
    """A judge in a Ray actor, with its metrics on Ray's Prometheus endpoint. `index` tells actors of one run apart."""

    def __init__(self, config: JudgeConfig, path: str | None, *, index: int = 0) -> None:
        self._pairwise = config.kind == "pairwise"
        self._judge: JudgeOf[Any] = make_pair_judge(config) if self._pairwise else make_judge(config, path)
        self._published = _Metrics(self._judge, index)
        self._notice = Notice()
        self._totals = {"judge/scored": 0.0, "judge/failures": 0.0, "judge/gated": 0.0, "judge/score_s": 0.0}

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
        self._count(judgements, time.perf_counter() - started)
        return judgements

    def score_groups(self, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup] | Leaving:
        """Several groups in one engine call."""
        if self._notice.given:
            return Leaving()
        started = time.perf_counter()
        scored = compare_groups(self._judge, groups) if self._pairwise else score_groups(self._judge, groups)
        self._count([answer for own in scored for answer in own.answers], time.perf_counter() - started)
        return scored

    def metrics(self) -> dict[str, float]:
        """Totals since the start, under the names that the run's metrics use; failures also by kind."""
        return self._totals | self._counts()

    def close(self) -> None:
        """Release the judge before the actor is."""
        self._judge.close()

    def _counts(self) -> dict[str, float]:
        return self._judge.counts() if isinstance(self._judge, Observed) else {}

    def _count(self, judgements: Sequence[Judgement], seconds: float) -> None:
        t = self._totals
        t["judge/score_s"] += seconds
        t["judge/last_score_s"] = seconds
        for judgement in judgements:
            t["judge/scored"] += 1
            if isinstance(judgement, JudgeFailure):
                t["judge/failures"] += 1
                kind = f"judge/failures/{judgement.kind.value}"
                t[kind] = t.get(kind, 0.0) + 1
            elif judgement.gate:
                t["judge/gated"] += 1
        self._published.update(judgements, seconds, self._counts())


CALL_BOUNDS_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]
"""Between which the time of a call is counted."""


class _Metrics:
    """Ray metrics of one judge actor, as the table of metrics has them; counters gain `_total` when scraped."""

    def __init__(self, judge: JudgeOf[Any], index: int) -> None:
        self._tags = {"actor": str(index), "judge": judge.name, "version": judge.version}
        self._call = self._made(Histogram, "judge/call_s", boundaries=CALL_BOUNDS_S)
        self._scored = self._made(Counter, "judge/scored")
        self._failures = self._made(Counter, "judge/failures")
        self._gated = self._made(Counter, "judge/gated")
        self._observed: dict[str, Counter | Gauge] = {}
        self._seen: dict[str, float] = {}

    def update(self, judgements: Sequence[Judgement], seconds: float, counts: dict[str, float]) -> None:
        """Publish one call, and what has changed in `counts` since the last."""
        self._call.observe(seconds)
        if judgements:
            self._scored.inc(len(judgements))
        for judgement in judgements:
            if isinstance(judgement, JudgeFailure):
                self._failures.inc(1, {"kind": judgement.kind.value})
            elif judgement.gate:
                self._gated.inc(1, {"gate": judgement.gate})
        for name, count in counts.items():
            self._publish(name, count)

    def _publish(self, name: str, count: float) -> None:
        """A count of the judge's own, made known when it is first told."""
        if name not in self._observed:
            self._observed[name] = self._made(Counter if describe(name).adds_up else Gauge, name)
        metric = self._observed[name]
        if isinstance(metric, Gauge):
            metric.set(count)
        elif count > self._seen.get(name, 0.0):
            metric.inc(count - self._seen.get(name, 0.0))
            self._seen[name] = count

    def _made(self, form: type[M], name: str, **settings: Any) -> M:
        about = describe(name)
        metric = form(ray_name(name), about.text, tag_keys=about.labels, **settings)
        metric.set_default_tags(self._tags)
        return metric
