"""The pairwise judge: an LLM over HTTP that is shown two summaries in both orders."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from actors.endpoint import Endpoint
from actors.endpoint_judge import EndpointJudge, asked_twice
from speechsum.config import EndpointConfig
from speechsum.pairwise import (
    FLIPPED,
    PAIRWISE_VERSION,
    combined,
    decided_by_gates,
    pairwise_messages,
    pairwise_schema,
    parse_verdict,
)
from speechsum.types import FailureKind, JudgeFailure, Judgement, PairTask, Reward


class PairwiseJudge(EndpointJudge[PairTask]):
    """Says how likely it is that `summary` is better than `other`; a failure in either order is one of both."""

    name = "pairwise"

    def __init__(self, config: EndpointConfig, *, endpoint: Endpoint | None = None) -> None:
        super().__init__(config, PAIRWISE_VERSION, pairwise_schema(), endpoint)
        self._pairs = self._flips = 0

    def counts(self) -> dict[str, float]:
        """See `Endpoint.counts`; also the pairs that were shown, and those whose two orders disagreed."""
        return super().counts() | {"judge/pairs": self._pairs, "judge/position_flips": self._flips}

    def score(self, tasks: Sequence[PairTask]) -> list[Judgement]:
        """See `EndpointJudge.score`; a reward's value is the probability that `summary` is the better one."""
        judgements = super().score(tasks)
        shown = [j.breakdown[FLIPPED] for j in judgements if isinstance(j, Reward) and FLIPPED in j.breakdown]
        self._pairs += len(shown)
        self._flips += int(sum(shown))
        return judgements

    async def _score_one(self, task: PairTask) -> Judgement:
        if not task.transcript.strip():
            return JudgeFailure(FailureKind.BAD_ROW, "no transcript to judge against")
        decided = decided_by_gates(task)
        if decided is not None:
            return decided
        straight, exchanged = await asyncio.gather(self._ask(task, False), self._ask(task, True))
        if isinstance(straight, JudgeFailure):
            return straight
        return exchanged if isinstance(exchanged, JudgeFailure) else combined(straight, exchanged)

    async def _ask(self, task: PairTask, exchanged: bool) -> Judgement:
        async def ask(reminder: str) -> Judgement:
            messages = pairwise_messages(task, exchanged=exchanged, reminder=reminder)
            return await self._chat(messages, lambda answer: parse_verdict(answer.text))

        return await asked_twice(ask)
