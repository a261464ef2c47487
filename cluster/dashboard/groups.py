"""The summaries of a run, gathered by prompt: what the ledger says of them, part by part.

A part never changes once it is there, so each is read once. A resumed run takes parts away and writes others under
their names; then those are read anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speechsum.errors import UserError
from speechsum.ledger import SCHEMA, part_files, read_part

HEAVY = ("token_ids", "logprobs", "run_id", "trajectory_id")
"""Columns that nobody looks at; they are most of the ledger's bytes."""

COLUMNS = [name for name in SCHEMA.names if name not in HEAVY]


@dataclass(frozen=True, slots=True)
class Summary:
    """One completion and what became of it. Ledger or samples.jsonl -> page."""

    sample: int
    text: str
    reward: float | None
    breakdown: Mapping[str, float]
    gate: str
    judge_failure: str
    step: int | None
    drop_reason: str
    policy_version: int
    tokens: int | None
    finish_reason: str
    advantage: float | None
    pair: int | None
    preferred: bool | None

    @property
    def fate(self) -> str:
        """`trained`, or why not."""
        return self.drop_reason or "trained"


@dataclass(frozen=True, slots=True)
class Group:
    """The completions of one prompt. `epoch` is None where only the best was recorded so far, in samples.jsonl."""

    stage: str
    epoch: int | None
    prompt_id: str
    summaries: tuple[Summary, ...]

    @property
    def id(self) -> str:
        """A name that stays the same when a resumed run makes the group again."""
        which = f"step {self.step}" if self.epoch is None else str(self.epoch)
        text = f"{self.stage}\0{which}\0{self.prompt_id}"
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    @property
    def step(self) -> int | None:
        """The step that trained on some of it; None for a group that was dropped."""
        return next((s.step for s in self.summaries if s.step is not None), None)

    @property
    def rewards(self) -> list[float]:
        """Those of the summaries that were judged."""
        return [s.reward for s in self.summaries if s.reward is not None]


class LedgerReader:
    """Every group of a run folder's ledger, in the order of writing."""

    def __init__(self, trajectories: Path) -> None:
        self._folder = trajectories
        self._parts: dict[tuple[str, int, int], list[Group]] = {}
        self.problems: list[str] = []
        self.groups: list[Group] = []
        self.criteria: list[dict[str, Any]] = []

    def poll(self) -> bool:
        """Read the parts that are new, forget those that are gone; whether anything changed."""
        found = self._found()
        if list(found) == list(self._parts):
            return False
        self.problems = []
        self._parts = {key: self._parts.get(key) or self._read(part) for key, part in found.items()}
        self.groups = [group for part in self._parts.values() for group in part]
        self.criteria = _means(self.groups)
        return True

    def _found(self) -> dict[tuple[str, int, int], Path]:
        found: dict[tuple[str, int, int], Path] = {}
        for part in part_files(self._folder):
            try:
                stat = part.stat()
            except FileNotFoundError:  # a resumed run cut it off between the listing and now
                continue
            found[part.name, stat.st_mtime_ns, stat.st_size] = part
        return found

    def _read(self, part: Path) -> list[Group]:
        try:
            return _grouped(read_part(part, COLUMNS).to_pylist())
        except FileNotFoundError:
            return []
        except (UserError, OSError) as error:
            self.problems.append(str(error))
            return []


def _grouped(rows: Iterable[dict[str, Any]]) -> list[Group]:
    """A group's rows stand in one part: the ledger writes what is pending as a whole."""
    gathered: dict[tuple[str, int, str], list[Summary]] = defaultdict(list)
    for row in rows:
        gathered[row["stage"], row["epoch"], row["prompt_id"]].append(_summary(row))
    return [
        Group(stage, epoch, prompt, tuple(sorted(summaries, key=lambda s: s.sample)))
        for (stage, epoch, prompt), summaries in gathered.items()
    ]


def _summary(row: Mapping[str, Any]) -> Summary:
    breakdown = json.loads(row["breakdown"], parse_constant=lambda _: None)
    return Summary(
        sample=row["sample"], text=row["text"], reward=row["reward"], breakdown=breakdown,
        gate=row["gate"], judge_failure=row["judge_failure"],
        step=row["group_step"], drop_reason=row["drop_reason"], policy_version=row["policy_version"],
        tokens=row["response_tokens"], finish_reason=row["finish_reason"], advantage=row["advantage"],
        pair=row["pair"], preferred=row["preferred"],
    )  # fmt: skip


def from_samples(rows: Sequence[Mapping[str, Any]], known: Iterable[Group]) -> list[Group]:
    """The groups that `samples.jsonl` shows and the ledger does not hold yet, each with its best summary alone."""
    settled = {(group.stage, group.step, group.prompt_id) for group in known}
    return [
        Group(row["stage"], None, str(row.get("prompt_id", "")), (_shown(row),))
        for row in rows
        if (row["stage"], row["step"], row.get("prompt_id")) not in settled
    ]


def _shown(row: Mapping[str, Any]) -> Summary:
    reward, breakdown = row.get("reward"), row.get("breakdown")
    return Summary(
        sample=0, text=str(row.get("text", "")), reward=float(reward) if isinstance(reward, int | float) else None,
        breakdown=breakdown if isinstance(breakdown, dict) else {}, gate="", judge_failure="", step=row["step"],
        drop_reason="", policy_version=int(row.get("policy_version") or 0), tokens=None, finish_reason="",
        advantage=None, pair=None, preferred=None,
    )  # fmt: skip


def _means(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """Mean of each criterion over the trained summaries of a step that have it, in the order of steps."""
    sums: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        for summary in group.summaries:
            if summary.step is not None:
                for name, value in summary.breakdown.items():
                    if value is not None:
                        sums[group.stage, summary.step][name].append(value)
    return [
        {"stage": stage, "step": step, "criteria": {name: sum(v) / len(v) for name, v in sorted(values.items())}}
        for (stage, step), values in sums.items()
    ]


def tally(groups: Iterable[Group]) -> dict[str, dict[str, int]]:
    """How many summaries there are of each stage, fate and gate, and of each kind of failed judgement."""
    summaries = [(group, summary) for group in groups for summary in group.summaries]
    return {
        "stages": dict(Counter(group.stage for group, _ in summaries)),
        "fates": dict(Counter(s.fate for _, s in summaries)),
        "gates": dict(Counter(s.gate for _, s in summaries if s.gate)),
        "failures": dict(Counter(s.judge_failure.partition(":")[0] for _, s in summaries if s.judge_failure)),
    }
