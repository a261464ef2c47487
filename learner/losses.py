"""Losses as pure functions of per-token tensors. No model, no ranks, no configuration objects.

Every token carries a `weight` that already holds the loss's denominator, which is global over all ranks and
microbatches; so a loss is a plain sum, and the parts of a batch add up to the whole whoever computes them.
Shapes: ``[N]`` response tokens of a microbatch, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossOutput:
    """`loss` is a scalar with its graph; `sums` are detached totals to be added over microbatches and ranks."""

    loss: Tensor
    sums: dict[str, Tensor]


def token_weights(
    lengths: Sequence[int],
    *,
    loss_tokens: int,
    sequences: int,
    norm: Literal["token", "sequence", "max_tokens"] = "token",
    max_tokens: int = 1,
) -> Tensor:
    """Weight [N] of each response token, for sequences of `lengths`, under a global denominator.

    `token`: 1 / all response tokens (DAPO). `sequence`: 1 / (sequences x own length) (GRPO).
    `max_tokens`: 1 / (sequences x max_tokens), a constant (Dr.GRPO).
    """
    if norm == "token":
        weights = [1.0 / max(loss_tokens, 1)] * len(lengths)
    elif norm == "sequence":
        weights = [1.0 / (max(sequences, 1) * max(n, 1)) for n in lengths]
    else:
        weights = [1.0 / (max(sequences, 1) * max_tokens)] * len(lengths)
    return torch.repeat_interleave(torch.tensor(weights), torch.tensor(list(lengths), dtype=torch.long))


def sft_loss(logprobs: Tensor, weights: Tensor) -> LossOutput:
    """-sum_t w_t log pi(y_t | x, y_<t): the negative log-likelihood of the references."""
    loss = -(weights * logprobs).sum()
    return LossOutput(loss, {})


def grpo_loss(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    on_policy: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    is_cap: float | None,
) -> LossOutput:
    """Clipped policy gradient, to be minimised.

    -sum_t w_t c_t min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)   (PPO 1707.06347; clip-higher 2503.14476)

    with r_t = pi(y_t) / pi_old(y_t). Where `on_policy` [N] is true the weights that sampled the token are the ones
    being trained, so pi_old is pi itself without gradient: no second forward is spent on "old" log-probs, and
    c_t = min(pi_old / pi_rollout, is_cap) corrects the engine's numerics (truncated importance sampling). Where the
    token is older, the engine's own log-prob is pi_old and c_t = 1. Tokens whose rollout log-prob is not finite
    are masked and counted.
    """
    finite = torch.isfinite(rollout_logprobs)
    rollout = torch.where(finite, rollout_logprobs, logprobs.detach())
    old = torch.where(on_policy, logprobs.detach(), rollout)
    correction = torch.ones_like(old)
    if is_cap is not None:
        correction = torch.exp(old - rollout).clamp(max=is_cap)
    ratio = torch.exp(logprobs - old)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    gain = torch.minimum(ratio * advantages, clipped * advantages)
    masked = torch.where(finite, weights, torch.zeros_like(weights))
    outside = ((ratio * advantages) > (clipped * advantages)).float()
    sums = {
        "clip_share": outside.sum(),
        "is_weight_mean": correction.sum(),
        "logprob_gap": (logprobs.detach() - rollout).abs().sum(),
        "masked_tokens": (~finite).sum().float(),
    }
    return LossOutput(-(masked * correction * gain).sum(), {k: v.detach() for k, v in sums.items()})
