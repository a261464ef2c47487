"""Before step 0: do rollout and learner agree on the same tokens?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.groups import LearnerGroup, RolloutPool
from speechsum.config import PreflightConfig
from speechsum.data import Draw
from speechsum.errors import RunError
from speechsum.types import Completion, Prompt, SamplingParams, TrainingSample, TrajectoryGroup

PREFLIGHT_RUN = "preflight"
"""Run id of preflight's requests, so that they never share one with training."""


def measure(
    rollout: RolloutPool, learner: LearnerGroup, prompts: Sequence[Prompt], *, max_tokens: int, version: int
) -> dict[str, float]:
    """Mean and worst |rollout log-prob - learner log-prob| in nats per token, on sampled completions.

    `greedy_equal` is the share of greedily chosen tokens for which the learner, too, finds no likelier continuation
    of the same text: its log-prob of the token differs from the engine's by no more than the worst sampled gap.
    """
    sampling = SamplingParams(n=1, temperature=1.0, max_tokens=max_tokens, seed=0)
    rolled = rollout.generate_all([Draw(0, p) for p in prompts], sampling, PREFLIGHT_RUN, version)
    groups = [g for g in rolled if isinstance(g, TrajectoryGroup)]
    if not groups:
        raise RunError(f"preflight: no prompt could be rolled out; first: {rolled[0]}")
    learned = learner.logprobs([_as_sample(g) for g in groups])
    engine = [t.logprobs for g in groups for t in g.trajectories]
    gaps = np.concatenate([np.abs(a - b) for a, b in zip(engine, learned, strict=True)])
    return {"logprob_gap_mean": float(gaps.mean()), "logprob_gap_max": float(gaps.max()), "tokens": len(gaps)}


def check(config: PreflightConfig, parity: dict[str, float]) -> None:
    """Refuse to start above the recipe's limit."""
    gap = parity["logprob_gap_mean"]
    if not gap <= config.max_logprob_gap:
        raise RunError(
            f"rollout and learner disagree by {gap:.4f} nats per token, more than preflight.max_logprob_gap = "
            f"{config.max_logprob_gap}; they run different weights, prompts or precision"
        )


def _as_sample(group: TrajectoryGroup) -> TrainingSample:
    completions = tuple(Completion(t.token_ids, t.logprobs, 0.0, t.policy_version) for t in group.trajectories)
    return TrainingSample(group.prompt.id, group.prompt.audio, group.prompt_ids, completions)
