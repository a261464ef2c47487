"""The HTTP client against a scripted server on this machine: every fault becomes a typed failure, soon."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from actors.endpoint import (
    MAX_BODY_BYTES,
    MAX_WAIT_S,
    RETRY_WINDOW_S,
    Admission,
    CircuitBreaker,
    CircuitState,
    Endpoint,
    RetryBudget,
)
from speechsum.config import EndpointConfig
from speechsum.errors import UserError
from speechsum.types import ChatAnswer, FailureKind, JudgeFailure

SECRET = "sk-do-not-show-1234"
MESSAGES = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Reply:
    """One scripted exchange.

    `hang` sends nothing, `drip` a blank now and then, `drop` hangs up, `short` promises too much.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    drip: bool = False
    drop: bool = False
    short: bool = False


def says(text: object, **choice: Any) -> Reply:
    body = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop", **choice}]}
    return Reply(body=json.dumps(body).encode())


def said(answer: ChatAnswer | JudgeFailure) -> str | JudgeFailure:
    return answer.text if isinstance(answer, ChatAnswer) else answer


class FakeServer:
    """Plays its replies in order, the last one for ever, and keeps what it was sent."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.in_flight = self.peak = 0
        self.barrier: threading.Barrier | None = None
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        self._released.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def _next(self, handler: BaseHTTPRequestHandler) -> Reply:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self._lock:
            self.requests.append(json.loads(body))
            self.headers.append(dict(handler.headers))
            self.paths.append(handler.path)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if self.barrier:
            self.barrier.wait(20)
        with self._lock:
            self.in_flight -= 1
        return reply

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                reply = fake._next(self)
                self.close_connection = True
                if reply.hang:
                    fake._released.wait(20)
                if reply.drip:
                    self._drip()
                if reply.hang or reply.drip or reply.drop:
                    return
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(reply.body) + (10 if reply.short else 0)))
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(OSError):  # the client stops reading where its size limit is
                    self.wfile.write(reply.body)

            def _drip(self) -> None:
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    while not fake._released.wait(0.02):
                        self.wfile.write(b" ")
                        self.wfile.flush()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeServer]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers: list[FakeServer] = []

    def start(*replies: Reply) -> FakeServer:
        servers.append(FakeServer(*replies))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@dataclass
class Asked:
    answers: list[str | JudgeFailure]
    waits: list[float]
    counts: dict[str, float] = field(default_factory=dict)
    served: tuple[str, ...] = ()


class FakeClock:
    """Stands still unless told, or slept by."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Lets the others run first; sleepers of one moment wake at one moment."""
        until = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, until)


def ask(
    url: str, times: int = 1, together: int = 1, jitter: float = 1.0, between_s: float = 0.0, **settings: Any
) -> Asked:
    """Ask `times` rounds of `together` questions on one endpoint, `between_s` apart; no wait is really slept."""
    config = EndpointConfig(**({"url": url, "model": "m", "timeout_s": 30.0, "retries": 2} | settings))
    asked, clock = Asked([], []), FakeClock()

    async def sleep(seconds: float) -> None:
        asked.waits.append(seconds)
        await clock.sleep(seconds)

    async def run() -> None:
        endpoint = Endpoint(config, sleep=sleep, jitter=lambda: jitter, clock=clock)
        for _ in range(times):
            asked.answers += map(said, await asyncio.gather(*(endpoint.chat(MESSAGES) for _ in range(together))))
            clock.now += between_s
        asked.counts, asked.served = endpoint.counts(), endpoint.served_models
        await endpoint.close()

    asyncio.run(run())
    return asked


def kind(answer: str | JudgeFailure) -> FailureKind:
    assert isinstance(answer, JudgeFailure), answer
    return answer.kind


