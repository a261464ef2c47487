"""Judges that need no engine of their own: the rubric over HTTP, and the deterministic lexical one.

Plain classes, tested without Ray; a judge has a `name`, a `version` (its revision and the prompt's: scores compare only
within one) and `score`, which returns one judgement for each task in the same order and never raises for a bad task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from actors.endpoint import Endpoint, EndpointThread
from speechsum.config import EndpointConfig
from speechsum.rewards import apply_gates, length_penalty, lexical_score
from speechsum.rubric import RUBRIC_VERSION, parse_rubric, rubric_messages, rubric_schema
from speechsum.types import FailureKind, JudgeFailure, Judgement, JudgeTask, Reward

T = TypeVar("T")

WORTH_ASKING_AGAIN = frozenset(
    {
        FailureKind.INVALID_JSON,
        FailureKind.MISSING_FIELD,
        FailureKind.OUT_OF_RANGE,
        FailureKind.REFUSED,
        FailureKind.TOO_LARGE,
    }
)
"""Answers that arrived but cannot be used. What did not arrive was already retried by the endpoint."""


async def asked_twice(ask: Callable[[str], Awaitable[T | JudgeFailure]]) -> T | JudgeFailure:
    """What `ask("")` gives or, where that arrived and cannot be used, what `ask` gives with a reminder of ours."""
    answer = await ask("")
    if isinstance(answer, JudgeFailure) and answer.kind in WORTH_ASKING_AGAIN:
        # Only the kind is named: the unusable answer itself may carry what the summary planted in it.
        return await ask(f"Your previous answer could not be used ({answer.kind}).")
    return answer


class RubricJudge:
    """An LLM behind an OpenAI-compatible endpoint fills in the rubric; gates come first, length by rule comes last.

    `score` may be called from any thread, several at a time, or from inside an event loop.
    """

    name = "rubric"

    def __init__(self, config: EndpointConfig, *, endpoint: Endpoint | None = None) -> None:
        self.version = f"{config.revised_model}/{RUBRIC_VERSION}"
        self._schema = rubric_schema()
        self._endpoint = endpoint or Endpoint(config)
        self._thread = EndpointThread(self._endpoint, "rubric-judge")

    @property
    def decoding(self) -> dict[str, Any]:
        """What an answer depends on besides its prompt; see `Endpoint.decoding`."""
        return self._endpoint.decoding(self._schema)

    @property
    def served_models(self) -> tuple[str, ...]:
        """See `Endpoint.served_models`."""
        return self._endpoint.served_models

    def counts(self) -> dict[str, float]:
        """See `Endpoint.counts`."""
        return self._endpoint.counts()

    def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """One judgement per task, in order; calls go out together, as many at a time as the endpoint allows."""
        return self._thread.run(self._score_all(tasks))

    def close(self) -> None:
        """Release connections and thread. Safe to call twice."""
        self._thread.close()

    async def _score_all(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        return list(await asyncio.gather(*(self._score_one(task) for task in tasks)))

    async def _score_one(self, task: JudgeTask) -> Judgement:
        gated = apply_gates(task)
        if gated is not None:
            return gated
        if not task.transcript.strip():
            return JudgeFailure(FailureKind.BAD_ROW, "no transcript to judge against")
        judgement = await asked_twice(lambda reminder: self._ask(task, reminder))
        if isinstance(judgement, JudgeFailure):
            return judgement
        return _with_length(judgement, task)

    async def _ask(self, task: JudgeTask, reminder: str) -> Judgement:
        answer = await self._endpoint.chat(rubric_messages(task, reminder=reminder), json_schema=self._schema)
        return answer if isinstance(answer, JudgeFailure) else parse_rubric(answer)


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
        gated = apply_gates(task)
        if gated is not None:
            return gated
        if not task.transcript.strip():
            return JudgeFailure(FailureKind.BAD_ROW, "no transcript to judge against")
        score = lexical_score(task)
        return Reward(score, {"overlap": score, "length": length_penalty(task)})


def _with_length(reward: Reward, task: JudgeTask) -> Reward:
    """The rubric's value times the length factor, which is reported beside the criteria."""
    factor = length_penalty(task)
    return replace(reward, value=reward.value * factor, breakdown={**reward.breakdown, "length": factor})
