"""What the controller holds between dispatch and training: slots, and groups that are ready for a step."""

from __future__ import annotations

from dataclasses import dataclass

from speechsum.data import Draw
from speechsum.types import Completion, Reward, ScoredGroup, TrainingSample


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
    """A scored group and the advantage of each of its trajectories, None for what cannot be trained on."""

    lease: Lease
    scored: ScoredGroup
    advantages: tuple[float | None, ...]

    def sample(self) -> TrainingSample:
        """What the learner gets: trajectories without an advantage are masked by leaving them out."""
        group = self.scored.group
        kept = zip(group.trajectories, self.advantages, strict=True)
        completions = tuple(Completion(t.token_ids, t.logprobs, a, t.policy_version) for t, a in kept if a is not None)
        return TrainingSample(group.prompt.id, group.prompt.audio, group.prompt_ids, completions)

    def why_not(self) -> str:
        """Why the group teaches nothing; empty where it does."""
        if any(a is not None for a in self.advantages):
            return ""
        judged = sum(isinstance(j, Reward) for j in self.scored.judgements)
        return "judge_failed" if judged < 2 else "equal_rewards"
