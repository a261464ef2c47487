"""The one door to Ray's job server: a client with the token, and its failures as sentences.

Ray's client takes the token from the environment (RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH);
nothing here reads it, so nothing here can print it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol
from urllib.parse import urlsplit

import aiohttp
import httpx
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from speechsum.errors import RunError, UserError, last_line

PROBE_TIMEOUT_S = 10.0
TOKEN_REMEDY = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"


class JobClient(Protocol):
    """What is used of `ray.job_submission.JobSubmissionClient`; infos have `status`, `metadata`, `driver_exit_code`."""

    def submit_job(
        self, *, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str], submission_id: str
    ) -> str:
        """Upload the working directory and start a job."""

    def get_job_info(self, job_id: str) -> Any:
        """A job as it stands."""

    def list_jobs(self) -> list[Any]:
        """All jobs the cluster remembers, and drivers that are none."""

    def get_job_logs(self, job_id: str) -> str:
        """All that a job has written."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """The same as it is written, from the beginning."""

    def stop_job(self, job_id: str) -> bool:
        """Ask for the end; returns at once."""


def connect(address: str) -> JobClient:
    """A client of the job server at `address`. Raises `UserError` where none answers or the token is refused."""
    check_address(address)
    logging.getLogger("ray.dashboard.modules").setLevel(logging.ERROR)  # what it would say is said in sentences here
    _probe(address)
    with told():
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers its variables, RAY_ADDRESS too, to the argument
        return JobSubmissionClient(address)


def _probe(address: str) -> None:
    """Ray's own first request has no time-out, and would wait for minutes."""
    try:
        answer = httpx.get(f"{address}/api/version", timeout=PROBE_TIMEOUT_S)
    except httpx.HTTPError as error:
        raise UserError(
            f"nothing answers at {address} ({_first_line(error)}); check --address, and that a port forward or a VPN "
            "to the head's dashboard is up"
        ) from None
    if answer.status_code not in (401, 403) and "ray_version" not in answer.text:
        raise UserError(f"what answers at {address} is no Ray dashboard (HTTP {answer.status_code}); correct --address")


def check_address(address: str) -> None:
    """Raises `UserError` for what cannot be a job server's address, without asking anybody."""
    like = "give the dashboard's, such as http://HEAD:8265"
    parts = urlsplit(address)
    if parts.username or parts.password:
        raise UserError(f"--address carries a user name or password; leave it out, and {TOKEN_REMEDY}")
    if parts.scheme == "ray":
        raise UserError(f"--address {address} is of a Ray client, and jobs go to the dashboard; {like}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--address {address} is no http:// or https:// address; {like}")


def find(client: JobClient, job_id: str) -> Any | None:
    """The job as it stands, or None where the cluster knows of none."""
    with told(job_id):
        try:
            return client.get_job_info(job_id)
        except RuntimeError as error:
            if _is_unknown(error):
                return None
            raise


@contextlib.contextmanager
def told(job_id: str = "") -> Iterator[None]:
    """What Ray's client raises becomes one sentence; `job_id` is what was asked about."""
    try:
        yield
    except AuthenticationError as error:
        wrong = "refuses the token" if "Authentication failed" in str(error) else "wants a token"
        raise UserError(f"the cluster {wrong}; {TOKEN_REMEDY}") from None
    except aiohttp.WSServerHandshakeError as error:
        if error.status in (401, 403):
            raise UserError(f"the cluster refuses to show the log of {job_id}; {TOKEN_REMEDY}") from None
        raise UserError(_unknown(job_id)) from None
    except (OSError, aiohttp.ClientError) as error:
        raise RunError(f"the cluster no longer answers ({_first_line(error)}); a job that runs there goes on") from None
    except RuntimeError as error:
        if isinstance(error, RunError):
            raise
        if _is_unknown(error):
            raise UserError(_unknown(job_id)) from None
        raise RunError(f"the cluster could not do it: {last_line(error)}") from None


def _is_unknown(error: RuntimeError) -> bool:
    return "status code 404" in str(error) and "does not exist" in str(error)


def _unknown(job_id: str) -> str:
    return f"the cluster knows no job {job_id}; `speechsum status` lists those it knows"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
