"""Losses as pure functions of per-token tensors. No model, no ranks, no configuration objects.

Every token carries a `weight` that already holds the loss's denominator, which is global over all ranks and
microbatches; so a loss is a plain sum, and the parts of a batch add up to the whole whoever computes them.
Shapes: ``[N]`` response tokens of a microbatch, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

SMALLEST_REST = 1e-7
"""Least probability of all that a teacher does not name; its own log-probs are no more exact than this."""


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
    own = log_ratios.detach()
    total = _per_sequence(own * finite, lengths, mean=False)
    count = _per_sequence(finite.to(own.dtype), lengths, mean=False)
    times = torch.tensor(lengths, dtype=torch.long).to(own.device)
    return (total / count.clamp(min=1)).repeat_interleave(times) + (log_ratios - own)


def k3_penalty(logprobs: Tensor, reference: Tensor, weights: Tensor) -> LossOutput:
    """sum_t w_t (e^d_t - d_t - 1) with d_t = log pi_ref(y_t) - log pi(y_t): GRPO's KL to a reference (2402.03300).

    Never negative, and zero exactly where policy and reference agree.
    """
    gap = reference - logprobs
    loss = (weights * (torch.expm1(gap) - gap)).sum()
    return LossOutput(loss, {"reference_kl": loss.detach()})


def distillation_loss(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    *,
    divergence: Literal["forward_kl", "reverse_kl", "jsd"],
    beta: float = 0.5,
) -> LossOutput:
    """sum_t w_t D_t between teacher T and student S over the teacher's K likeliest tokens and one event for the rest.

    `forward_kl`: KL(T, S). `reverse_kl`: KL(S, T). `jsd`: beta KL(T, M) + (1 - beta) KL(S, M) with the mixture
    M = beta T + (1 - beta) S (GKD 2306.13649). `student` [N, K + 1] holds log-probs with the rest's in the last column,
    `teacher` [N, K] the teacher's without it. With the rest, both are distributions over the same events, so no
    divergence is ever negative; nor does any exceed that of the whole vocabularies.
    """
    everything = torch.cat([teacher, _log_rest(teacher)], -1)
    if divergence == "forward_kl":
        per_token = _kl(everything, student)
    elif divergence == "reverse_kl":
        per_token = _kl(student, everything)
    else:
        mixture = torch.logaddexp(everything + math.log(beta), student + math.log1p(-beta))
        per_token = beta * _kl(everything, mixture) + (1.0 - beta) * _kl(student, mixture)
    loss = (weights * per_token).sum()
    covered = (teacher.exp().sum(-1) * (weights > 0)).sum()
    return LossOutput(loss, {"teacher_divergence": (per_token * (weights > 0)).sum().detach(), "teacher_top": covered})


def _log_rest(top: Tensor) -> Tensor:
    """log(1 - sum exp) of log-probs [N, K], as [N, 1]; a sum that rounding put above one leaves next to nothing."""
    return torch.log1p(-top.double().exp().sum(-1, keepdim=True).clamp(max=1.0 - SMALLEST_REST)).to(top.dtype)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL [N] of distributions given as log-probs [N, K]."""
    return (p.exp() * (p - q)).sum(-1)


def dpo_loss(
    logprobs: Tensor,
    reference: Tensor,
    lengths: Sequence[int],
    *,
    pairs: int,
    beta: float,
    objective: Literal["sigmoid", "ipo", "robust"],
    label_smoothing: float,
    length_normalised: bool,
    sft_weight: float,
) -> LossOutput:
    """Direct preference optimisation (2305.18290), a mean over the global count of `pairs`.

    Sequences of `lengths` alternate, the preferred one first. h is log pi / pi_ref of the preferred sequence minus that
    of the other; `length_normalised` divides each by its own length. With e = `label_smoothing`:

    `sigmoid`: -(1 - e) log s(beta h) - e log s(-beta h), which with e > 0 is cDPO
    `robust`:  (-(1 - e) log s(beta h) + e log s(-beta h)) / (1 - 2 e)   (2403.00409)
    `ipo`:     (h - 1 / (2 beta))^2   (2310.12036)

    `sft_weight` adds that much of the preferred sequence's own mean negative log-likelihood (RPO 2404.19733).
    """
    ratios = _per_sequence(logprobs - reference, lengths, mean=length_normalised)
    h = ratios[0::2] - ratios[1::2]
    if objective == "ipo":
        per_pair = (h - 0.5 / beta).square()
    else:
        right, wrong = nn.functional.logsigmoid(beta * h), nn.functional.logsigmoid(-beta * h)
        if objective == "robust":
            per_pair = (label_smoothing * wrong - (1.0 - label_smoothing) * right) / (1.0 - 2.0 * label_smoothing)
        else:
            per_pair = -(1.0 - label_smoothing) * right - label_smoothing * wrong
    preferred = _per_sequence(logprobs, lengths, mean=True)[0::2]
    loss = (per_pair - sft_weight * preferred).sum() / max(pairs, 1)
    sums = {
        "dpo_accuracy": (h > 0).sum().float(),
        "dpo_margin": (beta * h).sum(),
        "dpo_preferred": ratios[0::2].sum(),
    }
    return LossOutput(loss, {k: v.detach() for k, v in sums.items()})


def _per_sequence(values: Tensor, lengths: Sequence[int], *, mean: bool) -> Tensor:
    """Sums or means of `values` [N] over each sequence."""
    count = torch.tensor(lengths, dtype=torch.long)
    sequence = torch.repeat_interleave(count).to(values.device)
    total = values.new_zeros(len(lengths)).index_add(0, sequence, values)
    return total / count.to(total) if mean else total
