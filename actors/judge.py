"""One door to every judge: `make_judge` picks by configuration, `JudgeActor` is the Ray shell around the choice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import ray
from ray.util.metrics import Counter, Gauge

from speechsum.config import JudgeConfig
from speechsum.errors import UserError
from speechsum.types import JudgeFailure, Judgement, JudgeTask, ScoredGroup, TrajectoryGroup


class Judge(Protocol):
    """Scores summaries against their source. Scores compare only within one `name` and `version`."""

    name: str
    version: str

    def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """One judgement per task, in order; a task that cannot be judged is a `JudgeFailure`, never a number."""

    def close(self) -> None:
        """Release what the judge holds. Safe to call twice."""


def make_judge(config: JudgeConfig, path: str | None) -> Judge:
    """The judge that `config.kind` names; `path` is the checkpoint folder, which only `likelihood` needs."""
    if config.kind == "likelihood":
        if path is None:
            raise UserError("judge.kind = 'likelihood' needs a causal language model; set judge.path")
        from actors.likelihood_judge import LikelihoodJudge

        return LikelihoodJudge.load(path, config.engine)
    from actors.rubric_judge import LexicalJudge, RubricJudge

    return RubricJudge(config.endpoint) if config.kind == "rubric" else LexicalJudge()


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
        self._published = _Metrics(self._judge.name, index)
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
        return dict(self._totals)

    def close(self) -> None:
        """Release the judge before the actor is."""
        self._judge.close()

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
        self._published.update(judgements, seconds)


class _Metrics:
    """Ray metrics of one judge actor; counters gain `_total` when scraped."""

    def __init__(self, name: str, index: int) -> None:
        tags = {"actor": str(index), "judge": name}
        self._scored = Counter("speechsum_judge_scored", "Summaries judged, failures included.", tuple(tags))
        self._failures = Counter("speechsum_judge_failures", "Judgements that failed, by kind.", (*tags, "kind"))
        self._gated = Counter("speechsum_judge_gated", "Summaries stopped by a gate, by gate.", (*tags, "gate"))
        self._latency = Gauge("speechsum_judge_latency_seconds", "Duration of the last call, in seconds.", tuple(tags))
        for metric in (self._scored, self._failures, self._gated, self._latency):
            metric.set_default_tags(tags)

    def update(self, judgements: Sequence[Judgement], seconds: float) -> None:
        """Publish one call."""
        self._latency.set(seconds)
        if judgements:
            self._scored.inc(len(judgements))
        for judgement in judgements:
            if isinstance(judgement, JudgeFailure):
                self._failures.inc(1, {"kind": judgement.kind.value})
            elif judgement.gate:
                self._gated.inc(1, {"gate": judgement.gate})
