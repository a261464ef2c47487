"""Held-out evaluation: greedy summaries of the right audio and, as controls, of somebody else's and of none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.rollout import BASE_VERSION
from cluster import assets
from cluster.assets import Say
from cluster.calls import wait_until_loaded
from cluster.controls import with_silence, with_wrong_audio
from cluster.memory import MemoryWatch
from cluster.placement import beside, refuse_without_room
from cluster.pools import JudgePool, RolloutPool
from cluster.readers import ReaderPlan, Readers
from cluster.runtime import ray_session
from speechsum.audio import AudioLimits, load_audio
from speechsum.config import BASE, CASCADE, TEACHER, TEXT_MODE, JudgeConfig, RunConfig
from speechsum.data import Draw
from speechsum.errors import RunError, UserError
from speechsum.eval_measures import NO_AUDIO, WRONG_AUDIO, Rows, measure
from speechsum.eval_report import render_markdown
from speechsum.eval_report_html import audio_uri, render_html
from speechsum.eval_table import EvalTable, Evaluation, Figures, compare, judgement_row, means
from speechsum.files import write_whole
from speechsum.starter.model import default_cache
from speechsum.types import Judgement, JudgeTask, Prompt, SamplingParams, TrajectoryGroup

TOLD = {WRONG_AUDIO: "the wrong audio", NO_AUDIO: "silence in place of the audio"}
PLAYERS = 12


@dataclass(frozen=True)
class Scorer:
    """Scores anybody's summaries of `prompts`; `judge` is loaded. The second judge comes and goes with each call."""

    config: RunConfig
    judge: JudgePool
    prompts: Sequence[Prompt]

    def score(
        self, name: str, summaries: Sequence[str], say: Say, controls: Mapping[str, Sequence[str]] | None = None,
        heard: Sequence[str] | None = None,
    ) -> Evaluation:  # fmt: skip
        """One row for an `EvalTable`: a summary for each prompt, whoever wrote them, judged and measured.

        `heard` is the transcript that each was written from, where that is a recogniser's.
        """
        say(f"evaluating {name}: judging")
        tasks = [JudgeTask(p.transcript, p.instruction, s) for p, s in zip(self.prompts, summaries, strict=True)]
        judged: dict[str, list[Judgement]] = {}
        judges: dict[str, str] = {}
        compares = self.config.judge.kind == "pairwise"  # and scores nothing: the second judge is then the only one
        if not compares:
            judges["judge"], judged["judge"] = self.judge.name(), self.judge.score_all(tasks)
        if second := self.config.eval.second_judge:
            say(f"evaluating {name}: the second judge")
            key = "judge" if compares else "second_judge"
            judges[key], judged[key] = self._ask(second, tasks, say)
        rows = measure(
            self.prompts, summaries, judged["judge"], second=judged.get("second_judge"), controls=controls, heard=heard
        )
        return {
            "rows": rows,
            "summaries": list(summaries),
            "judgements": {judge: [judgement_row(j) for j in own] for judge, own in judged.items()},
            "judges": judges,
            "controls": {control: list(said) for control, said in (controls or {}).items()},
            "heard": list(heard or ()),
        }

    def _ask(self, chosen: JudgeConfig, tasks: Sequence[JudgeTask], say: Say) -> tuple[str, list[Judgement]]:
        """The name of a judge that is started for this alone, and what it says."""
        config = self.config.model_copy(update={"judge": chosen})
        pool = JudgePool(config, assets.judge_checkpoint(config, say))
        try:
            return pool.name(), pool.score_all(tasks)
        finally:
            pool.close()


class Evaluator:
    """Evaluates the policy that the rollout pool serves, always on the same prompts, so that runs pair up by item."""

    def __init__(self, config: RunConfig, rollout: RolloutPool, judge: JudgePool, prompts: Sequence[Prompt]) -> None:
        self.config, self.rollout, self.prompts = config, rollout, list(prompts)
        self.scorer = Scorer(config, judge, self.prompts)

    def run(self, name: str, version: int, say: Say) -> Evaluation:
        """One evaluation: a row of scores for every prompt, and the summaries. `name` keeps request ids apart."""
        say(f"evaluating {name}: {len(self.prompts)} held-out clips")
        summaries = self._summaries(self.prompts, f"eval-{name}", version)
        controls: dict[str, list[str]] = {}
        for control, prompts in self.controls().items():
            say(f"evaluating {name}: the same requests with {TOLD[control]}")
            controls[control] = self._summaries(prompts, f"eval-{name}-{control}", version)
        return self.scorer.score(name, summaries, say, controls)

    def compare(self, evaluations: dict[str, Any]) -> dict[str, Any]:
        """`before`, `after` and `after` against `before`, as `summary.json` wants them, with a few examples."""
        result: dict[str, Any] = {name: self.means(e["rows"]) for name, e in evaluations.items()}
        before, after = evaluations["before"], evaluations["after"]
        result |= compare(before["rows"], after["rows"], self._recordings(), self.config.eval.bootstrap)
        result["examples"] = [
            {"instruction": p.instruction, "transcript": p.transcript, "before": b, "after": a}
            for p, b, a in zip(self.prompts[:4], before["summaries"], after["summaries"], strict=False)
        ]
        return result

    def report(self, evaluations: Mapping[str, Evaluation], data: str, out: Path, trained: frozenset[str]) -> None:
        """Everything that was evaluated side by side, the first as the others' baseline: see `write_report`.

        `trained` are the kinds of request that training asks.
        """
        table = EvalTable(self.prompts, self.config.eval.bootstrap, trained)
        for name, evaluation in evaluations.items():
            table.add_row(name, evaluation)
        recordings = [audio_uri(load_audio(p.audio, _limits(self.config))) for p in self.prompts[:PLAYERS]]
        write_report(out, {"data": data, **table.figures()}, recordings)

    def means(self, rows: Rows) -> dict[str, Any]:
        """Mean and bootstrap interval by recording of every metric; None where no item has a value."""
        return means(rows, self._recordings(), self.config.eval.bootstrap)

    def _recordings(self) -> list[str]:
        return [p.audio.key for p in self.prompts]

    def controls(self) -> dict[str, list[Prompt]]:
        """The prompts of each control that the recipe wants; one that the data does not allow is left out.

        Silence lies where starter speech does, so that what can read the one can read the other.
        """
        wanted: dict[str, list[Prompt]] = {}
        for control in self.config.eval.controls:
            if control == WRONG_AUDIO:
                wanted[control] = with_wrong_audio(self.prompts)
            else:
                wanted[control] = with_silence(self.prompts, default_cache() / "silence", _limits(self.config))
        return {control: prompts for control, prompts in wanted.items() if prompts}

    def _summaries(self, prompts: Sequence[Prompt], run_id: str, version: int) -> list[str]:
        sampling = SamplingParams(n=1, temperature=0.0, max_tokens=self.config.eval.max_tokens)
        rolled = self.rollout.generate_all([Draw(0, p) for p in prompts], sampling, run_id, version)
        for prompt, group in zip(prompts, rolled, strict=True):
            if not isinstance(group, TrajectoryGroup):
                raise RunError(f"evaluation: {prompt.id} got no summary: {group.reason}")
        return [g.trajectories[0].text for g in rolled if isinstance(g, TrajectoryGroup)]


