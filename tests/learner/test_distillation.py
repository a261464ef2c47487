"""Distillation's divergences against numbers worked out by hand, and against the slow references of `slow_losses`."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.losses import distillation_loss
from tests.learner.slow_losses import slopes, slow_divergence, slow_lesson

LOG2 = math.log(2.0)


def logs(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.mark.parametrize(
    ("divergence", "beta", "loss"),
    [
        # teacher (1/2, 1/4 | 1/4), student (1/4, 1/4 | 1/2): what is after the bar is the rest
        ("forward_kl", 0.5, 0.5 * LOG2 - 0.25 * LOG2),
        ("reverse_kl", 0.5, -0.25 * LOG2 + 0.5 * LOG2),
        # mixture (3/8, 1/4 | 3/8)
        ("jsd", 0.5, 0.5 * (0.5 * math.log(4 / 3) + 0.25 * math.log(2 / 3)) * 2),
        # mixture (5/16, 1/4 | 7/16): the teacher's share is a quarter
        ("jsd", 0.25, 0.25 * (0.5 * math.log(8 / 5) + 0.25 * math.log(4 / 7))
         + 0.75 * (0.25 * math.log(4 / 5) + 0.5 * math.log(8 / 7))),
    ],
)  # fmt: skip
def test_divergences_by_hand(divergence, beta, loss):
    student = logs([0.25, 0.25, 0.5]).requires_grad_()
    weights = torch.ones(1, dtype=torch.float64)
    output = distillation_loss(student, logs([0.5, 0.25]), weights, divergence=divergence, beta=beta)
    assert output.loss.item() == pytest.approx(loss, abs=1e-12)
    assert output.sums["teacher_divergence"].item() == pytest.approx(loss, abs=1e-12)
    assert output.sums["teacher_top"].item() == pytest.approx(0.75)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_descending_moves_the_student_to_the_teacher(divergence):
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    teacher = logs([0.6, 0.3])  # of the first two tokens
    for _ in range(600):
        everything = logits.log_softmax(-1)
        rest = everything[:, 2:].logsumexp(-1, keepdim=True)
        student = torch.cat([everything[:, :2], rest], -1)
        loss = distillation_loss(student, teacher, torch.ones(1), divergence=divergence).loss
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
    assert logits.softmax(-1)[0].tolist() == pytest.approx([0.6, 0.3, 0.05, 0.05], abs=1e-3)


def distribution(draw, size):
    raw = draw(st.lists(st.floats(-6, 6), min_size=size, max_size=size))
    return torch.tensor(raw, dtype=torch.float64).log_softmax(-1)


@given(st.data(), st.integers(2, 9), st.sampled_from(["forward_kl", "reverse_kl", "jsd"]), st.floats(0.05, 0.95))
@settings(max_examples=150, deadline=None)
def test_a_divergence_over_fewer_events_is_between_nothing_and_the_whole(data, vocabulary, divergence, beta):
    teacher, student = (distribution(data.draw, vocabulary) for _ in range(2))
    top = teacher.topk(data.draw(st.integers(1, vocabulary - 1))).indices

    def over(events):
        """The loss where `events` are named and all others are the rest; and by plain sums over probabilities."""
        others = torch.tensor([i for i in range(vocabulary) if i not in events.tolist()])
        rest = student[others].logsumexp(-1, keepdim=True)
        named = torch.cat([student[events], rest])[None]
        found = distillation_loss(named, teacher[events][None], torch.ones(1), divergence=divergence, beta=beta)
        p = [*teacher[events].exp().tolist(), math.fsum(teacher[others].exp().tolist())]
        q = [*student[events].exp().tolist(), math.fsum(student[others].exp().tolist())]
        return found.loss.item(), slow_divergence(p, q, divergence, beta)

    coarse, slow = over(top)
    assert coarse == pytest.approx(slow, abs=1e-5)
    assert coarse >= -1e-6
    assert coarse <= over(teacher.topk(vocabulary - 1).indices)[1] + 1e-5


@st.composite
def lessons(draw):
    """Tokens as (student's log-probs [K + 1], teacher's [K], weight), a few of them masked by a weight of 0; and K."""
    k = draw(st.integers(1, 5))
    weights = draw(st.lists(st.just(0.0) | st.floats(0.01, 1), max_size=6))
    row = lambda: distribution(draw, k + 1).tolist()  # noqa: E731
    return [(row(), row()[:k], weight) for weight in weights], k


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
@given(lessons(), st.floats(0.05, 0.95))
@settings(max_examples=100, deadline=None)
def test_equals_the_slow_reference(divergence, lesson, beta):
    tokens, k = lesson
    student = torch.tensor([t[0] for t in tokens], dtype=torch.float64).reshape(-1, k + 1).requires_grad_()
    teacher = torch.tensor([t[1] for t in tokens], dtype=torch.float64).reshape(-1, k)
    weights = torch.tensor([t[2] for t in tokens], dtype=torch.float64)
    output = distillation_loss(student, teacher, weights, divergence=divergence, beta=beta)
    output.loss.backward()
    values, gradient = [], []
    for ours, theirs, weight in tokens:
        slow = partial(slow_lesson, top=theirs, divergence=divergence, beta=beta)
        values.append((weight, slow(ours), math.fsum(math.exp(logp) for logp in theirs)))
        gradient += [weight * slope for slope in slopes(slow, ours)]
    assert output.loss.item() == pytest.approx(math.fsum(w * d for w, d, _ in values), abs=1e-8)
    np.testing.assert_allclose(student.grad.flatten().numpy(), gradient, atol=1e-8)
    seen = [(d, c) for w, d, c in values if w > 0]
    sums = {"teacher_divergence": math.fsum(d for d, _ in seen), "teacher_top": math.fsum(c for _, c in seen)}
    assert {name: v.item() for name, v in output.sums.items()} == pytest.approx(sums, abs=1e-8)


def test_a_teacher_that_names_everything_leaves_a_finite_rest():
    student = logs([0.9, 0.05, 0.05]).requires_grad_()
    output = distillation_loss(student, logs([0.75, 0.2500001]), torch.ones(1), divergence="forward_kl")
    output.loss.backward()
    assert math.isfinite(output.loss.item())
    assert torch.isfinite(student.grad).all()
