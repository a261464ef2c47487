"""Ray for one run: joined where a cluster is named, started and ended where none is.

A Ray of our own is for this machine alone, and asks for a token even here: whoever reaches Ray's ports runs code.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import ray

from cluster.memory import MemoryWatch
from speechsum.errors import UserError

OBJECT_STORE_BYTES = 1 << 30
LOOPBACK_ALONE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0"
"""Ray's own switch for 127.0.0.1 to stay 127.0.0.1, meant for other systems; read when Ray is imported."""

TOKEN_SOURCES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextlib.contextmanager
def ray_session(address: str | None, memory: MemoryWatch, say: Callable[[str], None]) -> Iterator[None]:
    """Ray inside the block. A local Ray listens on loopback alone and ends with the block, whatever happens in it."""
    say("joining the Ray cluster" if address else "starting Ray on this machine")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # CPU actors keep the devices they see
    try:
        _join(address)
        node = ray._private.worker.global_worker.node
        memory.follow(node.session_name)
        say(f"Ray is up; its metrics: http://{node.node_ip_address}:{node.metrics_export_port}/metrics")
        yield
    finally:
        ray.shutdown()


def _join(address: str | None) -> None:
    """Connect to the cluster at `address`, or start a Ray of our own, whatever else runs on this machine."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        _make_token()
        ray.init(
            address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1", **quiet,
        )  # fmt: skip
        _refuse_other_listeners(ray._private.worker.global_worker.node.node_ip_address)
        return
    if address.startswith("ray://"):
        raise UserError(f"--address {address!r} is of a Ray client; submit the run as a Ray job, with --address auto")
    try:
        ray.init(address=address, **quiet)
    except ray.exceptions.AuthenticationError:
        raise UserError(
            f"the Ray cluster at {address!r} wants a token; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file"
        ) from None
    except (ConnectionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no Ray cluster at {address!r} ({reason}); leave --address out to run here") from None


def _make_token() -> None:
    """Give the Ray started here a token of its own, which its processes inherit and no file keeps.

    Ray asks for one by itself, and would write it to `~/.ray`, readable for all. What the user has set wins.
    """
    wanted = os.environ.get("RAY_AUTH_MODE", "token").lower() == "token"
    if wanted and not any(os.environ.get(name) for name in TOKEN_SOURCES):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _refuse_other_listeners(node_address: str) -> None:
    """Ray puts the network's address in place of 127.0.0.1 and listens on every interface, unless told otherwise."""
    if not ipaddress.ip_address(node_address).is_loopback:
        raise UserError(
            f"Ray listens on {node_address}, where others reach it too; set {LOOPBACK_ALONE} before Ray is imported, "
            "as the command line does"
        )
