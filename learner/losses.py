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
    lengths: Sequence[int],
    *,
    ratio: Literal["token", "sequence"],
    objective: Literal["clip", "cispo"],
    clip_low: float,
    clip_high: float,
    is_cap: float | None,
) -> LossOutput:
    """Clipped policy gradient, to be minimised: -sum_t w_t c_t g_t with one of two gains, where sg stops the gradient.

    `clip`: g_t = min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)   (PPO 1707.06347; clip-higher 2503.14476)
    `cispo`: g_t = sg[clip(r_t, 1 - clip_low, 1 + clip_high)] A_t log pi(y_t)   (2506.13585)

    with r_t = pi(y_t) / pi_old(y_t) for the ratio of a `token`, and that of its `sequence` in the form of GSPO-token
    (see `_of_sequences`). Where `on_policy` [N] is true the weights that sampled the token are the ones being trained,
    so pi_old is pi itself without gradient: no second forward is spent on "old" log-probs, and
    c_t = min(pi_old / pi_rollout, is_cap) corrects the engine's numerics (truncated importance sampling). Where the
    token is older, the engine's own log-prob is pi_old and c_t = 1. Tokens whose rollout log-prob is not finite
    are masked and counted. `lengths` are those of the sequences that the tokens come from, in order.
    """
    finite = torch.isfinite(rollout_logprobs)
    rollout = torch.where(finite, rollout_logprobs, logprobs.detach())
    old = torch.where(on_policy, logprobs.detach(), rollout)
    correction = torch.ones_like(old)
    if is_cap is not None:
        correction = torch.exp(old - rollout).clamp(max=is_cap)
    log_ratios = logprobs - old
    if ratio == "sequence":
        log_ratios = _of_sequences(log_ratios, finite, lengths)
    ratios = torch.exp(log_ratios)
    clipped = ratios.clamp(1.0 - clip_low, 1.0 + clip_high)
    if objective == "clip":
        gain = torch.minimum(ratios * advantages, clipped * advantages)
        outside = (ratios * advantages) > (clipped * advantages)
    else:
        gain = clipped.detach() * advantages * logprobs
        outside = ratios != clipped
    masked = torch.where(finite, weights, torch.zeros_like(weights))
    sums = {
        "clip_share": (outside & finite).sum().float(),
        "is_weight_mean": correction.sum(),
        "logprob_gap": (logprobs.detach() - rollout).abs().sum(),
        "masked_tokens": (~finite).sum().float(),
    }
    return LossOutput(-(masked * correction * gain).sum(), {k: v.detach() for k, v in sums.items()})


def _of_sequences(log_ratios: Tensor, finite: Tensor, lengths: Sequence[int]) -> Tensor:
    """log s_t [N] of GSPO-token (2507.18071): s_t = sg[s] pi(y_t) / sg[pi(y_t)], s = exp(mean_t log r_t).

    The mean is over the `finite` [N] tokens of a sequence. Every token has its sequence's ratio for a value, and for
    a gradient its own log-prob's.
    """
    sequence = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.long)).to(log_ratios.device)
    own = log_ratios.detach()
    total = own.new_zeros(len(lengths)).index_add(0, sequence, own * finite)
    count = own.new_zeros(len(lengths)).index_add(0, sequence, finite.to(own.dtype))
    return (total / count.clamp(min=1))[sequence] + (log_ratios - own)
