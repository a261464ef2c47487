"""Advantages worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechsum.advantage import group_advantages

REWARDS = st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=12)


def test_grpo_by_hand():
    # mean 0.5, deviations -0.5 -0.25 0.25 0.5, population std sqrt((0.25 + 0.0625) / 2) = 0.3952847
    found = group_advantages([0.0, 0.25, 0.75, 1.0], scale_by_std=True)
    assert found == pytest.approx([-1.2649111, -0.6324555, 0.6324555, 1.2649111], rel=1e-5)


def test_dr_grpo_by_hand():
    assert group_advantages([0.0, 0.25, 0.75, 1.0], scale_by_std=False) == pytest.approx([-0.5, -0.25, 0.25, 0.5])


@pytest.mark.parametrize("scale", [True, False])
def test_a_failed_judgement_is_no_low_score(scale):
    found = group_advantages([1.0, None, 0.0, None], scale_by_std=scale)
    size = 1.0 if scale else 0.5
    assert found[1] is None
    assert found[3] is None
    assert [found[0], found[2]] == pytest.approx([size, -size], rel=1e-5)


@pytest.mark.parametrize(
    "rewards",
    [[0.5, 0.5, 0.5], [0.5, None, 0.5], [0.3, 0.3 + 1e-9], [0.7], [None, 0.7], [None, None], []],
    ids=["equal", "equal-and-failed", "equal-but-for-noise", "single", "one-left", "none-left", "empty"],
)
@pytest.mark.parametrize("scale", [True, False])
def test_nothing_to_compare_teaches_nothing(rewards, scale):
    assert group_advantages(rewards, scale_by_std=scale) == [None] * len(rewards)


@given(REWARDS, st.booleans())
def test_same_places_zero_mean_same_order(rewards, scale):
    found = group_advantages(rewards, scale_by_std=scale)
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
    found = group_advantages(rewards, scale_by_std=True)
    moved = group_advantages([factor * r + offset for r in rewards], scale_by_std=True)
    if None not in found and None not in moved and max(rewards) - min(rewards) > 0.05:
        assert moved == pytest.approx(found, abs=1e-3)
