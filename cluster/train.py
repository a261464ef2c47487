"""The driver: from a recipe to a run folder. Reads top to bottom; every noun is a file of its own."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster import assets, preflight, runtime
from cluster.controller import Controller, StepReport
from cluster.evaluate import Evaluator
from cluster.groups import JudgePool, LearnerGroup, RolloutPool, fetch
from cluster.memory import MemoryWatch
from cluster.ports import RayPorts
from cluster.run_folder import RunFolder
from cluster.stages import kind_of
from cluster.watch import SampleRow, Watch
from learner.checkpoint import load_checkpoint, newest_checkpoint
from speechsum.config import RunConfig, StageConfig
from speechsum.data import PromptStream
from speechsum.families import FAMILIES
from speechsum.ledger import Ledger
from speechsum.prompting import PromptBuilder
from speechsum.types import Prompt, PushMode, Reward, ScoredGroup


def run(config: RunConfig, run_dir: Path, *, address: str | None, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Train as the recipe says and return what `summary.json` holds.

    Raises `UserError` for what the user can mend, before any model loads; `RunError` when the run cannot go on.
    """
    started = time.monotonic()
    folder = RunFolder.create(run_dir, config, resume=resume, overwrite=overwrite)
    with Watch(folder, config) as watch, MemoryWatch() as memory:
        plan = _plan(config, folder, watch, resume)
        with runtime.ray_session(address, memory, watch.status):
            crew = _crew(config, plan, watch)
            try:
                summary = _train(config, plan, crew, folder, watch)
            finally:
                crew.close()
    summary |= {"wall_s": time.monotonic() - started, "peak_rss_gb": memory.peak_gb}
    folder.write_summary(summary)
    return summary


@dataclass(frozen=True)
class Plan:
    """Everything that was checked before a model loads."""

    checkpoint: Path
    judge_checkpoint: Path | None
    adapter: Path | None
    train: list[Prompt]
    held_out: list[Prompt]
    resume_from: Path | None


@dataclass(frozen=True)
class Crew:
    """The running actors. `rollout` and `judge` are None where no stage and no evaluation needs them."""

    learner: LearnerGroup
    rollout: RolloutPool | None
    judge: JudgePool | None

    def close(self) -> None:
        """End every process."""
        for group in (self.learner, self.rollout, self.judge):
            if group is not None:
                group.close()


def _plan(config: RunConfig, folder: RunFolder, watch: Watch, resume: bool) -> Plan:
    """Find, make and check all inputs."""
    checkpoint = assets.student_checkpoint(config.model.path, watch.status)
    adapter = assets.adapter_file(config.model.adapter)
    train = assets.train_prompts(config, checkpoint, watch.status)
    held_out = assets.eval_prompts(config, checkpoint, watch.status)[: config.eval.clips] if config.eval.clips else []
    needs_judge = config.judge.kind == "likelihood" and _listens(config)
    judge = assets.judge_checkpoint(config.judge.path, watch.status) if needs_judge else None
    newest = newest_checkpoint(folder.checkpoints) if resume else None
    return Plan(checkpoint, judge, adapter, train, held_out, newest)


def _listens(config: RunConfig) -> bool:
    """Whether anything in the run samples from the student."""
    return bool(config.eval.clips) or any(kind_of(s).completions == "rollout" for s in config.stage)


def _crew(config: RunConfig, plan: Plan, watch: Watch) -> Crew:
    """Start all actors at once and wait until they have loaded."""
    watch.status("starting the learner" + (", rollout and judge engines" if _listens(config) else ""))
    learner = LearnerGroup(config, plan.checkpoint)
    rollout = RolloutPool(config, plan.checkpoint) if _listens(config) else None
    judge = JudgePool(config, plan.judge_checkpoint) if _listens(config) else None
    waiting = learner.start() + (rollout.ready() if rollout else []) + (judge.ready() if judge else [])
    total = len(waiting)
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        fetch(done)
        watch.status(f"models loaded: {total - len(waiting)} of {total}")
    if plan.adapter and not plan.resume_from:
        learner.load_adapter(plan.adapter)
    return Crew(learner, rollout, judge)


