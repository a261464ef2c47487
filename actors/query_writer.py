"""Requests about transcripts, from any OpenAI-compatible endpoint: written in one conversation, marked in another.

Plain, without Ray: the endpoint does the work, and its client waits for many answers at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from actors.endpoint import Endpoint, EndpointThread
from actors.endpoint_judge import asked_twice
from actors.judge_cache import JudgementCache, Memory
from speechsum.config import EndpointConfig
from speechsum.queries import (
    QUERIES_VERSION,
    Rated,
    RateTask,
    Rating,
    WriteTask,
    Written,
    parse_queries,
    parse_ratings,
    rate_messages,
    rate_schema,
    write_messages,
    write_schema,
)
from speechsum.types import JudgeFailure

Q = TypeVar("Q")
A = TypeVar("A")

TOKENS_PER_QUERY = 160
TOKENS_PER_RATING = 40
TOKENS_AROUND = 100


class QueryWriter:
    """Writes and marks requests; what was answered once is in `cache` and not asked again. Failures are never kept."""

    def __init__(self, config: EndpointConfig, cache: JudgementCache, *, endpoint: Endpoint | None = None) -> None:
        self._endpoint = endpoint or Endpoint(config)
        self._thread = EndpointThread(self._endpoint, "query-writer")
        self._cache = cache
        name, scope = f"{config.revised_model}/{QUERIES_VERSION}", {"temperature": 0.0}
        self._written: Memory[WriteTask, Written] = Memory(
            cache, f"write/{name}", scope, lambda w: None if isinstance(w, JudgeFailure) else list(w), tuple
        )
        self._rated: Memory[RateTask, Rated] = Memory(
            cache, f"rate/{name}", scope,
            lambda r: None if isinstance(r, JudgeFailure) else [[m.importance, m.answered] for m in r],
            lambda marks: tuple(Rating(*pair) for pair in marks),
        )  # fmt: skip

    @property
    def served_models(self) -> tuple[str, ...]:
        """See `Endpoint.served_models`."""
        return self._endpoint.served_models

    def write(self, tasks: Sequence[WriteTask]) -> list[Written]:
        """For each task, in order, as many requests as it has styles, or why there are none."""
        return self._written.answers(tasks, lambda new: self._thread.run(_each(new, self._write_one)))

    def rate(self, tasks: Sequence[RateTask]) -> list[Rated]:
        """For each task, in order, marks for each of its requests, or why there are none."""
        return self._rated.answers(tasks, lambda new: self._thread.run(_each(new, self._rate_one)))

    def close(self) -> None:
        """Release connections, thread and file. Safe to call twice."""
        self._thread.close()
        self._cache.close()

    async def _write_one(self, task: WriteTask) -> Written:
        count = len(task.styles)

        async def ask(reminder: str) -> Written:
            answer = await self._endpoint.chat(
                write_messages(task, reminder), json_schema=write_schema(count),
                max_tokens=TOKENS_AROUND + TOKENS_PER_QUERY * count,
            )  # fmt: skip
            return answer if isinstance(answer, JudgeFailure) else parse_queries(answer.text, count)

        return await asked_twice(ask)

    async def _rate_one(self, task: RateTask) -> Rated:
        count = len(task.queries)

        async def ask(reminder: str) -> Rated:
            answer = await self._endpoint.chat(
                rate_messages(task, reminder), json_schema=rate_schema(count),
                max_tokens=TOKENS_AROUND + TOKENS_PER_RATING * count,
            )  # fmt: skip
            return answer if isinstance(answer, JudgeFailure) else parse_ratings(answer.text, count)

        return await asked_twice(ask)


async def _each(tasks: Sequence[Q], ask: Callable[[Q], Awaitable[A]]) -> list[A]:
    return list(await asyncio.gather(*(ask(task) for task in tasks)))
