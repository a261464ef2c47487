"""One door to every judge: `make_judge` picks by configuration, `JudgeActor` is the Ray shell around the choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from speechsum.config import JudgeConfig
from speechsum.errors import UserError
from speechsum.metrics import describe, ray_name
from speechsum.types import JudgeFailure, Judgement, JudgeTask, ScoredGroup, TrajectoryGroup

M = TypeVar("M", Counter, Gauge, Histogram)


class Judge(Protocol):
    """Scores summaries against their source. Scores compare only within one `name` and `version`."""

    name: str
    version: str

    def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """One judgement per task, in order; a task that cannot be judged is a `JudgeFailure`, never a number."""

    def close(self) -> None:
        """Release what the judge holds. Safe to call twice."""


@runtime_checkable
class Observed(Protocol):
    """What a judge can tell of itself besides, if it asks an endpoint or a cache."""

    @property
    def served_models(self) -> tuple[str, ...]:
        """What the endpoint said that it serves, so far."""

    def counts(self) -> dict[str, float]:
        """Totals since the start, by metric name."""


def make_judge(config: JudgeConfig, path: str | None) -> Judge:
    """The judge that `config.kind` names; `path` is the checkpoint folder, which only `likelihood` needs.

    With `config.cache` it asks nothing twice. Raises `UserError` for what the configuration lacks, the cache first:
    a file that cannot be used is told before a model loads.
    """
    if not config.cache:
        return _uncached(config, path)[0]
    from actors.judge_cache import CachedJudge, JudgementCache, checkpoint_digest

    cache = JudgementCache(config.cache)
    judge, settings = _uncached(config, path)
    if config.kind == "likelihood":
        assert path is not None
        settings = {"checkpoint": checkpoint_digest(Path(path))}
    return CachedJudge(judge, cache, settings)


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


def score_groups(judge: Judge, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup]:
    """Judge all completions of all groups in one call, so that an engine can batch them."""
    tasks = [tasks_of(group) for group in groups]
    judgements = iter(judge.score([task for own in tasks for task in own]))
    return [ScoredGroup(group, tuple(next(judgements) for _ in own)) for group, own in zip(groups, tasks, strict=True)]


@ray.remote
class JudgeActor:
    """A judge in a Ray actor, with its metrics on Ray's Prometheus endpoint. `index` tells actors of one run apart."""

    def __init__(self, config: JudgeConfig, path: str | None, *, index: int = 0) -> None:
        self._judge = make_judge(config, path)
        self._published = _Metrics(self._judge, index)
        self._totals = {"judge/scored": 0.0, "judge/failures": 0.0, "judge/gated": 0.0, "judge/score_s": 0.0}

    def ready(self) -> str:
        """Name and version of the judge; answers once it is loaded."""
        return f"{self._judge.name}/{self._judge.version}"

    def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """See `Judge.score`."""
        started = time.perf_counter()
        judgements = self._judge.score(tasks)
        self._count(judgements, time.perf_counter() - started)
        return judgements

    def score_group(self, group: TrajectoryGroup) -> ScoredGroup:
        """One group, judged. Pass the group's ObjectRef as the argument itself."""
        return self.score_groups([group])[0]

    def score_groups(self, groups: Sequence[TrajectoryGroup]) -> list[ScoredGroup]:
        """Several groups in one engine call."""
        started = time.perf_counter()
        scored = score_groups(self._judge, groups)
        self._count([j for s in scored for j in s.judgements], time.perf_counter() - started)
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

    def __init__(self, judge: Judge, index: int) -> None:
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
