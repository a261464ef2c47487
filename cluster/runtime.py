"""Ray for one run: joined where a cluster is named, started and ended where none is."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray

from cluster.memory import MemoryWatch
from speechsum.errors import UserError

OBJECT_STORE_BYTES = 1 << 30


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
        ray.init(
            address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1", **quiet,
        )  # fmt: skip
        return
    if address.startswith("ray://"):
        raise UserError(f"--address {address!r} is of a Ray client; submit the run as a Ray job, with --address auto")
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"no Ray cluster at {address!r} ({reason}); leave --address out to run here") from None
