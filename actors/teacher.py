"""On-policy distillation's other half: a text model reads the transcript and scores the student's own words.

The student wrote from the recording. The teacher sees the same request with the transcript in the recording's place,
and says at each token of the student's answer what it would have expected there. `Teacher` is plain and tested without
Ray; `TeacherActor` is its Ray shell.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from actors.published import Published
from speechsum.config import TeacherConfig
from speechsum.errors import RunError
from speechsum.prompting import load_tokenizer, transcript_ids
from speechsum.types import (
    FailureKind,
    Lesson,
    Prompt,
    SamplingParams,
    TeacherFailure,
    TeacherLogprobs,
    Trajectory,
    TrajectoryGroup,
)


class TextEngine(Protocol):
    """What the teacher needs of an engine."""

    @property
    def tokenizer(self) -> Any:
        """With a chat template."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of one sequence."""

    @property
    def vocab_size(self) -> int:
        """How many token ids it knows."""

    def candidates(self, token_ids: Sequence[Sequence[int]], first: Sequence[int], k: int) -> list[TeacherLogprobs]:
        """Log-probs of each sequence's own tokens, and the k likeliest in their place, from `first[i]` on."""

    def write(self, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> list[str]:
        """One text for each prompt of token ids."""


class Teacher:
    """A text engine that knows what `top_k` tokens it would have preferred, out of the student's `vocabulary` ids."""

    def __init__(self, engine: TextEngine, *, top_k: int, vocabulary: int) -> None:
        self._engine = engine
        self._top_k = top_k
        self._vocabulary = vocabulary

    def teach(self, groups: Sequence[TrajectoryGroup]) -> list[tuple[Lesson, ...]]:
        """A lesson for every trajectory of every group, in order, in one engine call.

        The ids are the engine's own, of which teacher and student have to share the meaning.
        """
        tasks = [(self._context(g.prompt), t) for g in groups for t in g.trajectories]
        failures = [self._problem(context, trajectory) for context, trajectory in tasks]
        asked = [task for task, failure in zip(tasks, failures, strict=True) if failure is None]
        answers = iter(
            self._engine.candidates(
                [context + t.token_ids.tolist() for context, t in asked], [len(c) for c, _ in asked], self._top_k
            )
            if asked
            else []
        )
        lessons = iter([failure or self._checked(next(answers)) for failure in failures])
        return [tuple(next(lessons) for _ in g.trajectories) for g in groups]

    def write(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[str]:
        """The teacher's own summaries of the transcripts: references for distillation by sequence, and for reports."""
        return self._engine.write([self._context(p) for p in prompts], sampling)

    def _context(self, prompt: Prompt) -> list[int]:
        return transcript_ids(self._engine.tokenizer, prompt.instruction, prompt.transcript)

    def _problem(self, context: list[int], trajectory: Trajectory) -> TeacherFailure | None:
        length, limit = len(context) + len(trajectory.token_ids), self._engine.max_model_len
        if length >= limit:
            return TeacherFailure(FailureKind.TOO_LONG, f"{length} tokens, teacher.engine.max_model_len is {limit}")
        if (largest := int(trajectory.token_ids.max(initial=0))) >= self._engine.vocab_size:
            return TeacherFailure(FailureKind.OUT_OF_RANGE, f"the student wrote token {largest}, which it lacks")
        return None

    def _checked(self, answer: TeacherLogprobs) -> Lesson:
        if not (np.isfinite(answer.sampled).all() and np.isfinite(answer.top).all()):
            return TeacherFailure(FailureKind.NON_FINITE, "log-probabilities are not finite")
        if int(answer.top_ids.max()) >= self._vocabulary:
            return TeacherFailure(
                FailureKind.OUT_OF_RANGE, f"prefers token {answer.top_ids.max()}, which the student lacks"
            )
        return answer


@ray.remote
class TeacherActor:
    """`Teacher` in a Ray actor, with its metrics on Ray's Prometheus endpoint. `index` tells actors of a run apart.

    `audio` says that the checkpoint is an audio LLM's, which is then asked in its text mode.
    """

    def __init__(
        self, checkpoint: str, config: TeacherConfig, *, audio: bool, top_k: int, vocabulary: int, index: int = 0
    ) -> None:
        from actors.engine import Engine

        self._engine = Engine(Path(checkpoint), config.engine, dtype=config.dtype, audio=audio, top_logprobs=top_k)
        self._teacher = Teacher(self._engine, top_k=top_k, vocabulary=vocabulary)
        self._published = Published({"actor": str(index)})

    def ready(self) -> bool:
        """Answers once the engine is loaded."""
        return True

    def teach(self, groups: Sequence[TrajectoryGroup]) -> list[tuple[Lesson, ...]]:
        """See `Teacher.teach`."""
        started = time.perf_counter()
        lessons = self._teacher.teach(groups)
        self._published.observe("teacher_actor/call_s", time.perf_counter() - started)
        for lesson in (each for own in lessons for each in own):
            if isinstance(lesson, TeacherFailure):
                self._published.add("teacher_actor/failures", 1, kind=lesson.kind.value)
            else:
                self._published.add("teacher_actor/tokens", len(lesson.sampled))
        return lessons

    def max_model_len(self) -> int:
        """See `Engine.max_model_len`."""
        return self._engine.max_model_len

    def dtype(self) -> str:
        """See `Engine.dtype`."""
        return self._engine.dtype

    def prompt_logprobs(self, token_ids: Sequence[Sequence[int]], first: Sequence[int]) -> list[np.ndarray]:
        """See `Engine.prompt_logprobs`."""
        return self._engine.prompt_logprobs(token_ids, first)

    def write(self, prompts: Sequence[Prompt], sampling: SamplingParams) -> list[str]:
        """See `Teacher.write`."""
        return self._teacher.write(prompts, sampling)


class TeachersEngine:
    """A `TeacherActor`'s engine as a likelihood judge asks it: one model in memory for both.

    `checkpoint` is what the teacher holds. Whoever asks first waits until the teacher has loaded. Raises `RunError`
    where the teacher has died: as an actor's death, it would be taken for that of the judge, who is well.
    """

    def __init__(self, teacher: Any, checkpoint: Path) -> None:
        self._teacher = teacher
        self.tokenizer = load_tokenizer(checkpoint)

    @cached_property
    def max_model_len(self) -> int:
        """See `Engine.max_model_len`."""
        return int(_answer(self._teacher.max_model_len.remote()))

    @property
    def dtype(self) -> str:
        """See `Engine.dtype`."""
        return str(_answer(self._teacher.dtype.remote()))

    def prompt_logprobs(self, token_ids: Sequence[Sequence[int]], first: Sequence[int]) -> list[np.ndarray]:
        """See `Engine.prompt_logprobs`."""
        return list(_answer(self._teacher.prompt_logprobs.remote(token_ids, first)))

    def close(self) -> None:
        """Nothing: the engine is the teacher's to shut down."""


def _answer(ref: ObjectRef) -> Any:
    """What the teacher says."""
    try:
        return ray.get(ref)
    except RayTaskError:  # what the teacher raised itself
        raise
    except RayError as error:
        raise RunError("the teacher that the judge asks has died; go on with --resume") from error
