"""The figures of a step, of those who took part in it."""

from __future__ import annotations

import pytest

from cluster.window import Window
from speechsum.metrics import describe
from speechsum.types import FailureKind, JudgeFailure, Preference, Reward


def test_how_often_a_pairwise_judge_changes_its_mind() -> None:
    window = Window()
    judged = [Reward(0.95, {"flipped": 0.0}), Reward(0.5, {"flipped": 1.0}), Reward(0.5, {"flipped": 0.0}), Reward(1.0)]
    window.compared([Preference(0, 1, j) for j in (*judged, JudgeFailure(FailureKind.TIMEOUT))])
    window.judged(Reward(0.5))
    found = window.metrics()
    assert found["judge/flip_share"] == pytest.approx(1 / 3)  # of the three that were shown in both orders
    assert found["judge/abstained_share"] == 0.5
    assert all(describe(name) for name in found)


def test_other_judges_have_no_order() -> None:
    window = Window()
    window.judged(Reward(0.5))
    assert not {"judge/flip_share", "judge/abstained_share"} & window.metrics().keys()
