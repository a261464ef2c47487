"""Advantages worked out by hand, and against a slow reference in plain floats."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechsum.advantage import group_advantages

REWARDS = st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=12)
RULES = [("mean", True), ("mean", False), ("leave_one_out", False)]


def test_grpo_by_hand():
    # mean 0.5, deviations -0.5 -0.25 0.25 0.5, population std sqrt((0.25 + 0.0625) / 2) = 0.3952847
    found = group_advantages([0.0, 0.25, 0.75, 1.0], baseline="mean", scale_by_std=True)
    assert found == pytest.approx([-1.2649111, -0.6324555, 0.6324555, 1.2649111], rel=1e-5)


def test_dr_grpo_by_hand():
    found = group_advantages([0.0, 0.25, 0.75, 1.0], baseline="mean", scale_by_std=False)
    assert found == pytest.approx([-0.5, -0.25, 0.25, 0.5])


def test_rloo_by_hand():
    # the means of the others are 2/3, 7/12, 5/12 and 1/3
    found = group_advantages([0.0, 0.25, 0.75, 1.0], baseline="leave_one_out", scale_by_std=False)
    assert found == pytest.approx([-2 / 3, -1 / 3, 1 / 3, 2 / 3])


def slow_advantages(rewards, baseline, scale):
    """From the definitions, one reward after the other; a failed judgement is nobody's and in nobody's baseline."""
    known = [r for r in rewards if r is not None]
    if len(known) < 2 or max(known) - min(known) < 1e-6:
        return [None] * len(rewards)
    mean = math.fsum(known) / len(known)
    deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in known) / len(known))
    found = []
    for i, reward in enumerate(rewards):
        others = [r for j, r in enumerate(rewards) if j != i and r is not None]
        base = mean if baseline == "mean" else math.fsum(others) / len(others)
        by = deviation + 1e-6 if scale else 1.0
        found.append(None if reward is None else (reward - base) / by)
    return found


@pytest.mark.parametrize(("baseline", "scale"), RULES)
@given(REWARDS, st.sampled_from([1.0, 1e-3, 1e-5]), st.floats(-5, 5))
def test_equals_the_slow_reference(baseline, scale, rewards, spread, offset):
    rewards = [None if r is None else offset + spread * r for r in rewards]
    found = group_advantages(rewards, baseline=baseline, scale_by_std=scale)
    expected = slow_advantages(rewards, baseline, scale)
    assert [a is None for a in found] == [a is None for a in expected]
    pairs = [(a, e) for a, e in zip(found, expected, strict=True) if a is not None]
    assert [a for a, _ in pairs] == pytest.approx([e for _, e in pairs], abs=1e-8)


@pytest.mark.parametrize(("baseline", "scale", "size"), [(*RULES[0], 1.0), (*RULES[1], 0.5), (*RULES[2], 1.0)])
def test_a_failed_judgement_is_no_low_score(baseline, scale, size):
    found = group_advantages([1.0, None, 0.0, None], baseline=baseline, scale_by_std=scale)
    assert found[1] is None
    assert found[3] is None
    assert [found[0], found[2]] == pytest.approx([size, -size], rel=1e-5)


@pytest.mark.parametrize(
    "rewards",
    [[0.5, 0.5, 0.5], [0.5, None, 0.5], [0.3, 0.3 + 1e-9], [0.7], [None, 0.7], [None, None], []],
    ids=["equal", "equal-and-failed", "equal-but-for-noise", "single", "one-left", "none-left", "empty"],
)
@pytest.mark.parametrize(("baseline", "scale"), RULES)
def test_nothing_to_compare_teaches_nothing(rewards, baseline, scale):
    assert group_advantages(rewards, baseline=baseline, scale_by_std=scale) == [None] * len(rewards)


@given(REWARDS, st.sampled_from(RULES))
def test_same_places_zero_mean_same_order(rewards, rule):
    found = group_advantages(rewards, baseline=rule[0], scale_by_std=rule[1])
    assert len(found) == len(rewards)
    pairs = [(r, a) for r, a in zip(rewards, found, strict=True) if a is not None]
    if not pairs:
        return
    assert all(r is None for r, a in zip(rewards, found, strict=True) if a is None)
    assert math.fsum(a for _, a in pairs) == pytest.approx(0, abs=1e-6)
    ordered = [a for _, a in sorted(pairs)]
    assert ordered == sorted(ordered)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.1, 10), st.floats(-5, 5))
def test_grpo_ignores_the_judges_scale_and_offset(rewards, factor, offset):
    found = group_advantages(rewards, baseline="mean", scale_by_std=True)
    moved = group_advantages([factor * r + offset for r in rewards], baseline="mean", scale_by_std=True)
    if None not in found and None not in moved and max(rewards) - min(rewards) > 0.05:
        assert moved == pytest.approx(found, abs=1e-3)