def test_the_request_is_what_the_protocol_asks_for(
    serve: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECHSUM_JUDGE_API_KEY", SECRET)
    server = serve(says("yes"))

    async def run() -> str | JudgeFailure:
        endpoint = Endpoint(EndpointConfig(url=server.url, model="m"))
        assert SECRET not in repr(endpoint)
        answer = await endpoint.chat(MESSAGES, json_schema={"type": "object"}, max_tokens=7)
        await endpoint.close()
        return said(answer)

    assert asyncio.run(run()) == "yes"
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    sent = server.requests[0]
    assert (sent["model"], sent["messages"], sent["max_tokens"], sent["temperature"]) == ("m", MESSAGES, 7, 0.0)
    assert sent["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "judgement", "schema": {"type": "object"}, "strict": True},
    }


PLACE = {
    "token": "ye",
    "logprob": -0.5,
    "top_logprobs": [{"token": "ye", "logprob": -0.5}, {"token": "n", "logprob": -1}],
}
LIKELY = ("ye", {"ye": -0.5, "n": -1.0})


@pytest.mark.parametrize(
    ("told", "tokens"),
    [
        ({"content": [PLACE, {"token": "s", "logprob": 0, "top_logprobs": []}]}, (LIKELY, ("s", {"s": 0.0}))),
        (None, ()),
        ({"content": None}, ()),
        ({"content": [PLACE | {"logprob": None}]}, ()),
        ({"content": [PLACE | {"logprob": -(10**400)}]}, ()),
        ({"content": [PLACE | {"token": 5}]}, ()),
        ({"tokens": ["ye", "s"]}, ()),
    ],
)
def test_log_probs_are_read_where_they_are_told_in_the_protocol_s_form(
    serve: Callable[..., FakeServer], told: object, tokens: object
) -> None:
    server = serve(says("yes", logprobs=told))

    async def run() -> ChatAnswer | JudgeFailure:
        endpoint = Endpoint(EndpointConfig(url=server.url, model="m"))
        answer = await endpoint.chat(MESSAGES, top_logprobs=7)
        await endpoint.close()
        return answer

    assert asyncio.run(run()) == ChatAnswer("yes", tokens)
    assert (server.requests[0]["logprobs"], server.requests[0]["top_logprobs"]) == (True, 7)


@pytest.mark.parametrize(
    ("reply", "expected", "attempts"),
    [
        (Reply(500, b"boom"), FailureKind.HTTP_ERROR, 3),
        (Reply(503), FailureKind.HTTP_ERROR, 3),
        (Reply(429, b"slow down"), FailureKind.RATE_LIMITED, 3),
        (Reply(400, b"context too long"), FailureKind.HTTP_ERROR, 1),
        (Reply(401), FailureKind.HTTP_ERROR, 1),
        (Reply(404), FailureKind.HTTP_ERROR, 1),
        (Reply(302, headers={"Location": "http://127.0.0.1:9/"}), FailureKind.HTTP_ERROR, 1),
        (Reply(drop=True), FailureKind.UNREACHABLE, 3),
        (Reply(body=b'{"choices"', short=True), FailureKind.UNREACHABLE, 3),
        (Reply(body=b"<html>gateway</html>"), FailureKind.INVALID_JSON, 1),
        (Reply(body=b'{"choices": [{"mess'), FailureKind.INVALID_JSON, 1),
        (Reply(body=b"\xff\xfe\x00"), FailureKind.INVALID_JSON, 1),
        (Reply(body=b"[" * 200_000), FailureKind.INVALID_JSON, 1),
        (Reply(body=b"[]"), FailureKind.INVALID_JSON, 1),
        (Reply(), FailureKind.INVALID_JSON, 1),
        (Reply(body=b"{}"), FailureKind.MISSING_FIELD, 1),
        (Reply(body=b'{"choices": []}'), FailureKind.MISSING_FIELD, 1),
        (Reply(body=b'{"choices": [3]}'), FailureKind.MISSING_FIELD, 1),
        (Reply(body=b'{"choices": [{"text": "x"}]}'), FailureKind.MISSING_FIELD, 1),
        (says(None), FailureKind.MISSING_FIELD, 1),
        (says(""), FailureKind.MISSING_FIELD, 1),
        (says("x", finish_reason="content_filter"), FailureKind.REFUSED, 1),
        (says(None, message={"content": None, "refusal": "I will not"}), FailureKind.REFUSED, 1),
        (Reply(body=b"x" * 10_000_000), FailureKind.TOO_LARGE, 1),
        (says("x" * MAX_BODY_BYTES), FailureKind.TOO_LARGE, 1),
    ],
)
def test_every_fault_has_a_kind_and_a_number_of_attempts(
    serve: Callable[..., FakeServer], reply: Reply, expected: FailureKind, attempts: int
) -> None:
    server = serve(reply)
    asked = ask(server.url)
    assert kind(asked.answers[0]) is expected
    assert len(server.requests) == attempts
    assert len(asked.waits) == attempts - 1


@pytest.mark.parametrize("reply", [Reply(hang=True), Reply(drip=True)])
def test_no_whole_answer_in_time(serve: Callable[..., FakeServer], reply: Reply) -> None:
    server = serve(reply)
    started = time.monotonic()
    asked = ask(server.url, timeout_s=0.15, retries=1)
    assert kind(asked.answers[0]) is FailureKind.TIMEOUT
    assert len(asked.waits) == 1
    assert time.monotonic() - started < 10


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        asked = ask(f"http://127.0.0.1:{free.getsockname()[1]}", retries=1)
    assert kind(asked.answers[0]) is FailureKind.UNREACHABLE
    assert len(asked.waits) == 1


def test_a_passing_fault_is_survived(serve: Callable[..., FakeServer]) -> None:
    server = serve(Reply(500), Reply(429), says("there"))
    assert ask(server.url).answers == ["there"]


def test_backoff_doubles_with_jitter_over_its_upper_half(serve: Callable[..., FakeServer]) -> None:
    url = serve(Reply(500)).url
    assert ask(url, retries=3, jitter=1.0).waits == [0.5, 1.0, 2.0]
    assert ask(url, retries=3, jitter=0.0).waits == [0.25, 0.5, 1.0]
    assert max(ask(url, retries=9).waits) == MAX_WAIT_S


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("7", 7.0),
        ("0", 0.25),
        ("100000", MAX_WAIT_S),
        ("9" * 400, MAX_WAIT_S),
        ("soon", 0.25),
        ("-5", 0.25),
        ("Mon, 01 Jan 99999999999 00:00:00 GMT", 0.25),
    ],
)
def test_retry_after_in_seconds(serve: Callable[..., FakeServer], value: str, wait: float) -> None:
    server = serve(Reply(429, headers={"Retry-After": value}), says("ok"))
    asked = ask(server.url, jitter=0.0)
    assert asked.answers == ["ok"]
    assert asked.waits == [wait]


