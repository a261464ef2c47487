"""The pairwise judge on a scripted transport: both orders, abstention, one re-prompt, typed failures, the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from actors.endpoint import Endpoint
from actors.judge import compare_groups, make_judge, make_pair_judge
from actors.judge_cache import CachedJudge, JudgementCache
from actors.pairwise_judge import PairwiseJudge
from speechsum.config import EndpointConfig, JudgeConfig
from speechsum.errors import UserError
from speechsum.metrics import describe
from speechsum.pairwise import PAIRWISE_VERSION
from speechsum.types import (
    AudioRef,
    FailureKind,
    FinishReason,
    JudgeFailure,
    PairTask,
    Prompt,
    Reward,
    Trajectory,
    TrajectoryGroup,
    read_only,
)

TRANSCRIPT = "Maria will send the budget to the Lisbon office by Friday and Tom will book the train."
GOOD = "Maria sends the budget to Lisbon by Friday."
BAD = "Tom sends the budget to Porto by Monday."
CONFIG = EndpointConfig(url="http://judge/v1", model="big", retries=0)

Script = Callable[[str, str], str | int]
"""From the texts shown as a and b to the verdict, an answer that is none, or an HTTP status."""


class FakeTransport(httpx.AsyncBaseTransport):
    """Answers each request by a script that sees the two summaries."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.shown: list[tuple[str, str]] = []
        self.prompts: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(await request.aread())
        assert body["response_format"]["json_schema"]["strict"]
        user = body["messages"][1]["content"]
        sent = json.loads(user.split("\n")[1])
        self.prompts.append(user)
        self.shown.append((sent["a"], sent["b"]))
        said = self.script(sent["a"], sent["b"])
        if isinstance(said, int):
            return httpx.Response(said, stream=httpx.ByteStream(b""))
        answer = {"unsupported_a": [], "unsupported_b": [], "reason": "so", "verdict": said}
        text = json.dumps(answer) if "=" in said or ">" in said else said
        return httpx.Response(
            200, stream=httpx.ByteStream(json.dumps({"choices": [{"message": {"content": text}}]}).encode())
        )


def likes_good(a: str, b: str) -> str:
    return "A>>B" if a == GOOD else "B>>A" if b == GOOD else "A=B"


@pytest.fixture
def judge_of() -> Iterator[Callable[[Script], tuple[PairwiseJudge, FakeTransport]]]:
    judges: list[PairwiseJudge] = []

    def make(script: Script) -> tuple[PairwiseJudge, FakeTransport]:
        transport = FakeTransport(script)
        judges.append(PairwiseJudge(CONFIG, endpoint=Endpoint(CONFIG, transport=transport)))
        return judges[-1], transport

    yield make
    for judge in judges:
        judge.close()
        judge.close()


JudgeOf = Callable[[Script], tuple[PairwiseJudge, FakeTransport]]


def task(summary: str = GOOD, other: str = BAD) -> PairTask:
    return PairTask(TRANSCRIPT, "Summarize this in one sentence.", summary, other)


def test_both_orders_are_asked_and_agree(judge_of: JudgeOf) -> None:
    judge, transport = judge_of(likes_good)
    better, worse = judge.score([task(), task(BAD, GOOD)])
    assert isinstance(better, Reward)
    assert isinstance(worse, Reward)
    assert (better.value, worse.value) == (0.95, 0.05)
    errors = {"unsupported": 0.0, "unsupported_other": 0.0}
    assert better.breakdown == {"shown_first": 0.95, "shown_second": 0.95, "flipped": 0.0, **errors}
    assert sorted(transport.shown) == sorted([(GOOD, BAD), (BAD, GOOD)] * 2)
    assert (judge.name, judge.version) == ("pairwise", f"big/{PAIRWISE_VERSION}")


def test_a_judge_that_likes_a_place_abstains_and_is_counted(judge_of: JudgeOf) -> None:
    judge, _ = judge_of(lambda a, b: "A>B" if BAD in (a, b) else likes_good(a, b))
    flipped, sure = judge.score([task(), task(GOOD, "Maria sends a letter to Lisbon.")])
    assert isinstance(flipped, Reward)
    assert isinstance(sure, Reward)
    assert (flipped.value, flipped.breakdown["flipped"]) == (0.5, 1.0)
    assert (sure.value, sure.breakdown["flipped"]) == (0.95, 0.0)
    counts = judge.counts()
    assert (counts["judge/pairs"], counts["judge/position_flips"], counts["judge/requests"]) == (2, 1, 4)
    assert all(describe(name) for name in counts)


