"""An OpenAI-compatible chat endpoint over HTTP. Time-outs, retries, back-off and size limits live only here.

Whatever the far side does, `chat` returns: the answer, or a `JudgeFailure` that says what went wrong.
One call takes at most (retries + 1) time-outs and retries waits of `MAX_WAIT_S` once it holds a slot. It keeps its
slot while it waits, so a server that asks for less load gets less. Two things spare a server that fails: a budget
bounds the share of retries, and a circuit breaker stops calling it for a while when nothing gets through. A call that
meets an open circuit waits for it first, a cool-down and a time-out at most.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, TypeVar

import httpx

from speechsum.config import EndpointConfig
from speechsum.errors import UserError
from speechsum.types import ChatAnswer, FailureKind, JudgeFailure

T = TypeVar("T")
Clock = Callable[[], float]

MAX_TOKENS = 512
MAX_BODY_BYTES = 1024 * 1024
MAX_WAIT_S = 30.0
FIRST_WAIT_S = 0.5
RETRY_WINDOW_S = 60.0
LOOK_S = 0.5
MAX_SERVED = 8


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What one HTTP exchange gave, and whether asking again could help."""

    answer: ChatAnswer | JudgeFailure
    again: bool = False
    retry_after_s: float = 0.0
    served: str = ""
    tokens: int = 0

    @property
    def limited(self) -> bool:
        """Whether the server is up and asks for less."""
        return isinstance(self.answer, JudgeFailure) and self.answer.kind is FailureKind.RATE_LIMITED

    @property
    def reached(self) -> bool:
        """Whether a working server answered, whatever it said."""
        return not self.again or self.limited


class RetryBudget:
    """Retries may be `share` of the requests of the last `RETRY_WINDOW_S`, or `floor` of them where that is more.

    Without the floor nothing could be retried when a run begins; without the share a server that fails half of its
    requests would get half as many again just when it can bear less.
    """

    def __init__(self, share: float, floor: int, clock: Clock) -> None:
        self._share, self._floor, self._clock = share, floor, clock
        self._requests: deque[float] = deque()
        self._retries: deque[float] = deque()

    def sent(self) -> None:
        """Count a request that is no retry."""
        self._requests.append(self._now())

    def take(self) -> bool:
        """Whether one more retry may go out, counted if so."""
        now = self._now()
        retries = len(self._retries) + 1
        if retries > max(self._floor, self._share * (len(self._requests) + retries)):
            return False
        self._retries.append(now)
        return True

    def _now(self) -> float:
        """The time; what lies more than a window back is forgotten."""
        now = self._clock()
        for times in (self._requests, self._retries):
            while times and times[0] <= now - RETRY_WINDOW_S:
                times.popleft()
        return now


