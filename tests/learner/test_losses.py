"""Losses against numbers worked out by hand, and against the slow references of `slow_losses`.

Distillation is in `test_distillation`, and what a stage makes of its settings in `test_objective`.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from learner.losses import dpo_loss, grpo_loss, k3_penalty, sft_loss, token_weights
from tests.learner.slow_losses import at_a_corner, slopes, slow_k3, slow_ratios, slow_sft, slow_token, slow_weights

LOG2 = math.log(2.0)
OPTIONS = {"ratio": "token", "objective": "clip", "clip_low": 0.2, "clip_high": 0.28, "is_cap": 2.0}


def grpo(logprobs, rollout, advantages, *, on_policy=False, weights=None, lengths=None, **options):
    """The loss of a few tokens, each of weight 1 and in one sequence unless told, and its gradient."""
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    n = len(logprobs)
    output = grpo_loss(
        leaf,
        torch.tensor(rollout, dtype=torch.float64),
        torch.tensor(advantages, dtype=torch.float64),
        torch.ones(n, dtype=torch.float64) if weights is None else torch.tensor(weights, dtype=torch.float64),
        torch.full((n,), on_policy) if isinstance(on_policy, bool) else torch.tensor(on_policy, dtype=torch.bool),
        [n] if lengths is None else lengths,
        **OPTIONS | options,
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


@given(
    st.lists(st.integers(1, 9), max_size=8), st.sampled_from(["token", "sequence", "max_tokens"]),
    st.integers(0, 40), st.integers(0, 5), st.integers(9, 64),
)  # fmt: skip
def test_token_weights_equal_the_slow_reference(lengths, norm, tokens_elsewhere, sequences_elsewhere, longest):
    batch = {"loss_tokens": sum(lengths) + tokens_elsewhere, "sequences": len(lengths) + sequences_elsewhere}
    found = token_weights(lengths, norm=norm, max_tokens=longest, **batch)
    assert found.tolist() == pytest.approx(slow_weights(lengths, norm, **batch, longest=longest))


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


WEIGHT = st.just(0.0) | st.floats(0, 1)  # a masked token's is 0


@given(st.lists(st.tuples(st.floats(-30, 0), WEIGHT), max_size=12))
@settings(deadline=None)
def test_sft_equals_the_slow_reference(tokens):
    logprobs, weights = [logp for logp, _ in tokens], [weight for _, weight in tokens]
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    output = sft_loss(leaf, torch.tensor(weights, dtype=torch.float64))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(slow_sft(logprobs, weights), abs=1e-11)
    np.testing.assert_allclose(leaf.grad.numpy(), slopes(lambda x: slow_sft(x, weights), logprobs), atol=1e-8)
    assert all(leaf.grad[i] == 0 for i, weight in enumerate(weights) if weight == 0)


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


# --- gspo ------------------------------------------------------------------------------------------------------------


def test_all_tokens_of_a_sequence_have_its_ratio():
    # log-ratios 2 log 2 and 0 make one ratio of 2; the second sequence keeps its own
    logprobs, rollout = [-1.0, -1.0, -3.0], [-1.0 - 2 * LOG2, -1.0, -3.0 + LOG2]
    options = {"ratio": "sequence", "lengths": [2, 1], "clip_low": 0.6}
    output, gradient = grpo(logprobs, rollout, [1.0, 1.0, -1.0], clip_high=1.5, **options)
    assert output.loss.item() == pytest.approx(-2.0 - 2.0 + 0.5)
    assert gradient.tolist() == pytest.approx([-2.0, -2.0, 0.5])
    output, gradient = grpo(logprobs, rollout, [1.0, 1.0, -1.0], clip_high=0.28, **options)
    assert output.loss.item() == pytest.approx(-1.28 - 1.28 + 0.5)
    assert gradient.tolist() == pytest.approx([0.0, 0.0, 0.5])  # a sequence is clipped as one
    assert output.sums["clip_share"].item() == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_masked_token_is_left_out_of_the_sequences_mean(bad):
    rollout = [-1.0 - LOG2, bad, -1.0 - LOG2, bad]
    output, gradient = grpo([-1.0] * 4, rollout, [1.0] * 4, ratio="sequence", lengths=[3, 1], clip_high=1.5)
    assert output.loss.item() == pytest.approx(-4.0)
    assert gradient.tolist() == pytest.approx([-2.0, 0.0, -2.0, 0.0])
    assert output.sums["masked_tokens"].item() == 2
    clipped, _ = grpo([-1.0] * 4, rollout, [1.0] * 4, ratio="sequence", lengths=[3, 1])
    assert clipped.sums["clip_share"].item() == 2


def test_a_fresh_sequence_has_ratio_one_and_each_token_its_correction():
    output, gradient = grpo(
        [-1.0, -1.0], [-1.0 - 2 * LOG2, -1.0 + LOG2], [1.0, 1.0],
        ratio="sequence", on_policy=True, clip_low=0.0, clip_high=0.0,
    )  # fmt: skip
    assert gradient.tolist() == pytest.approx([-2.0, -0.5])
    assert output.sums["clip_share"].item() == 0


def test_gspo_token_has_the_gradient_of_gspo():
    """GSPO's own objective, -A s with s = exp(mean log r), differentiated through the mean."""
    logprobs, rollout = [-1.0, -2.0, -0.5], [-1.2, -1.9, -0.6]
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    loss = -1.5 * torch.exp((leaf - torch.tensor(rollout, dtype=torch.float64)).mean())
    loss.backward()
    output, gradient = grpo(logprobs, rollout, [1.5] * 3, ratio="sequence", weights=[1 / 3] * 3)
    assert output.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert gradient.tolist() == pytest.approx(leaf.grad.tolist(), abs=1e-12)


