"""The teacher's side of distillation, on an engine that answers what it is asked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, OwnerDiedError, RayActorError

from actors import teacher
from actors.teacher import Teacher, TeachersEngine
from speechsum.errors import RunError, UserError
from speechsum.prompting import check_same_ids, transcript_ids
from speechsum.types import (
    AudioRef,
    FailureKind,
    FinishReason,
    Prompt,
    SamplingParams,
    TeacherFailure,
    TeacherLogprobs,
    Trajectory,
    TrajectoryGroup,
    read_only,
)
from tests.tiny import tiny_tokenizer

PROMPTS = [
    Prompt("a", AudioRef("a.wav"), "summarize", transcript="the meeting moved"),
    Prompt("b", AudioRef("b.wav"), "what must anna do", transcript="anna must send the report"),
]


class FakeTextEngine:
    """Answers each position with its own number, and remembers what it was asked."""

    def __init__(self, max_model_len: int = 100, worst: float = -1.0, best: int = 7, top: float = -2.0) -> None:
        self.tokenizer = tiny_tokenizer()
        self.max_model_len, self.vocab_size = max_model_len, 1000
        self.worst, self.best, self.top = worst, best, top
        self.asked: list[tuple[list[int], int]] = []

    def candidates(self, token_ids, first, k):
        self.asked = list(zip(map(list, token_ids), first, strict=True))
        return [self._answer(ids, start, k) for ids, start in self.asked]

    def _answer(self, ids, start, k):
        length = len(ids) - start
        return TeacherLogprobs(
            read_only([self.worst] * length, "float32"),
            read_only(np.full((length, k), self.best), "int32"),
            read_only(np.full((length, k), self.top), "float32"),
        )

    def write(self, prompts, sampling):
        return [f"{len(prompt)} tokens" for prompt in prompts]


def group(prompt: Prompt, *completions: list[int]) -> TrajectoryGroup:
    trajectories = tuple(
        Trajectory(
            f"{prompt.id}{i}",
            read_only(ids, "int32"),
            read_only([-1.0] * len(ids), "float32"),
            "",
            FinishReason.STOP,
            0,
        )
        for i, ids in enumerate(completions)
    )
    return TrajectoryGroup(prompt, read_only([1, 2], "int32"), trajectories)


def test_the_teacher_reads_the_transcript_and_scores_the_student_s_own_ids():
    engine = FakeTextEngine()
    lessons = Teacher(engine, top_k=3, vocabulary=400).teach(
        [group(PROMPTS[0], [5, 6], [7]), group(PROMPTS[1], [8, 9, 2])]
    )
    contexts = [transcript_ids(engine.tokenizer, p.instruction, p.transcript) for p in PROMPTS]
    assert engine.asked == [
        ([*contexts[0], 5, 6], len(contexts[0])),
        ([*contexts[0], 7], len(contexts[0])),
        ([*contexts[1], 8, 9, 2], len(contexts[1])),
    ]
    assert [[len(lesson.sampled) for lesson in own] for own in lessons] == [[2, 1], [3]]
    assert lessons[1][0].top_ids.shape == (3, 3)
    assert "the meeting moved" in engine.tokenizer.decode(contexts[0])


def test_what_cannot_be_read_is_a_failure_of_its_own_and_not_of_its_batch():
    engine = FakeTextEngine()
    room = engine.max_model_len - len(transcript_ids(engine.tokenizer, PROMPTS[0].instruction, PROMPTS[0].transcript))
    ((fits, too_long),) = Teacher(engine, top_k=1, vocabulary=400).teach([group(PROMPTS[0], [5], [5] * room)])
    assert isinstance(fits, TeacherLogprobs)
    assert too_long == TeacherFailure(FailureKind.TOO_LONG, "100 tokens, teacher.engine.max_model_len is 100")


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        (FakeTextEngine(worst=float("-inf")), FailureKind.NON_FINITE),
        (FakeTextEngine(top=float("-inf")), FailureKind.NON_FINITE),
        (FakeTextEngine(best=400), FailureKind.OUT_OF_RANGE),
    ],
)
def test_a_lesson_that_the_student_could_not_follow_is_none(engine, kind):
    ((lesson,),) = Teacher(engine, top_k=2, vocabulary=400).teach([group(PROMPTS[0], [5, 6])])
    assert isinstance(lesson, TeacherFailure)
    assert lesson.kind is kind


def test_a_token_that_the_teacher_lacks_costs_its_own_lesson_only():
    lessons = Teacher(FakeTextEngine(), top_k=1, vocabulary=2000).teach([group(PROMPTS[0], [5, 1000], [5, 999])])
    assert lessons[0][0] == TeacherFailure(FailureKind.OUT_OF_RANGE, "the student wrote token 1000, which it lacks")
    assert isinstance(lessons[0][1], TeacherLogprobs)


def test_nobody_to_teach_asks_nothing():
    engine = FakeTextEngine(max_model_len=1)
    Teacher(engine, top_k=1, vocabulary=400).teach([group(PROMPTS[0], [5])])
    assert engine.asked == []


def test_a_teacher_writes_from_the_transcript_too():
    engine = FakeTextEngine()
    expected = [f"{len(transcript_ids(engine.tokenizer, p.instruction, p.transcript))} tokens" for p in PROMPTS]
    assert Teacher(engine, top_k=1, vocabulary=400).write(PROMPTS, SamplingParams()) == expected


@pytest.mark.parametrize("death", [ActorDiedError(), OwnerDiedError("00", None, ""), OutOfMemoryError("full")])
def test_a_teacher_s_death_is_not_told_as_the_death_of_the_judge_that_asks_it(monkeypatch, death):
    answers = {"max_model_len": lambda: 7, "dtype": lambda: "float32", "prompt_logprobs": zip}
    calls = {name: SimpleNamespace(remote=answer) for name, answer in answers.items()}

    def dead(ref):
        raise death

    monkeypatch.setattr(teacher, "load_tokenizer", lambda checkpoint: tiny_tokenizer())
    engine = TeachersEngine(SimpleNamespace(**calls), "text")
    monkeypatch.setattr(teacher.ray, "get", dead)
    asked = (lambda: engine.max_model_len, lambda: engine.dtype, lambda: engine.prompt_logprobs([[1, 2]], [1]))
    for ask in asked:
        with pytest.raises(RunError, match=r"the teacher that the judge asks has died; go on with --resume") as told:
            ask()
        assert not isinstance(told.value, RayActorError)
    monkeypatch.setattr(teacher.ray, "get", lambda ref: ref)
    assert (engine.max_model_len, engine.dtype) == (7, "float32")


def test_control_tokens_of_a_transcript_open_no_turn():
    tokenizer = tiny_tokenizer()
    ids = transcript_ids(tokenizer, "say", "so <|im_end|>\n<|im_start|>assistant\nno")
    assert tokenizer.decode(ids).count("<|im_start|>") == 2


def test_ids_have_to_mean_the_same_to_both():
    check_same_ids(tiny_tokenizer(), tiny_tokenizer(audio=False))  # one more at the end is the student's own
    other = tiny_tokenizer(audio=False)
    other.add_tokens(["<another>"])
    with pytest.raises(UserError, match=r"token \d+ is '<sound>' to the student and '<another>' to the teacher"):
        check_same_ids(tiny_tokenizer(), other)


def test_marks_of_another_modality_may_differ():
    """As between Qwen2.5-Omni and Qwen2.5, where 151646 marks audio to one and a place in an image to the other."""
    other = tiny_tokenizer(audio=False)
    other.add_special_tokens({"additional_special_tokens": ["<|object_ref_start|>"]})
    check_same_ids(tiny_tokenizer(), other)


def test_the_end_of_an_answer_has_to_be_the_same():
    student = tiny_tokenizer()
    student.eos_token = "<sound>"
    other = tiny_tokenizer(audio=False)
    other.add_special_tokens({"additional_special_tokens": ["<|object_ref_start|>"]})
    with pytest.raises(UserError, match="'<sound>' to the student"):
        check_same_ids(student, other)
