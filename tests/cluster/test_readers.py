"""Rows that read: who reads what, with pools that say what they were given."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster import readers
from cluster.evaluate import Evaluator
from cluster.readers import ReaderPlan, Readers
from speechsum.config import STANDALONE, RunConfig, load_recipe
from speechsum.errors import UserError
from speechsum.eval_report import render_markdown
from speechsum.eval_table import EvalTable
from speechsum.types import AudioRef, Judgement, JudgeTask, Prompt, Reward
from tests.tiny import recording, tiny_tokenizer

ALL = ("text-mode", "cascade", "teacher")


@dataclass
class FakePool:
    """Answers with a function of what it was given, and says whether it was ended."""

    gives: Callable[[Any], str]
    closed: bool = False
    given: list[Any] = field(default_factory=list)

    def ready(self) -> list[str]:
        return ["fake/1"]

    def name(self) -> str:
        return "fake/1"

    def write_all(self, prompts: Sequence[Prompt], sampling: Any, *version: int) -> list[str]:
        assert (sampling.n, sampling.temperature) == (1, 0.0)
        return [self.gives(p) for p in prompts]

    def transcribe_all(self, recordings: Sequence[AudioRef], limits: Any) -> list[str]:
        self.given += recordings
        return [self.gives(ref) for ref in recordings]

    def score_all(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        self.given += tasks
        return [Reward(0.5)] * len(tasks)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    rows = [("a", "anna paid fifty dollars"), ("b", "bob called")]
    return [
        Prompt(name, recording(tmp_path / f"{name}.wav", 0.5, seed=i), "Sum up.", said, facts=(said.split()[0],))
        for i, (name, said) in enumerate(rows)
    ]


@pytest.fixture
def ears(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakePool:
    """A recogniser that mishears a name and writes digits; silence is "you"."""
    heard = {"a": "Hannah paid $50", "b": "bob called"}
    pool = FakePool(lambda ref: heard.get(Path(ref.path).stem, "you"))
    monkeypatch.setattr(readers, "RecogniserPool", lambda config, folder: pool)
    monkeypatch.setattr(readers, "wait_until_loaded", lambda groups: None)
    monkeypatch.setattr("cluster.evaluate.wait_until_loaded", lambda groups: None)
    monkeypatch.setattr("cluster.evaluate.default_cache", lambda: tmp_path / "cache")
    return pool


@pytest.fixture
def mentor(monkeypatch: pytest.MonkeyPatch) -> FakePool:
    pool = FakePool(lambda p: f"teacher: {p.transcript}")
    monkeypatch.setattr(readers, "TeacherPool", lambda config, folder, **options: pool)
    monkeypatch.setattr(readers, "hears", lambda folder: False)
    return pool


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    """A text model, as far as its tokenizer."""
    tiny_tokenizer().save_pretrained(tmp_path / "big-llm")
    return tmp_path / "big-llm"


def config(*overrides: str) -> RunConfig:
    return load_recipe(STANDALONE, ["judge.kind=lexical", "eval.bootstrap=20", *overrides])


def evaluator(prompts: list[Prompt], judge: FakePool) -> Evaluator:
    student = FakePool(lambda p: f"student: {p.transcript}")
    return Evaluator(config(), student, judge, prompts)  # type: ignore[arg-type]


def quiet(text: str) -> None:
    pass


def test_three_rows_read_what_is_theirs(prompts: list[Prompt], ears: FakePool, mentor: FakePool, llm: Path) -> None:
    judge = FakePool(str)
    plan = ReaderPlan(ALL, teacher=llm, recogniser=Path("/whisper"))
    found = Readers(plan, evaluator(prompts, judge), "sft").run(3, quiet)
    assert list(found) == list(ALL)
    assert found["text-mode"]["summaries"] == ["student: anna paid fifty dollars", "student: bob called"]
    assert found["teacher"]["summaries"] == ["teacher: anna paid fifty dollars", "teacher: bob called"]
    cascade = found["cascade"]
    assert cascade["summaries"] == ["teacher: Hannah paid fifty dollars", "teacher: bob called"]
    assert cascade["controls"] == {
        "wrong_audio": ["teacher: bob called", "teacher: Hannah paid fifty dollars"],
        "no_audio": ["teacher: you", "teacher: you"],
    }
    assert cascade["heard"] == ["Hannah paid fifty dollars", "bob called"]
    assert cascade["rows"]["word_errors"] == [0.25, 0.0]
    assert cascade["rows"]["fact_recall"] == [0.0, 1.0]
    assert found["teacher"]["rows"]["word_errors"] == [None, None]
    assert {task.transcript for task in judge.given} == {p.transcript for p in prompts}  # nobody judges by mishearing
    assert len(ears.given) == 3  # two recordings and one length of silence, each once
    assert ears.closed
    assert mentor.closed
    assert [found[row]["system"] for row in ALL] == [
        "sft, given the transcript in place of the recording",
        "whisper writes the transcript, big-llm summarises that",
        "big-llm, given the transcript",
    ]
    assert json.loads(json.dumps(found)) == found  # a checkpoint keeps it


def test_without_a_teacher_the_student_reads_what_was_heard(prompts: list[Prompt], ears: FakePool, llm: Path) -> None:
    plan = ReaderPlan(("cascade",), recogniser=Path("/whisper"), student=llm)
    found = Readers(plan, evaluator(prompts, FakePool(str)), "sft").run(3, quiet)
    assert found["cascade"]["summaries"][1] == "student: bob called"
    assert found["cascade"]["system"] == "whisper writes the transcript, sft summarises that"


def test_a_teacher_that_runs_already_goes_on(prompts: list[Prompt], mentor: FakePool, ears: FakePool) -> None:
    own = FakePool(lambda p: "mine")
    plan = ReaderPlan(("teacher",), teacher=Path("/big-llm"))
    found = Readers(plan, evaluator(prompts, FakePool(str)), "x", teacher=own).run(0, quiet)  # type: ignore[arg-type]
    assert (found["teacher"]["summaries"], own.closed) == (["mine", "mine"], False)


@pytest.mark.parametrize("recording", ["/b.wav", "silence"])
def test_more_is_heard_than_its_reader_takes(
    recording: str, prompts: list[Prompt], ears: FakePool, mentor: FakePool, llm: Path
) -> None:
    """As a recogniser may that falls into a loop: nobody has read anything by then."""
    ears.gives = lambda ref: "you " * (2000 if recording in ref.path else 1)
    mentor.gives = lambda p: pytest.fail("something was read")
    plan = ReaderPlan(("teacher", "cascade"), teacher=llm, recogniser=Path("/whisper"))
    with pytest.raises(UserError, match=r"longer than big-llm may read \(the first is '.*', .* or drop 'cascade'"):
        Readers(plan, evaluator(prompts, FakePool(str)), "sft").run(3, quiet)


def test_data_with_digits_keeps_the_recognisers(prompts: list[Prompt], ears: FakePool, llm: Path) -> None:
    digits = [prompts[0], Prompt("c", prompts[1].audio, "Sum up.", "room 12")]
    plan = ReaderPlan(("cascade",), recogniser=Path("/whisper"), student=llm)
    found = Readers(plan, evaluator(digits, FakePool(str)), "x").run(0, quiet)
    assert found["cascade"]["heard"][0] == "Hannah paid $50"


def test_the_report_says_what_a_row_is(prompts: list[Prompt], ears: FakePool, llm: Path) -> None:
    plan = ReaderPlan(("text-mode", "cascade"), recogniser=Path("/whisper"), student=llm)
    table = EvalTable(prompts, 20, trained=frozenset())
    for name, evaluation in Readers(plan, evaluator(prompts, FakePool(str)), "sft").run(0, quiet).items():
        table.add_row(name, evaluation)
    text = render_markdown(table.figures())
    assert "- text-mode: sft, given the transcript in place of the recording" in text
    assert "| word errors | – | 0.12 (0.00–0.25) |" in text


# --- before a model loads ------------------------------------------------------------------------------------------


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """A checkpoint's description, which is not the starter's, with a tokenizer."""
    folder = tmp_path / "omni-7b"
    folder.mkdir()
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "audioflamingo3", "audio_config": {}}))
    return folder


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (['eval.rows=["teacher"]'], "set teacher.path"),
        (['eval.rows=["cascade"]'], "omni-7b brings no recogniser; set eval.recogniser"),
        (['eval.rows=["cascade"]', "eval.recogniser=nowhere"], "cannot read nowhere/config.json"),
        (['eval.rows=["text-mode"]', "rollout.engine.max_model_len=1100", "eval.max_tokens=60",
          "model.max_prompt_tokens=1000"], "the first is 'long'.*raise rollout.*drop 'text-mode'"),
        (['eval.rows=["cascade"]', "eval.recogniser=whisper", "rollout.engine.max_model_len=1100",
          "model.max_prompt_tokens=1000"], "longer than omni-7b may.* 'long'.*raise rollout.*drop 'cascade'"),
        (['eval.rows=["cascade"]', "eval.recogniser=whisper", "teacher.path=llm", "teacher.engine.max_model_len=1100"],
         "longer than big-llm may.* 'long'.*raise teacher.*drop 'cascade'"),
    ],
)  # fmt: skip
def test_a_row_that_lacks_something_is_refused(
    overrides: list[str], complaint: str, prompts: list[Prompt], student: Path, llm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(readers.assets, "teacher_folder", lambda config, say: llm)
    (student.parent / "whisper").mkdir()
    (student.parent / "whisper" / "config.json").write_text('{"model_type": "whisper"}')
    (student.parent / "whisper" / "model.safetensors").touch()
    monkeypatch.chdir(student.parent)
    long = Prompt("long", prompts[0].audio, "Sum up.", "anna must go " * 400)
    with pytest.raises(UserError, match=complaint):
        ReaderPlan.make(config(*overrides), student, [*prompts, long], quiet)


def test_a_recogniser_has_to_be_whisper(prompts: list[Prompt], student: Path) -> None:
    (student / "model.safetensors").touch()
    with pytest.raises(UserError, match="is of type 'audioflamingo3'; name the folder of a Whisper"):
        ReaderPlan.make(config('eval.rows=["cascade"]', f"eval.recogniser={student}"), student, prompts, quiet)


def test_a_recipe_without_rows_plans_nothing(prompts: list[Prompt], student: Path) -> None:
    assert ReaderPlan.make(config('eval.rows=["base"]'), student, prompts, quiet) == ReaderPlan(student=student)
