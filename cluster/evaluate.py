"""Held-out evaluation: greedy summaries of the right audio and, as a control, of somebody else's."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.rollout import BASE_VERSION
from cluster import assets
from cluster.groups import JudgePool, RolloutPool, fetch
from cluster.memory import MemoryWatch
from cluster.run_folder import write_atomically
from cluster.runtime import ray_session
from speechsum.config import RunConfig
from speechsum.data import Draw
from speechsum.errors import RunError
from speechsum.statistics import mean_ci, paired_difference
from speechsum.textscores import fact_precision, fact_recall, rouge_l
from speechsum.types import Judgement, JudgeTask, Prompt, Reward, SamplingParams, TrajectoryGroup

METRICS = ("judge", "fact_recall", "fact_precision", "wrong_audio_recall", "rougeL")
Rows = dict[str, list[float | None]]


class Evaluator:
    """Evaluates the policy that the rollout pool serves, always on the same prompts, so that runs pair up by item."""

    def __init__(self, config: RunConfig, rollout: RolloutPool, judge: JudgePool, prompts: Sequence[Prompt]) -> None:
        self.config, self.rollout, self.judge, self.prompts = config, rollout, judge, list(prompts)
        self.vocabulary = sorted({fact for p in prompts for fact in (*p.facts, *p.clip_facts)})

    def run(self, name: str, version: int, say: Callable[[str], None]) -> dict[str, Any]:
        """One evaluation: a row of scores for every prompt, and the summaries. `name` keeps request ids apart."""
        say(f"evaluating {name}: {len(self.prompts)} held-out clips")
        right = self._summaries(self.prompts, f"eval-{name}", version)
        say(f"evaluating {name}: the same requests with the wrong audio")
        swapped = _with_wrong_audio(self.prompts)
        wrong = self._summaries(swapped, f"eval-{name}-wrong", version) if swapped else [None] * len(right)
        say(f"evaluating {name}: judging")
        tasks = [JudgeTask(p.transcript, p.instruction, s) for p, s in zip(self.prompts, right, strict=True)]
        return {"rows": self._rows(right, wrong, self.judge.score_all(tasks)), "summaries": right}

    def _rows(self, right: Sequence[str], wrong: Sequence[str | None], judgements: Sequence[Judgement]) -> Rows:
        """A score for every prompt under every metric; None where the judge failed or the data says nothing."""
        pairs = list(zip(self.prompts, right, strict=True))
        return {
            "judge": [j.value if isinstance(j, Reward) else None for j in judgements],
            "fact_recall": [_recall(p, s) for p, s in pairs],
            "fact_precision": [self._precision(p, s) for p, s in pairs],
            "wrong_audio_recall": [_recall(p, s) for p, s in zip(self.prompts, wrong, strict=True)],
            "rougeL": [rouge_l(s, p.reference) if p.reference else None for p, s in pairs],
        }

    def _precision(self, prompt: Prompt, summary: str) -> float | None:
        facts = prompt.clip_facts or prompt.facts
        return fact_precision(summary, facts, self.vocabulary) if facts else None

    def compare(self, evaluations: dict[str, Any]) -> dict[str, Any]:
        """`before`, `after` and their paired difference, as `summary.json` wants them, with a few examples."""
        result: dict[str, Any] = {name: self.means(e["rows"]) for name, e in evaluations.items()}
        groups = [p.audio.key for p in self.prompts]
        before, after = evaluations["before"], evaluations["after"]
        result["difference"] = {}
        for metric in METRICS:
            pairs = [
                (b, a, g) for b, a, g in zip(before["rows"][metric], after["rows"][metric], groups, strict=True)
                if a is not None and b is not None
            ]  # fmt: skip
            if pairs:
                b, a, g = zip(*pairs, strict=True)
                result["difference"][metric] = paired_difference(b, a, groups=g, n=self.config.eval.bootstrap)
        result["examples"] = [
            {"instruction": p.instruction, "transcript": p.transcript, "before": b, "after": a}
            for p, b, a in zip(self.prompts[:4], before["summaries"], after["summaries"], strict=False)
        ]
        return result

    def means(self, rows: Rows) -> dict[str, Any]:
        """Mean and bootstrap interval by recording of every metric; None where no item has a value."""
        groups = [p.audio.key for p in self.prompts]
        means: dict[str, Any] = {"n": len(self.prompts)}
        for metric, values in rows.items():
            known = [(v, g) for v, g in zip(values, groups, strict=True) if v is not None]
            scores, clips = [v for v, _ in known], [g for _, g in known]
            means[metric] = mean_ci(scores, groups=clips, n=self.config.eval.bootstrap) if known else None
        return means

    def _summaries(self, prompts: Sequence[Prompt], run_id: str, version: int) -> list[str]:
        sampling = SamplingParams(n=1, temperature=0.0, max_tokens=self.config.eval.max_tokens)
        rolled = self.rollout.generate_all([Draw(0, p) for p in prompts], sampling, run_id, version)
        for prompt, group in zip(prompts, rolled, strict=True):
            if not isinstance(group, TrajectoryGroup):
                raise RunError(f"evaluation: {prompt.id} got no summary: {group.reason}")
        return [g.trajectories[0].text for g in rolled if isinstance(g, TrajectoryGroup)]


def evaluate_checkpoint(checkpoint: Path, data: Path, out: Path, config: RunConfig, clips: int | None = None) -> None:
    """`speechsum eval`: one checkpoint on one manifest (its first `clips` rows), or on the starter's held-out speech.

    Writes the means, intervals and summaries as JSON to `out`.
    """
    folder = assets.checkpoint_folder(str(checkpoint))
    model = config.model.model_copy(update={"family": assets.family_of(folder).name})
    config = config.model_copy(update={"model": model, "data": config.data.model_copy(update={"eval": str(data)})})
    prompts = assets.eval_prompts(config, folder, print)[:clips]
    judge_path = assets.judge_checkpoint(config.judge.path, print) if config.judge.kind == "likelihood" else None
    with MemoryWatch() as memory, ray_session(None, memory, print):
        rollout, judge = RolloutPool(config, folder), JudgePool(config, judge_path)
        try:
            fetch(rollout.ready() + judge.ready())
            evaluator = Evaluator(config, rollout, judge, prompts)
            evaluation = evaluator.run("checkpoint", BASE_VERSION, print)
        finally:
            rollout.close()
            judge.close()
    summaries = [{"id": p.id, "summary": s} for p, s in zip(prompts, evaluation["summaries"], strict=True)]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(evaluator.means(evaluation["rows"]) | {"summaries": summaries}, indent=1))


def _recall(prompt: Prompt, summary: str | None) -> float | None:
    return fact_recall(summary, prompt.facts) if prompt.facts and summary is not None else None


def _with_wrong_audio(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same requests, each with another recording, half a set of recordings away; empty where all share one."""
    clips = list({p.audio.key: p.audio for p in prompts}.values())
    if len(clips) < 2:
        return []
    place = {clip.key: i for i, clip in enumerate(clips)}
    return [replace(p, audio=clips[(place[p.audio.key] + len(clips) // 2) % len(clips)]) for p in prompts]
