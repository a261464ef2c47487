"""An actor that was told to leave refuses by a value, and does nothing."""

from __future__ import annotations

from actors.judge import JudgeActor
from speechsum.config import JudgeConfig
from speechsum.types import JudgeTask, Leaving


def test_a_judge_that_was_told_to_leave_judges_no_more() -> None:
    actor = JudgeActor.__ray_metadata__.modified_class(JudgeConfig(kind="lexical"), None)
    tasks = [JudgeTask("Maria sends the budget.", "Sum up.", "Maria sends it.")]
    assert len(actor.score(tasks)) == 1
    actor._notice._hear()
    vars(actor)["_judge"] = None  # nobody is there to ask
    assert actor.score(tasks) == actor.score(tasks, afresh=True) == actor.score_groups([]) == Leaving()
