"""What happened since the last step, summed up as its metrics."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from speechsum.ledger import LedgerRow
from speechsum.pairwise import FLIPPED, preferred
from speechsum.types import (
    FailureKind,
    FinishReason,
    JudgeFailure,
    Lesson,
    Reward,
    ScoredGroup,
    TeacherFailure,
    TrajectoryGroup,
)


@dataclass
class Window:
    """Sums between two steps. `busy_s` is the time in which at least one call of a kind was under way.

    `teach_exposed_s` is the time in which teachers were all that worked.
    """

    started: float = field(default_factory=time.perf_counter)
    rewards: list[float] = field(default_factory=list)
    failures: Counter[FailureKind] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    last_rollout_failure: str = ""
    gated: int = 0
    completions_judged: int = 0
    answers: int = 0
    preferences: list[Reward] = field(default_factory=list)
    tokens: int = 0
    truncated: int = 0
    trajectories: int = 0
    lessons: int = 0
    lessons_failed: int = 0
    busy_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    teach_exposed_s: float = 0.0
    ledger: list[LedgerRow] = field(default_factory=list)

    def generated(self, group: TrajectoryGroup) -> None:
        """Count a group that came back from rollout."""
        self.trajectories += len(group.trajectories)
        self.tokens += sum(len(t.token_ids) for t in group.trajectories)
        self.truncated += sum(t.finish_reason == FinishReason.LENGTH for t in group.trajectories)

    def judged(self, scored: ScoredGroup) -> None:
        """Count what a judge said of a group; a failure, of a pair too, is counted by kind and never averaged."""
        rewards = [j for j in scored.judgements if isinstance(j, Reward)]
        self.rewards += [reward.value for reward in rewards]
        self.gated += sum(bool(reward.gate) for reward in rewards)
        self.completions_judged += len(scored.judgements)
        self.answers += len(scored.answers)
        self.failures.update(answer.kind for answer in scored.answers if isinstance(answer, JudgeFailure))
        self.preferences += [p.judgement for p in scored.preferences if isinstance(p.judgement, Reward)]

    def taught(self, lessons: Sequence[Lesson]) -> None:
        """Count what a teacher said of a group."""
        self.lessons += len(lessons)
        self.lessons_failed += sum(isinstance(lesson, TeacherFailure) for lesson in lessons)

    def metrics(self) -> dict[str, float]:
        """The figures of the step, of those who took part in it; a mean of nothing is NaN."""
        generate_s = self.busy_s["generate"]
        metrics = {
            "rollout/tokens": self.tokens,
            "rollout/tokens_per_s": self.tokens / generate_s if generate_s else 0.0,
            "rollout/busy_s": generate_s,
            "rollout/response_tokens_mean": self.tokens / max(self.trajectories, 1),
            "rollout/truncated_share": self.truncated / max(self.trajectories, 1),
            "buffer/dropped": self.drops.total(),
            "wall/step_s": time.perf_counter() - self.started,
        }
        metrics |= {f"buffer/dropped_{reason}": n for reason, n in self.drops.items()}
        return metrics | self._judge_metrics() | self._teacher_metrics()

    def _judge_metrics(self) -> dict[str, float]:
        if not self.answers:
            return {}
        metrics = {
            "judge/reward_mean": float(np.mean(self.rewards)) if self.rewards else math.nan,
            "judge/reward_std": float(np.std(self.rewards)) if self.rewards else math.nan,
            "judge/failure_share": self.failures.total() / self.answers,
            "judge/gated_share": self.gated / self.completions_judged,
            "judge/score_s": self.busy_s["score"],
        }
        metrics |= {f"judge/failed_{kind}": n for kind, n in self.failures.items()}
        return metrics | self._pair_metrics()

    def _pair_metrics(self) -> dict[str, float]:
        """Flips among the pairs that were shown; a pair that a gate decided has no order."""
        if not self.preferences:
            return {}
        flips = [p.breakdown[FLIPPED] for p in self.preferences if FLIPPED in p.breakdown]
        abstained = sum(preferred(p.value) == "tie" for p in self.preferences)
        metrics = {"judge/abstained_share": abstained / len(self.preferences)}
        return metrics | ({"judge/flip_share": sum(flips) / len(flips)} if flips else {})

    def _teacher_metrics(self) -> dict[str, float]:
        if not self.lessons:
            return {}
        return {
            "teacher/failure_share": self.lessons_failed / self.lessons,
            "teacher/teach_s": self.busy_s["teach"],
            "teacher/exposed_s": self.teach_exposed_s,
        }