# --- `speechsum eval` ----------------------------------------------------------------------------------------------


def evaluate_checkpoints(
    checkpoints: Mapping[str, Path], data: Path, out: Path, config: RunConfig, clips: int | None = None,
    players: int = PLAYERS, trained: frozenset[str] | None = None,
) -> Figures:  # fmt: skip
    """Checkpoints by name on one manifest (its first `clips` rows), side by side; the first is the others' baseline.

    After them come the recipe's `eval.rows`: text mode and cascade are those of the first checkpoint, and `base` is
    itself the first. `trained` are the kinds of request that training asks, None where nobody knows.
    Writes the figures as JSON to `out`, and beside it a table in Markdown and a page in HTML that plays the first
    `players` recordings. Returns the figures.
    """
    config = config.model_copy(update={"data": config.data.model_copy(update={"eval": str(data)})})
    folders = {name: assets.checkpoint_folder(str(path)) for name, path in checkpoints.items()}
    if taken := {TEXT_MODE, CASCADE, TEACHER} & set(config.eval.rows) & folders.keys():
        raise UserError(f"a checkpoint and a row are both called {min(taken)!r}; give the checkpoint another name")
    if BASE in config.eval.rows and BASE not in folders:
        folders = {BASE: assets.base_checkpoint(config, print), **folders}
    configs = {name: _for_checkpoint(config, folder) for name, folder in folders.items()}
    readable = [assets.eval_prompts(configs[name], folder, print)[:clips] for name, folder in folders.items()]
    judge_path = assets.judge_checkpoint(config, print)
    first = next(iter(folders))
    plan = ReaderPlan.make(configs[first], folders[first], readable[0], print)
    table = EvalTable(readable[0], config.eval.bootstrap, trained)
    read: dict[str, Evaluation] = {}
    recordings = [audio_uri(load_audio(p.audio, _limits(config))) for p in table.prompts[:players]]
    with MemoryWatch() as memory, ray_session(None, memory, print):
        refuse_without_room(config, {"rollout", "judge"} | beside(config))
        judge = JudgePool(config, judge_path)
        try:
            for name, folder in folders.items():
                readers = plan if name == first else ReaderPlan()
                own, others = _evaluate(name, configs[name], folder, judge, table.prompts, readers)
                table.add_row(name, own)
                read |= others
        finally:
            judge.close()
    for name, evaluation in read.items():
        table.add_row(name, evaluation)
    figures = {"data": str(data), **table.figures()}
    write_report(out, figures, recordings)
    return figures


def write_report(out: Path, figures: Figures, recordings: Sequence[str]) -> None:
    """The three files. In the JSON the first row's means and summaries also stand at the top, alone as with one row."""
    first = figures["baseline"]
    summaries = [{"id": item["id"], "summary": item["answers"][first]["summary"]} for item in figures["items"]]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps({**figures["rows"][first], "summaries": summaries, **figures}, indent=1) + "\n")
    write_whole(out.with_suffix(".md"), render_markdown(figures))
    write_whole(out.with_suffix(".html"), render_html(figures, recordings))


def _evaluate(
    name: str, config: RunConfig, folder: Path, judge: JudgePool, prompts: Sequence[Prompt], plan: ReaderPlan
) -> tuple[Evaluation, dict[str, Evaluation]]:
    """One checkpoint and the plan's rows beside it, in engines that are gone again before the next one's start."""
    rollout = RolloutPool(config, folder)
    try:
        wait_until_loaded([rollout, judge])
        evaluator = Evaluator(config, rollout, judge, prompts)
        return evaluator.run(name, BASE_VERSION, print), Readers(plan, evaluator, name).run(BASE_VERSION, print)
    finally:
        rollout.close()


def _for_checkpoint(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(
        update={"model": config.model.model_copy(update={"family": assets.family_of(folder).name})}
    )


def _limits(config: RunConfig) -> AudioLimits:
    return AudioLimits(max_s=config.model.max_audio_s)
