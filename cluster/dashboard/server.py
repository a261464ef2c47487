"""The page's server: files of this package, and the runs as JSON. It only reads, and only answers GET."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cluster.dashboard.guard import SafeHeaders, TokenGuard, answered_hosts, check_token
from cluster.dashboard.library import RunLibrary
from cluster.dashboard.query import Query
from cluster.dashboard.ranges import ranged
from cluster.dashboard.run_reader import RunReader
from cluster.dashboard.waits import DERIVED
from speechsum.errors import UserError
from speechsum.metrics import METRICS

PAGE = Path(__file__).with_name("page")
BACKLOG = 128

Answer = Callable[[Request], Response] | Callable[[Request], Awaitable[Response]]


def serve(paths: Sequence[Path], host: str, port: int, token: str, say: Callable[[str], None]) -> None:
    """Show the runs until interrupted. Port 0 takes a free one. Raises `UserError` for what cannot be served."""
    check_token(host, token)
    library = RunLibrary(paths)
    app = build_app(library, host, token)
    with closing(_listen(host, port)) as listener:
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listener.getsockname()[1]}/ shows {len(library.runs())} run(s); Ctrl-C ends it")
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


def build_app(library: RunLibrary, host: str = "127.0.0.1", token: str = "") -> Starlette:
    """The application, as `host` would answer it."""
    routes = [
        Route("/", _index),
        Route("/plotly.min.js", _plotly),
        Mount("/page", StaticFiles(directory=PAGE)),
        Route("/api/metrics", _metrics),
        Route("/api/runs", _runs),
        Route("/api/runs/{run}/details", _details),
        Route("/api/runs/{run}/steps", _steps),
        Route("/api/runs/{run}/criteria", _criteria),
        Route("/api/runs/{run}/groups", _groups),
        Route("/api/runs/{run}/groups/{group}", _group),
        Route("/api/runs/{run}/groups/{group}/recording", _recording),
    ]
    guards = [
        Middleware(SafeHeaders),
        Middleware(TrustedHostMiddleware, allowed_hosts=answered_hosts(host), www_redirect=False),
        Middleware(TokenGuard, token=token),
    ]
    app = Starlette(routes=routes, middleware=guards, exception_handlers={UserError: _wrong, LookupError: _gone})
    app.state.library = library
    app.state.plotly = _plotly_script()
    return app


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a taken port is told in a sentence before anything runs."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"cannot listen on {host}, port {port}: {error}; choose another --host or --port") from None
    return listener


def _plotly_script() -> Path:
    """The chart library, out of its Python package, which is not imported for it."""
    found = importlib.util.find_spec("plotly")
    folders = found.submodule_search_locations if found else None
    script = Path(folders[0]) / "package_data" / "plotly.min.js" if folders else None
    if script is None or not script.is_file():
        raise UserError("the package plotly, which draws the dashboard's charts, is not installed; run `make setup`")
    return script


# --- answers. Plain functions run in threads, so reading a large ledger does not stop the others --------------------


def _run(request: Request) -> RunReader:
    library: RunLibrary = request.app.state.library
    return library.get(request.path_params["run"])


def _index(request: Request) -> Response:
    return FileResponse(PAGE / "index.html")


def _plotly(request: Request) -> Response:
    return FileResponse(request.app.state.plotly, headers={"Cache-Control": "private, max-age=86400"})


def _metrics(request: Request) -> Response:
    return JSONResponse({name: asdict(metric) for name, metric in (METRICS | DERIVED).items()})


def _runs(request: Request) -> Response:
    library: RunLibrary = request.app.state.library
    return JSONResponse([{"id": name} | reader.overview() for name, reader in library.runs().items()])


def _details(request: Request) -> Response:
    return JSONResponse(_run(request).details())


def _steps(request: Request) -> Response:
    start = request.query_params.get("start", "0")
    number = int(start) if start.isdecimal() else 0
    return JSONResponse(_run(request).steps(request.query_params.get("generation", ""), number))


def _criteria(request: Request) -> Response:
    return JSONResponse(_run(request).criteria())


def _groups(request: Request) -> Response:
    return JSONResponse(_run(request).groups(Query.read(dict(request.query_params))))


def _group(request: Request) -> Response:
    return JSONResponse(_run(request).group(request.path_params["group"]))


def _recording(request: Request) -> Response:
    try:
        content, media_type = _run(request).recording(request.path_params["group"])
    except UserError as error:
        return _told(404, str(error))
    return ranged(content, media_type, request.headers.get("range"))


def _wrong(request: Request, error: Exception) -> Response:
    return _told(400, str(error))


def _gone(request: Request, error: Exception) -> Response:
    return _told(404, f"{error.args[0]!r} is not there, or not any more")


def _told(status: int, sentence: str) -> Response:
    body: dict[str, Any] = {"error": sentence}
    return JSONResponse(body, status)
