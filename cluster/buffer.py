"""What the controller holds between dispatch and training: slots, and groups that are ready for a step."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.selection import Selection
from speechsum.data import Draw
from speechsum.types import ScoredGroup, TrainingSample


@dataclass(frozen=True)
class Lease:
    """A slot in use, and the draw that holds it."""

    number: int
    draw: Draw


class Slots:
    """The budget that bounds staleness: at most `(max_staleness + 1) x groups_per_step` groups are under way."""

    def __init__(self, max_staleness: int, groups_per_step: int) -> None:
        self.size = (max_staleness + 1) * groups_per_step
        self._held: set[int] = set()
        self._next = 0

    @property
    def held(self) -> int:
        """Slots in use."""
        return len(self._held)

    @property
    def free(self) -> int:
        """Slots nobody holds."""
        return self.size - self.held

    def take(self) -> int:
        """Hold a slot; gives its number, which is never used twice."""
        assert self.free > 0, "dispatch beyond the slot budget"
        self._held.add(self._next)
        self._next += 1
        return self._next - 1

    def release(self, number: int) -> None:
        """Give a slot back, once."""
        self._held.remove(number)


@dataclass(frozen=True)
class Ready:
    """A group that has been scored by all whom its stage asks, and what of it is trained on."""

    lease: Lease
    scored: ScoredGroup
    selection: Selection

    def sample(self) -> TrainingSample:
        """What the learner gets."""
        group = self.scored.group
        return TrainingSample(group.prompt.id, group.prompt.audio, group.prompt_ids, self.selection.completions)
