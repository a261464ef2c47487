"""A request to stop, as Ray's `stop_job`, Kubernetes and `kill` send it: SIGTERM, and SIGKILL some time later."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

from speechsum.errors import StopAsked


class StopRequest:
    """Listens for SIGTERM while its block runs, and ends the run by `StopAsked` at a moment that loses nothing.

    Where there is nothing to save that is at once; inside `held` the code itself looks at `asked`, between steps.
    Only the main thread may enter it, as Python delivers signals there.
    """

    def __init__(self) -> None:
        self.asked = False
        self._held = False

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGTERM)
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)

    def listen(self) -> None:
        """Take the signal back from a library that has put its own handler in place."""
        signal.signal(signal.SIGTERM, self._heard)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A request that comes inside changes `asked` alone; one that nobody looked at ends the run afterwards."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self.asked:
            raise StopAsked

    def _heard(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if not self._held and not again:  # a second request must not cut short what the first one lets end
            raise StopAsked
