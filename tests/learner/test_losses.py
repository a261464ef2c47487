"""Losses against numbers worked out by hand, and against a slow reference that shares no code with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from learner.losses import grpo_loss, sft_loss, token_weights

LOG2 = math.log(2.0)


def grpo(logprobs, rollout, advantages, *, on_policy=False, weights=None, **options):
    """The loss of a few tokens, each of weight 1 unless given, with the leaf to read gradients from."""
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    n = len(logprobs)
    output = grpo_loss(
        leaf,
        torch.tensor(rollout, dtype=torch.float64),
        torch.tensor(advantages, dtype=torch.float64),
        torch.ones(n, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64),
        torch.full((n,), on_policy) if isinstance(on_policy, bool) else torch.tensor(on_policy),
        **{"clip_low": 0.2, "clip_high": 0.28, "is_cap": 2.0} | options,
    )
    output.loss.backward()
    return output, leaf.grad


# --- weights ---------------------------------------------------------------------------------------------------------


def test_token_weights_by_hand():
    lengths = [2, 1]
    shared = {"loss_tokens": 10, "sequences": 5}
    assert token_weights(lengths, **shared).tolist() == pytest.approx([0.1] * 3)
    assert token_weights(lengths, norm="sequence", **shared).tolist() == pytest.approx([0.1, 0.1, 0.2])
    assert token_weights(lengths, norm="max_tokens", max_tokens=40, **shared).tolist() == pytest.approx([1 / 200] * 3)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 8))
def test_parts_of_a_batch_add_up_to_the_whole(lengths, cut):
    shared = {"loss_tokens": sum(lengths), "sequences": len(lengths)}
    for norm in ("token", "sequence"):
        parts = [token_weights(part, norm=norm, **shared) for part in (lengths[:cut], lengths[cut:])]
        whole = token_weights(lengths, norm=norm, **shared)
        assert torch.equal(torch.cat(parts), whole)
        assert float(whole.sum()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("norm", ["token", "sequence", "max_tokens"])
def test_no_tokens_no_weights(norm):
    assert token_weights([], loss_tokens=0, sequences=0, norm=norm).shape == (0,)


# --- sft -------------------------------------------------------------------------------------------------------------


def test_sft_by_hand():
    logprobs = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    output = sft_loss(logprobs, torch.tensor([0.5, 0.25, 0.0]))
    output.loss.backward()
    assert output.loss.item() == 1.0
    assert logprobs.grad.tolist() == [-0.5, -0.25, 0.0]  # descending raises the references' log-probs


# --- grpo ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.00, 1.0, -1.00, -1.0),
        (1.20, 1.0, -1.20, -1.2),  # above 1 + clip_low but below 1 + clip_high: clip-higher lets it through
        (1.50, 1.0, -1.28, 0.0),
        (0.50, 1.0, -0.50, -0.5),  # has fallen: never clipped from rising again
        (1.00, -1.0, 1.00, 1.0),
        (0.90, -1.0, 0.90, 0.9),
        (0.50, -1.0, 0.80, 0.0),
        (1.50, -1.0, 1.50, 1.5),  # has risen: never clipped from falling again
        (1.50, 0.0, 0.00, 0.0),
        (1.50, 2.0, -2.56, 0.0),
    ],
)
def test_clipping_of_a_stale_token(ratio, advantage, loss, gradient):
    output, found = grpo([math.log(ratio) - 1.0], [-1.0], [advantage])
    assert output.loss.item() == pytest.approx(loss)
    assert found.item() == pytest.approx(gradient)


@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
def test_descending_moves_a_token_towards_its_advantage(on_policy, advantage):
    _, gradient = grpo([-1.0, -3.0], [-1.05, -2.9], [advantage] * 2, on_policy=on_policy)
    assert bool((-gradient * advantage > 0).all())


def test_fresh_token_has_ratio_one_and_a_truncated_correction():
    # pi / pi_rollout = 1.25 is the correction's business, and no ratio to clip
    output, gradient = grpo([-1.0], [-1.0 - math.log(1.25)], [1.0], on_policy=True, clip_low=0.0, clip_high=0.0)
    assert output.loss.item() == pytest.approx(-1.25)
    assert gradient.item() == pytest.approx(-1.25)
    assert output.sums["is_weight_mean"].item() == pytest.approx(1.25)
    assert output.sums["clip_share"].item() == 0


def test_the_correction_is_capped_from_above_only():
    output, gradient = grpo([-1.0, -1.0], [-1.0 - 2 * LOG2, -1.0 + 2 * LOG2], [1.0, 1.0], on_policy=True)
    assert gradient.tolist() == pytest.approx([-2.0, -0.25])  # 4 is cut to 2, a quarter stays
    assert output.sums["is_weight_mean"].item() == pytest.approx(2.25)


def test_without_a_cap_nothing_is_corrected():
    output, gradient = grpo([-1.0], [-1.0 - 2 * LOG2], [1.0], on_policy=True, is_cap=None)
    assert (output.loss.item(), gradient.item()) == (-1.0, -1.0)


def test_a_stale_token_is_clipped_but_not_corrected():
    output, _ = grpo([-1.0], [-1.0 - 2 * LOG2], [1.0], on_policy=False)
    assert output.loss.item() == pytest.approx(-1.28)
    assert output.sums["is_weight_mean"].item() == 1.0


def test_fresh_and_stale_tokens_share_a_batch():
    logprobs, rollout = [-1.0, -1.0], [-1.0 - LOG2, -1.0 - LOG2]
    output, gradient = grpo(logprobs, rollout, [1.0, 1.0], on_policy=[True, False])
    assert output.loss.item() == pytest.approx(-2.0 - 1.28)
    assert gradient.tolist() == pytest.approx([-2.0, 0.0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("on_policy", [True, False])
def test_a_token_without_a_rollout_logprob_is_masked_and_counted(bad, on_policy):
    output, gradient = grpo([-1.0, -1.0], [bad, -1.0], [1.0, 1.0], on_policy=on_policy)
    assert output.loss.item() == pytest.approx(-1.0)
    assert gradient.tolist() == pytest.approx([0.0, -1.0])
    assert output.sums["masked_tokens"].item() == 1
    assert all(math.isfinite(v) for v in output.sums.values())


def test_weights_are_the_only_denominator():
    output, gradient = grpo([-1.0, -1.0], [-1.0, -1.0], [1.0, -2.0], weights=[0.25, 0.125])
    assert output.loss.item() == pytest.approx(-0.25 + 0.25)
    assert gradient.tolist() == pytest.approx([-0.25, 0.25])


def test_sums_carry_no_graph_and_count_what_was_clipped():
    output, _ = grpo([-1.0] * 4, [-1.0 - LOG2, -1.0 + LOG2, -1.0 - LOG2, -1.0 + LOG2], [1.0, 1.0, -1.0, -1.0])
    assert output.sums["clip_share"].item() == 2  # risen with A > 0, fallen with A < 0
    assert output.sums["logprob_gap"].item() == pytest.approx(4 * LOG2)
    assert not any(v.requires_grad for v in output.sums.values())


# --- grpo against a reference ----------------------------------------------------------------------------------------


def slow_token(logp, rollout, advantage, weight, fresh, low, high, cap):
    """One token's loss and its derivative by logp, by cases, in plain floats."""
    if not math.isfinite(rollout):
        return 0.0, 0.0
    if fresh:
        correction = 1.0 if cap is None else min(math.exp(logp - rollout), cap)
        return -weight * correction * advantage, -weight * correction * advantage
    ratio = math.exp(logp - rollout)
    if advantage > 0 and ratio > 1 + high:
        return -weight * (1 + high) * advantage, 0.0
    if advantage < 0 and ratio < 1 - low:
        return -weight * (1 - low) * advantage, 0.0
    return -weight * ratio * advantage, -weight * ratio * advantage