def test_retry_after_as_a_date(serve: Callable[..., FakeServer]) -> None:
    server = serve(Reply(503, headers={"Retry-After": formatdate(time.time() + 20, usegmt=True)}), says("ok"))
    (wait,) = ask(server.url, jitter=0.0).waits
    assert 10 < wait <= 20


def test_concurrency_is_bounded(serve: Callable[..., FakeServer]) -> None:
    server = serve(says("ok"))
    server.barrier = threading.Barrier(3)  # passes only if three requests are in flight together
    assert ask(server.url, together=9, concurrency=3).answers == ["ok"] * 9
    assert server.peak == 3


def ask_a_fake(
    handler: Callable[[httpx.Request], Any], clock: FakeClock, rounds: int, together: int, **settings: Any
) -> list[str | JudgeFailure]:
    """Ask `rounds` times `together` questions of a server that is `handler`."""
    config = EndpointConfig(**({"url": "http://judge/v1", "model": "m", "timeout_s": 60.0, "retries": 2} | settings))

    async def run() -> list[str | JudgeFailure]:
        endpoint = Endpoint(
            config, transport=httpx.MockTransport(handler), sleep=clock.sleep, jitter=lambda: 1.0, clock=clock
        )
        answers: list[str | JudgeFailure] = []
        for _ in range(rounds):
            answers += map(said, await asyncio.gather(*(endpoint.chat(MESSAGES) for _ in range(together))))
        await endpoint.close()
        return answers

    return asyncio.run(run())


def kinds(answers: list[str | JudgeFailure]) -> Counter[str]:
    return Counter(answer if isinstance(answer, str) else answer.kind.value for answer in answers)


