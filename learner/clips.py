"""Recordings as the frozen encoder hears them: each encoded once, and kept as long as there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from speechsum.types import AudioRef

ROOM_BYTES = 4 << 30


class EncodedClips:
    """Encoder states [T, D] of recordings; over `room_bytes`, those go that have not been asked for the longest.

    `load` opens a recording as samples, `encode` makes the states of several in one call.
    """

    def __init__(
        self, load: Callable[[AudioRef], np.ndarray], encode: Callable[[list[np.ndarray]], list[Tensor]],
        room_bytes: int = ROOM_BYTES,
    ) -> None:  # fmt: skip
        self._load, self._encode, self._room_bytes = load, encode, room_bytes
        self._states: OrderedDict[str, Tensor] = OrderedDict()
        self._bytes = 0

    def states(self, recordings: Sequence[AudioRef]) -> list[Tensor]:
        """The states of each recording, in order."""
        missing = {ref.key: ref for ref in recordings if ref.key not in self._states}
        if missing:
            clips = [self._load(ref) for ref in missing.values()]
            for key, states in zip(missing, self._encode(clips), strict=True):
                self._states[key] = states
                self._bytes += states.nbytes
        for ref in recordings:
            self._states.move_to_end(ref.key)
        found = [self._states[ref.key] for ref in recordings]
        while self._bytes > self._room_bytes:
            self._bytes -= self._states.popitem(last=False)[1].nbytes
        return found
