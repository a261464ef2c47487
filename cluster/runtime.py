"""Ray for one run: joined where a cluster is named, started and ended where none is."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

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
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES, _node_ip_address="127.0.0.1",
            )  # fmt: skip
    except ConnectionError as error:
        raise UserError(f"no Ray cluster at {address!r}: {error}; leave --address out to run here") from None
    memory.follow(ray._private.worker.global_worker.node.session_name)
    try:
        yield
    finally:
        ray.shutdown()
