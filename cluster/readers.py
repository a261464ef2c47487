"""Rows of an evaluation that read where the student hears: its own text mode, a cascade, the teacher.

They say what hearing costs and what it is worth. In text mode the same student gets the transcript in the recording's
place. The teacher gets it too. A cascade gets what a recogniser wrote down; its reader is the recipe's teacher or,
where there is none, the student in its text mode, so that it differs from another row by the recogniser alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import assets
from cluster.calls import wait_until_loaded
from cluster.pools import RecogniserPool, TeacherPool
from speechsum.audio import AudioLimits
from speechsum.config import BASE, CASCADE, TEACHER, TEXT_MODE, RunConfig
from speechsum.errors import UserError
from speechsum.families import hears
from speechsum.prompting import load_tokenizer, transcript_ids
from speechsum.spelling import spell_numbers
from speechsum.types import Prompt, SamplingParams

if TYPE_CHECKING:
    from cluster.evaluate import Evaluator
    from speechsum.eval_table import Evaluation


@dataclass(frozen=True)
class ReaderPlan:
    """What the rows need, found and checked before a model loads.

    `teacher`, `recogniser` and the `student` that has a text mode are checkpoint folders.
    """

    rows: tuple[str, ...] = ()
    teacher: Path | None = None
    recogniser: Path | None = None
    student: Path | None = None

    @classmethod
    def make(cls, config: RunConfig, student: Path, prompts: Sequence[Prompt], say: assets.Say) -> ReaderPlan:
        """For the recipe's `eval.rows`; `student` is the checkpoint that has a text mode.

        Raises `UserError` for a row without what it needs, and for transcripts longer than their reader takes.
        """
        rows = tuple(row for row in config.eval.rows if row != BASE)
        if TEACHER in rows and not config.teacher.path:
            raise UserError("eval.rows has 'teacher' and the recipe names none; set teacher.path, or drop the row")
        cascade = CASCADE in rows
        asked = assets.reads_by_teacher(config)
        recogniser = assets.recogniser_checkpoint(config.eval.recogniser, student, say) if cascade else None
        teacher = assets.teacher_folder(config.teacher, say) if asked else None
        plan = cls(rows, teacher, recogniser, student)
        for row in rows:
            plan.refuse_long(row, prompts, config)
        return plan

    def refuse_long(self, row: str, prompts: Sequence[Prompt], config: RunConfig) -> None:
        """Raise `UserError` for transcripts that leave the reader of `row` too little room for an answer."""
        reads_itself = row == TEXT_MODE or self.teacher is None
        reader, section = (self.student, "rollout") if reads_itself else (self.teacher, "teacher")
        engine = config.rollout.engine if reads_itself else config.teacher.engine
        assert reader is not None
        tokenizer, room = load_tokenizer(reader), engine.max_model_len - config.eval.max_tokens
        lengths = {p.id: len(transcript_ids(tokenizer, p.instruction, p.transcript)) for p in prompts}
        if too_long := [name for name, length in lengths.items() if length > room]:
            raise UserError(
                f"{len(too_long)} transcripts are longer than {reader.name} may read (the first is {too_long[0]!r}, "
                f"the longest has {max(lengths.values())} tokens, {room} fit); raise {section}.engine.max_model_len, "
                f"or drop {row!r} from eval.rows"
            )


@dataclass
class Readers:
    """Answers the evaluator's requests by reading, for each row of the plan.

    `student` is how the report calls the policy that the evaluator's pool serves. `teacher` is a pool that runs
    already; without one it comes and goes with `run`.
    """

    plan: ReaderPlan
    evaluator: Evaluator
    student: str
    teacher: TeacherPool | None = None

    def run(self, version: int, say: assets.Say) -> dict[str, Evaluation]:
        """An evaluation by the name of each row, in the plan's order."""
        heard = self._heard(say) if self.plan.recogniser else {}
        own = self.teacher
        if self.plan.teacher and own is None:
            say("starting the teacher for the evaluation's rows")
            own = self._start_teacher(self.plan.teacher)
        try:
            return {row: self._row(row, heard, own, version, say) for row in self.plan.rows}
        finally:
            if own is not None and self.teacher is None:
                own.close()

    def _row(
        self, row: str, heard: dict[str, str], teacher: TeacherPool | None, version: int, say: assets.Say
    ) -> Evaluation:
        say(f"evaluating {row}: {len(self.evaluator.prompts)} transcripts")
        scorer, prompts = self.evaluator.scorer, self.evaluator.prompts
        reader = None if row == TEXT_MODE else teacher
        if row != CASCADE:
            return scorer.score(row, self._write(prompts, reader, version), say) | {"system": self._system(row)}
        controls = {
            control: self._write(_as_heard(others, heard), reader, version)
            for control, others in self.evaluator.controls().items()
        }
        written = _as_heard(prompts, heard)
        evaluation = scorer.score(
            row, self._write(written, reader, version), say, controls, heard=[p.transcript for p in written]
        )
        return evaluation | {"system": self._system(row)}

    def _write(self, prompts: Sequence[Prompt], teacher: TeacherPool | None, version: int) -> list[str]:
        sampling = SamplingParams(n=1, temperature=0.0, max_tokens=self.evaluator.config.eval.max_tokens)
        if teacher is not None:
            return teacher.write_all(prompts, sampling)
        return self.evaluator.rollout.write_all(prompts, sampling, version)

    def _heard(self, say: assets.Say) -> dict[str, str]:
        """What the recogniser writes down of every recording, those of the controls too, by the recording's key.

        Raises `UserError` where that is more than its reader takes, before anything is read.
        """
        assert self.plan.recogniser is not None
        config, evaluator = self.evaluator.config, self.evaluator
        asked = [evaluator.prompts, *evaluator.controls().values()]
        recordings = {p.audio.key: p.audio for prompts in asked for p in prompts}
        say(f"evaluating {CASCADE}: writing down {len(recordings)} recordings")
        pool = RecogniserPool(config, self.plan.recogniser)
        try:
            wait_until_loaded([pool])
            texts = pool.transcribe_all(list(recordings.values()), AudioLimits(max_s=config.model.max_audio_s))
        finally:
            pool.close()
        if not any(character.isdigit() for p in evaluator.prompts for character in p.transcript):
            texts = [spell_numbers(text) for text in texts]  # as the data spells its own
        heard = dict(zip(recordings, texts, strict=True))
        for prompts in asked:
            self.plan.refuse_long(CASCADE, _as_heard(prompts, heard), config)
        return heard

    def _start_teacher(self, folder: Path) -> TeacherPool:
        pool = TeacherPool(self.evaluator.config, folder, audio=hears(folder), top_k=1, vocabulary=1)
        wait_until_loaded([pool])
        return pool

    def _system(self, row: str) -> str:
        """What the row is, for the report."""
        teacher = self.plan.teacher.name if self.plan.teacher else ""
        if row == TEXT_MODE:
            return f"{self.student}, given the transcript in place of the recording"
        if row == TEACHER:
            return f"{teacher}, given the transcript"
        assert self.plan.recogniser is not None
        return f"{self.plan.recogniser.name} writes the transcript, {teacher or self.student} summarises that"


def _as_heard(prompts: Sequence[Prompt], heard: dict[str, str]) -> list[Prompt]:
    """The same requests about what the recogniser made of their recordings."""
    return [replace(p, transcript=heard[p.audio.key]) for p in prompts]
