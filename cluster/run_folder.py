"""The folder a run leaves behind, and the rules by which one may be begun, gone on with or replaced.

A run costs hours, so nothing is ever deleted on a guess: an occupied folder is refused with the ways out, and
replacing one moves the old run aside first.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from speechsum.config import RunConfig, parse
from speechsum.errors import UserError
from speechsum.files import write_whole

SHOWN_DIFFERENCES = 8

_PLACES = ("actors", "resources", "gpus_per_actor", "call_timeout_s")
_CALLS = (
    "url", "api_key_env", "timeout_s", "retries", "retry_share", "concurrency", "circuit_after", "circuit_cooldown_s"
)  # fmt: skip
MAY_CHANGE = (
    # what is kept and shown
    "keep_checkpoints", "watch",
    # when a run gives up
    "judge.audit", "judge.max_failure_share", "judge.failure_window",
    # who works where, and how long it is waited for; a checkpoint is of any number of ranks
    "rollout.pool", "judge.pool", "eval.second_judge.pool",
    *(f"{role}.{key}" for role in ("rollout", "judge", "teacher", "eval.second_judge") for key in _PLACES),
    *(f"learner.{key}" for key in ("ranks", "threads_per_rank", "gpus_per_rank", "resources")),
    "learner.collective_timeout_s", "learner.call_timeout_s",
    # where and how hard an endpoint is asked; the model and its revision stay
    *(f"{judge}.endpoint.{key}" for judge in ("judge", "eval.second_judge") for key in _CALLS),
)  # fmt: skip
"""Keys and sections that change neither what is trained nor what is measured: a run may resume with others."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where each part of a run lies. Driver -> watch, ledger, learner, bench, all of which write below it."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> Self:
        """The folder, ready to be written to: new, gone on with, or replaced. Raises `UserError` with the remedy."""
        folder = cls.reserve(path, config, resume=resume, overwrite=overwrite)
        try:
            for part in (folder.path, folder.trajectories, folder.checkpoints, folder.logs):
                part.mkdir(parents=True, exist_ok=True)
            write_whole(folder.config, _dump(config))
        except OSError as error:
            raise UserError(f"cannot write the run folder {path}: {error.strerror}; choose another --run-dir") from None
        return folder

    @classmethod
    def reserve(cls, path: str | Path, config: RunConfig, *, resume: bool, overwrite: bool) -> Self:
        """The folder's name, free for `create` to take: all that it would refuse is refused, and an old run made way.

        For a start that has more to check first, which shall leave nothing behind where that fails.
        """
        folder = cls(Path(path).absolute())
        folder.check(config, resume=resume, overwrite=overwrite)
        try:
            if overwrite and folder.config.exists():
                _move_aside(folder.path)
        except OSError as error:
            raise UserError(f"cannot move {path} aside: {error.strerror}; choose another --run-dir") from None
        return folder

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """An existing run's folder, to read from or add to."""
        folder = cls(Path(path).absolute())
        if not folder.config.is_file():
            raise UserError(f"{path} is not a run folder (it has no config.json); name one that `train` made")
        return folder

    def check(self, config: RunConfig, *, resume: bool, overwrite: bool) -> None:
        """Refuse, before anything heavy starts and without touching the disk, what `create` would refuse."""
        if resume and overwrite:
            raise UserError("--resume goes on with a run and --overwrite replaces it; give one of the two")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; choose another --run-dir")
        if resume:
            self._check_same_run(config)
        elif self.path.exists() and any(self.path.iterdir()):
            self._check_may_replace(overwrite)

    def _check_may_replace(self, overwrite: bool) -> None:
        is_run = self.config.is_file()
        if overwrite and is_run:
            return
        if overwrite:
            raise UserError(
                f"{self.path} holds files but no run (no config.json), so --overwrite leaves it alone; "
                "choose another --run-dir"
            )
        ways = "--resume to go on with it, --overwrite to move it aside, or another --run-dir"
        raise UserError(f"{self.path} is not empty; give {ways if is_run else 'another --run-dir'}")

    def _check_same_run(self, config: RunConfig) -> None:
        if not self.config.is_file():
            raise UserError(f"{self.path} holds no run to go on with; leave out --resume to start one")
        try:
            saved = json.loads(self.config.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{self.config} is damaged; give --overwrite to start anew") from None
        differing = list(differences(as_read_now(saved), json.loads(_dump(config)), free=MAY_CHANGE))
        if differing:
            shown = ", ".join(differing[:SHOWN_DIFFERENCES])
            more = f" and {len(differing) - SHOWN_DIFFERENCES} more" if len(differing) > SHOWN_DIFFERENCES else ""
            raise UserError(
                f"the recipe differs from the one {self.path} was started with: {shown}{more}; "
                "restore these to go on, or choose another --run-dir"
            )

    @property
    def config(self) -> Path:
        """The resolved recipe. Its presence is what makes a folder a run folder."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """A JSON line for each step."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """A JSON line for each completion that was shown."""
        return self.path / "samples.jsonl"

    @property
    def spans(self) -> Path:
        """Who was at work when: see `cluster.spans`."""
        return self.path / "spans.jsonl"

    @property
    def trajectories(self) -> Path:
        """Folder of Parquet files with every trajectory."""
        return self.path / "trajectories"

    @property
    def checkpoints(self) -> Path:
        """Folder with one folder for each checkpoint."""
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        """Folder for what people rarely read: tracebacks, engine output."""
        return self.path / "logs"

    @property
    def summary(self) -> Path:
        """What came of the run."""
        return self.path / "summary.json"

    @property
    def wandb_id(self) -> Path:
        """The id under which wandb knows the run, so that a resumed run stays one run there."""
        return self.path / "wandb-id"

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json` in one step. A number that is not finite is refused: readers could not parse it."""
        bad = next(
            (key for key, value in _leaves(summary) if isinstance(value, float) and not math.isfinite(value)), None
        )
        if bad is not None:
            raise ValueError(f"summary: {bad!r} is not a finite number; write None for what was not measured")
        write_whole(self.summary, json.dumps(summary, indent=2, allow_nan=False) + "\n")

    def read_summary(self) -> dict[str, Any]:
        """`summary.json`, or a sentence on how to get one."""
        try:
            return dict(json.loads(self.summary.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{self.path} has no summary.json yet; finish the run with --resume") from None
        except ValueError:
            raise UserError(f"{self.summary} is damaged; remove it and give --resume, which makes it anew") from None


def _dump(config: RunConfig) -> str:
    return config.model_dump_json(indent=2) + "\n"


def as_read_now(saved: Any) -> Any:
    """A saved recipe with the defaults of keys that have come since; as it is where this version would not take it."""
    try:
        return json.loads(_dump(parse(saved, "config.json")))
    except UserError:
        return saved


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a JSON tree; an empty section is a leaf."""
    if isinstance(tree, dict | list | tuple) and tree:
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree


def differences(saved: Any, wanted: Any, *, free: Sequence[str] = ()) -> Iterator[str]:
    """`key (was 1, now 2)` for each value that is not the same, but for `free` keys and sections."""
    old, new = dict(_leaves(saved)), dict(_leaves(wanted))
    for key in [*old, *(key for key in new if key not in old)]:
        was, now = (json.dumps(side[key]) if key in side else "absent" for side in (old, new))
        if was != now and not any(f"{key}.".startswith(f"{one}.") for one in free):
            yield f"{key} (was {was}, now {now})"


def _move_aside(path: Path) -> None:
    """Rename the run to `<name>.old-<n>`; earlier ones that got no further than it are deleted."""
    got = _progress(path)
    numbered = re.compile(re.escape(path.name) + r"\.old-(\d+)")
    aside = {int(found[1]): other for other in path.parent.iterdir() if (found := numbered.fullmatch(other.name))}
    path.rename(path.with_name(f"{path.name}.old-{max(aside, default=0) + 1}"))
    for older in aside.values():
        if not older.is_symlink() and (older / "config.json").is_file() and _progress(older) <= got:
            shutil.rmtree(older)


def _progress(run: Path) -> tuple[bool, str]:
    """How far a run came, to be compared: whether it finished, then the name of its newest checkpoint."""
    newest = max((path.name for path in (run / "checkpoints").glob("step_??????")), default="")
    return (run / "summary.json").exists(), newest
