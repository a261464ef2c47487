"""Which loss reads what: a stage's settings against the losses that they name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.losses import distillation_loss, grpo_loss, k3_penalty
from learner.objective import Counts, Objective, Scores
from speechsum.objectives import DpoLoss, GrpoLoss, OpdLoss, SftLoss
from speechsum.types import Completion, TeacherLogprobs, read_only

LENGTHS = (3, 2)
COUNTS = Counts(loss_tokens=5, sequences=2)
FRESH = 4


def completions(k: int = 4) -> list[Completion]:
    """Two of them, with a rollout and a teacher that agree in nothing."""
    rng = np.random.default_rng(1)
    made = []
    for length, advantage in zip(LENGTHS, (1.0, -0.5), strict=True):
        lesson = TeacherLogprobs(
            read_only(rng.normal(-2, 0.3, length), "float32"),
            read_only(rng.integers(0, 9, (length, k)), "int32"),
            read_only(np.log(np.tile([0.4, 0.3, 0.1, 0.05], (length, 1))), "float32"),
        )
        logprobs = read_only(rng.normal(-2, 0.3, length), "float32")
        made.append(Completion(read_only(range(length), "int32"), logprobs, advantage, FRESH, lesson))
    return made


def scores() -> Scores:
    torch.manual_seed(0)
    logprobs, reference = -2 + 0.2 * torch.randn(5), -2 + 0.2 * torch.randn(5)
    return Scores(logprobs, torch.randn(5, 5).log_softmax(-1), reference)


def value(loss) -> tuple[float, dict]:
    objective = Objective(loss, max_tokens=8)
    weights = objective.weights(LENGTHS, COUNTS)
    output = objective(scores(), weights, completions(), COUNTS, FRESH)
    return output.loss.item(), output.sums


def by_hand(advantages: torch.Tensor) -> float:
    rollout = torch.from_numpy(np.concatenate([c.logprobs for c in completions()]))
    output = grpo_loss(
        scores().logprobs, rollout, advantages, torch.full((5,), 0.2), torch.full((5,), True), LENGTHS,
        ratio="token", objective="clip", clip_low=0.2, clip_high=0.28, is_cap=2.0,
    )  # fmt: skip
    return output.loss.item()


REWARD = torch.tensor([1.0, 1.0, 1.0, -0.5, -0.5])


def teacher_less_rollout() -> torch.Tensor:
    return torch.from_numpy(np.concatenate([c.teacher.sampled - c.logprobs for c in completions() if c.teacher]))


def test_grpo_takes_the_reward_alone():
    found, sums = value(GrpoLoss())
    assert found == pytest.approx(by_hand(REWARD))
    assert "teacher_advantage" not in sums


def test_a_distilling_grpo_adds_its_share_of_the_teacher_to_every_token():
    found, sums = value(GrpoLoss(distill=0.3))
    assert found == pytest.approx(by_hand(REWARD + 0.3 * teacher_less_rollout()))
    assert sums["teacher_advantage"].item() == pytest.approx(teacher_less_rollout().sum().item())


def test_sampled_tokens_have_the_teacher_for_a_judge():
    plain = [replace(c, advantage=0.0) for c in completions()]
    objective = Objective(OpdLoss(divergence="sampled_token"), max_tokens=8)
    found = objective(scores(), objective.weights(LENGTHS, COUNTS), plain, COUNTS, FRESH)
    assert found.loss.item() == pytest.approx(by_hand(teacher_less_rollout()))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("loss", [GrpoLoss(distill=0.3), OpdLoss(divergence="sampled_token")])
def test_a_token_without_a_rollout_logprob_has_no_teacher_either(loss, bad):
    """It is masked, and the rest of the batch learns as if it had weight 0."""
    objective, logprobs = Objective(loss, max_tokens=8), scores().logprobs.requires_grad_()
    first, second = completions()
    spoilt = replace(first, logprobs=read_only([*first.logprobs[:2], bad], "float32"))
    weights = torch.full((5,), 0.2)
    output = objective(replace(scores(), logprobs=logprobs), weights, [spoilt, second], COUNTS, FRESH)
    (gradient,) = torch.autograd.grad(output.loss, logprobs)
    weights[2] = 0.0
    wanted = objective(replace(scores(), logprobs=logprobs), weights, [first, second], COUNTS, FRESH)
    (wanted_gradient,) = torch.autograd.grad(wanted.loss, logprobs)
    assert output.loss.item() == pytest.approx(wanted.loss.item())
    assert gradient.tolist() == pytest.approx(wanted_gradient.tolist())
    ahead = teacher_less_rollout()
    assert output.sums["teacher_advantage"].item() == pytest.approx(float(ahead.sum() - ahead[2]))
    assert output.sums["masked_tokens"].item() == 1


def test_a_reference_holds_grpo_back():
    penalty = k3_penalty(scores().logprobs, scores().reference, torch.full((5,), 0.2))
    found, sums = value(GrpoLoss(reference_kl=0.5))
    assert found == pytest.approx(by_hand(REWARD) + 0.5 * penalty.loss.item())
    assert sums["reference_kl"].item() == pytest.approx(penalty.loss.item())


def test_a_divergence_reads_as_many_of_the_teacher_s_tokens_as_the_recipe_says():
    teacher = torch.from_numpy(np.concatenate([c.teacher.top for c in completions() if c.teacher]))
    wanted = distillation_loss(scores().candidates, teacher, torch.full((5,), 0.2), divergence="jsd", beta=0.3)
    assert value(OpdLoss(divergence="jsd", beta=0.3, top_k=4))[0] == pytest.approx(wanted.loss.item())


@pytest.mark.parametrize(
    ("loss", "reference", "top_k", "rollout"),
    [
        (SftLoss(), False, 0, False),
        (GrpoLoss(), False, 0, True),
        (GrpoLoss(reference_kl=0.1), True, 0, True),
        (GrpoLoss(distill=0.1), False, 0, True),
        (OpdLoss(top_k=9), False, 9, False),
        (OpdLoss(divergence="sampled_token", top_k=9), False, 0, True),
        (DpoLoss(), True, 0, False),
    ],
)
def test_what_each_loss_reads(loss, reference, top_k, rollout):
    objective = Objective(loss, max_tokens=8)
    assert (objective.reads_reference, objective.top_k, objective.compares_with_rollout) == (reference, top_k, rollout)
