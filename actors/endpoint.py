"""An OpenAI-compatible chat endpoint over HTTP. Time-outs, retries, back-off and size limits live only here.

Whatever the far side does, `chat` returns: the text of the answer, or a `JudgeFailure` that says what went wrong.
One call takes at most (retries + 1) time-outs and retries waits of `MAX_WAIT_S` once it holds a slot. It keeps its
slot while it waits, so a server that asks for less load gets less.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from speechsum.config import EndpointConfig
from speechsum.errors import UserError
from speechsum.types import FailureKind, JudgeFailure

MAX_BODY_BYTES = 1024 * 1024
MAX_WAIT_S = 30.0
FIRST_WAIT_S = 0.5
DOWN_AFTER = 8
"""Calls in a row that exhausted their retries; from then on one attempt each until one gets through."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What one HTTP exchange gave, and whether asking again could help."""

    answer: str | JudgeFailure
    again: bool = False
    retry_after_s: float = 0.0


class Endpoint:
    """Client for `POST {url}/chat/completions`. `transport`, `sleep` and `jitter` (in [0, 1)) are injected by tests."""

    def __init__(
        self,
        config: EndpointConfig,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._config = config
        self._url = _chat_url(config)
        self._key = _api_key(config.api_key_env)
        self._sleep = sleep
        self._jitter = jitter
        self._slots = asyncio.Semaphore(config.concurrency)
        self._failed_in_row = 0
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

    async def chat(
        self,
        messages: Sequence[dict[str, str]],
        *,
        json_schema: dict[str, Any] | None = None,
        max_tokens: int = 512,
    ) -> str | JudgeFailure:
        """The text of the first choice, greedily decoded and, with `json_schema`, constrained to it."""
        body = json.dumps(self._body(messages, json_schema, max_tokens)).encode("ascii")
        async with self._slots:
            attempts = 1 if self._failed_in_row >= DOWN_AFTER else 1 + self._config.retries
            for attempt in range(attempts):
                outcome = await self._attempt(body)
                if not outcome.again or attempt + 1 == attempts:
                    break
                await self._sleep(self._wait_s(attempt, outcome.retry_after_s))
        limited = isinstance(outcome.answer, JudgeFailure) and outcome.answer.kind is FailureKind.RATE_LIMITED
        self._failed_in_row = self._failed_in_row + 1 if outcome.again and not limited else 0
        return outcome.answer

    async def close(self) -> None:
        """Release the connections."""
        await self._client.aclose()

    def _body(
        self, messages: Sequence[dict[str, str]], json_schema: dict[str, Any] | None, max_tokens: int
    ) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": 0.0,
        }
        if json_schema is not None:
            schema = {"name": "judgement", "schema": json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    async def _attempt(self, body: bytes) -> _Attempt:
        """One exchange. The deadline is over all of it: httpx's own time-out restarts with every byte received."""
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
        return _Attempt(_first_choice(data))

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


async def _bounded(response: httpx.Response) -> tuple[bytes, bool]:
    """The body up to the limit, and whether there was more. Raw bytes: nothing compressed is expanded here."""
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            return bytes(data[:MAX_BODY_BYTES]), True
    return bytes(data), False


def _first_choice(data: bytes) -> str | JudgeFailure:
    """The answer's text out of a chat completion."""
    try:
        payload = json.loads(data)
    except (ValueError, RecursionError) as error:
        return JudgeFailure(FailureKind.INVALID_JSON, f"body is not JSON ({type(error).__name__})")
    if not isinstance(payload, dict):
        return JudgeFailure(FailureKind.INVALID_JSON, "body is not a JSON object")
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
    return content


def _retry_after_s(value: str) -> float:
    """Seconds from a Retry-After header, given as seconds or as a date; 0 where it says nothing usable."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(MAX_WAIT_S, float(value[:6]))
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return min(MAX_WAIT_S, max(0.0, when.timestamp() - time.time()))


def _chat_url(config: EndpointConfig) -> str:
    """The full address, checked here so that a typing mistake is not met as a thousand failed judgements."""
    if not config.model:
        raise UserError("judge.endpoint.model is empty; set it to the model's name as the endpoint lists it")
    try:
        url = httpx.URL(config.url)
    except httpx.InvalidURL as error:
        raise UserError(f"judge.endpoint.url = {config.url!r} is not an address: {error}") from None
    if url.userinfo:
        raise UserError("judge.endpoint.url carries a user name or password; put the key in judge.endpoint.api_key_env")
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"judge.endpoint.url = {config.url!r} must look like http://host:8000/v1")
    path = url.path.rstrip("/")
    return str(url if path.endswith("/chat/completions") else url.copy_with(path=f"{path}/chat/completions"))


def _api_key(variable: str) -> str:
    """The key from the environment; empty when unset, as local servers need none. Never part of a message."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the key in {variable} has characters that cannot stand in a header; copy it again")
    return key