def _train(config: RunConfig, plan: Plan, crew: Crew, folder: RunFolder, watch: Watch) -> dict[str, Any]:
    """Preflight, evaluate, run the stages, evaluate again, export."""
    run_id = folder.path.name
    builder = PromptBuilder.load(plan.checkpoint, FAMILIES[config.model.family])
    ports = RayPorts(builder, crew.learner, crew.rollout, crew.judge, run_id=run_id, mode=PushMode(config.rollout.sync))
    progress = _restore(config, plan, crew, watch)
    summary: dict[str, Any] = {
        "stages": [s.name for s in config.stage], "steps": 0, "parity": None, "rollout_vs_vllm": None,
        "sync": None, "eval": progress.evaluations,
    }  # fmt: skip
    evaluator = None
    if crew.rollout and crew.judge:
        watch.status("pushing the first weights")
        summary["sync"] = ports.push(progress.version)
        summary["parity"] = _preflight(config, plan, crew, progress.version, watch)
        evaluator = Evaluator(config, crew.rollout, crew.judge, plan.held_out)
    if evaluator and plan.held_out and "before" not in progress.evaluations:
        progress.evaluations["before"] = evaluator.run("before", progress.version, watch.status)
    stream = PromptStream(plan.train, config.seed)
    if progress.stream:
        stream.restore(progress.stream)
    ledger = Ledger(folder.path)
    for index, stage in enumerate(config.stage):
        if index >= progress.stage:
            _run_stage(config, index, stage, crew, ports, stream, progress, ledger, folder, watch)
    summary["steps"] = progress.total_steps
    if evaluator and plan.held_out:
        progress.evaluations["after"] = evaluator.run("after", progress.version, watch.status)
        summary["eval"] = evaluator.compare(progress.evaluations)
    watch.status("exporting the trained model")
    crew.learner.export(folder.path / "model")
    return summary


@dataclass
class Progress:
    """How far the run is; what a checkpoint keeps besides weights and optimizer."""

    stage: int = 0
    step: int = 0
    version: int = 0
    total_steps: int = 0
    stream: dict[str, Any] | None = None
    evaluations: dict[str, Any] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.evaluations = self.evaluations or {}


def _restore(config: RunConfig, plan: Plan, crew: Crew, watch: Watch) -> Progress:
    """From the newest checkpoint, or the beginning."""
    if plan.resume_from is None:
        return Progress()
    state = load_checkpoint(plan.resume_from)[2]
    progress = Progress(**state["progress"])
    stage = min(progress.stage, len(config.stage) - 1)
    crew.learner.begin_stage(config.stage[stage])
    crew.learner.restore(plan.resume_from)
    watch.rewind(config.stage[stage].name, progress.step)
    watch.note(f"resuming from {plan.resume_from.name}: stage {config.stage[stage].name}, step {progress.step}")
    return progress


def _preflight(config: RunConfig, plan: Plan, crew: Crew, version: int, watch: Watch) -> dict[str, float]:
    """Agreement of rollout and learner, printed at every start and refused above the limit."""
    assert crew.rollout is not None
    watch.status("preflight: do rollout and learner agree?")
    prompts = (plan.held_out or plan.train)[: config.preflight.prompts]
    parity = preflight.measure(
        crew.rollout, crew.learner, prompts, max_tokens=config.rollout.max_tokens, version=version
    )
    watch.note(f"preflight: |rollout - learner| = {parity['logprob_gap_mean']:.4f} nats per token, limit "
               f"{config.preflight.max_logprob_gap}; greedy tokens equal {parity['greedy_equal']:.0%}")  # fmt: skip
    preflight.check(config.preflight, parity)
    return parity


def _run_stage(
    config: RunConfig, index: int, stage: StageConfig, crew: Crew, ports: RayPorts, stream: PromptStream,
    progress: Progress, ledger: Ledger, folder: RunFolder, watch: Watch,
) -> None:  # fmt: skip
    """One stage from where it stands to its end, with checkpoints."""
    start = progress.step if index == progress.stage else 0
    if not start:
        crew.learner.begin_stage(stage)
    watch.stage(stage.name, stage.steps, start)
    controller = Controller(
        config, stage, ports, stream, run_id=ports.run_id, start=start, version=progress.version
    )  # fmt: skip
    for report in controller.run():
        watch.step(report.metrics, report.step, stage.name)
        watch.samples([_sample_row(g) for g in report.groups], report.step)
        ledger.record(report.ledger)
        progress.step, progress.version, progress.stage = report.step, controller.version, index
        progress.total_steps += 1
        if report.step % stage.checkpoint_every == 0 or report.step == stage.steps:
            progress.stream = stream.state()
            _save(crew, folder, progress, ledger, finished=report.step == stage.steps)
    progress.stage, progress.step = index + 1, 0
    if ports.rollout and kind_of(stage).completions == "data":
        ports.push(progress.version)


def _save(crew: Crew, folder: RunFolder, progress: Progress, ledger: Ledger, *, finished: bool) -> None:
    """Ledger and checkpoint together, so that neither knows of a step that the other does not."""
    ledger.flush()
    state = vars(progress) | ({"stage": progress.stage + 1, "step": 0} if finished else {})
    crew.learner.save(folder.checkpoints, progress.total_steps, {"progress": state})


def _sample_row(scored: ScoredGroup) -> SampleRow:
    """The group's best trajectory, for people to look at."""
    pairs = list(zip(scored.group.trajectories, scored.judgements, strict=True))
    trajectory, judgement = max(pairs, key=lambda p: p[1].value if isinstance(p[1], Reward) else float("-inf"))
    prompt = scored.group.prompt
    known = isinstance(judgement, Reward)
    return SampleRow(
        prompt.id, prompt.audio.key, prompt.instruction, trajectory.text, prompt.reference,
        judgement.value if known else None, judgement.breakdown if known else {}, trajectory.policy_version,
    )  # fmt: skip


__all__ = ["StepReport", "run"]
