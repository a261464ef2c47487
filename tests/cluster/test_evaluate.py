"""Evaluation with a policy that repeats what its recording holds, and judges whose every answer is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.rollout import RolloutFailure
from cluster import evaluate
from cluster.controls import silence, with_silence, with_wrong_audio
from cluster.evaluate import Evaluator, Scorer, evaluate_checkpoints
from cluster.readers import ReaderPlan
from speechsum.audio import AudioLimits, load_audio
from speechsum.config import STANDALONE, JudgeConfig, RunConfig, load_recipe
from speechsum.errors import RunError, UserError
from speechsum.types import (
    AudioRef,
    FinishReason,
    Judgement,
    JudgeTask,
    Prompt,
    Reward,
    Trajectory,
    TrajectoryGroup,
)
from tests.tiny import recording

SECONDS = {"a": 0.5, "b": 0.75, "c": 0.5}


@dataclass
class FakeRollout:
    """Says of each prompt what a function hears."""

    hears: Callable[[Prompt], str | None]
    calls: list[tuple[str, int]] = field(default_factory=list)
    closed: bool = False

    def ready(self) -> list[str]:
        return ["-1"]

    def generate_all(self, draws: Sequence[Any], sampling: Any, run_id: str, version: int) -> list[Any]:
        assert (sampling.n, sampling.temperature) == (1, 0.0)
        self.calls.append((run_id, version))
        return [self._rolled(draw.prompt, self.hears(draw.prompt)) for draw in draws]

    def write_all(self, prompts: Sequence[Prompt], sampling: Any, version: int) -> list[str]:
        return [p.transcript for p in prompts]

    def _rolled(self, prompt: Prompt, text: str | None) -> Any:
        if text is None:
            return RolloutFailure(prompt.id, "audio missing")
        none = np.zeros(0)
        return TrajectoryGroup(prompt, none, (Trajectory("t", none, none, text, FinishReason.STOP, -1),))

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeJudge:
    """Gives every summary what a function gives it."""

    gives: Callable[[JudgeTask], Judgement]
    called: str = "fake/1"
    closed: bool = False

    def ready(self) -> list[str]:
        return [self.called]

    def name(self) -> str:
        return self.called

    def score_all(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        return [self.gives(task) for task in tasks]

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluate, "wait_until_loaded", lambda groups: None)
    monkeypatch.setattr(evaluate, "default_cache", lambda: tmp_path / "cache")


@pytest.fixture
def prompts(tmp_path: Path) -> list[Prompt]:
    """Two requests about the first of three recordings, one about each other."""
    for name, seconds in SECONDS.items():
        recording(tmp_path / f"{name}.wav", seconds, seed=1)
    rows = [("a1", "anna"), ("a2", "anna"), ("b1", "bob"), ("c1", "carol")]
    return [
        Prompt(name, AudioRef(str(tmp_path / f"{name[0]}.wav")), "Sum up.", f"{fact} speaks here", f"{fact} speaks",
               facts=(fact,))
        for name, fact in rows
    ]  # fmt: skip


def config(*overrides: str) -> RunConfig:
    return load_recipe(STANDALONE, ["judge.kind=lexical", "eval.bootstrap=50", *overrides])


def hears(prompt: Prompt) -> str:
    """What is in the recording: `anna` in a.wav and so on, nothing in silence."""
    return {"a": "anna speaks", "b": "bob speaks", "c": "carol speaks"}.get(Path(prompt.audio.path).stem, "silence")


def even(task: JudgeTask) -> Judgement:
    return Reward(0.5)


def quiet(text: str) -> None:
    pass


# --- controls ------------------------------------------------------------------------------------------------------


def test_the_wrong_audio_is_always_another_recording(prompts: list[Prompt]) -> None:
    swapped = with_wrong_audio(prompts)
    assert all(own.audio != other.audio for own, other in zip(prompts, swapped, strict=True))
    assert [p.id for p in swapped] == [p.id for p in prompts]
    assert with_wrong_audio(prompts[:2]) == []


def test_silence_lasts_as_long_and_is_made_once(prompts: list[Prompt], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "silence"
    silent = with_silence(prompts, folder, AudioLimits())
    for prompt, own in zip(silent, prompts, strict=True):
        samples = load_audio(prompt.audio)
        assert len(samples) == len(load_audio(own.audio))
        assert not samples.any()
    assert sorted(path.name for path in folder.iterdir()) == ["silence-12000.flac", "silence-8000.flac"]
    before = (folder / "silence-8000.flac").stat()
    assert silence(folder, 0.5).path == str(folder / "silence-8000.flac")
    assert (folder / "silence-8000.flac").stat() == before


def test_half_a_minute_of_silence_is_small(tmp_path: Path) -> None:
    assert Path(silence(tmp_path, 30.0).path).stat().st_size < 50_000


def test_silence_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(RunError, match="cannot write the silent recording"):
        silence(tmp_path / "taken", 1.0)


# --- one policy ----------------------------------------------------------------------------------------------------


def test_only_the_controls_of_the_recipe_are_run(prompts: list[Prompt]) -> None:
    rollout = FakeRollout(hears)
    plain = config('eval.controls=["wrong_audio"]')
    found = Evaluator(plain, rollout, FakeJudge(even), prompts).run("before", 3, quiet)
    assert rollout.calls == [("eval-before", 3), ("eval-before-wrong_audio", 3)]
    assert found["rows"]["fact_recall"] == [1.0] * 4
    assert found["rows"]["wrong_audio_recall"] == [0.0] * 4
    assert found["rows"]["no_audio_recall"] == [None] * 4
    assert json.loads(json.dumps(found)) == found  # a checkpoint keeps it

    both = Evaluator(config(), rollout, FakeJudge(even), prompts).run("x", 3, quiet)
    assert rollout.calls[-1] == ("eval-x-no_audio", 3)
    assert both["controls"]["no_audio"] == ["silence"] * 4
    assert both["rows"]["no_audio_recall"] == [0.0] * 4


def test_one_recording_alone_has_no_wrong_one(prompts: list[Prompt]) -> None:
    found = Evaluator(config(), FakeRollout(hears), FakeJudge(even), prompts[:2]).run("x", 0, quiet)
    assert list(found["controls"]) == ["no_audio"]
    assert found["rows"]["wrong_audio_recall"] == [None, None]


def test_a_prompt_without_a_summary_stops_the_evaluation(prompts: list[Prompt]) -> None:
    deaf = FakeRollout(lambda p: None if p.id == "b1" else "x")
    with pytest.raises(RunError, match="b1 got no summary: audio missing"):
        Evaluator(config(), deaf, FakeJudge(even), prompts).run("x", 0, quiet)


def test_before_and_after_keep_the_fields_of_the_summary(prompts: list[Prompt]) -> None:
    evaluator = Evaluator(config(), FakeRollout(lambda p: "nothing"), FakeJudge(even), prompts)
    before = evaluator.run("before", 0, quiet)
    better = FakeJudge(lambda task: Reward(0.5 if "bob" in task.summary else 0.75))
    after = Evaluator(config(), FakeRollout(hears), better, prompts).run("after", 1, quiet)
    found = evaluator.compare({"before": before, "after": after})
    for side in ("before", "after", "difference"):
        for metric in ("judge", "fact_recall", "wrong_audio_recall", "rougeL"):
            assert found[side][metric].keys() == {"mean", "ci95"}
    assert found["before"]["n"] == 4
    assert found["before"]["fact_precision"] is None
    assert found["difference"]["fact_recall"]["mean"] == 1.0
    assert found["win_rate"]["judge"]["mean"] == 0.875  # three wins and a tie
    assert found["examples"][0]["after"] == "anna speaks"


def test_an_older_evaluation_is_compared_by_what_it_measured(prompts: list[Prompt]) -> None:
    evaluator = Evaluator(config(), FakeRollout(hears), FakeJudge(even), prompts)
    older = {"rows": {"judge": [0.25] * 4}, "summaries": ["x"] * 4}
    found = evaluator.compare({"before": older, "after": evaluator.run("after", 0, quiet)})
    assert found["difference"] == {"judge": {"mean": 0.25, "ci95": [0.25, 0.25]}}


def test_the_second_judge_comes_for_the_evaluation_only(prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[RunConfig, Any]] = []
    second = FakeJudge(lambda task: Reward(0.25), "other/2")
    monkeypatch.setattr(evaluate, "JudgePool", lambda config, path: started.append((config, path)) or second)
    chosen = config().model_copy(update={"eval": config().eval.model_copy(
        update={"second_judge": JudgeConfig(kind="lexical", actors=2)}
    )})  # fmt: skip
    found = Scorer(chosen, FakeJudge(even), prompts).score("cascade", ["anna"] * 4, quiet)
    ((seen, path),) = started
    assert (seen.judge.actors, path, second.closed) == (2, None, True)
    assert found["judges"] == {"judge": "fake/1", "second_judge": "other/2"}
    assert found["rows"]["judge"] == [0.5] * 4
    assert found["rows"]["second_judge"] == [0.25] * 4


def test_beside_a_judge_that_compares_the_second_one_is_the_only_one(
    prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = FakeJudge(lambda task: Reward(0.25), "other/2")
    monkeypatch.setattr(evaluate, "JudgePool", lambda config, path: second)
    chosen = config('eval.second_judge={ kind = "lexical" }')
    chosen = chosen.model_copy(update={"judge": chosen.judge.model_copy(update={"kind": "pairwise"})})
    found = Scorer(chosen, FakeJudge(even), prompts).score("after", ["anna"] * 4, quiet)
    assert found["judges"] == {"judge": "other/2"}
    assert found["rows"]["judge"] == [0.25] * 4
    assert found["rows"]["second_judge"] == [None] * 4


def test_a_second_judge_that_breaks_is_ended_too(prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(task: JudgeTask) -> Judgement:
        raise RunError("an actor died")

    second = FakeJudge(breaks)
    monkeypatch.setattr(evaluate, "JudgePool", lambda config, path: second)
    chosen = config('eval.second_judge={ kind = "lexical" }')
    with pytest.raises(RunError, match="died"):
        Scorer(chosen, FakeJudge(even), prompts).score("x", ["anna"] * 4, quiet)
    assert second.closed


# --- rows that read ------------------------------------------------------------------------------------------------


def test_a_row_may_not_take_a_checkpoints_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.assets, "checkpoint_folder", Path)
    wanted = config('eval.rows=["teacher", "text-mode"]')
    with pytest.raises(UserError, match="both called 'teacher'"):
        evaluate_checkpoints({"teacher": tmp_path}, tmp_path, tmp_path / "o.json", wanted)


# --- from checkpoints to files -------------------------------------------------------------------------------------


def test_checkpoints_become_rows_and_three_files(
    prompts: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = {"base": FakeRollout(lambda p: "nothing"), "sft": FakeRollout(hears)}
    judge = FakeJudge(lambda task: Reward(0.75 if "speaks" in task.summary else 0.25))

    @contextmanager
    def no_session(*given: Any) -> Iterator[None]:
        yield

    needed: list[set[str]] = []
    monkeypatch.setattr(evaluate, "ray_session", no_session)
    monkeypatch.setattr(evaluate, "refuse_without_room", lambda config, roles: needed.append(roles))
    monkeypatch.setattr(evaluate, "RolloutPool", lambda config, folder: policies[folder.name])
    monkeypatch.setattr(evaluate, "JudgePool", lambda config, path: judge)
    monkeypatch.setattr(evaluate.assets, "checkpoint_folder", Path)
    monkeypatch.setattr(evaluate, "_for_checkpoint", lambda config, folder: config)
    monkeypatch.setattr(evaluate.assets, "eval_prompts", lambda config, folder, say: prompts)
    out = tmp_path / "deep" / "scores.json"
    checkpoints = {"start": Path("base"), "sft": Path("sft")}
    wanted = config('eval.rows=["text-mode", "base"]', 'eval.second_judge={ kind = "lexical" }')
    monkeypatch.setattr(evaluate.assets, "base_checkpoint", lambda config, say: Path("base"))
    monkeypatch.setattr(evaluate.ReaderPlan, "make", lambda config, student, prompts, say: ReaderPlan(("text-mode",)))
    known = frozenset({"bullets"})
    found = evaluate_checkpoints(checkpoints, Path("m.jsonl"), out, wanted, clips=3, players=2, trained=known)

    assert needed == [{"rollout", "judge", "eval.second_judge"}]
    assert list(found["rows"]) == ["base", "start", "sft", "text-mode"]
    assert found["systems"] == {"text-mode": "base, given the transcript in place of the recording"}
    assert found["rows"]["text-mode"]["fact_recall"]["mean"] == 1.0
    assert found["kinds"]["free"]["held_out"] is True
    assert all(policy.closed for policy in policies.values())
    assert judge.closed
    saved = json.loads(out.read_text())
    assert found.items() <= saved.items()
    assert (saved["n"], saved["judge"]["mean"]) == (3, 0.25)  # the first row, as when it is alone
    assert saved["summaries"][0] == {"id": "a1", "summary": "nothing"}
    assert saved["rows"]["sft"]["fact_recall"]["mean"] == 1.0
    assert saved["against_baseline"]["sft"]["win_rate"]["judge"]["mean"] == 1.0
    assert "| measure | base | start | sft | text-mode |" in out.with_suffix(".md").read_text()
    page = out.with_suffix(".html").read_text()
    assert page.count("<article>") == 3
    assert page.count("<audio ") == 2