class CircuitState(StrEnum):
    """Closed: calls go out. Open: none does. Half-open: one does, and the rest wait for what becomes of it."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


OPENNESS = {CircuitState.CLOSED: 0.0, CircuitState.HALF_OPEN: 0.5, CircuitState.OPEN: 1.0}
"""The states as the metric has them."""


class Admission(Enum):
    """What a circuit breaker says to a call."""

    REFUSED = 0
    FREE = 1
    PROBE = 2


class CircuitBreaker:
    """After `after` calls in a row that reached no working server, none goes out for `cooldown_s` seconds.

    Then one does, as a probe: a working server closes the circuit, anything else opens it for another cool-down.
    A server that restarts is worth waiting for, `patience_s` seconds after the circuit opened; one that is still not
    there is taken to be down for good.
    """

    def __init__(self, after: int, cooldown_s: float, patience_s: float, clock: Clock) -> None:
        self._after, self._cooldown_s, self.patience_s, self._clock = after, cooldown_s, patience_s, clock
        self._failed_in_row = 0
        self._open_until: float | None = None
        self._opened = 0.0
        self._probing = False
        self.openings = 0

    @property
    def state(self) -> CircuitState:
        """See `CircuitState`."""
        if self._open_until is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self._clock() < self._open_until else CircuitState.HALF_OPEN

    def admit(self) -> Admission:
        """Whether a call may go out now. One that was admitted has to `leave`."""
        if self.state is CircuitState.CLOSED:
            return Admission.FREE
        if self.state is CircuitState.OPEN or self._probing:
            return Admission.REFUSED
        self._probing = True
        return Admission.PROBE

    @property
    def may_close(self) -> bool:
        """Whether a call that was refused has anything to wait for: a probe that is out, or one that soon will be."""
        return self.state is CircuitState.HALF_OPEN or self._clock() < self._opened + self.patience_s

    def leave(self, admission: Admission, reached: bool | None) -> None:
        """The end of a call: whether it reached a working server, or None where it was given up before it could say.

        A call that went out before the circuit opened may close it by its success; its failure is no news.
        """
        if admission is Admission.PROBE:
            self._probing = False
        if reached:
            self._failed_in_row, self._open_until = 0, None
        elif reached is not None:
            self._failed_in_row += 1
            closed = self._open_until is None
            if admission is Admission.PROBE or (closed and self._failed_in_row >= self._after):
                now = self._clock()
                self._opened = now if closed else self._opened
                self._open_until = now + self._cooldown_s
                self.openings += 1

    def refusal(self) -> JudgeFailure:
        """What a call that was refused gives."""
        left_s = max(0.0, (self._open_until or 0.0) - self._clock())
        detail = f"{self._failed_in_row} calls in a row reached no working server; the next goes out in {left_s:.0f} s"
        return JudgeFailure(FailureKind.CIRCUIT_OPEN, detail)


class Endpoint:
    """Client for `POST {url}/chat/completions`.

    `transport`, `sleep`, `jitter` (in [0, 1)) and `clock` (in seconds) are injected by tests.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        clock: Clock = time.monotonic,
    ) -> None:
        self._config = config
        self._url = _chat_url(config)
        self._key = _api_key(config.api_key_env)
        self._sleep = sleep
        self._jitter = jitter
        self._clock = clock
        self._slots = asyncio.Semaphore(config.concurrency)
        # The floor lets all calls that are out together ride out a hiccup, once a window.
        self._budget = RetryBudget(config.retry_share, config.retries * config.concurrency, clock)
        patience_s = config.circuit_cooldown_s + config.timeout_s  # until the first probe has said what it can
        self._circuit = CircuitBreaker(config.circuit_after, config.circuit_cooldown_s, patience_s, clock)
        self._requests = self._retries = self._retries_refused = self._tokens = 0
        self._served: list[str] = []
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._client = httpx.AsyncClient(
            transport=transport,
            headers=headers,
            timeout=config.timeout_s,
            limits=httpx.Limits(max_connections=config.concurrency),
            follow_redirects=False,  # a redirect would carry the transcript somewhere nobody configured
        )

    def __repr__(self) -> str:
        return f"Endpoint(url={self._url!r}, model={self.model!r})"

    @property
    def model(self) -> str:
        """The model's name as the endpoint knows it."""
        return self._config.model

    @property
    def served_models(self) -> tuple[str, ...]:
        """What the endpoint said that it serves, in the order met; an alias such as `latest` shows its model here."""
        return tuple(self._served)

    def counts(self) -> dict[str, float]:
        """Totals since the start, and the state of the circuit, by metric name."""
        return {
            "judge/requests": self._requests,
            "judge/tokens": self._tokens,
            "judge/retries": self._retries,
            "judge/retries_refused": self._retries_refused,
            "judge/circuit_openings": self._circuit.openings,
            "judge/circuit_state": OPENNESS[self._circuit.state],
        }

    async def chat(
        self,
        messages: Sequence[dict[str, str]],
        *,
        json_schema: dict[str, Any] | None = None,
        max_tokens: int = MAX_TOKENS,
        top_logprobs: int = 0,
    ) -> ChatAnswer | JudgeFailure:
        """The first choice, greedily decoded and, with `json_schema`, constrained to it."""
        decoding = self.decoding(json_schema, max_tokens, top_logprobs)
        body = json.dumps({"model": self.model, "messages": list(messages), **decoding}).encode("ascii")
        async with self._slots:
            admission = await self._admitted()
            if admission is Admission.REFUSED:
                return self._circuit.refusal()
            reached: bool | None = None
            try:
                outcome = await self._attempts(body, 0 if admission is Admission.PROBE else self._config.retries)
                reached = outcome.reached
            finally:
                self._circuit.leave(admission, reached)
        return outcome.answer

    async def close(self) -> None:
        """Release the connections."""
        await self._client.aclose()

    @staticmethod
    def decoding(
        json_schema: dict[str, Any] | None = None, max_tokens: int = MAX_TOKENS, top_logprobs: int = 0
    ) -> dict[str, Any]:
        """How an answer is decoded: what is sent beside model and messages, and what a cache has to tell apart."""
        settings: dict[str, Any] = {"max_tokens": max_tokens, "temperature": 0.0}
        if json_schema is not None:
            schema = {"name": "judgement", "schema": json_schema, "strict": True}
            settings["response_format"] = {"type": "json_schema", "json_schema": schema}
        if top_logprobs:
            settings |= {"logprobs": True, "top_logprobs": top_logprobs}
        return settings

    async def _admitted(self) -> Admission:
        """What the circuit says of a call, once it no longer refuses or there is nothing left to wait for."""
        until = self._clock() + self._circuit.patience_s
        while (admission := self._circuit.admit()) is Admission.REFUSED and self._circuit.may_close:
            left_s = until - self._clock()
            if left_s <= 0.0:
                break
            await self._sleep(min(LOOK_S, left_s))
        return admission

    async def _attempts(self, body: bytes, retries: int) -> _Attempt:
        """Exchanges until one is final, the retries or their budget are spent, or the circuit has opened meanwhile."""
        self._budget.sent()
        outcome = await self._attempt(body)
        for attempt in range(retries):
            if not outcome.again or not self._may_retry(outcome):
                break
            await self._sleep(self._wait_s(attempt, outcome.retry_after_s))
            if self._circuit.state is not CircuitState.CLOSED:
                break
            self._retries += 1
            outcome = await self._attempt(body)
        self._tokens += outcome.tokens
        if outcome.served and outcome.served not in self._served and len(self._served) < MAX_SERVED:
            self._served.append(outcome.served)
        return outcome

    def _may_retry(self, outcome: _Attempt) -> bool:
        """A 429 costs no budget: the server asks for a later retry, and the slot that is held until then obeys it."""
        if outcome.limited or self._budget.take():
            return True
        self._retries_refused += 1
        return False

    async def _attempt(self, body: bytes) -> _Attempt:
        """One exchange. The deadline is over all of it: httpx's own time-out restarts with every byte received."""
        self._requests += 1
        try:
            async with asyncio.timeout(self._config.timeout_s):
                async with self._client.stream("POST", self._url, content=body) as response:
                    data, cut = await _bounded(response)
        except (TimeoutError, httpx.TimeoutException):
            detail = f"no answer within {self._config.timeout_s:g} s"
            return _Attempt(JudgeFailure(FailureKind.TIMEOUT, detail), again=True)
        except httpx.TransportError as error:
            detail = self._redacted(f"{type(error).__name__}: {error}")
            return _Attempt(JudgeFailure(FailureKind.UNREACHABLE, detail), again=True)
        if response.status_code != httpx.codes.OK:
            return self._refused_by_status(response, data)
        if cut:
            return _Attempt(JudgeFailure(FailureKind.TOO_LARGE, f"body of more than {MAX_BODY_BYTES} bytes"))
        payload = _payload(data)
        if isinstance(payload, JudgeFailure):
            return _Attempt(payload)
        return _Attempt(_first_choice(payload), served=_served_model(payload), tokens=_tokens_used(payload))

    def _refused_by_status(self, response: httpx.Response, data: bytes) -> _Attempt:
        status = response.status_code
        said = " ".join(data[:400].decode("utf-8", "replace").split())[:200]
        detail = self._redacted(f"HTTP {status}: {said}")
        kind = FailureKind.RATE_LIMITED if status == 429 else FailureKind.HTTP_ERROR
        again = status == 429 or status >= 500
        return _Attempt(JudgeFailure(kind, detail), again, _retry_after_s(response.headers.get("Retry-After", "")))

    def _wait_s(self, attempt: int, retry_after_s: float) -> float:
        """Exponential with jitter over its upper half, never earlier than the server asked, at most `MAX_WAIT_S`."""
        backoff = FIRST_WAIT_S * 2.0**attempt * (0.5 + 0.5 * self._jitter())
        asked = retry_after_s * (1 + 0.1 * self._jitter())
        return min(MAX_WAIT_S, max(backoff, asked))

    def _redacted(self, text: str) -> str:
        """Servers and libraries like to quote the key they did not accept."""
        return text.replace(self._key, "***") if self._key else text


