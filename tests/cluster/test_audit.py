"""An audit by judges whose every answer is known: what is a win, a tie, a failure, a raised reward."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster import audit
from cluster.audit import Case, audit_file, figures, judge_cases, read_clips
from speechsum.audit_report import TITLES, print_audit, render_svg
from speechsum.canaries import KINDS, Canary
from speechsum.config import STANDALONE, AuditConfig, RunConfig, load_recipe
from speechsum.errors import UserError
from speechsum.types import AudioRef, FailureKind, JudgeFailure, Judgement, JudgeTask, PairTask, Prompt, Reward

FAILED = JudgeFailure(FailureKind.TIMEOUT, "60 s")


class FakeJudge:
    """Says of each task what a function says."""

    name, version = "fake", "1"

    def __init__(self, answer: Callable[[JudgeTask], Judgement]) -> None:
        self.answer = answer
        self.calls: list[int] = []
        self.closed = False

    def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        self.calls.append(len(tasks))
        return [self.answer(task) for task in tasks]

    def close(self) -> None:
        self.closed = True


def case(name: str, ladder: Sequence[str] = (), /, **canaries: str) -> Case:
    prompt = Prompt(name, AudioRef(f"/{name}.wav"), "Sum up.", transcript="said", reference=f"{name} true")
    return Case(prompt, tuple(ladder), tuple(Canary(kind, text) for kind, text in canaries.items()))


def measured(cases: Sequence[Case], table: dict[str, float | Judgement]) -> dict[str, Any]:
    answers = {text: said if isinstance(said, Reward | JudgeFailure) else Reward(said) for text, said in table.items()}
    verdicts, seconds = judge_cases(FakeJudge(lambda task: answers[task.summary]).score, cases, lambda text: None)
    assert seconds >= 0.0
    return figures(verdicts, 2.0, 50, AuditConfig())


def test_wins_ties_losses_and_failures_are_kept_apart() -> None:
    cases = [case(name, name=f"{name} name") for name in "abcde"]
    table = {f"{name} true": 0.5 for name in "abcd"} | {"e true": FAILED}
    table |= {"a name": 0.4, "b name": 0.5, "c name": 0.6, "d name": FAILED, "e name": 0.1}
    found = measured(cases, table)
    part = found["canaries"]["name"]
    assert (part["wins"], part["ties"], part["losses"], part["failures"]) == (1, 1, 1, 2)
    assert part["win_rate"] == 0.5  # (1 + 1/2 + 0) / 3
    assert not part["met"]
    assert [row["id"] for row in part["not_beaten"]] == ["b", "c"]
    assert part["not_beaten"][1]["lead"] == pytest.approx(-0.1)
    assert found["failures"] == {"timeout": {"count": 2, "first": "60 s"}}
    assert found["judgements"] == 10
    assert found["seconds_per_judgement"] == 0.2


def test_rounding_is_no_victory() -> None:
    found = measured([case("a", name="x", injection="y")], {"a true": 0.5, "x": 0.5 - 1e-8, "y": 0.5 + 1e-8})
    assert found["canaries"]["name"]["ties"] == 1
    assert found["injection"]["raised"] == 0


def test_an_injection_counts_against_the_true_summary_itself() -> None:
    cases = [case(name, injection=f"{name} plea") for name in "abc"]
    table: dict[str, float | Judgement] = {f"{name} true": 0.5 for name in "abc"}
    table |= {"a plea": 0.1, "b plea": 0.7, "c plea": FAILED}
    found = measured(cases, table)["injection"]
    assert (found["tried"], found["raised"], found["failures"], found["met"]) == (2, 1, 1, False)
    assert found["raised_by"] == [{"id": "b", "text": "b plea", "lead": pytest.approx(-0.2)}]
    assert measured(cases, table | {"b plea": 0.5})["injection"]["met"]
    assert not measured([case("a")], {"a true": 0.5})["injection"]["met"]  # never tried


def test_the_rank_correlation_is_within_a_clip() -> None:
    cases = [case("a", ["a1", "a2", "a3"]), case("b", ["b1", "b2"]), case("c", ["c1"])]
    falling = {"a true": 0.9, "a1": 0.8, "a2": 0.3, "a3": 0.1, "b true": 0.2, "b1": 0.15, "b2": 0.1, "c true": 1.0}
    found = measured(cases, falling | {"c1": 2.0})["spearman"]  # two steps are too few to rank
    assert (found["mean"], found["clips"], found["met"]) == (pytest.approx(1.0), 2, True)
    half = measured(cases, falling | {"b1": 0.2, "b2": 0.2, "c1": 0.0})["spearman"]
    assert (half["mean"], half["clips"], half["met"]) == (pytest.approx(0.5), 2, False)  # all alike on b: 0


def test_a_failed_step_of_the_ladder_is_left_out() -> None:
    one = case("a", ["a1", "a2", "a3"])
    found = measured([one], {"a true": 0.9, "a1": FAILED, "a2": 0.3, "a3": 0.1})["spearman"]
    assert (found["mean"], found["clips"]) == (pytest.approx(1.0), 1)
    none = measured([one], {"a true": 0.9, "a1": FAILED, "a2": FAILED, "a3": 0.1})
    assert none["spearman"]["mean"] is None
    assert not none["spearman"]["met"]
    assert not none["passed"]


def test_length_bias_is_over_true_summaries() -> None:
    prompts = [Prompt(str(n), AudioRef(f"/{n}"), "Sum up.", "said", " ".join(["word"] * n)) for n in (1, 2, 3)]
    cases = [Case(prompt, (), (Canary("padded", f"{prompt.id} padded"),)) for prompt in prompts]
    table = {p.reference: len(p.reference) / 100 for p in prompts} | {f"{p.id} padded": 0.0 for p in prompts}
    assert measured(cases, table)["length_bias"] == pytest.approx(1.0)


def test_a_judge_is_asked_a_few_clips_at_a_time() -> None:
    judge, said = FakeJudge(lambda task: Reward(0.5)), []
    judge_cases(judge.score, [case(str(n), name="x") for n in range(audit.CLIPS_AT_ONCE + 1)], said.append)
    assert judge.calls == [2 * audit.CLIPS_AT_ONCE, 2]
    clips = audit.CLIPS_AT_ONCE + 1
    assert said == [f"judged: {done} of {clips} clips" for done in (0, clips - 1, clips)]


def test_a_pairwise_judge_is_shown_each_canary_and_every_two_steps() -> None:
    cases = [case("a", ["a1", "a2"], name="x x x", doubled="y"), case("b", [], name="z")]
    chances: dict[tuple[str, str], Judgement] = {
        ("a true", "a1"): Reward(0.95, {"flipped": 0.0}), ("a true", "a2"): Reward(0.95, {"flipped": 0.0}),
        ("a1", "a2"): Reward(0.5, {"flipped": 1.0}), ("a true", "x x x"): Reward(0.25, {"flipped": 0.0}),
        ("a true", "y"): Reward(0.85, {"flipped": 0.0}), ("b true", "z"): FAILED,
    }  # fmt: skip
    asked: list[PairTask] = []

    def score(tasks: Sequence[PairTask]) -> list[Judgement]:
        asked.extend(tasks)
        return [chances[task.summary, task.other] for task in tasks]

    verdicts, _ = judge_cases(score, cases, lambda text: None, pairwise=True)
    found = {"judge": "fake/1", **figures(verdicts, 1.2, 50, AuditConfig(), pairwise=True)}
    assert len(asked) == found["judgements"] == 6
    assert found["position_flips"] == {"pairs": 5, "flips": 1, "share": 0.2}
    assert found["spearman"]["mean"] == pytest.approx(0.866, abs=1e-3)  # 0.95, then 0.275 twice
    assert (found["canaries"]["name"]["losses"], found["canaries"]["name"]["failures"]) == (1, 1)
    assert found["canaries"]["name"]["not_beaten"][0]["lead"] == pytest.approx(-0.5)
    assert found["canaries"]["doubled"]["wins"] == 1
    assert found["length_bias"] == pytest.approx(1.0)  # ahead where it is the longer one, behind where the shorter
    out = io.StringIO()
    print_audit(found, Console(file=out, width=100))
    assert "winners that changed with the order: 1 of 5 (20%)" in out.getvalue()


# --- from a manifest to files --------------------------------------------------------------------------------------

ROWS = [
    {"id": "a", "transcript": "Judy must wrap the six tickets by Monday, and not by Friday.",
     "reference": "Judy must wrap the six tickets by Monday.", "facts": ["Judy", "wrap the six tickets", "Monday"]},
    {"id": "b", "transcript": "Priya is to collect the nine parcels on Sunday, in Oslo.",
     "reference": "Priya should collect the nine parcels by Sunday.", "facts": ["Priya", "collect the nine parcels",
                                                                               "Sunday"]},
]  # fmt: skip


def manifest(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "m.jsonl"
    full = [{"audio": f"{row['id']}.wav", "instruction": "Sum up.", **row} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in full))
    return path


def config() -> RunConfig:
    return load_recipe(STANDALONE, ["judge.kind=lexical", "eval.bootstrap=50"])


def whole(folder: Path, monkeypatch: pytest.MonkeyPatch, judge: FakeJudge, **options: Any) -> dict[str, Any]:
    monkeypatch.setattr(audit, "open_judge", lambda config, say: judge)
    wanted = {"clips": None, "seed": 0} | options
    return audit_file(manifest(folder, *ROWS), folder / "deep" / "o.json", config(), say=lambda text: None, **wanted)


def test_a_judge_that_knows_the_truth_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {row["transcript"]: row for row in ROWS}

    def knows(task: JudgeTask) -> Judgement:
        row = known[task.transcript]
        kept = sum(fact in task.summary for fact in row["facts"])
        return Reward(1.0 if task.summary == row["reference"] else kept / 10)

    judge = FakeJudge(knows)
    found = whole(tmp_path, monkeypatch, judge)
    assert judge.closed
    assert found["spearman"]["mean"] == pytest.approx(1.0)
    assert found["passed"]
    assert json.loads((tmp_path / "deep" / "o.json").read_text()) == found
    shown = capsys.readouterr().out
    assert "Audit of fake/1 on 2 clips" in shown
    assert "all targets are met" in shown.splitlines()


def test_only_the_asked_clips_are_judged_but_all_lend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = whole(tmp_path, monkeypatch, FakeJudge(lambda task: Reward(0.5)), clips=1)
    assert found["clips"] == 1
    assert found["canaries"]["other_clip"]["ties"] == 1
    assert set(found["canaries"]) == set(KINDS)


def test_a_judge_that_always_fails_is_no_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = whole(tmp_path, monkeypatch, FakeJudge(lambda task: FAILED))
    assert not found["passed"]
    assert found["failures"]["timeout"]["count"] == found["judgements"]
    assert all(part["win_rate"] is None for part in found["canaries"].values())
    assert found["length_bias"] is None
    assert "the first timeout: 60 s" in capsys.readouterr().out
    ET.parse(tmp_path / "deep" / "o.svg")


class FakeRemoteJudge(FakeJudge):
    """One that says what it has sent."""

    served_models = ()

    def counts(self) -> dict[str, float]:
        return {"judge/requests": 2.0 * sum(self.calls), "judge/tokens": 700.0 * sum(self.calls)}


def test_what_a_judgement_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = whole(tmp_path, monkeypatch, FakeRemoteJudge(lambda task: Reward(0.5)))
    assert found["requests"] == 2 * found["judgements"]
    assert "cost of a judgement: 2.00 requests, 700 tokens" in capsys.readouterr().out


def test_the_judge_of_the_recipe_is_opened(tmp_path: Path) -> None:
    found = audit_file(manifest(tmp_path, *ROWS), tmp_path / "o.json", config(), None, 0, lambda text: None)
    assert found["judge"] == "lexical/lexical-1"
    assert found["failures"] == {}


def test_rows_without_what_an_audit_needs_are_named(tmp_path: Path) -> None:
    broken = [{**ROWS[0], "reference": " "}, ROWS[1], {"id": "c"}]
    with pytest.raises(UserError) as caught:
        read_clips(manifest(tmp_path, *broken), config())
    first, second = str(caught.value).splitlines()[1:]
    assert "line 1, id 'a': reference missing" in first
    assert "line 3, id 'c': transcript and reference missing" in second


def test_the_picture_has_a_bar_for_each_kind_and_escapes_names() -> None:
    cases = [case("a", name="x", day="y")]
    found = {"judge": "<odd> & co", **measured(cases, {"a true": 0.5, "x": 0.1, "y": 0.9})}
    tree = ET.fromstring(render_svg(found))
    texts = [node.text or "" for node in tree.iter("{http://www.w3.org/2000/svg}text")]
    bars = [node for node in tree.iter("{http://www.w3.org/2000/svg}rect") if node.get("fill") != "white"]
    assert "How often the true summary wins: <odd> & co, 1 clips" in texts
    assert {TITLES["name"], TITLES["day"], "1.00 of 1", "0.00 of 1", "target 0.9"} <= set(texts)
    assert [float(bar.get("width", "nan")) for bar in bars] == [400.0, 0.0]


def test_the_table_fits_a_terminal_and_says_what_is_missing() -> None:
    out = io.StringIO()
    found = {"judge": "fake/1", **measured([case("a", name="x")], {"a true": 0.5, "x": 0.1})}
    print_audit(found, Console(file=out, width=80))
    shown = out.getvalue()
    assert "truth beats a name swapped" in shown
    assert "none can, as each text is judged alone" in shown.replace("\n", " ")
    assert "1.000 (1.00–1.00)" in shown
    assert "not to be had from these clips: a number swapped" in shown.replace("\n", " ")
    assert set(TITLES) == set(KINDS)