# --- cispo -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "clip_low", "gradient", "cut"),
    [
        (1.20, 1.0, 0.2, -1.20, 0),
        (1.50, 1.0, 0.2, -1.28, 1),  # cut, and yet it learns
        (0.50, 1.0, 0.2, -0.80, 1),
        (0.50, 1.0, 1.0, -0.50, 0),  # no lower bound
        (0.90, -1.0, 0.2, 0.90, 0),
        (0.50, -1.0, 0.2, 0.80, 1),
        (1.50, -2.0, 0.2, 2.56, 1),
        (1.50, 0.0, 0.2, 0.00, 1),
    ],
)
def test_cispo_clips_the_weight_and_keeps_the_gradient(ratio, advantage, clip_low, gradient, cut):
    output, found = grpo([-3.0], [-3.0 - math.log(ratio)], [advantage], objective="cispo", clip_low=clip_low)
    assert found.item() == pytest.approx(gradient)
    assert output.loss.item() == pytest.approx(-3.0 * gradient)
    assert output.sums["clip_share"].item() == cut


def test_cispo_corrects_a_fresh_token_and_masks_one_without_a_logprob():
    output, gradient = grpo([-1.0, -1.0], [-1.0 + LOG2, math.nan], [1.0, 1.0], objective="cispo", on_policy=True)
    assert output.loss.item() == pytest.approx(0.5)
    assert gradient.tolist() == pytest.approx([-0.5, 0.0])


def test_cispo_weighs_a_sequence_as_one():
    output, gradient = grpo([-1.0, -3.0], [-1.0 - 2 * LOG2, -3.0], [1.0, 1.0], objective="cispo", ratio="sequence")
    assert gradient.tolist() == pytest.approx([-1.28, -1.28])
    assert output.loss.item() == pytest.approx(4 * 1.28)


# --- grpo against a reference ----------------------------------------------------------------------------------------


TOKEN = st.tuples(
    st.floats(-8, -0.01),  # log-prob
    st.sampled_from([-1.5, -0.3, -0.1, 0.0, 0.02, 0.2, 1.1, math.inf, math.nan]),  # rollout's is this much lower
    st.floats(-3, 3),  # advantage
    st.floats(0, 1),  # weight
).map(lambda t: (t[0], t[0] - t[1], t[2], t[3]))
SEQUENCE = st.tuples(st.lists(TOKEN, max_size=8), st.booleans())  # on policy or not


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("objective", ["clip", "cispo"])
@given(st.lists(SEQUENCE, max_size=6), st.floats(0, 0.9), st.floats(0, 2), st.none() | st.floats(1.01, 4))
@settings(max_examples=150, deadline=None)
def test_equals_the_slow_reference(ratio, objective, sequences, low, high, cap):
    expected = []
    for tokens, fresh in sequences:
        for token, r in zip(tokens, slow_ratios(tokens, fresh, ratio), strict=True):
            assume(fresh or not at_a_corner(r, low, high))
            expected.append(slow_token(token, r, fresh, objective, low, high, cap))
    columns = zip(*(token for tokens, _ in sequences for token in tokens), strict=True)
    logprobs, rollout, advantages, weights = list(columns) or [()] * 4
    output, gradient = grpo(
        logprobs, rollout, advantages,
        weights=weights, on_policy=[fresh for tokens, fresh in sequences for _ in tokens],
        lengths=[len(tokens) for tokens, _ in sequences],
        ratio=ratio, objective=objective, clip_low=low, clip_high=high, is_cap=cap,
    )  # fmt: skip
    assert output.loss.item() == pytest.approx(math.fsum(e[0] for e in expected), abs=1e-11)
    np.testing.assert_allclose(gradient.numpy(), [e[1] for e in expected], atol=1e-12)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("objective", ["clip", "cispo"])
