"""Judges that need no engine of their own: the rubric over HTTP, and the deterministic lexical one.

Plain classes, tested without Ray; a judge has a `name`, a `version` (its revision and the prompt's: scores compare only
within one) and `score`, which returns one judgement for each task in the same order and never raises for a bad task.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace

from actors.endpoint import Endpoint
from speechsum.config import EndpointConfig
from speechsum.rewards import apply_gates, length_penalty, lexical_score
from speechsum.rubric import RUBRIC_VERSION, parse_rubric, rubric_messages, rubric_schema
from speechsum.types import FailureKind, JudgeFailure, Judgement, JudgeTask, Reward

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


class RubricJudge:
    """An LLM behind an OpenAI-compatible endpoint fills in the rubric; gates come first, length by rule comes last.

    The event loop lives in a thread of its own, because connections belong to a loop and are worth keeping between
    calls. So `score` may be called from any thread, several at a time, or from inside another loop.
    """

    name = "rubric"

    def __init__(self, config: EndpointConfig, *, endpoint: Endpoint | None = None) -> None:
        self._endpoint = endpoint or Endpoint(config)
        self.version = f"{config.model}/{RUBRIC_VERSION}"
        self._schema = rubric_schema()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rubric-judge", daemon=True)
        self._thread.start()

    def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """One judgement per task, in order; calls go out together, as many at a time as the endpoint allows."""
        return asyncio.run_coroutine_threadsafe(self._score_all(tasks), self._loop).result()

    def close(self) -> None:
        """Release connections and thread. Safe to call twice."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._endpoint.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _score_all(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        return list(await asyncio.gather(*(self._score_one(task) for task in tasks)))

    async def _score_one(self, task: JudgeTask) -> Judgement:
        gated = apply_gates(task)
        if gated is not None:
            return gated
        if not task.transcript.strip():
            return JudgeFailure(FailureKind.BAD_ROW, "no transcript to judge against")
        judgement = await self._ask(task)
        if isinstance(judgement, JudgeFailure) and judgement.kind in WORTH_ASKING_AGAIN:
            # Only the kind is named: the unusable answer itself may carry what the summary planted in it.
            judgement = await self._ask(task, reminder=f"Your previous answer could not be used ({judgement.kind}).")
        if isinstance(judgement, JudgeFailure):
            return judgement
        return _with_length(judgement, task)

    async def _ask(self, task: JudgeTask, reminder: str = "") -> Judgement:
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
