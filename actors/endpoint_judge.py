"""What judges that ask a model over HTTP have in common: calls that go out together, and a second try with a reminder.

Plain classes, tested without Ray. `score` may be called from any thread, several at a time, or from inside a loop.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from actors.endpoint import Endpoint, EndpointThread
from speechsum.config import EndpointConfig
from speechsum.types import ChatAnswer, FailureKind, JudgeFailure, Judgement

T = TypeVar("T")
Task = TypeVar("Task")

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


class EndpointJudge(ABC, Generic[Task]):
    """An LLM behind an OpenAI-compatible endpoint, whose answers the server holds to `schema`."""

    name: str
    top_logprobs = 0

    def __init__(self, config: EndpointConfig, prompt: str, schema: dict[str, Any], endpoint: Endpoint | None) -> None:
        """`prompt` is the version of what is asked, the other half of the judge's version beside the model's."""
        self.version = f"{config.revised_model}/{prompt}"
        self._schema = schema
        self._endpoint = endpoint or Endpoint(config)
        self._thread = EndpointThread(self._endpoint, f"{self.name}-judge")

    @property
    def decoding(self) -> dict[str, Any]:
        """What an answer depends on besides its prompt; see `Endpoint.decoding`."""
        return self._endpoint.decoding(self._schema, top_logprobs=self.top_logprobs)

    @property
    def served_models(self) -> tuple[str, ...]:
        """See `Endpoint.served_models`."""
        return self._endpoint.served_models

    def counts(self) -> dict[str, float]:
        """See `Endpoint.counts`."""
        return self._endpoint.counts()

    def score(self, tasks: Sequence[Task]) -> list[Judgement]:
        """One judgement per task, in order; calls go out together, as many at a time as the endpoint allows."""
        return self._thread.run(self._score_all(tasks))

    def close(self) -> None:
        """Release connections and thread. Safe to call twice."""
        self._thread.close()

    async def _score_all(self, tasks: Sequence[Task]) -> list[Judgement]:
        return list(await asyncio.gather(*(self._score_one(task) for task in tasks)))

    @abstractmethod
    async def _score_one(self, task: Task) -> Judgement:
        """One judgement; a task that cannot be judged is a `JudgeFailure`."""

    async def _chat(
        self, messages: Sequence[dict[str, str]], parse: Callable[[ChatAnswer], T | JudgeFailure]
    ) -> T | JudgeFailure:
        """One answer, held to the schema by the server and read by `parse`."""
        answer = await self._endpoint.chat(messages, json_schema=self._schema, top_logprobs=self.top_logprobs)
        return answer if isinstance(answer, JudgeFailure) else parse(answer)
