"""Being asked to leave: SIGTERM to an actor's own process, as node agents and people send it."""

from __future__ import annotations

import signal

import ray


class Notice:
    """`given` once the process has been asked to end. What is under way is finished; what comes is refused."""

    def __init__(self) -> None:
        self.given = False

    def listen(self) -> str:
        """Take SIGTERM from Ray, which would end the process amid its work. Gives the id of the node it runs on."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._hear())
        return str(ray.get_runtime_context().get_node_id())

    def _hear(self) -> None:
        self.given = True
