"""Judges that need no engine of their own: the rubric over HTTP, and the deterministic lexical one.

Plain classes, tested without Ray; a judge has a `name`, a `version` (its revision and the prompt's: scores compare only
within one) and `score`, which returns one judgement for each task in the same order and never raises for a bad task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from actors.endpoint import Endpoint
from actors.endpoint_judge import EndpointJudge, asked_twice
from speechsum.config import EndpointConfig
from speechsum.rewards import length_penalty, lexical_overlap, without_asking
from speechsum.rubric import RUBRIC_VERSION, parse_rubric, rubric_messages, rubric_schema
from speechsum.types import JudgeFailure, Judgement, JudgeTask, Reward


class RubricJudge(EndpointJudge[JudgeTask]):
    """An LLM behind an OpenAI-compatible endpoint fills in the rubric; gates come first, length by rule comes last."""

    name = "rubric"

    def __init__(self, config: EndpointConfig, *, endpoint: Endpoint | None = None) -> None:
        super().__init__(config, RUBRIC_VERSION, rubric_schema(), endpoint)
        self.top_logprobs = config.top_logprobs

    async def _score_one(self, task: JudgeTask) -> Judgement:
        if (decided := without_asking(task)) is not None:
            return decided
        judgement = await asked_twice(
            lambda reminder: self._chat(rubric_messages(task, reminder=reminder), parse_rubric)
        )
        return judgement if isinstance(judgement, JudgeFailure) else _with_length(judgement, task)


class LexicalJudge:
    """Word overlap with the transcript, without any model: for tests, and as a control that hears no meaning."""

    name = "lexical"
    version = "lexical-1"

    def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """One judgement per task, in order."""
        return [self._score_one(task) for task in tasks]

    def close(self) -> None:
        """Nothing to release."""

    def _score_one(self, task: JudgeTask) -> Judgement:
        if (decided := without_asking(task)) is not None:
            return decided
        overlap, length = lexical_overlap(task), length_penalty(task)
        return Reward(overlap * length, {"overlap": overlap, "length": length})


def _with_length(reward: Reward, task: JudgeTask) -> Reward:
    """The rubric's value times the length factor, which is reported beside the criteria."""
    factor = length_penalty(task)
    return replace(reward, value=reward.value * factor, breakdown={**reward.breakdown, "length": factor})
