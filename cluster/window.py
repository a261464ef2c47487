"""What happened since the last step, summed up as its metrics."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from speechsum.ledger import LedgerRow
from speechsum.types import FailureKind, FinishReason, JudgeFailure, Judgement, TrajectoryGroup


@dataclass
class Window:
    """Sums between two steps. `generate_s` and `score_s` are the time in which at least one such call was under way."""

    started: float = field(default_factory=time.perf_counter)
    rewards: list[float] = field(default_factory=list)
    failures: Counter[FailureKind] = field(default_factory=Counter)
    drops: Counter[str] = field(default_factory=Counter)
    last_rollout_failure: str = ""
    gated: int = 0
    tokens: int = 0
    truncated: int = 0
    trajectories: int = 0
    generate_s: float = 0.0
    score_s: float = 0.0
    ledger: list[LedgerRow] = field(default_factory=list)

    def generated(self, group: TrajectoryGroup) -> None:
        """Count a group that came back from rollout."""
        self.trajectories += len(group.trajectories)
        self.tokens += sum(len(t.token_ids) for t in group.trajectories)
        self.truncated += sum(t.finish_reason == FinishReason.LENGTH for t in group.trajectories)

    def judged(self, judgement: Judgement) -> None:
        """Count a judgement; a failure is counted by kind and never averaged."""
        if isinstance(judgement, JudgeFailure):
            self.failures[judgement.kind] += 1
        else:
            self.rewards.append(judgement.value)
            self.gated += bool(judgement.gate)

    def metrics(self) -> dict[str, float]:
        """The figures of the step; a mean of nothing is NaN."""
        judged = len(self.rewards) + self.failures.total()
        metrics = {
            "judge/reward_mean": float(np.mean(self.rewards)) if self.rewards else math.nan,
            "judge/reward_std": float(np.std(self.rewards)) if self.rewards else math.nan,
            "judge/failure_share": self.failures.total() / max(judged, 1),
            "judge/gated_share": self.gated / max(judged, 1),
            "judge/score_s": self.score_s,
            "rollout/tokens": self.tokens,
            "rollout/tokens_per_s": self.tokens / self.generate_s if self.generate_s else 0.0,
            "rollout/response_tokens_mean": self.tokens / max(self.trajectories, 1),
            "rollout/truncated_share": self.truncated / max(self.trajectories, 1),
            "buffer/dropped": self.drops.total(),
            "wall/step_s": time.perf_counter() - self.started,
        }
        metrics |= {f"judge/failed_{kind}": n for kind, n in self.failures.items()}
        return metrics | {f"buffer/dropped_{reason}": n for reason, n in self.drops.items()}
