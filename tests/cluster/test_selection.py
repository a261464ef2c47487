"""What of a scored group is trained on, by loss, and what becomes of the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.selection import judged, taught
from speechsum.objectives import DpoLoss, GrpoLoss, PairRules
from speechsum.types import (
    AudioRef,
    FailureKind,
    FinishReason,
    JudgeFailure,
    Judgement,
    Preference,
    Prompt,
    Reward,
    ScoredGroup,
    TeacherFailure,
    TeacherLogprobs,
    Trajectory,
    TrajectoryGroup,
    read_only,
)

FAILED = JudgeFailure(FailureKind.TIMEOUT)
UNREAD = TeacherFailure(FailureKind.TOO_LONG)
LESSON = TeacherLogprobs(read_only([-1.0], "float32"), read_only([[3]], "int32"), read_only([[-0.1]], "float32"))
DPO = DpoLoss(rules=PairRules(margin=0.1, per_prompt=2))


def scored(*judgements: Judgement) -> ScoredGroup:
    trajectories = tuple(
        Trajectory(str(i), read_only([i], "int32"), read_only([-1.0], "float32"), f"text {i}", FinishReason.STOP, 5)
        for i in range(len(judgements))
    )
    return ScoredGroup(
        TrajectoryGroup(Prompt("p", AudioRef("a"), "ask"), read_only([1], "int32"), trajectories), judgements
    )


def ids(selection) -> list[int]:
    return [int(c.token_ids[0]) for c in selection.completions]


def test_grpo_takes_every_completion_that_was_judged():
    found = judged(GrpoLoss(scale_by_std=False), scored(Reward(1.0), FAILED, Reward(3.0)))
    assert ids(found) == [0, 2]
    assert found.advantages == (-1.0, None, 1.0)
    assert found.fates == ("", "judge_failed", "")
    assert not found.why_not


@pytest.mark.parametrize("loss", [GrpoLoss(), DPO])
def test_fewer_than_two_rewards_compare_with_nothing(loss):
    found = judged(loss, scored(Reward(1.0), FAILED))
    assert found.completions == ()
    assert found.fates == ("judge_failed", "judge_failed")
    assert found.why_not == "judge_failed"


@pytest.mark.parametrize(("loss", "reason"), [(GrpoLoss(), "equal_rewards"), (DPO, "no_pair")])
def test_equal_rewards_teach_nothing(loss, reason):
    found = judged(loss, scored(Reward(1.0), Reward(1.0), FAILED))
    assert found.completions == ()
    assert found.fates == (reason, reason, "judge_failed")
    assert found.why_not == reason


def test_pairs_come_with_the_preferred_one_first():
    found = judged(DPO, scored(Reward(0.1), Reward(0.5), Reward(0.9), Reward(0.45), FAILED))
    assert ids(found) == [2, 0]  # 0.5 and 0.45 are too near each other
    assert found.pairs == ((0, False), None, (0, True), None, None)
    assert found.fates == ("", "no_pair", "", "no_pair", "judge_failed")
    assert found.advantages == (None,) * 5
    assert all(c.policy_version == 5 for c in found.completions)


def test_a_pairwise_judge_says_which_two():
    group = scored(Reward(0.6), Reward(0.5), Reward(0.4))
    preferences = (Preference(0, 1, Reward(0.5)), Preference(0, 2, FAILED), Preference(1, 2, Reward(0.25)))
    found = judged(DPO, replace(group, preferences=preferences))
    assert ids(found) == [2, 1]
    assert found.pairs == (None, (0, False), (0, True))
    assert found.fates == ("no_pair", "", "")


def test_a_teacher_alone_takes_whatever_it_could_read():
    group = scored(*[FAILED] * 3).group
    found = taught(group, [LESSON, UNREAD, LESSON], None)
    assert ids(found) == [0, 2]
    assert all(c.teacher is LESSON and c.advantage == 0.0 for c in found.completions)
    assert found.fates == ("", "teacher_failed", "")
    assert found.advantages == (None,) * 3
    assert taught(group, [UNREAD] * 3, None).why_not == "teacher_failed"


def test_judge_and_teacher_both_have_to_have_an_answer():
    group = scored(Reward(1.0), Reward(3.0), FAILED)
    before = judged(GrpoLoss(scale_by_std=False), group)
    found = taught(group.group, [UNREAD, LESSON, LESSON], before)
    assert ids(found) == [1]
    assert found.completions[0].advantage == 1.0
    assert found.completions[0].teacher is LESSON
    assert found.fates == ("teacher_failed", "", "judge_failed")