def test_float32_is_exact_enough(ratio, objective):
    tokens = torch.linspace(-6, -0.1, 50)
    inputs = (tokens - 0.1, torch.linspace(-2, 2, 50), torch.full((50,), 0.02), torch.arange(50) % 2 == 0)
    options = OPTIONS | {"ratio": ratio, "objective": objective}
    single = grpo_loss(tokens, *inputs, [20, 30], **options).loss
    doubles = (i.double() if i.is_floating_point() else i for i in inputs)
    double = grpo_loss(tokens.double(), *doubles, [20, 30], **options).loss
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), abs=1e-6)


# --- the reference ---------------------------------------------------------------------------------------------------


def test_k3_by_hand():
    logprobs = torch.tensor([-1.0, -1.0 - LOG2, -1.0 + LOG2], dtype=torch.float64, requires_grad=True)
    output = k3_penalty(logprobs, torch.tensor([-1.0] * 3, dtype=torch.float64), torch.tensor([1.0, 1.0, 2.0]))
    output.loss.backward()
    # d = 0, log 2, -log 2: e^d - d - 1 = 0, 1 - log 2, log 2 - 1/2; the slope by log-prob is 1 - e^d
    assert output.loss.item() == pytest.approx((1 - LOG2) + 2 * (LOG2 - 0.5))
    assert logprobs.grad.tolist() == pytest.approx([0.0, -1.0, 2 * 0.5])
    assert output.sums["reference_kl"].item() == output.loss.item()


@given(st.lists(st.tuples(st.floats(-8, -0.01), st.floats(-8, -0.01), WEIGHT), max_size=12))
@settings(deadline=None)
def test_k3_equals_the_slow_reference(tokens):
    logprobs, reference, weights = ([token[i] for token in tokens] for i in range(3))
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    output = k3_penalty(
        leaf, torch.tensor(reference, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    )  # fmt: skip
    output.loss.backward()
    expected = slopes(lambda x: slow_k3(x, reference, weights), logprobs)
    assert output.loss.item() == pytest.approx(slow_k3(logprobs, reference, weights), rel=1e-11, abs=1e-12)
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-7, atol=1e-7)
    assert output.sums["reference_kl"].item() == output.loss.item()


# --- dpo -------------------------------------------------------------------------------------------------------------

DPO = {
    "beta": 0.5, "objective": "sigmoid", "label_smoothing": 0.0, "length_normalised": False, "sft_weight": 0.0,
}  # fmt: skip


