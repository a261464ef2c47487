"""The driver: from a recipe to a run folder. Reads top to bottom; every noun is a file of its own."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.endpoint import Endpoint
from cluster import assets, preflight
from cluster.calls import wait_until_loaded
from cluster.controller import Controller, StepReport
from cluster.evaluate import Evaluator
from cluster.memory import MemoryWatch
from cluster.placement import beside, refuse_without_room
from cluster.pools import JudgePool, RolloutPool, TeacherPool
from cluster.ports import RayPorts
from cluster.ranks import LearnerGroup
from cluster.readers import ReaderPlan, Readers
from cluster.run_folder import RunFolder
from cluster.runtime import ray_session
from cluster.screen import Screen, screen_for
from cluster.spans import Span
from cluster.stopping import StopRequest
from cluster.trust import JudgeTrust, clips_to_audit
from cluster.watch import SampleRow, Watch
from learner.checkpoint import load_state, newest_checkpoint
from speechsum.config import RunConfig, StageConfig
from speechsum.data import PromptStream
from speechsum.errors import RunError, StopAsked
from speechsum.eval_table import kind_of
from speechsum.families import FAMILIES, hears
from speechsum.ledger import Ledger
from speechsum.objectives import DpoLoss, OpdLoss
from speechsum.pairs import PairIds
from speechsum.prompting import PromptBuilder
from speechsum.types import Prompt, Reward, ScoredGroup


def run(config: RunConfig, run_dir: Path, *, address: str | None, resume: bool, overwrite: bool) -> dict[str, Any]:
    """Train as the recipe says and return what `summary.json` holds.

    Raises `UserError` for what the user can mend, before any model loads; `RunError` when the run cannot go on;
    `StopAsked` after SIGTERM, which lets the step under way finish and saves a checkpoint first.
    """
    folder = RunFolder.reserve(run_dir, config, resume=resume, overwrite=overwrite)
    if resume and folder.summary.exists():
        return folder.read_summary()  # nothing is left to do
    with closing(screen_for(Console())) as screen, MemoryWatch() as memory, StopRequest() as stop:
        plan = make_plan(config, folder, screen, resume)
        RunFolder.create(run_dir, config, resume=resume)
        with Watch(folder, config, screen) as watch, ray_session(address, memory, watch.status):
            stop.listen()  # Ray has put a handler of its own in place
            if address is None:
                refuse_without_room(config, roles_of(config))
            crew = Crew.start(config, plan, watch)
            try:
                summary = Training(config, plan, crew, folder, watch, memory, stop).run()
            finally:
                crew.close()
    folder.write_summary(summary)
    return summary


@dataclass(frozen=True)
class Plan:
    """Everything that was found, made and checked before a model loads.

    `resume_from` is a verified checkpoint, `pairs` are those of each offline stage, by its name and by prompt, `audit`
    the prompts that the judge is audited on.
    """

    checkpoint: Path
    judge_checkpoint: Path | None
    teacher_checkpoint: Path | None
    adapter: Path | None
    train: list[Prompt]
    held_out: list[Prompt]
    pairs: dict[str, dict[str, list[PairIds]]]
    readers: ReaderPlan
    audit: list[Prompt]
    resume_from: Path | None


def make_plan(config: RunConfig, folder: RunFolder, screen: Screen, resume: bool) -> Plan:
    """All inputs of a run; every problem of the data is told here, at once."""
    adapter = assets.adapter_file(config.model.adapter)
    checkpoint = assets.student_checkpoint(config.model.path, screen.status)
    assets.check_context(checkpoint, config.rollout.engine.max_model_len, "rollout.engine.max_model_len")
    train, held_out = assets.all_prompts(config, checkpoint, screen.status)
    for endpoint in config.endpoints:
        Endpoint(endpoint)  # refuses an address that is none before anything loads
    judge = assets.judge_checkpoint(config, screen.status) if samples_from_student(config) else None
    asks_teacher = any("teacher" in stage.kind.scorers for stage in config.stage)
    teacher = assets.teacher_checkpoint(config.teacher, checkpoint, screen.status) if asks_teacher else None
    builder = PromptBuilder.load(checkpoint, FAMILIES[config.model.family])
    pairs = {
        stage.name: assets.pairs_by_prompt(stage.loss.pairs, train, builder)
        for stage in config.stage if isinstance(stage.loss, DpoLoss) and stage.loss.pairs
    }  # fmt: skip
    readers = ReaderPlan.make(config, checkpoint, held_out, screen.status) if held_out else ReaderPlan()
    newest = newest_checkpoint(folder.checkpoints, screen.note) if resume else None
    audit = clips_to_audit(config, held_out or train)
    return Plan(checkpoint, judge, teacher, adapter, train, held_out, pairs, readers, audit, newest)


def roles_of(config: RunConfig) -> set[str]:
    """The sections of the recipe whose actors run at the same time, the evaluations' own among them."""
    sampling = {"rollout", "judge"} if samples_from_student(config) else set()
    asked = {"teacher"} if any("teacher" in stage.kind.scorers for stage in config.stage) else set()
    return {"learner"} | sampling | asked | (beside(config) if config.eval.clips else set())


