"""Watching and ending a submitted job: its state, its log as it is written, a stop that waits for the checkpoint.

A job's result is its driver's own exit code. Ray keeps that code for jobs that end by themselves; for one that was
stopped it is read from the driver's last words in the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp

from cluster.job_client import JobClient, told
from cluster.job_entry import told_exit_code
from cluster.submit import GRACE, REVISION, RUN_DIR
from speechsum.errors import INTERRUPTED, RunError, UserError

KILLED = 128 + 9
RAY_GRACE_S = 3
"""Ray's own, for a job that did not come from here."""

POLL_S = 0.5
Wait = Callable[[float], Any]


def status(client: JobClient, job_id: str) -> str:
    """A job in a few lines."""
    with told(job_id):
        info = client.get_job_info(job_id)
    metadata = info.metadata or {}
    had_driver = info.driver_exit_code is not None or str(info.status) == "STOPPED"
    code = exit_code(client, info) if had_driver else None
    lines = {
        "status": str(info.status), "exit code": "" if code is None else str(code),
        "began": _time(info.start_time), "ended": _time(info.end_time), "run folder": metadata.get(RUN_DIR, ""),
        "revision": metadata.get(REVISION, ""), "entrypoint": info.entrypoint,
        "message": (info.message or "").splitlines()[0] if info.message else "",
    }  # fmt: skip
    return "\n".join([job_id, *(f"  {name:<11} {value}" for name, value in lines.items() if value)])


def overview(client: JobClient) -> str:
    """All submitted jobs, the oldest first, a line each."""
    with told():
        infos = [info for info in client.list_jobs() if info.submission_id]
    rows = [("job", "status", "began", "run folder")]
    rows += [
        (info.submission_id, str(info.status), _time(info.start_time), (info.metadata or {}).get(RUN_DIR, ""))
        for info in sorted(infos, key=lambda info: info.start_time or 0)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def logs(client: JobClient, job_id: str) -> str:
    """All that a job has written so far."""
    with told(job_id):
        return client.get_job_logs(job_id)


def stop(client: JobClient, job_id: str, grace_s: int | None, wait: Wait = time.sleep) -> int:
    """Ask the driver to save and leave, and wait for it; returns its exit code.

    How long Ray waits before it kills was settled when the job was submitted. Raises `UserError` for a job that has
    ended or a longer grace, `RunError` when the driver is still there after `grace_s`, or was killed.
    """
    with told(job_id):
        info = client.get_job_info(job_id)
        if info.status.is_terminal():
            raise UserError(f"job {job_id} has ended already ({info.status}); there is nothing to stop")
        most = int((info.metadata or {}).get(GRACE, RAY_GRACE_S))
        if grace_s is not None and grace_s > most:
            raise UserError(
                f"--grace {grace_s}: Ray kills {job_id} {most} s after a stop, as settled when it was submitted; "
                f"give at most {most}, and submit with a longer --grace next time"
            )
        client.stop_job(job_id)
        deadline = time.monotonic() + (most + RAY_GRACE_S if grace_s is None else grace_s)
        while not (info := client.get_job_info(job_id)).status.is_terminal():
            if time.monotonic() > deadline:
                raise RunError(
                    f"{job_id} is still saving after {grace_s or most} s; Ray kills it {most} s after the stop"
                )
            wait(POLL_S)
    code = exit_code(client, info)
    if code == KILLED:
        raise RunError(
            f"{job_id} was killed before it had saved; its last checkpoint stands, and --resume goes on from it"
        )
    return code


@dataclass
class Follower:
    """Prints a job's log as it grows until the job ends. `asks_to_stop` is what Ctrl-C asks: stop, or just leave?"""

    client: JobClient
    id: str
    write: Callable[[str], Any]
    asks_to_stop: Callable[[], bool]
    wait: Wait = time.sleep

    def __post_init__(self) -> None:
        self._shown = 0

    def run(self) -> int:
        """The driver's exit code, or that of an interrupt where somebody left before.

        Raises `RunError` for a job that failed before it had a driver, `UserError` for an unknown id or token.
        """
        while True:
            try:
                with told(self.id):
                    info = self._until_it_ends()
                return exit_code(self.client, info)
            except KeyboardInterrupt:
                if not self.asks_to_stop():
                    return INTERRUPTED
                with told(self.id):
                    self.client.stop_job(self.id)

    def _until_it_ends(self) -> Any:
        """A stream that ends early is begun again; whether the cluster is still there is asked in between."""
        while True:
            before, whole = self._shown, True
            try:
                asyncio.run(self._stream())
            except aiohttp.WSServerHandshakeError:  # an answer, and not one that changes
                raise
            except (RuntimeError, OSError, aiohttp.ClientError):  # a proxy on the way has its own idea of how long
                whole = False
            info = self.client.get_job_info(self.id)
            if info.status.is_terminal() and (whole or self._shown == before):
                return info
            self.wait(POLL_S)

    async def _stream(self) -> None:
        """Every stream begins at the log's beginning; what was shown is skipped."""
        skip = self._shown
        async for text in self.client.tail_job_logs(self.id):
            fresh = text[skip:]
            skip = max(0, skip - len(text))
            self.write(fresh)
            self._shown += len(fresh)


def exit_code(client: JobClient, info: Any) -> int:
    """How the driver of a job that has ended did so; 137 for one that was killed.

    Raises `RunError` where there was no driver.
    """
    code = info.driver_exit_code
    if code is not None:
        return int(code) if code >= 0 else 128 - int(code)
    if str(info.status) == "STOPPED":
        told_code = told_exit_code(logs(client, info.submission_id))
        return KILLED if told_code is None else told_code
    reason = (info.message or "no reason given").strip().splitlines()[-1]
    raise RunError(f"job {info.submission_id} failed outside its driver: {reason}")


def _time(milliseconds: int | None) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if milliseconds else ""