def test_an_endpoint_that_is_down_is_left_alone_until_a_probe_gets_through(serve: Callable[..., FakeServer]) -> None:
    server = serve(*[Reply(500)] * 6, Reply(500), says("back"), says("ok"))
    # two attempts for each of three calls, one that waits and probes in vain, one that gets through, and all is well
    asked = ask(server.url, times=7, retries=1, circuit_after=3, circuit_cooldown_s=10.0)
    told = [answer if isinstance(answer, str) else answer.kind.value for answer in asked.answers]
    assert told == ["http_error"] * 4 + ["back", "ok", "ok"]
    assert sum(asked.waits) == 3 * 0.5 + 2 * 10.0
    assert len(server.requests) == 3 * 2 + 1 + 1 + 2
    assert asked.counts == {
        "judge/requests": 10.0,
        "judge/tokens": 0.0,
        "judge/retries": 3.0,
        "judge/retries_refused": 0.0,
        "judge/circuit_openings": 2.0,
        "judge/circuit_state": 0.0,
    }


def test_a_server_that_restarts_fails_the_calls_under_way_and_no_other() -> None:
    clock = FakeClock()
    back_at = clock.now + 40.0

    def handler(request: httpx.Request) -> httpx.Response:
        if clock.now < back_at:
            raise httpx.ConnectError("refused", request=request)
        return httpx.Response(200, stream=httpx.ByteStream(says("ok").body))

    answers = ask_a_fake(handler, clock, rounds=1, together=200, concurrency=16)
    assert kinds(answers) == {"unreachable": 16 + 1, "ok": 200 - 17}  # and the first probe, which came too early
    assert clock.now < back_at + 30.0


def test_a_server_that_is_down_for_good_fails_all_calls_soon_and_is_left_alone() -> None:
    clock, sent = FakeClock(), 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal sent
        sent += 1
        raise httpx.ConnectError("refused", request=request)

    started = clock.now
    answers = ask_a_fake(handler, clock, rounds=3, together=1000, concurrency=16)
    assert kinds(answers).keys() == {"unreachable", "circuit_open"}
    assert sent <= 16 * 3 + 3  # all attempts of the calls under way, and a probe for each cool-down that was waited for
    assert clock.now - started < 1.5 + 30.0 + 60.0 + 1.0  # all together, not each


def test_the_rest_wait_for_the_probe_however_long_the_circuit_was_open() -> None:
    clock, out = FakeClock(), 0
    waiting: set[Any] = set()

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal out
        out += 1
        if out == 1:
            raise httpx.ConnectError("refused", request=request)
        while out == 2 and len(waiting) < 4:
            await asyncio.sleep(0)
        return httpx.Response(200, stream=httpx.ByteStream(says("back").body))

    async def run() -> list[str | JudgeFailure]:
        config = EndpointConfig(url="http://judge/v1", model="m", retries=0, circuit_after=1)

        async def sleep(_: float) -> None:
            waiting.add(asyncio.current_task())
            await asyncio.sleep(0)

        endpoint = Endpoint(config, transport=httpx.MockTransport(handler), sleep=sleep, clock=clock)
        answers = [await endpoint.chat(MESSAGES)]
        clock.now += 1000.0
        answers += await asyncio.gather(*(endpoint.chat(MESSAGES) for _ in range(5)))
        await endpoint.close()
        return [said(answer) for answer in answers]

    assert kinds(asyncio.run(run())) == {"unreachable": 1, "back": 5}
    assert len(waiting) == 4


def test_a_call_waits_for_the_circuit_a_cool_down_and_a_time_out_at_most() -> None:
    clock = FakeClock()

    async def run() -> str | JudgeFailure:
        config = EndpointConfig(url="http://judge/v1", model="m", timeout_s=60.0, circuit_cooldown_s=30.0)
        probing = asyncio.Event()

        async def handler(request: httpx.Request) -> httpx.Response:
            if clock.now == 1000.0:
                raise httpx.ConnectError("refused", request=request)
            probing.set()
            await asyncio.Event().wait()
            raise AssertionError

        endpoint = Endpoint(
            config.model_copy(update={"retries": 0, "circuit_after": 1}),
            transport=httpx.MockTransport(handler), sleep=clock.sleep, clock=clock,
        )  # fmt: skip
        await endpoint.chat(MESSAGES)
        clock.now += 100.0
        probe = asyncio.ensure_future(endpoint.chat(MESSAGES))
        await probing.wait()
        answer = await endpoint.chat(MESSAGES)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        await endpoint.close()
        return said(answer)

    refused = asyncio.run(run())
    assert kind(refused) is FailureKind.CIRCUIT_OPEN
    assert str(refused).endswith("1 calls in a row reached no working server; the next goes out in 0 s')")
    assert clock.now == 1000.0 + 100.0 + 30.0 + 60.0


