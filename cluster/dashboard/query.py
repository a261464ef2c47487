"""Which groups somebody wants to see, and in what order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from cluster.dashboard.groups import Group, Summary
from speechsum.errors import UserError

ORDERS = ("newest", "oldest", "best", "worst", "widest")
PAGE = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A group is wanted if it is of the stage, prompt and steps, and one of its summaries passes all the rest.

    Empty and None mean "whatever". `fate` is `trained` or a drop reason; rewards and steps are inclusive.
    """

    stage: str = ""
    prompt: str = ""
    text: str = ""
    gate: str = ""
    fate: str = ""
    step_from: int | None = None
    step_to: int | None = None
    reward_min: float | None = None
    reward_max: float | None = None
    order: str = "newest"
    offset: int = 0

    @classmethod
    def read(cls, fields: Mapping[str, str]) -> Self:
        """From a URL's fields. Raises `UserError` for one that is unknown or no number."""
        values: dict[str, Any] = {}
        for name, text in fields.items():
            if name not in _READ:
                raise UserError(f"unknown filter {name!r}; there are {', '.join(sorted(_READ))}")
            if text.strip():
                values[name] = _value(name, text.strip())
        if values.get("order", "newest") not in ORDERS:
            raise UserError(f"order = {values['order']!r}; choose from {', '.join(ORDERS)}")
        return cls(**values)

    def select(self, groups: Iterable[Group], asked: Callable[[Group], str]) -> list[Group]:
        """The wanted groups, in order. `asked` gives the instruction of a group, which `text` is sought in too."""
        found = [group for group in groups if self._wants(group, asked)]
        if self.order == "newest":
            return found[::-1]
        if self.order == "oldest":
            return found
        judged = [group for group in found if group.rewards]
        return sorted(judged, key=_KEYS[self.order])

    def _wants(self, group: Group, asked: Callable[[Group], str]) -> bool:
        if (self.stage and group.stage != self.stage) or (self.prompt and group.prompt_id != self.prompt):
            return False
        if not _within(group.step, self.step_from, self.step_to):
            return False
        needle = self.text.casefold()
        about = needle and any(needle in text.casefold() for text in (group.prompt_id, asked(group)))
        return any(self._passes(s, "" if about else needle) for s in group.summaries)

    def _passes(self, summary: Summary, needle: str) -> bool:
        return (
            (not self.gate or summary.gate == self.gate)
            and (not self.fate or summary.fate == self.fate)
            and _within(summary.reward, self.reward_min, self.reward_max)
            and needle in summary.text.casefold()
        )


_KEYS: dict[str, Callable[[Group], float]] = {
    "best": lambda group: -max(group.rewards),
    "worst": lambda group: min(group.rewards),
    "widest": lambda group: min(group.rewards) - max(group.rewards),
}
_READ: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("stage", "prompt", "text", "gate", "fate", "order"), str),
    **dict.fromkeys(("step_from", "step_to", "offset"), int),
    **dict.fromkeys(("reward_min", "reward_max"), float),
}


def _value(name: str, text: str) -> Any:
    try:
        value = _READ[name](text)
    except ValueError:
        raise UserError(f"{name} = {text!r} is not a number; correct the filter") from None
    if name == "offset" and value < 0:
        raise UserError(f"offset = {text} is below 0; count from 0")
    return value


def _within(value: float | None, low: float | None, high: float | None) -> bool:
    """Inclusive; what has no value is outside of every bound."""
    if low is None and high is None:
        return True
    return value is not None and (low is None or value >= low) and (high is None or value <= high)