def samples_from_student(config: RunConfig) -> bool:
    """Whether anything in the run needs rollout and judge actors."""
    return bool(config.eval.clips) or any(s.kind.completions == "rollout" for s in config.stage)


@dataclass(frozen=True)
class Crew:
    """The running actors. `rollout` and `judge` are None in a run that samples nothing from the student."""

    learner: LearnerGroup
    rollout: RolloutPool | None
    judge: JudgePool | None
    teacher: TeacherPool | None

    @classmethod
    def start(cls, config: RunConfig, plan: Plan, watch: Watch) -> Crew:
        """Start all actors at once and wait until every one has loaded."""
        sampling = samples_from_student(config)
        watch.status("starting the learner" + (", the rollout and the judge engines" if sampling else ""))
        teachers = _teachers(config, plan) if plan.teacher_checkpoint else None
        crew = cls(
            LearnerGroup(config, plan.checkpoint),
            RolloutPool(config, plan.checkpoint, watch.note) if sampling else None,
            JudgePool(config, plan.judge_checkpoint, teachers, watch.note) if sampling else None,
            teachers,
        )
        wait_until_loaded(crew.groups, watch.status)
        return crew

    @property
    def groups(self) -> list[LearnerGroup | RolloutPool | JudgePool | TeacherPool]:
        """Those that exist."""
        return [group for group in (self.learner, self.rollout, self.judge, self.teacher) if group is not None]

    def close(self) -> None:
        """End every process."""
        for group in self.groups:
            group.close()


def _teachers(config: RunConfig, plan: Plan) -> TeacherPool:
    """The pool that serves every stage which distils, with as many candidates as the most curious asks for."""
    from transformers import AutoConfig

    assert plan.teacher_checkpoint is not None
    family = FAMILIES[config.model.family]
    vocabulary = family.text_config(AutoConfig.from_pretrained(plan.checkpoint, trust_remote_code=False)).vocab_size
    top_k = max(stage.loss.top_k if isinstance(stage.loss, OpdLoss) else 1 for stage in config.stage)
    return TeacherPool(
        config, plan.teacher_checkpoint, audio=hears(plan.teacher_checkpoint), top_k=top_k, vocabulary=vocabulary
    )


@dataclass
class Progress:
    """How far the run is: what a checkpoint keeps besides weights and optimizer.

    `stage` and `step` say what comes next, `version` numbers the weights, `stream` is the position in the data,
    `ledger_parts` how much of the ledger belongs to it. The figures are of the whole run, over all its sessions.
    """

    stage: int = 0
    step: int = 0
    version: int = 0
    total_steps: int = 0
    stream: dict[str, Any] | None = None
    ledger_parts: int = 0
    evaluations: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, float] | None = None
    sync: dict[str, float] | None = None
    wall_s: float = 0.0
    peak_rss_gb: float = 0.0