@pytest.mark.parametrize("reply", [Reply(400), Reply(429), says(""), Reply(body=b"<html>")])
def test_a_server_that_answers_keeps_the_circuit_closed(serve: Callable[..., FakeServer], reply: Reply) -> None:
    server = serve(Reply(500), reply)
    asked = ask(server.url, times=6, retries=0, circuit_after=2)
    assert len(server.requests) == 6
    assert asked.counts["judge/circuit_openings"] == 0.0


def test_a_call_that_waits_to_retry_sees_that_the_circuit_has_opened(serve: Callable[..., FakeServer]) -> None:
    server = serve(Reply(500))
    config = EndpointConfig(url=server.url, model="m", retries=1, concurrency=2, circuit_after=1)

    async def run() -> str | JudgeFailure:
        first_waits, opened = asyncio.Event(), asyncio.Event()

        async def sleep(_: float) -> None:
            if not first_waits.is_set():
                first_waits.set()
                await opened.wait()

        endpoint = Endpoint(config, sleep=sleep)
        first = asyncio.ensure_future(endpoint.chat(MESSAGES))
        await first_waits.wait()
        await endpoint.chat(MESSAGES)  # two attempts, and the circuit opens
        opened.set()
        answer = await first
        await endpoint.close()
        return said(answer)

    assert kind(asyncio.run(run())) is FailureKind.HTTP_ERROR
    assert len(server.requests) == 1 + 2


def test_retries_stop_at_their_share_of_the_requests(serve: Callable[..., FakeServer]) -> None:
    server = serve(*[Reply(500), Reply(500), says("ok")] * 100)
    asked = ask(server.url, times=30, retries=1, concurrency=1, circuit_after=1000, retry_share=0.2)
    # the floor is one retry; 20 % of requests lets the second through as the tenth request
    assert asked.counts["judge/requests"] == len(server.requests)
    assert asked.counts["judge/retries"] == 7.0
    assert asked.counts["judge/retries"] / asked.counts["judge/requests"] <= 0.2
    assert asked.counts["judge/retries_refused"] > 0


def test_a_retry_that_the_server_asks_for_costs_no_budget(serve: Callable[..., FakeServer]) -> None:
    server = serve(*[Reply(429, headers={"Retry-After": "1"}), says("ok")] * 20)
    asked = ask(server.url, times=20, retries=1, concurrency=1, retry_share=0.0)
    assert asked.answers == ["ok"] * 20
    assert (asked.counts["judge/retries"], asked.counts["judge/retries_refused"]) == (20.0, 0.0)


def test_the_retry_budget_by_hand() -> None:
    clock = FakeClock()
    budget = RetryBudget(0.2, 1, clock)
    budget.sent()
    assert [budget.take(), budget.take()] == [True, False]  # the floor of one
    for _ in range(7):
        budget.sent()
    assert [budget.take(), budget.take()] == [True, False]  # 2 of 10; a third would be 3 of 11
    clock.now += RETRY_WINDOW_S
    assert [budget.take(), budget.take()] == [True, False]  # all of that is forgotten


def test_a_budget_that_nobody_draws_on_does_not_grow_for_ever() -> None:
    clock = FakeClock()
    budget = RetryBudget(0.2, 1, clock)
    for _ in range(1000):
        budget.sent()
        clock.now += 1.0
    assert len(budget._requests) == RETRY_WINDOW_S


