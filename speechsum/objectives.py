"""What a stage minimises: one table for each loss, chosen by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from speechsum.section import Fraction, NonNegative, Positive, Section


class SftLoss(Section):
    """Negative log-likelihood of the reference, averaged over all response tokens of the step."""

    kind: Literal["sft"] = "sft"


class PolicyGradient(Section):
    """Clipping and correction of importance ratios, shared by every loss that has advantages.

    `clip_high` > `clip_low` is DAPO's clip-higher (2503.14476); `is_cap` truncates the rollout/learner importance
    weight (TIS).
    """

    clip_low: Fraction = 0.2
    clip_high: NonNegative = 0.28
    is_cap: Annotated[float, Field(gt=1)] | None = 2.0


class GrpoLoss(PolicyGradient):
    """GRPO (arXiv 2402.03300) with its accepted corrections as switches.

    `scale_by_std` false and `length_norm` `"max_tokens"` are Dr.GRPO (2503.20783).
    `ratio` and `length_norm` both `"sequence"` are GSPO (2507.18071), whose clips are far narrower: 3e-4 and 4e-4.
    `objective` `"cispo"` (2506.13585) clips a token's weight and keeps its gradient; `clip_low` 1 is no lower bound.
    Both matter to stale completions alone, for a fresh one's ratio is 1. `baseline` `"leave_one_out"` is RLOO's
    (2402.14740). `reference_kl` weighs a k3 penalty towards the weights that the stage began with. `distill` L adds
    L (log p_teacher - log p_rollout) to every token's advantage: reward and teacher in one update.
    """

    kind: Literal["grpo"] = "grpo"
    ratio: Literal["token", "sequence"] = "token"
    objective: Literal["clip", "cispo"] = "clip"
    baseline: Literal["mean", "leave_one_out"] = "mean"
    scale_by_std: bool = True
    length_norm: Literal["token", "sequence", "max_tokens"] = "token"
    reference_kl: NonNegative = 0.0
    distill: NonNegative = 0.0

    @model_validator(mode="after")
    def _baseline_stays_independent(self) -> Self:
        if self.baseline == "leave_one_out" and self.scale_by_std:
            raise ValueError(
                "loss.baseline = 'leave_one_out' keeps a reward out of its own baseline, and the group's deviation "
                "brings it back; set loss.scale_by_std = false"
            )
        return self


class OpdLoss(PolicyGradient):
    """On-policy distillation (GKD 2306.13649): a teacher that reads the transcript, at every token the student wrote.

    `forward_kl`, `reverse_kl` and `jsd` (with `beta` the teacher's share) compare distributions over the teacher's
    `top_k` likeliest tokens and everything else; `sampled_token` takes log p_teacher - log p_rollout of the token
    itself for an advantage, and is the one that clips.
    """

    kind: Literal["opd"] = "opd"
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "sampled_token"] = "forward_kl"
    top_k: Annotated[int, Field(ge=1, le=1024)] = 32
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5


class PairRules(Section):
    """Which two completions of a prompt make a pair.

    Their rewards are at least `margin` apart; with `faithful_first` the preferred one is no less faithful, by the
    judge's own breakdown; neither is more than `max_length_ratio` times as long as the other. `per_prompt` pairs at
    most, the widest first, no completion twice.
    """

    margin: NonNegative = 0.05
    faithful_first: bool = True
    max_length_ratio: Annotated[float, Field(ge=1)] = 3.0
    per_prompt: Positive = 1


class DpoLoss(Section):
    """Direct preference optimisation (2305.18290) against the weights that the stage began with.

    Online, pairs come from the student's own completions, judged each round; `pairs` names a run folder or a file of
    `prompt_id, chosen, rejected` to train on instead. `objective`: `sigmoid` (cDPO with `label_smoothing`), `ipo`
    (2310.12036) or `robust` (2403.00409). `length_normalised` takes log-ratios per token; `sft_weight` adds the
    preferred completion's own likelihood (2404.19733).
    """

    kind: Literal["dpo"] = "dpo"
    beta: Annotated[float, Field(gt=0)] = 0.1
    objective: Literal["sigmoid", "ipo", "robust"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    length_normalised: bool = False
    sft_weight: NonNegative = 0.0
    pairs: str = ""
    rules: PairRules = PairRules()

    @model_validator(mode="after")
    def _smoothing_has_a_meaning(self) -> Self:
        if self.objective == "ipo" and self.label_smoothing:
            raise ValueError("loss.label_smoothing has no meaning for objective 'ipo'; leave it out")
        if self.objective == "robust" and not self.label_smoothing:
            raise ValueError("objective 'robust' corrects for a share of wrong labels; set loss.label_smoothing to it")
        return self


Loss = SftLoss | GrpoLoss | OpdLoss | DpoLoss