TOKEN = st.tuples(
    st.floats(-8, -0.01),  # log-prob
    st.sampled_from([-1.5, -0.3, -0.1, 0.0, 0.02, 0.2, 1.1, math.inf, math.nan]),  # rollout's is this much lower
    st.floats(-3, 3),  # advantage
    st.floats(0, 1),  # weight
    st.booleans(),  # on policy
)


@given(st.lists(TOKEN, max_size=30), st.floats(0, 0.9), st.floats(0, 2), st.none() | st.floats(1.01, 4))
@settings(max_examples=150, deadline=None)
def test_equals_the_slow_reference(tokens, low, high, cap):
    for _, gap, _, _, fresh in tokens:  # at a corner of the clip there is no derivative to compare
        ratio = math.exp(gap) if math.isfinite(gap) else 0.5
        assume(fresh or min(abs(ratio - 1 - high), abs(ratio - 1 + low)) > 1e-6)
    columns = [list(c) for c in zip(*tokens, strict=True)] if tokens else [[] for _ in range(5)]
    logprobs, gaps, advantages, weights, fresh = columns
    rollout = [lp - gap for lp, gap in zip(logprobs, gaps, strict=True)]
    rows = zip(logprobs, rollout, advantages, weights, fresh, strict=True)
    expected = [slow_token(*row, low, high, cap) for row in rows]
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    output = grpo_loss(
        leaf,
        torch.tensor(rollout, dtype=torch.float64),
        torch.tensor(advantages, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(fresh, dtype=torch.bool),
        clip_low=low, clip_high=high, is_cap=cap,
    )  # fmt: skip
    output.loss.backward()
    assert output.loss.item() == pytest.approx(math.fsum(e[0] for e in expected), abs=1e-12)
    np.testing.assert_allclose(leaf.grad.numpy(), [e[1] for e in expected], atol=1e-12)


def test_float32_is_exact_enough():
    tokens = torch.linspace(-6, -0.1, 50)
    inputs = (tokens - 0.1, torch.linspace(-2, 2, 50), torch.full((50,), 0.02), torch.arange(50) % 2 == 0)
    options = {"clip_low": 0.2, "clip_high": 0.28, "is_cap": 2.0}
    single = grpo_loss(tokens, *inputs, **options).loss
    double = grpo_loss(tokens.double(), *(i.double() if i.is_floating_point() else i for i in inputs), **options).loss
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), abs=1e-6)