def test_the_circuit_by_hand() -> None:
    clock = FakeClock()
    circuit = CircuitBreaker(2, 10.0, 15.0, clock)
    early = circuit.admit()
    for reached in (False, True, False, None):  # a success starts the row anew, and what was given up says nothing
        circuit.leave(circuit.admit(), reached)
    assert circuit.state is CircuitState.CLOSED
    circuit.leave(circuit.admit(), False)
    assert (circuit.state, circuit.admit()) == (CircuitState.OPEN, Admission.REFUSED)
    clock.now += 9.0
    circuit.leave(early, False)  # a call from before is no news, and does not begin the cool-down again
    clock.now += 1.0
    assert circuit.state is CircuitState.HALF_OPEN
    assert [circuit.admit(), circuit.admit()] == [Admission.PROBE, Admission.REFUSED]
    circuit.leave(Admission.PROBE, None)  # a probe that was given up lets another go
    assert circuit.admit() is Admission.PROBE
    circuit.leave(Admission.PROBE, False)
    assert (circuit.state, circuit.openings) == (CircuitState.OPEN, 2)
    assert circuit.may_close
    clock.now += 5.0
    assert not circuit.may_close  # 15 s after it opened, and another probe is 5 s away
    clock.now += 5.0
    assert circuit.may_close  # by that probe
    circuit.leave(early, True)  # whoever reached a working server knows better
    assert (circuit.state, circuit.admit()) == (CircuitState.CLOSED, Admission.FREE)


def test_a_call_that_is_given_up_frees_slot_and_probe(serve: Callable[..., FakeServer]) -> None:
    server = serve(Reply(500), Reply(hang=True), says("back"))
    clock = FakeClock()
    config = EndpointConfig(url=server.url, model="m", retries=0, concurrency=1, circuit_after=1)

    async def run() -> list[str | JudgeFailure]:
        endpoint = Endpoint(config, clock=clock)
        answers = [await endpoint.chat(MESSAGES)]
        clock.now += 30.0
        probe = asyncio.ensure_future(endpoint.chat(MESSAGES))
        while len(server.requests) < 2:
            await asyncio.sleep(0.001)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        answers.append(await endpoint.chat(MESSAGES))
        await endpoint.close()
        return [said(answer) for answer in answers]

    failed, back = asyncio.run(run())
    assert (kind(failed), back) == (FailureKind.HTTP_ERROR, "back")


def test_tokens_are_what_the_endpoint_counts(serve: Callable[..., FakeServer]) -> None:
    def used(usage: object) -> Reply:
        return Reply(body=json.dumps(json.loads(says("ok").body) | {"usage": usage}).encode())

    server = serve(used({"total_tokens": 30}), used(None), used({"total_tokens": "9"}), used({"total_tokens": 12}))
    assert ask(server.url, times=4).counts["judge/tokens"] == 42


def test_what_the_endpoint_says_it_serves_is_kept(serve: Callable[..., FakeServer]) -> None:
    def named(name: object) -> Reply:
        return Reply(body=json.dumps(json.loads(says("ok").body) | {"model": name}).encode())

    server = serve(named("m-2026-01"), named("m-2026-01"), named(7), says("ok"), named("m-2026-11"))
    assert ask(server.url, times=5).served == ("m-2026-01", "m-2026-11")


def test_the_key_is_never_repeated(serve: Callable[..., FakeServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHSUM_JUDGE_API_KEY", SECRET)
    server = serve(Reply(401, f"wrong key {SECRET}".encode()))
    (failure,) = ask(server.url).answers
    assert "wrong key ***" in str(failure)
    assert SECRET not in str(failure)


def test_a_key_no_header_can_carry_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEECHSUM_JUDGE_API_KEY", "two\nlines")
    with pytest.raises(UserError, match="SPEECHSUM_JUDGE_API_KEY") as caught:
        Endpoint(EndpointConfig(url="http://host", model="m"))
    assert "lines" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "model"),
    [
        ("", "m"),
        ("host:8000/v1", "m"),
        ("ftp://host", "m"),
        ("http://", "m"),
        ("http://h:abc", "m"),
        ("http://h", ""),
    ],
)
def test_a_mistyped_endpoint_is_a_user_error(url: str, model: str) -> None:
    with pytest.raises(UserError):
        Endpoint(EndpointConfig(url=url, model=model))


@pytest.mark.parametrize("url", ["http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"])
def test_the_address_may_be_given_with_or_without_its_end(url: str) -> None:
    assert "'http://h/v1/chat/completions'" in repr(Endpoint(EndpointConfig(url=url, model="m")))
