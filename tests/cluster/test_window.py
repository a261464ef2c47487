"""The figures of a step, of those who took part in it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster.window import Window
from speechsum.metrics import describe
from speechsum.types import (
    AudioRef,
    FailureKind,
    JudgeFailure,
    Judgement,
    Preference,
    Prompt,
    Reward,
    ScoredGroup,
    TrajectoryGroup,
    read_only,
)


def scored(*judgements: Judgement, preferences: Sequence[Preference] = ()) -> ScoredGroup:
    return ScoredGroup(
        TrajectoryGroup(Prompt("p", AudioRef("/p.wav"), "Sum up."), read_only([], "int32"), ()),
        judgements,
        tuple(preferences),
    )


def test_how_often_a_pairwise_judge_changes_its_mind() -> None:
    window = Window()
    judged = [Reward(0.95, {"flipped": 0.0}), Reward(0.5, {"flipped": 1.0}), Reward(0.5, {"flipped": 0.0}), Reward(1.0)]
    preferences = [Preference(0, 1, j) for j in (*judged, JudgeFailure(FailureKind.TIMEOUT))]
    window.judged(scored(Reward(0.5), preferences=preferences))
    found = window.metrics()
    assert found["judge/flip_share"] == pytest.approx(1 / 3)  # of the three that were shown in both orders
    assert found["judge/abstained_share"] == 0.5
    assert all(describe(name) for name in found)


def test_a_pair_that_was_not_judged_is_a_failure_whatever_its_texts_got_from_other_pairs() -> None:
    window = Window()
    pairs = [Preference(0, 1, Reward(0.95)), Preference(0, 2, Reward(0.75))]
    lost = Preference(1, 2, JudgeFailure(FailureKind.TIMEOUT))
    window.judged(scored(Reward(0.85), Reward(0.05), Reward(0.25), preferences=[*pairs, lost]))
    found = window.metrics()
    assert found["judge/failure_share"] == pytest.approx(1 / 3)
    assert found["judge/failed_timeout"] == 1


def test_other_judges_have_no_order() -> None:
    window = Window()
    window.judged(scored(Reward(0.5)))
    assert not {"judge/flip_share", "judge/abstained_share"} & window.metrics().keys()
