"""Which loss reads what: a stage's settings against the losses that they name, and against slow references."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from learner.losses import distillation_loss, grpo_loss, k3_penalty
from learner.objective import Counts, Objective, Scores
from speechsum.objectives import DpoLoss, GrpoLoss, OpdLoss, SftLoss
from speechsum.types import Completion, TeacherLogprobs, read_only
from tests.learner.slow_losses import at_a_corner, slopes, slow_k3, slow_ratios, slow_sft, slow_token, slow_weights

LOG2 = math.log(2.0)
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


# --- against slow references -----------------------------------------------------------------------------------------

LOGPROB = st.floats(-8, -0.01)
PARTS = st.sampled_from([-1.5, -0.3, 0.0, 0.02, 0.2, 1.1])  # this much lower than the policy's are the others'
TOKEN = st.tuples(LOGPROB, PARTS | st.sampled_from([math.inf, math.nan]), PARTS, PARTS).map(
    lambda t: (t[0], t[0] - t[1], t[0] - t[2], t[0] - t[3])
)
"""Log-probs by the policy, the engine, the teacher and the reference."""
SEQUENCE = st.tuples(st.lists(TOKEN, min_size=1, max_size=6), st.floats(-3, 3, width=32), st.booleans())
"""Tokens, their advantage, and whether the policy that is trained has sampled them."""
ELSEWHERE = st.tuples(st.integers(0, 40), st.integers(0, 5))
"""Tokens and sequences of the batch that are in other microbatches."""


def completion(tokens, advantage, fresh) -> Completion:
    """In float64, so that nothing is lost on the way to the loss."""
    _, rollout, sampled, _ = zip(*tokens, strict=True)
    nothing = np.zeros((len(tokens), 0))
    lesson = TeacherLogprobs(read_only(sampled, "float64"), read_only(nothing, "int32"), read_only(nothing, "float64"))
    ids = read_only(range(len(tokens)), "int32")
    return Completion(ids, read_only(rollout, "float64"), advantage, FRESH if fresh else FRESH - 1, lesson)


def by_objective(loss, sequences, elsewhere):
    """The loss and its gradient, after a look at the weights; those are float32, and here their exact values."""
    tokens = [token for own, _, _ in sequences for token in own]
    lengths = [len(own) for own, _, _ in sequences]
    counts = Counts(len(tokens) + elsewhere[0], len(sequences) + elsewhere[1])
    objective = Objective(loss, max_tokens=8)
    norm = getattr(loss, "length_norm", "token")
    weights = slow_weights(lengths, norm, counts.loss_tokens, counts.sequences, 8)
    assert objective.weights(lengths, counts).tolist() == pytest.approx(weights)
    ours, _, _, reference = (torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True))
    output = objective(
        Scores(ours.requires_grad_(), torch.zeros(len(tokens), 0), reference),
        torch.tensor(weights, dtype=torch.float64), [completion(*s) for s in sequences], counts, FRESH,
    )  # fmt: skip
    output.loss.backward()
    return output, ours.grad.numpy(), weights


def slow_policy_gradient(sequences, weights, share, ratio, objective, low, high, cap):
    """Loss and derivative of each token; its advantage is the completion's and `share` of the teacher's over it."""
    found, weights = [], iter(weights)
    for own, advantage, fresh in sequences:
        tokens = [(p, mu, advantage + share * (teacher - mu), next(weights)) for p, mu, teacher, _ in own]
        for token, r in zip(tokens, slow_ratios(tokens, fresh, ratio), strict=True):
            assume(fresh or not at_a_corner(r, low, high))
            found.append(slow_token(token, r, fresh, objective, low, high, cap))
    return found


def teacher_advantage(sequences) -> float:
    """How much likelier the teacher finds the tokens than the engine did, where the engine said."""
    tokens = [token for own, _, _ in sequences for token in own]
    return math.fsum(teacher - rollout for _, rollout, teacher, _ in tokens if math.isfinite(rollout))


@pytest.mark.parametrize(
    ("loss", "advantage", "first", "second"),
    [(OpdLoss(divergence="sampled_token"), 0.0, LOG2, -LOG2), (GrpoLoss(distill=0.5), 1.0, 1 + LOG2 / 2, 1 - LOG2 / 2)],
)
def test_a_teacher_of_sampled_tokens_by_hand(loss, advantage, first, second):
    # The teacher finds the first token twice as likely as the engine did and the second half so; the policy finds the
    # second a quarter likelier than the engine, which is a correction. Two more tokens are elsewhere: weights of 1/4.
    tokens = [(-1.0, -1.0, -1.0 + LOG2, -1.0), (-1.0, -1.0 - math.log(1.25), -1.0 - math.log(2.5), -1.0)]
    output, gradient, _ = by_objective(loss, [(tokens, advantage, True)], (2, 1))
    assert gradient.tolist() == pytest.approx([-first / 4, -1.25 * second / 4])
    assert output.loss.item() == pytest.approx(-first / 4 - 1.25 * second / 4)


@given(st.lists(SEQUENCE, min_size=1, max_size=5), ELSEWHERE)
@settings(deadline=None)
def test_sft_equals_the_slow_reference(sequences, elsewhere):
    output, gradient, weights = by_objective(SftLoss(), sequences, elsewhere)
    logprobs = [token[0] for own, _, _ in sequences for token in own]
    assert output.loss.item() == pytest.approx(slow_sft(logprobs, weights), abs=1e-12)
    np.testing.assert_allclose(gradient, slopes(lambda x: slow_sft(x, weights), logprobs), atol=1e-8)


@given(st.lists(SEQUENCE, min_size=1, max_size=5), ELSEWHERE, st.floats(0, 0.9), st.floats(0, 2),
       st.none() | st.floats(1.01, 4))  # fmt: skip
@settings(deadline=None)
def test_sampled_tokens_equal_the_slow_reference(sequences, elsewhere, low, high, cap):
    sequences = [(own, 0.0, fresh) for own, _, fresh in sequences]
    loss = OpdLoss(divergence="sampled_token", clip_low=low, clip_high=high, is_cap=cap)
    output, gradient, weights = by_objective(loss, sequences, elsewhere)
    expected = slow_policy_gradient(sequences, weights, 1.0, "token", "clip", low, high, cap)
    assert output.loss.item() == pytest.approx(math.fsum(e[0] for e in expected), abs=1e-10)
    np.testing.assert_allclose(gradient, [e[1] for e in expected], atol=1e-11)
    assert output.sums["teacher_advantage"].item() == pytest.approx(teacher_advantage(sequences), abs=1e-10)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("objective", ["clip", "cispo"])
@given(
    st.lists(SEQUENCE, min_size=1, max_size=5), ELSEWHERE, st.sampled_from(["token", "sequence", "max_tokens"]),
    st.floats(0.01, 2), st.just(0.0) | st.floats(0.01, 2), st.none() | st.floats(1.01, 4),
)  # fmt: skip
@settings(deadline=None)
def test_a_mix_equals_the_slow_reference(ratio, objective, sequences, elsewhere, norm, share, held, cap):
    loss = GrpoLoss(
        ratio=ratio, objective=objective, length_norm=norm, distill=share, reference_kl=held, is_cap=cap,
    )  # fmt: skip
    output, gradient, weights = by_objective(loss, sequences, elsewhere)
    expected = slow_policy_gradient(sequences, weights, share, ratio, objective, 0.2, 0.28, cap)
    tokens = [token for own, _, _ in sequences for token in own]
    ours, reference = [token[0] for token in tokens], [token[3] for token in tokens]
    penalty = slow_k3(ours, reference, weights)
    pull = slopes(lambda x: slow_k3(x, reference, weights), ours)
    assert output.loss.item() == pytest.approx(math.fsum(e[0] for e in expected) + held * penalty, abs=1e-10)
    np.testing.assert_allclose(gradient, [e[1] + held * p for e, p in zip(expected, pull, strict=True)], atol=1e-8)
    assert output.sums["teacher_advantage"].item() == pytest.approx(teacher_advantage(sequences), abs=1e-10)
    assert "reference_kl" not in output.sums or output.sums["reference_kl"].item() == pytest.approx(penalty)
