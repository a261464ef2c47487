"""`judge score`: a file of summaries in, a file of judgements out, row for row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from actors.judge import Judge, PairJudge, identity, make_judge, make_pair_judge
from cluster import assets
from speechsum.config import RunConfig
from speechsum.judge_io import (
    Entry,
    Judged,
    PairOfRewards,
    as_preference,
    needs_other,
    read_tasks,
    write_judgements,
)
from speechsum.types import JudgeTask, PairTask


def score_file(source: Path, out: Path, config: RunConfig) -> None:
    """Judge every row of `source`; a row that is no task, or whose judgement fails, keeps its place with the reason.

    A row with `other` is compared by a pairwise judge, and has both its summaries scored by any other.
    """
    entries = read_tasks(source)
    tasks = [task for task, _ in entries]
    judged, judge = _compared(tasks, config) if config.judge.kind == "pairwise" else _scored(tasks, config)
    write_judgements(out, [row for _, row in entries], judged, judge)


def _compared(tasks: Sequence[Entry], config: RunConfig) -> tuple[list[Judged], str]:
    judge = open_pair_judge(config)
    try:
        found = iter(judge.score([task for task in tasks if isinstance(task, PairTask)]))
    finally:
        judge.close()
    judged = [as_preference(next(found)) if isinstance(task, PairTask) else needs_other(task) for task in tasks]
    return judged, identity(judge)


def _scored(tasks: Sequence[Entry], config: RunConfig) -> tuple[list[Judged], str]:
    judge = open_judge(config, _quiet)
    try:
        found = iter(judge.score([one for task in tasks for one in _single(task)]))
    finally:
        judge.close()
    judged: list[Judged] = []
    for task in tasks:
        if isinstance(task, PairTask):
            judged.append(PairOfRewards(next(found), next(found)))
        else:
            judged.append(next(found) if isinstance(task, JudgeTask) else task)
    return judged, identity(judge)


def _single(task: Entry) -> Iterator[JudgeTask]:
    """What a judge of single summaries is asked for one row."""
    if isinstance(task, PairTask):
        yield from task.sides
    elif isinstance(task, JudgeTask):
        yield task


def open_judge(config: RunConfig, say: assets.Say) -> Judge:
    """The recipe's judge of single summaries in this process, without Ray. Whoever opens it closes it."""
    checkpoint = assets.judge_checkpoint(config, say)
    return make_judge(config.judge, str(checkpoint) if checkpoint else None)


def open_pair_judge(config: RunConfig) -> PairJudge:
    """The recipe's pairwise judge in this process, as `open_judge`."""
    return make_pair_judge(config.judge)


def _quiet(text: str) -> None:
    """Nothing to show: what is asked for is the file."""