def dpo(logprobs, reference, lengths, **options):
    leaf = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    pairs = options.pop("pairs", len(lengths) // 2)
    output = dpo_loss(leaf, torch.tensor(reference, dtype=torch.float64), lengths, pairs=pairs, **DPO | options)
    output.loss.backward()
    return output, leaf.grad


def test_dpo_by_hand():
    # preferred: 2 tokens, log-ratio 1.0 - 0.5 = 0.5; the other: 1 token, log-ratio -1.5; h = 2
    output, gradient = dpo([-1.0, -2.0, -3.0], [-2.0, -1.5, -1.5], [2, 1])
    assert output.loss.item() == pytest.approx(math.log1p(math.exp(-1.0)))
    slope = -0.5 / (1 + math.exp(1.0))
    assert gradient.tolist() == pytest.approx([slope, slope, -slope])  # the preferred one's tokens go up together
    assert {k: v.item() for k, v in output.sums.items()} == {
        "dpo_accuracy": 1.0, "dpo_margin": pytest.approx(1.0), "dpo_preferred": pytest.approx(0.5),
    }  # fmt: skip


def test_a_policy_at_its_reference_prefers_nothing():
    output, gradient = dpo([-1.0, -2.0], [-1.0, -2.0], [1, 1])
    assert output.loss.item() == pytest.approx(LOG2)
    assert gradient.tolist() == pytest.approx([-0.25, 0.25])


@pytest.mark.parametrize(
    ("options", "loss"),
    [
        ({"label_smoothing": 0.1}, 0.9 * math.log1p(math.exp(-1)) + 0.1 * math.log1p(math.exp(1))),
        (
            {"objective": "robust", "label_smoothing": 0.1},
            (0.9 * math.log1p(math.exp(-1)) - 0.1 * math.log1p(math.exp(1))) / 0.8,
        ),
        ({"objective": "ipo"}, (2.0 - 1.0) ** 2),
        ({"length_normalised": True}, math.log1p(math.exp(-0.5 * 1.75))),  # h = 0.25 + 1.5
        ({"sft_weight": 2.0}, math.log1p(math.exp(-1)) + 2.0 * 1.5),
        ({"pairs": 4}, math.log1p(math.exp(-1)) / 4),
    ],
)
def test_dpo_variants_by_hand(options, loss):
    assert dpo([-1.0, -2.0, -3.0], [-2.0, -1.5, -1.5], [2, 1], **options)[0].loss.item() == pytest.approx(loss)


def test_dpo_that_is_robust_is_unbiased_under_wrong_labels():
    right, swapped = ([-1.0, -3.0], [-2.0, -1.5]), ([-3.0, -1.0], [-1.5, -2.0])
    noisy = [
        dpo(*labels, [1, 1], objective="robust", label_smoothing=0.2)[0].loss.item() for labels in (right, swapped)
    ]
    assert 0.8 * noisy[0] + 0.2 * noisy[1] == pytest.approx(dpo(*right, [1, 1])[0].loss.item())


PAIR = st.lists(st.tuples(st.floats(-8, -0.01), st.floats(-8, -0.01)), min_size=1, max_size=6)


@given(
    st.lists(st.tuples(PAIR, PAIR), min_size=1, max_size=4), st.floats(0.01, 2), st.booleans(), st.floats(0, 1),
    st.sampled_from([("sigmoid", 0.0), ("sigmoid", 0.3), ("robust", 0.3), ("ipo", 0.0)]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_dpo_equals_the_slow_reference(pairs, beta, mean, sft, variant):
    objective, e = variant
    sequences = [sequence for pair in pairs for sequence in pair]
    flat = [token for sequence in sequences for token in sequence]
    total, slopes = 0.0, []
    for chosen, rejected in pairs:
        sizes = [len(s) if mean else 1 for s in (chosen, rejected)]
        h = math.fsum(a - b for a, b in chosen) / sizes[0] - math.fsum(a - b for a, b in rejected) / sizes[1]
        log_sigmoid = lambda x: -math.log1p(math.exp(-x)) if x > -30 else x  # noqa: E731
        up, down = 1 / (1 + math.exp(beta * h)), 1 / (1 + math.exp(-beta * h))
        value, slope = {
            "sigmoid": (
                -(1 - e) * log_sigmoid(beta * h) - e * log_sigmoid(-beta * h),
                beta * (-(1 - e) * up + e * down),
            ),
            "robust": (
                (-(1 - e) * log_sigmoid(beta * h) + e * log_sigmoid(-beta * h)) / (1 - 2 * e),
                beta * (-(1 - e) * up - e * down) / (1 - 2 * e),
            ),
            "ipo": ((h - 1 / (2 * beta)) ** 2, 2 * (h - 1 / (2 * beta))),
        }[objective]
        total += value - sft * math.fsum(a for a, _ in chosen) / len(chosen)
        slopes += [slope / sizes[0] - sft / len(chosen)] * len(chosen) + [-slope / sizes[1]] * len(rejected)
    output, gradient = dpo(
        [a for a, _ in flat], [b for _, b in flat], [len(s) for s in sequences],
        beta=beta, objective=objective, label_smoothing=e, length_normalised=mean, sft_weight=sft,
    )  # fmt: skip
    assert output.loss.item() == pytest.approx(total / len(pairs), rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(gradient.numpy(), np.array(slopes) / len(pairs), rtol=1e-7, atol=1e-9)