class EndpointThread:
    """An endpoint for code that is not asynchronous: its event loop lives in a thread of its own.

    Connections belong to a loop and are worth keeping between calls. `run` may be called from any thread, several at
    a time, or from inside another loop.
    """

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self.endpoint = endpoint
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`, done on the endpoint's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Release connections and thread. Safe to call twice."""
        if self._loop.is_closed():
            return
        self.run(self.endpoint.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _bounded(response: httpx.Response) -> tuple[bytes, bool]:
    """The body up to the limit, and whether there was more. Raw bytes: nothing compressed is expanded here."""
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            return bytes(data[:MAX_BODY_BYTES]), True
    return bytes(data), False


def _payload(data: bytes) -> dict[str, Any] | JudgeFailure:
    """The body of an answer as the JSON object that it should be."""
    try:
        payload = json.loads(data)
    except (ValueError, RecursionError) as error:
        return JudgeFailure(FailureKind.INVALID_JSON, f"body is not JSON ({type(error).__name__})")
    if not isinstance(payload, dict):
        return JudgeFailure(FailureKind.INVALID_JSON, "body is not a JSON object")
    return payload


def _served_model(payload: dict[str, Any]) -> str:
    """The name that the answer gives its model, cut to what fits a row; empty where it gives none."""
    name = payload.get("model")
    return name.encode("utf-8", "replace").decode("utf-8")[:120] if isinstance(name, str) else ""


def _tokens_used(payload: dict[str, Any]) -> int:
    """What the server counts for the exchange, prompt and answer together; 0 where it does not say."""
    usage = payload.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    return total if type(total) is int and total > 0 else 0


def _first_choice(payload: dict[str, Any]) -> ChatAnswer | JudgeFailure:
    """The answer out of a chat completion."""
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return JudgeFailure(FailureKind.MISSING_FIELD, "no choices in the body")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        return JudgeFailure(FailureKind.MISSING_FIELD, "no message in the first choice")
    if choices[0].get("finish_reason") == "content_filter" or message.get("refusal"):
        return JudgeFailure(FailureKind.REFUSED, str(message.get("refusal") or "content filter")[:120])
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return JudgeFailure(FailureKind.MISSING_FIELD, "no text in the first choice")
    return ChatAnswer(content, _tokens(choices[0].get("logprobs")))


def _tokens(told: Any) -> tuple[tuple[str, dict[str, float]], ...]:
    """See `ChatAnswer`; nothing where the server tells them in another form, as no answer has to have them."""
    try:
        tokens = tuple(
            (each["token"], {one["token"]: float(one["logprob"]) for one in (*each["top_logprobs"], each)})
            for each in told["content"]
        )
    except (TypeError, KeyError, ValueError, OverflowError):
        return ()
    return tokens if all(isinstance(token, str) for token, _ in tokens) else ()


def _retry_after_s(value: str) -> float:
    """Seconds from a Retry-After header, given as seconds or as a date; 0 where it says nothing usable."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(MAX_WAIT_S, float(value[:6]))
    try:
        when = email.utils.parsedate_to_datetime(value)
        left_s = when.timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0
    return min(MAX_WAIT_S, max(0.0, left_s))


def _chat_url(config: EndpointConfig) -> str:
    """The full address, checked here so that a typing mistake is not met as a thousand failed judgements."""
    if not config.model:
        raise UserError("the endpoint's model is empty; set it to the model's name as the endpoint lists it")
    try:
        url = httpx.URL(config.url)
    except httpx.InvalidURL as error:
        raise UserError(f"the endpoint's url = {config.url!r} is not an address: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"the endpoint's url = {config.url!r} must look like http://host:8000/v1")
    path = url.path.rstrip("/")
    return str(url if path.endswith("/chat/completions") else url.copy_with(path=f"{path}/chat/completions"))


def _api_key(variable: str) -> str:
    """The key from the environment; empty when unset, as local servers need none. Never part of a message."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the key in {variable} has characters that cannot stand in a header; copy it again")
    return key
