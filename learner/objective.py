"""From a stage's loss and a microbatch to a scalar: the one place that knows which loss reads what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from learner.losses import LossOutput, distillation_loss, dpo_loss, grpo_loss, k3_penalty, sft_loss, token_weights
from speechsum.objectives import DpoLoss, GrpoLoss, Loss, OpdLoss, PolicyGradient
from speechsum.types import Completion, TeacherLogprobs

TOKEN_MEANS = (
    "clip_share", "is_weight_mean", "logprob_gap", "teacher_divergence", "teacher_top", "teacher_advantage",
)  # fmt: skip
PAIR_MEANS = ("dpo_accuracy", "dpo_margin", "dpo_preferred")
SUMS = ("masked_tokens", "reference_kl")


@dataclass(frozen=True)
class Counts:
    """Global denominators of a step: its response tokens and its sequences, over all ranks and microbatches."""

    loss_tokens: int
    sequences: int


@dataclass(frozen=True)
class Scores:
    """What the policy says of a microbatch: log-probs [N] of its tokens, and [N, K + 1] of a teacher's K candidates.

    The last column is the log-prob of all other tokens together; K + 1 is 0 where nobody asked. `reference` [N] is
    what the stage's first weights say, empty where nobody asked.
    """

    logprobs: Tensor
    candidates: Tensor
    reference: Tensor


class Objective:
    """A stage's loss with its settings. `max_tokens` is the longest completion, for Dr.GRPO's denominator."""

    def __init__(self, loss: Loss, max_tokens: int) -> None:
        self.loss = loss
        self.max_tokens = max_tokens

    @property
    def reads_reference(self) -> bool:
        """Whether log-probs under the stage's first weights are needed."""
        return isinstance(self.loss, DpoLoss) or (isinstance(self.loss, GrpoLoss) and self.loss.reference_kl > 0)

    @property
    def top_k(self) -> int:
        """How many of the teacher's likeliest tokens the loss reads."""
        return self.loss.top_k if isinstance(self.loss, OpdLoss) and self.loss.divergence != "sampled_token" else 0

    @property
    def compares_with_rollout(self) -> bool:
        """Whether log-probs are held against the engine's, and so have to be of the temperature it sampled at."""
        return isinstance(self.loss, PolicyGradient) and not self.top_k

    def weights(self, lengths: Sequence[int], counts: Counts) -> Tensor:
        """What each token [N] of sequences of `lengths` counts."""
        norm = self.loss.length_norm if isinstance(self.loss, GrpoLoss) else "token"
        return token_weights(
            lengths, loss_tokens=counts.loss_tokens, sequences=counts.sequences, norm=norm, max_tokens=self.max_tokens
        )

    def __call__(
        self, scores: Scores, weights: Tensor, completions: Sequence[Completion], counts: Counts, policy_version: int
    ) -> LossOutput:
        """The microbatch's part of the loss; parts add up over microbatches and ranks."""
        if isinstance(self.loss, DpoLoss):
            return self._preference(self.loss, scores, completions, counts)
        if isinstance(self.loss, OpdLoss) and self.loss.divergence != "sampled_token":
            top = [_taught(c).top[:, : self.top_k] for c in completions]
            teacher = torch.from_numpy(np.concatenate(top)).to(scores.logprobs.device)
            return distillation_loss(
                scores.candidates, teacher, weights, divergence=self.loss.divergence, beta=self.loss.beta
            )
        if isinstance(self.loss, PolicyGradient):
            return self._policy_gradient(scores, weights, completions, policy_version)
        return sft_loss(scores.logprobs, weights)

    def _preference(
        self, loss: DpoLoss, scores: Scores, completions: Sequence[Completion], counts: Counts
    ) -> LossOutput:
        return dpo_loss(
            scores.logprobs, scores.reference, [len(c.token_ids) for c in completions], pairs=counts.sequences // 2,
            beta=loss.beta, objective=loss.objective, label_smoothing=loss.label_smoothing,
            length_normalised=loss.length_normalised, sft_weight=loss.sft_weight,
        )  # fmt: skip

    def _policy_gradient(
        self, scores: Scores, weights: Tensor, completions: Sequence[Completion], policy_version: int
    ) -> LossOutput:
        """GRPO and its kin, or on-policy distillation by sampled tokens, which is GRPO with a teacher for a judge."""
        loss = self.loss
        assert isinstance(loss, GrpoLoss | OpdLoss)
        device = scores.logprobs.device
        lengths = [len(c.token_ids) for c in completions]
        times = torch.tensor(lengths, dtype=torch.long)
        fresh = torch.tensor([c.policy_version == policy_version for c in completions]).repeat_interleave(times)
        rollout = torch.from_numpy(np.concatenate([c.logprobs for c in completions]))
        advantages = torch.tensor([c.advantage for c in completions]).repeat_interleave(times)
        share = loss.distill if isinstance(loss, GrpoLoss) else 1.0
        taught = {}
        if share:
            ahead = torch.from_numpy(np.concatenate([_taught(c).sampled for c in completions])) - rollout
            ahead = torch.where(torch.isfinite(rollout), ahead, 0.0)  # the loss masks it, but 0 NaN is NaN
            advantages = advantages + share * ahead
            taught = {"teacher_advantage": ahead.sum()}
        output = grpo_loss(
            scores.logprobs, rollout.to(device), advantages.to(device), weights, fresh.to(device), lengths,
            ratio=loss.ratio if isinstance(loss, GrpoLoss) else "token",
            objective=loss.objective if isinstance(loss, GrpoLoss) else "clip",
            clip_low=loss.clip_low, clip_high=loss.clip_high, is_cap=loss.is_cap,
        )  # fmt: skip
        sums = output.sums | taught
        if not (isinstance(loss, GrpoLoss) and loss.reference_kl):
            return LossOutput(output.loss, sums)
        penalty = k3_penalty(scores.logprobs, scores.reference, weights)
        return LossOutput(output.loss + loss.reference_kl * penalty.loss, sums | penalty.sums)


def _taught(completion: Completion) -> TeacherLogprobs:
    assert completion.teacher is not None, "a stage that distils has a lesson for every completion it trains on"
    return completion.teacher
