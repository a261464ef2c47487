"""`judge score`: a file of summaries in, a file of judgements out, row for row."""

from __future__ import annotations

from pathlib import Path

from actors.judge import Judge, make_judge
from cluster import assets
from speechsum.config import RunConfig
from speechsum.judge_io import read_tasks, write_judgements
from speechsum.types import Judgement, JudgeTask


def score_file(source: Path, out: Path, config: RunConfig) -> None:
    """Judge every row of `source`; a row that is no task, or whose judgement fails, keeps its place with the reason."""
    entries = read_tasks(source)
    judge = open_judge(config, _quiet)
    try:
        judged = iter(judge.score([task for task, _ in entries if isinstance(task, JudgeTask)]))
    finally:
        judge.close()
    judgements: list[Judgement] = [next(judged) if isinstance(task, JudgeTask) else task for task, _ in entries]
    write_judgements(out, [row for _, row in entries], judgements)


def open_judge(config: RunConfig, say: assets.Say) -> Judge:
    """The recipe's judge in this process, without Ray. Whoever opens it closes it."""
    checkpoint = assets.judge_checkpoint(config.judge.path, say) if config.judge.kind == "likelihood" else None
    return make_judge(config.judge, str(checkpoint) if checkpoint else None)


def _quiet(text: str) -> None:
    """Nothing to show: what is asked for is the file."""