class Training:
    """One run with everything it needs; `run` is the story, the rest its chapters."""

    def __init__(
        self, config: RunConfig, plan: Plan, crew: Crew, folder: RunFolder, watch: Watch, memory: MemoryWatch,
        stop: StopRequest,
    ) -> None:  # fmt: skip
        self.config, self.plan, self.crew = config, plan, crew
        self.folder, self.watch, self.memory, self.stop = folder, watch, memory, stop
        self.ledger = Ledger(folder.path)
        self.stream = PromptStream(plan.train, config.seed)
        builder = PromptBuilder.load(plan.checkpoint, FAMILIES[config.model.family])
        self.ports = RayPorts(
            builder, crew.learner, crew.rollout, crew.judge, crew.teacher,
            run_id=folder.path.name, sync=config.rollout.sync,
        )  # fmt: skip
        self.trust = JudgeTrust(config, crew.judge, plan.audit, folder, watch)
        self.progress = Progress()
        self._counted_until = time.monotonic()
        self._saved_s = plan.resume_from.stat().st_mtime if plan.resume_from else time.time()

    def run(self) -> dict[str, Any]:
        """Restore, audit the judge, push the first weights, check agreement, evaluate, train and evaluate, export."""
        self._restore()
        self.trust.check(self.progress.total_steps)
        self._first_push()
        self._evaluate("before")
        self._evaluate_readers()
        for index, stage in enumerate(self.config.stage):
            if index >= self.progress.stage:
                with self.stop.held():
                    self._run_stage(index, stage)
            if (self.progress.stage, self.progress.step) == (index + 1, 0):
                self._evaluate("after" if stage is self.config.stage[-1] else stage.name)
        if evaluator := self._evaluator():
            trained = frozenset(kind_of(p) for p in self.plan.train)
            evaluator.report(self.progress.evaluations, self.config.data.eval, self.folder.path / "eval.json", trained)
        self.watch.status("exporting the trained model")
        self.crew.learner.export(self.folder.path / "model")
        return self._summary()

    def _summary(self) -> dict[str, Any]:
        """What `summary.json` holds; `speechsum bench` adds to it."""
        self._count_costs()
        progress = self.progress
        return {
            "stages": [s.name for s in self.config.stage], "steps": progress.total_steps, "wall_s": progress.wall_s,
            "peak_rss_gb": progress.peak_rss_gb, "eval": self._compared(), "parity": progress.parity,
            "rollout_vs_vllm": None, "sync": progress.sync,
        }  # fmt: skip

    def _count_costs(self) -> None:
        """Add the time since the last count, and the memory's peak."""
        now = time.monotonic()
        self.progress.wall_s += now - self._counted_until
        self._counted_until = now
        self.progress.peak_rss_gb = max(self.progress.peak_rss_gb, self.memory.peak_gb)

    def _restore(self) -> None:
        """Weights, optimizer and position from the newest checkpoint; or the recipe's adapter, at the beginning."""
        learner, newest = self.crew.learner, self.plan.resume_from
        if newest is None:
            self._forget_after(self.config.stage[0].name, 0)
            if self.plan.adapter:
                learner.load_adapter(self.plan.adapter)
            return
        self.progress = Progress(**load_state(newest)["progress"])
        stage = self.config.stage[min(self.progress.stage, len(self.config.stage) - 1)]
        learner.begin_stage(stage)
        learner.restore(newest)
        if self.progress.stream:
            self.stream.restore(self.progress.stream)
        done = self.progress.stage == len(self.config.stage)
        self._forget_after(stage.name, stage.steps if done else self.progress.step)
        self.watch.note(f"resuming from {newest.name}: {self.progress.total_steps} steps are done")

    def _forget_after(self, stage: str, step: int) -> None:
        """Cut off what a killed run recorded of steps that will be done again: each is told once."""
        self.watch.rewind(stage, step)
        self.ledger.rewind(self.progress.ledger_parts)

    def _first_push(self) -> None:
        """Rollouts get the learner's weights, and both must agree on the same tokens before anything is trained."""
        if self.crew.rollout is None:
            return
        self.watch.status("pushing the first weights")
        sync = self.ports.push(self.progress.version)
        self.watch.status("preflight: do rollout and learner agree?")
        prompts = (self.plan.held_out or self.plan.train)[: self.config.preflight.prompts]
        parity = preflight.measure(
            self.crew.rollout, self.crew.learner, prompts,
            max_tokens=self.config.rollout.max_tokens, version=self.progress.version,
            temperature=self.config.rollout.temperature or 1.0,
        )  # fmt: skip
        self.watch.note(
            f"preflight: |rollout - learner| = {parity['logprob_gap_mean']:.4f} nats per token "
            f"(limit {self.config.preflight.max_logprob_gap}), greedy tokens equal: {parity['greedy_equal']:.0%}"
        )
        preflight.check(self.config.preflight, parity)
        self.progress.parity, self.progress.sync = self.progress.parity or parity, self.progress.sync or sync

    def _evaluate(self, name: str) -> None:
        """Held-out evaluation of the weights that the pool serves now, unless a resumed run has it already."""
        evaluator = self._evaluator()
        if evaluator and name not in self.progress.evaluations:
            self.progress.evaluations[name] = evaluator.run(name, self.progress.version, self.watch.status)

    def _evaluate_readers(self) -> None:
        """The recipe's `eval.rows`: what the student is before training, reading; a resumed run has them already."""
        evaluator, rows = self._evaluator(), self.plan.readers.rows
        if evaluator and not self.progress.evaluations.keys() >= set(rows):
            readers = Readers(self.plan.readers, evaluator, "before", self.crew.teacher)
            self.progress.evaluations |= readers.run(self.progress.version, self.watch.status)

    def _compared(self) -> dict[str, Any]:
        """`before`, `after` and their difference, and how the run stood after each stage but the last."""
        evaluator = self._evaluator()
        if evaluator is None:
            return {}
        between = {s.name: self.progress.evaluations[s.name] for s in self.config.stage[:-1]}
        read = {row: self.progress.evaluations[row] for row in self.plan.readers.rows}
        compared = evaluator.compare({name: self.progress.evaluations[name] for name in ("before", "after")})
        return compared | {
            key: {name: evaluator.means(e["rows"]) for name, e in own.items()}
            for key, own in (("stages", between), ("rows", read))
        }

    def _evaluator(self) -> Evaluator | None:
        """None in a run without held-out clips."""
        if not self.plan.held_out or self.crew.rollout is None or self.crew.judge is None:
            return None
        return Evaluator(self.config, self.crew.rollout, self.crew.judge, self.plan.held_out)

    def _run_stage(self, index: int, stage: StageConfig) -> None:
        """One stage from where it stands to its end."""
        progress = self.progress
        if not progress.step:
            self.crew.learner.begin_stage(stage)
        self.watch.status(f"training: {stage.name}")
        self.watch.stage(stage.name, stage.steps, progress.step)
        self.watch.live({"checkpoint/saved_s": self._saved_s, "checkpoint/every_steps": stage.checkpoint_every})
        controller = Controller(
            self.config, stage, self.ports, self.stream,
            run_id=self.ports.run_id, start=progress.step, version=progress.version,
            pairs=self.plan.pairs.get(stage.name), observe=self.watch.live,
        )  # fmt: skip
        try:
            for report in controller.run():
                self._record(stage, report)
                done = report.step == stage.steps
                progress.stage, progress.step = (index + 1, 0) if done else (index, report.step)
                progress.version, progress.total_steps = controller.version, progress.total_steps + 1
                leaving = self.stop.asked
                audits = not leaving and self.trust.due(progress.total_steps)
                saved = done or leaving or audits or report.step % stage.checkpoint_every == 0
                if saved:  # before an audit, which may take longer than a stop has time, or fail
                    self._save(controller)
                if audits and (doubt := self.trust.doubt_after(progress.total_steps)):
                    raise RunError(doubt)
                if saved and self.stop.asked:  # a request while nothing was saved waits for the next step
                    raise StopAsked
        except BaseException:  # an interrupt too: its last judgements say why a run stopped
            self.ledger.record(controller.abandon())
            self.ledger.flush()
            raise
        if self.ports.rollout and stage.kind.completions != "rollout":
            self.ports.push(progress.version)

    def _record(self, stage: StageConfig, report: StepReport) -> None:
        own = {"wall/rss_gb": self.memory.last_gb}
        metrics = report.metrics | self.trust.metrics() | self.ports.figures() | own
        self.watch.step(metrics, report.step, stage.name)
        self.watch.spans(report.spans)
        self.watch.samples([_sample_row(g) for g in report.groups], report.step)
        self.ledger.record(report.ledger)

    def _save(self, controller: Controller) -> None:
        """Everything a resumed run needs; what the ledger holds beyond it is cut off again then."""
        self.ledger.flush()
        self._count_costs()
        self.progress.ledger_parts = self.ledger.parts
        self.progress.stream = self.stream.state(controller.outstanding())
        began = time.time()
        self.crew.learner.save(self.folder.checkpoints, self.progress.total_steps, {"progress": asdict(self.progress)})
        self._saved_s = time.time()
        self.watch.live({"checkpoint/saved_s": self._saved_s})
        self.watch.spans([Span(controller.stage.name, controller.done, "checkpoint", "learner", began, self._saved_s)])


def _sample_row(scored: ScoredGroup) -> SampleRow:
    """The group's best trajectory, for people to look at."""
    judgements = scored.judgements or (None,) * len(scored.group.trajectories)
    pairs = list(zip(scored.group.trajectories, judgements, strict=True))
    trajectory, judgement = max(pairs, key=lambda p: p[1].value if isinstance(p[1], Reward) else float("-inf"))
    prompt = scored.group.prompt
    value, breakdown = (judgement.value, judgement.breakdown) if isinstance(judgement, Reward) else (None, {})
    return SampleRow(
        prompt.id, prompt.audio.key, prompt.instruction, trajectory.text, prompt.reference,
        value, breakdown, trajectory.policy_version,
    )  # fmt: skip
