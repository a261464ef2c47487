"""Before step 0: do rollout and learner agree on the same tokens?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.rollout import RolloutFailure
from cluster.pools import RolloutPool
from cluster.ranks import LearnerGroup
from speechsum.config import PreflightConfig
from speechsum.data import Draw
from speechsum.errors import RunError
from speechsum.types import Completion, Prompt, SamplingParams, TrainingSample, TrajectoryGroup

PREFLIGHT_RUN = "preflight"
"""Run id of preflight's requests, so that they never share one with training."""


def measure(
    rollout: RolloutPool, learner: LearnerGroup, prompts: Sequence[Prompt], *,
    max_tokens: int, version: int, temperature: float = 1.0,
) -> dict[str, float]:  # fmt: skip
    """Mean and worst |rollout log-prob - learner log-prob| in nats per token, on `tokens` sampled tokens.

    `greedy_equal` is the share of the tokens that the engine chooses greedily which the learner would choose too
    (see `Learner.greedy` for ties).
    """
    sampling = SamplingParams(n=1, temperature=temperature, max_tokens=max_tokens, seed=0)
    sampled = _completed(rollout, prompts, sampling, PREFLIGHT_RUN, version)
    learned = learner.logprobs(sampled, temperature)
    engine = [c.logprobs for sample in sampled for c in sample.completions]
    gaps = np.concatenate([np.abs(a - b) for a, b in zip(engine, learned, strict=True)])
    sampling = SamplingParams(n=1, temperature=0.0, max_tokens=max_tokens)
    chosen = _completed(rollout, prompts, sampling, f"{PREFLIGHT_RUN}-greedy", version)
    equal = np.concatenate(learner.greedy(chosen))
    return {
        "logprob_gap_mean": float(gaps.mean()),
        "logprob_gap_max": float(gaps.max()),
        "tokens": len(gaps),
        "greedy_equal": float(equal.mean()),
    }


def check(config: PreflightConfig, parity: dict[str, float]) -> None:
    """Refuse to start beyond the recipe's limits. A figure that is no number is beyond any."""
    gap, equal = parity["logprob_gap_mean"], parity["greedy_equal"]
    why = "they run different weights, prompts or precision"
    if not gap <= config.max_logprob_gap:
        raise RunError(
            f"rollout and learner disagree by {gap:.4f} nats per token, more than preflight.max_logprob_gap = "
            f"{config.max_logprob_gap}; {why}"
        )
    if not equal >= config.min_greedy_equal:
        raise RunError(
            f"rollout and learner find the same token likeliest for {equal:.0%} of them, fewer than "
            f"preflight.min_greedy_equal = {config.min_greedy_equal}; {why}"
        )


def _completed(
    rollout: RolloutPool, prompts: Sequence[Prompt], sampling: SamplingParams, run_id: str, version: int
) -> list[TrainingSample]:
    """What the engine makes of the prompts, as the learner takes it; a prompt that fails is left out."""
    rolled = rollout.generate_all([Draw(0, p) for p in prompts], sampling, run_id, version)
    groups = [g for g in rolled if isinstance(g, TrajectoryGroup)]
    if not groups:
        why = next(r.reason for r in rolled if isinstance(r, RolloutFailure))
        raise RunError(f"preflight: no prompt could be rolled out; the first because of {why}")
    return [_as_sample(g) for g in groups]


def _as_sample(group: TrajectoryGroup) -> TrainingSample:
    completions = tuple(Completion(t.token_ids, t.logprobs, 0.0, t.policy_version) for t in group.trajectories)
    return TrainingSample(group.prompt.id, group.prompt.audio, group.prompt_ids, completions)
