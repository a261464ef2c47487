"""One run as the page shows it, from its folder alone, live or afterwards. Nothing is written, nothing is locked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.dashboard.groups import Group, LedgerReader, from_samples, tally
from cluster.dashboard.prompts import PromptBook
from cluster.dashboard.query import PAGE, Query
from cluster.dashboard.tail import JsonlTail
from cluster.dashboard.waits import PARTS, busy_shares
from cluster.run_folder import RunFolder
from speechsum.config import RunConfig, StageConfig, parse
from speechsum.errors import UserError
from speechsum.ledger import part_files

RECENT_STEPS = 10
"""Over which the pool's shares are averaged: enough to be steady, few enough to be about now."""

SNIPPET = 240


class RunReader:
    """Answers the page's questions about a run. Called from the server's threads, so each answer holds the lock."""

    def __init__(self, folder: RunFolder, cache: Path | None = None) -> None:
        self._folder = folder
        self._cache = cache
        self._lock = threading.Lock()
        self._config_seen: tuple[int, int] | None = None
        self._config: RunConfig | None = None
        self._problem = "config.json is gone"
        self._prompts = PromptBook(None)
        self._steps = JsonlTail(folder.metrics)
        self._samples = JsonlTail(folder.samples)
        self._ledger = LedgerReader(folder.trajectories)
        self._poll_config()

    def overview(self) -> dict[str, Any]:
        """What the run is and how far it has come."""
        with self._lock:
            self._poll_config()
            self._steps.poll()
            last = self._steps.rows[-1] if self._steps.rows else {}
            stages = self._config.stage if self._config else ()
            told = last.get("time")
            return {
                "name": self._config.name if self._config else self._folder.path.name,
                "path": str(self._folder.path),
                "problem": self._problem,
                "stages": [_stage(stage) for stage in stages],
                "pool": self._pool(),
                "stage": last.get("stage"),
                "step": last.get("step"),
                "done": len(self._steps.rows),
                "parts": len(part_files(self._folder.trajectories)),
                "steps": sum(stage.steps for stage in stages),
                "age_s": time.time() - told if isinstance(told, int | float) else None,
                "finished": self._is_finished(),
                "broken_lines": self._steps.broken,
            }

    def details(self) -> dict[str, Any]:
        """The recipe as it was resolved, and what came of the run once it is over; each None where it is not there."""
        return {"config": _read_json(self._folder.config), "summary": _read_json(self._folder.summary)}

    def steps(self, generation: str, start: int) -> dict[str, Any]:
        """The steps from number `start` on, if the page's rows are of `generation`; otherwise all, under another.

        Each has its figures, the shares that `busy_shares` derives, and `overall`, its step counted over all stages.
        """
        with self._lock:
            self._steps.poll()
            goes_on = generation == self._steps.generation and 0 <= start <= len(self._steps.rows)
            first = start if goes_on else 0
            before = _steps_before(self._config)
            rows = [
                row | busy_shares(row) | {"overall": before.get(row["stage"], 0) + row["step"]}
                for row in self._steps.rows[first:]
            ]
            return {"generation": self._steps.generation, "start": first, "rows": rows}

    def criteria(self) -> list[dict[str, Any]]:
        """Mean of each criterion of the reward, by step, as far as the ledger reaches."""
        with self._lock:
            self._ledger.poll()
            before = _steps_before(self._config)
            means = [row | {"overall": before.get(row["stage"], 0) + row["step"]} for row in self._ledger.criteria]
            return sorted(means, key=lambda row: row["overall"])

    def groups(self, query: Query) -> dict[str, Any]:
        """A page of the groups that are wanted, how many there are, and a tally of all summaries."""
        with self._lock:
            groups = self._all_groups()
            instructions = {row.get("prompt_id"): str(row.get("instruction", "")) for row in self._samples.rows}
            found = query.select(groups, lambda group: self._instruction(group, instructions))
            return {
                "total": len(found),
                "offset": query.offset,
                "groups": [
                    _line(group, self._instruction(group, instructions))
                    for group in found[query.offset : query.offset + PAGE]
                ],
                "tally": tally(groups),
                "problems": [*self._ledger.problems, *([self._prompts.problem] if self._prompts.problem else [])],
            }

    def group(self, group_id: str) -> dict[str, Any]:
        """A group with every summary in full. Raises LookupError for one that is not there, or not any more."""
        with self._lock:
            group = self._group(group_id)
            prompt = self._prompts.get(group.prompt_id)
            row = self._sample(group.prompt_id)
            return {
                "id": group.id,
                "stage": group.stage,
                "step": group.step,
                "epoch": group.epoch,
                "prompt_id": group.prompt_id,
                "instruction": prompt.instruction if prompt else row.get("instruction", ""),
                "reference": prompt.reference if prompt else row.get("reference", ""),
                "transcript": prompt.transcript if prompt else "",
                "summaries": [asdict(summary) | {"fate": summary.fate} for summary in group.summaries],
            }

    def recording(self, group_id: str) -> tuple[bytes, str]:
        """The group's recording and its media type. Raises LookupError for no such group, `UserError` for no audio."""
        with self._lock:
            prompt_id = self._group(group_id).prompt_id
            return self._prompts.recording(prompt_id, self._samples.rows)

    def _poll_config(self) -> None:
        """`--overwrite` puts another run in the folder's place."""
        try:
            stat = self._folder.config.stat()
        except FileNotFoundError:
            return
        if self._config_seen != (stat.st_mtime_ns, stat.st_size):
            self._config_seen = stat.st_mtime_ns, stat.st_size
            self._config, self._problem = _read_config(self._folder)
            self._prompts = PromptBook(self._config, self._cache)

    def _all_groups(self) -> list[Group]:
        self._ledger.poll()
        self._samples.poll()
        self._prompts.poll()
        return self._ledger.groups + from_samples(self._samples.rows, self._ledger.groups)

    def _group(self, group_id: str) -> Group:
        for group in self._all_groups():
            if group.id == group_id:
                return group
        raise LookupError(group_id)

    def _sample(self, prompt_id: str) -> Mapping[str, Any]:
        return next((row for row in reversed(self._samples.rows) if row.get("prompt_id") == prompt_id), {})

    def _instruction(self, group: Group, instructions: Mapping[Any, str]) -> str:
        prompt = self._prompts.get(group.prompt_id)
        return prompt.instruction if prompt else instructions.get(group.prompt_id, "")

    def _is_finished(self) -> bool:
        """A summary is written at the end, after the last step; one that is older is of before a resume."""
        try:
            return self._folder.summary.stat().st_mtime >= self._folder.metrics.stat().st_mtime
        except FileNotFoundError:
            return False

    def _pool(self) -> list[dict[str, Any]]:
        """Who works in the run: how many, with how many GPUs each, and how busy they were in the last steps.

        Of pools whose actors come and go, those that served in the last step; the recipe knows the first ones only.
        """
        config, rows = self._config, self._steps.rows[-RECENT_STEPS:]
        shares = [busy_shares(row) for row in rows]
        latest = rows[-1] if rows else {}
        sizes: dict[str, tuple[int | None, float]] = dict.fromkeys(PARTS, (None, 0.0))
        if config:
            sizes |= {
                "rollout": (config.rollout.actors, config.rollout.gpus_per_actor),
                "judge": (config.judge.actors, config.judge.gpus_per_actor),
                "teacher": (config.teacher.actors if config.teacher.path else 0, config.teacher.gpus_per_actor),
                "learner": (config.learner.ranks, config.learner.gpus_per_rank),
            }
        return [
            {"part": part, "actors": latest.get(f"{part}/actors_serving", sizes[part][0]), "gpus_each": sizes[part][1],
             "busy": _mean(shares, f"busy/{part}")}
            for part in PARTS
        ]  # fmt: skip