def test_what_a_gate_decides_costs_no_call(judge_of: JudgeOf) -> None:
    judge, transport = judge_of(likes_good)
    judged = judge.score([task("", GOOD), task(GOOD, GOOD), PairTask(" ", "Sum up.", GOOD, BAD)])
    assert judged[:2] == [Reward(0.0, gate="empty"), Reward(0.5)]
    assert isinstance(judged[2], JudgeFailure)
    assert judged[2].kind is FailureKind.BAD_ROW
    assert transport.shown == []
    assert judge.counts()["judge/pairs"] == 0


def test_an_unusable_answer_is_asked_for_once_more(judge_of: JudgeOf) -> None:
    left = ["nonsense"]
    judge, transport = judge_of(lambda a, b: left.pop() if left else likes_good(a, b))
    (judged,) = judge.score([task()])
    assert isinstance(judged, Reward)
    assert judged.value == 0.95
    assert len(transport.prompts) == 3
    assert sum("could not be used (invalid_json)" in prompt for prompt in transport.prompts) == 1


@pytest.mark.parametrize("first", [GOOD, BAD])
def test_a_failure_in_either_order_is_a_failure_never_a_number(judge_of: JudgeOf, first: str) -> None:
    judge, _ = judge_of(lambda a, b: 400 if a == first else likes_good(a, b))
    failed, other = judge.score([task(), task("Maria books.", "Tom books.")])
    assert isinstance(failed, JudgeFailure)
    assert failed.kind is FailureKind.HTTP_ERROR
    assert isinstance(other, Reward)  # both too short: a tie


def test_a_preference_is_kept_by_content_and_the_exchanged_pair_is_another(judge_of: JudgeOf, tmp_path: Path) -> None:
    judge, transport = judge_of(likes_good)
    cached = CachedJudge(judge, JudgementCache(str(tmp_path / "c")), judge.decoding)
    first = cached.score([task(), task()])
    assert len(transport.shown) == 2
    assert cached.score([task(), task(BAD, GOOD)])[0] == first[0]
    assert len(transport.shown) == 4
    assert cached.counts()["judge/cache_hits"] == 2
    cached.close()


def test_the_configuration_picks_it() -> None:
    config = JudgeConfig(kind="pairwise", endpoint=CONFIG)
    judge = make_pair_judge(config)
    judge.close()
    assert judge.name == "pairwise"
    with pytest.raises(UserError, match="'rubric'"):
        make_judge(config, None)


# --- groups --------------------------------------------------------------------------------------------------------


def group(*texts: str) -> TrajectoryGroup:
    prompt = Prompt("p", AudioRef("/p.wav"), "Summarize this in one sentence.", transcript=TRANSCRIPT)
    trajectories = [
        Trajectory(str(i), read_only([i], "int32"), read_only([-1.0], "float32"), text, FinishReason.STOP, 0)
        for i, text in enumerate(texts)
    ]
    return TrajectoryGroup(prompt, read_only([1], "int32"), tuple(trajectories))


def fared(scored: Sequence[object]) -> list[float | None]:
    return [j.value if isinstance(j, Reward) else None for j in scored]


def test_every_two_of_a_group_are_compared(judge_of: JudgeOf) -> None:
    judge, transport = judge_of(likes_good)
    three, two = compare_groups(judge, [group(BAD, GOOD, ""), group(GOOD, BAD)])
    assert [(p.first, p.second) for p in three.preferences] == [(0, 1), (0, 2), (1, 2)]
    assert fared(three.judgements) == pytest.approx([(0.05 + 1.0) / 2, (0.95 + 1.0) / 2, 0.0])
    last = three.judgements[2]
    assert isinstance(last, Reward)
    assert (last.gate, last.breakdown) == ("empty", {"won": 0.0, "lost": 2.0, "abstained": 0.0})
    assert fared(two.judgements) == pytest.approx([0.95, 0.05])
    assert {three.judge, two.judge} == {"pairwise/big/pairwise-1"}
    assert len(transport.shown) == 4  # the empty one needs no judge
