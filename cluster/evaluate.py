"""Held-out evaluation: greedy summaries of the right audio and, as a control, of somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cluster.groups import JudgePool, RolloutPool
from speechsum.config import RunConfig
from speechsum.data import Draw
from speechsum.errors import RunError
from speechsum.statistics import mean_ci, paired_difference
from speechsum.textscores import fact_precision, fact_recall, rouge_l
from speechsum.types import JudgeTask, Prompt, Reward, SamplingParams, TrajectoryGroup

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
        wrong = self._summaries(_with_wrong_audio(self.prompts), f"eval-{name}-wrong", version)
        say(f"evaluating {name}: judging")
        tasks = [JudgeTask(p.transcript, p.instruction, s) for p, s in zip(self.prompts, right, strict=True)]
        judgements = self.judge.score_all(tasks)
        rows: Rows = {
            "judge": [j.value if isinstance(j, Reward) else None for j in judgements],
            "fact_recall": [fact_recall(s, p.facts) for s, p in zip(right, self.prompts, strict=True)],
            "fact_precision": [
                fact_precision(s, p.clip_facts or p.facts, self.vocabulary)
                for s, p in zip(right, self.prompts, strict=True)
            ],
            "wrong_audio_recall": [fact_recall(s, p.facts) for s, p in zip(wrong, self.prompts, strict=True)],
            "rougeL": [rouge_l(s, p.reference) for s, p in zip(right, self.prompts, strict=True)],
        }
        return {"rows": rows, "summaries": right}

    def compare(self, evaluations: dict[str, Any]) -> dict[str, Any]:
        """`before`, `after` and their paired difference, as `summary.json` wants them, with a few examples."""
        groups = [p.audio.key for p in self.prompts]
        n = self.config.eval.bootstrap
        result: dict[str, Any] = {name: self._means(e["rows"], groups, n) for name, e in evaluations.items()}
        before, after = evaluations["before"], evaluations["after"]
        result["difference"] = {}
        for metric in METRICS:
            pairs = [
                (b, a, g) for b, a, g in zip(before["rows"][metric], after["rows"][metric], groups, strict=True)
                if a is not None and b is not None
            ]  # fmt: skip
            if pairs:
                b, a, g = zip(*pairs, strict=True)
                result["difference"][metric] = paired_difference(b, a, groups=g, n=n)
        result["examples"] = [
            {"instruction": p.instruction, "transcript": p.transcript, "before": b, "after": a}
            for p, b, a in zip(self.prompts[:4], before["summaries"], after["summaries"], strict=False)
        ]
        return result

    def _means(self, rows: Rows, groups: list[str], n: int) -> dict[str, Any]:
        means: dict[str, Any] = {"n": len(self.prompts)}
        for metric, values in rows.items():
            known = [(v, g) for v, g in zip(values, groups, strict=True) if v is not None]
            means[metric] = mean_ci([v for v, _ in known], groups=[g for _, g in known], n=n) if known else None
        return means

    def _summaries(self, prompts: Sequence[Prompt], run_id: str, version: int) -> list[str]:
        sampling = SamplingParams(n=1, temperature=0.0, max_tokens=self.config.eval.max_tokens)
        rolled = self.rollout.generate_all([Draw(0, p) for p in prompts], sampling, run_id, version)
        for prompt, group in zip(prompts, rolled, strict=True):
            if not isinstance(group, TrajectoryGroup):
                raise RunError(f"evaluation: {prompt.id} got no summary: {group.reason}")
        return [g.trajectories[0].text for g in rolled if isinstance(g, TrajectoryGroup)]


def _with_wrong_audio(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same requests, each with the recording of the item half a set away."""
    half = len(prompts) // 2
    return [replace(p, audio=prompts[(i + half) % len(prompts)].audio) for i, p in enumerate(prompts)]
