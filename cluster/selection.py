"""A group that was scored -> what of it is trained on, and what becomes of each trajectory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from speechsum.advantage import group_advantages
from speechsum.objectives import DpoLoss, GrpoLoss, Loss
from speechsum.pairs import choose_pairs
from speechsum.types import Completion, Lesson, Reward, ScoredGroup, TeacherLogprobs, Trajectory, TrajectoryGroup

JUDGE_FAILED = "judge_failed"
TEACHER_FAILED = "teacher_failed"
EQUAL_REWARDS = "equal_rewards"
NO_PAIR = "no_pair"


@dataclass(frozen=True)
class Selection:
    """What of one group is trained on. `completions` are in the order in which the loss wants them.

    For each trajectory: `fates` says why it is left out, empty for one that is trained on; `advantages` and `pairs`
    (number and whether it is the preferred one) are None where the loss has none. `why_not` says why the group as a
    whole teaches nothing, and is empty where it does.
    """

    completions: tuple[Completion, ...]
    fates: tuple[str, ...]
    advantages: tuple[float | None, ...]
    pairs: tuple[tuple[int, bool] | None, ...]
    why_not: str


def judged(loss: Loss, scored: ScoredGroup) -> Selection:
    """By the judge's rewards: advantages, or pairs. Fewer than two rewards compare with nothing."""
    assert isinstance(loss, GrpoLoss | DpoLoss)
    rewards = [j if isinstance(j, Reward) else None for j in scored.judgements]
    too_few = sum(r is not None for r in rewards) < 2
    if isinstance(loss, DpoLoss):
        return _paired(loss, scored, rewards, JUDGE_FAILED if too_few else NO_PAIR)
    return _compared(loss, scored.group.trajectories, rewards, JUDGE_FAILED if too_few else EQUAL_REWARDS)


def taught(group: TrajectoryGroup, lessons: Sequence[Lesson], before: Selection | None) -> Selection:
    """By the teacher's lessons, of those that the judge's selection `before` leaves; of all where nobody judged."""
    size = len(group.trajectories)
    fates = before.fates if before else ("",) * size
    advantages = before.advantages if before else (None,) * size
    known = [
        lesson if isinstance(lesson, TeacherLogprobs) and not fate else None
        for fate, lesson in zip(fates, lessons, strict=True)
    ]
    completions = tuple(
        _completion(t, a or 0.0, lesson)
        for t, a, lesson in zip(group.trajectories, advantages, known, strict=True) if lesson
    )  # fmt: skip
    fates = tuple(fate or ("" if lesson else TEACHER_FAILED) for fate, lesson in zip(fates, known, strict=True))
    return Selection(completions, fates, advantages, (None,) * size, "" if completions else TEACHER_FAILED)


def _compared(
    loss: GrpoLoss, trajectories: Sequence[Trajectory], rewards: Sequence[Reward | None], otherwise: str
) -> Selection:
    """Each trajectory against its group; one without an advantage is masked by leaving it out."""
    values = [r.value if r else None for r in rewards]
    advantages = group_advantages(values, baseline=loss.baseline, scale_by_std=loss.scale_by_std)
    completions = tuple(_completion(t, a) for t, a in zip(trajectories, advantages, strict=True) if a is not None)
    fates = _fates(rewards, {i for i, a in enumerate(advantages) if a is not None}, otherwise)
    none = (None,) * len(rewards)
    return Selection(completions, fates, tuple(advantages), none, "" if completions else otherwise)


def _paired(loss: DpoLoss, scored: ScoredGroup, rewards: Sequence[Reward | None], otherwise: str) -> Selection:
    """The group's pairs, the preferred completion of each first."""
    trajectories = scored.group.trajectories
    chosen = choose_pairs(rewards, [len(t.token_ids) for t in trajectories], loss.rules, scored.preferences)
    roles = {index: (number, side == 0) for number, pair in enumerate(chosen) for side, index in enumerate(pair)}
    completions = tuple(_completion(trajectories[i]) for pair in chosen for i in pair)
    pairs = tuple(roles.get(i) for i in range(len(rewards)))
    fates = _fates(rewards, set(roles), otherwise)
    return Selection(completions, fates, (None,) * len(rewards), pairs, "" if completions else otherwise)


def _fates(rewards: Sequence[Reward | None], trained: Collection[int], otherwise: str) -> tuple[str, ...]:
    return tuple("" if i in trained else otherwise if reward else JUDGE_FAILED for i, reward in enumerate(rewards))


def _completion(t: Trajectory, advantage: float = 0.0, lesson: TeacherLogprobs | None = None) -> Completion:
    return Completion(t.token_ids, t.logprobs, advantage, t.policy_version, lesson)
