"""Who may look: the host names that are answered, the token, and what a browser may do with an answer."""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speechsum.errors import UserError

MIN_TOKEN_CHARACTERS = 16
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
EMPTY_STYLE = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
"""The digest of nothing: plotly adds an empty style element and fills it through the object model."""

HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' '{EMPTY_STYLE}'; img-src 'self' data:; "
        "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""On every answer. The policy names no other place than this server, so nothing can be loaded from elsewhere."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_token(host: str, token: str) -> None:
    """Refuse an open door to a network. Raises `UserError` for no token where one is needed, and for a short one."""
    if not token and not is_loopback(host):
        raise UserError(
            f"--host {host} can be reached from elsewhere, so it needs a token: set SPEECHSUM_DASHBOARD_TOKEN or "
            "--token, for instance to what `openssl rand -hex 16` prints"
        )
    if token and (len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable()):
        raise UserError(f"the token must be at least {MIN_TOKEN_CHARACTERS} ASCII characters; `openssl rand -hex 16`")


def answered_hosts(host: str) -> list[str]:
    """The names in a Host header that are answered.

    On loopback only its own: another name that leads here is a foreign page's (DNS rebinding). From a network any
    name is good, since the token is asked for.
    """
    return list(dict.fromkeys([*LOOPBACK_NAMES, host])) if is_loopback(host) else ["*"]


class TokenGuard:
    """Answers 401 to whoever does not know the token, as a password of HTTP Basic (any user) or as a Bearer token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http" or not self._token or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        response = PlainTextResponse(
            "This dashboard asks for its token: any user name, and the token as the password.\n",
            status_code=401,
            headers={"WWW-Authenticate": 'Basic realm="speechsum", charset="UTF-8"'},
        )
        await response(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                _, _, password = base64.b64decode(given, validate=True).partition(b":")
            except (binascii.Error, ValueError):
                return False
        else:
            password = given.encode() if scheme.lower() == "bearer" else b""
        return hmac.compare_digest(password, self._token)


class SafeHeaders:
    """Puts `HEADERS` on every answer, also on those of the guards inside it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with the headers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