def _read_config(folder: RunFolder) -> tuple[RunConfig | None, str]:
    """The recipe, or None and why not."""
    tree = _read_json(folder.config)
    if tree is None:
        return None, f"{folder.config} is not JSON; stages, pool and recordings are not shown"
    try:
        return parse(tree, source=str(folder.config)), ""
    except UserError as error:
        return None, f"{error} (written by another version?); stages, pool and recordings are not shown"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def _stage(stage: StageConfig) -> dict[str, Any]:
    return {
        "name": stage.name, "loss": stage.loss.kind, "steps": stage.steps, "group_size": stage.group_size,
        "groups_per_step": stage.groups_per_step, "max_staleness": stage.max_staleness,
        "completions": stage.kind.completions, "scorers": list(stage.kind.scorers),
    }  # fmt: skip


def _steps_before(config: RunConfig | None) -> dict[str, int]:
    stages = config.stage if config else ()
    return {stage.name: sum(s.steps for s in stages[:i]) for i, stage in enumerate(stages)}


def _line(group: Group, instruction: str) -> dict[str, Any]:
    """A group as a line of the table."""
    rewards = group.rewards
    best = max(group.summaries, key=lambda s: float("-inf") if s.reward is None else s.reward)
    return {
        "id": group.id, "stage": group.stage, "step": group.step, "epoch": group.epoch, "prompt_id": group.prompt_id,
        "instruction": instruction, "best": best.text[:SNIPPET], "summaries": len(group.summaries),
        "trained": sum(s.step is not None for s in group.summaries),
        "fates": sorted({s.drop_reason for s in group.summaries if s.drop_reason}),
        "gates": sorted({s.gate for s in group.summaries if s.gate}),
        "failures": sum(bool(s.judge_failure) for s in group.summaries),
        "reward_mean": sum(rewards) / len(rewards) if rewards else None,
        "reward_min": min(rewards, default=None), "reward_max": max(rewards, default=None),
    }  # fmt: skip


def _mean(shares: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [share[name] for share in shares if name in share]
    return sum(values) / len(values) if values else None
