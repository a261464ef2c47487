"""Judgements by content: what is kept, what tells two judges apart, several processes on one file, one that fails."""

import ast
import importlib
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors import judge_cache
from actors.judge import JudgeActor, Observed, Remembering, make_judge
from actors.judge_cache import RULES, CachedJudge, JudgementCache, checkpoint_digest
from speechsum.config import EndpointConfig, JudgeConfig
from speechsum.errors import UserError
from speechsum.metrics import describe
from speechsum.types import FailureKind, JudgeFailure, Judgement, JudgeTask, Reward

ROOT = Path(__file__).resolve().parents[2]
DOWN = JudgeFailure(FailureKind.TIMEOUT, "60 s")
FULL = Reward(0.1 + 0.2, {"faithful": 1 / 3, "gain": -1e-300}, notes="caf\u00e9 \u2028 said")


class FakeJudge:
    """Keeps what it was asked."""

    def __init__(self, answer: Callable[[JudgeTask], Judgement] = lambda _: FULL, version: str = "1") -> None:
        self.name, self.version, self.answer = "fake", version, answer
        self.asked: list[str] = []

    def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        self.asked += [task.summary for task in tasks]
        return [self.answer(task) for task in tasks]

    def close(self) -> None:
        pass


def tasks(*summaries: str) -> list[JudgeTask]:
    return [JudgeTask("said", "Sum up.", summary) for summary in summaries]


def judged(path: Path, judge: FakeJudge, asked: Sequence[JudgeTask], settings: dict[str, Any] | None = None) -> Any:
    """Judgements and counts of a process that opens the cache, asks and closes it."""
    cached = CachedJudge(judge, JudgementCache(str(path)), settings or {})
    try:
        return cached.score(asked), cached.counts()
    finally:
        cached.close()
        cached.close()


def test_a_judgement_survives_a_restart_to_the_last_bit(tmp_path: Path) -> None:
    path, judge = tmp_path / "deep" / "cache", FakeJudge()
    first, counts = judged(path, judge, tasks("a", "b"))
    assert counts == {
        "judge/cache_hits": 0,
        "judge/cache_misses": 2,
        "judge/cache_hit_share": 0.0,
        "judge/cache_errors": 0,
    }
    again, counts = judged(path, judge, tasks("b", "c", "a", "c"))
    assert first == [FULL, FULL]
    assert again == [FULL] * 4
    assert judge.asked == ["a", "b", "c"]  # a and b from the file, c once
    assert (counts["judge/cache_hits"], counts["judge/cache_misses"]) == (3, 1)
    assert counts["judge/cache_hit_share"] == 0.75


def test_an_audit_asks_as_if_nothing_were_kept(tmp_path: Path) -> None:
    judge = FakeJudge()
    cached = CachedJudge(judge, JudgementCache(str(tmp_path / "c")), {})
    assert isinstance(cached, Remembering)
    cached.score(tasks("a"))
    judge.answer = lambda _: DOWN
    assert cached.score_afresh(tasks("a", "a")) == [DOWN, DOWN]
    assert cached.score(tasks("a")) == [FULL]
    cached.close()


def test_failures_are_asked_again_and_gated_texts_stay_gated(tmp_path: Path) -> None:
    answers: dict[str, Judgement] = {"down": DOWN, "": Reward(0.0, gate="empty")}
    first, _ = judged(tmp_path / "c", FakeJudge(lambda task: answers[task.summary]), tasks("down", ""))
    assert first == [DOWN, Reward(0.0, gate="empty")]
    judge = FakeJudge()
    again, _ = judged(tmp_path / "c", judge, tasks("down", ""))
    assert again == [FULL, Reward(0.0, gate="empty")]
    assert judge.asked == ["down"]


@pytest.mark.parametrize(
    "other",
    [
        JudgeTask("said ", "Sum up.", "a"),
        JudgeTask("said", "Sum up", "a"),
        JudgeTask("said", "Sum up.", "A"),
        JudgeTask("Sum up.", "said", "a"),
        JudgeTask("said\ud800", "Sum up.", "a"),
    ],
)
def test_another_text_is_another_question(tmp_path: Path, other: JudgeTask) -> None:
    judge = FakeJudge()
    judged(tmp_path / "c", judge, tasks("a"))
    judged(tmp_path / "c", judge, [other])
    assert len(judge.asked) == 2


def test_another_version_decoding_or_rule_is_another_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, judge = tmp_path / "c", FakeJudge()
    judged(path, judge, tasks("a"), {"temperature": 0.0})
    judged(path, judge, tasks("a"), {"temperature": 0.5})
    judge.version = "2"
    judged(path, judge, tasks("a"), {"temperature": 0.0})
    assert judge.asked == ["a"] * 3
    rules = tmp_path / "rewards.py"
    rules.write_text("MIN_WORDS = 6")
    monkeypatch.setattr(judge_cache.rewards, "__file__", str(rules))
    judged(path, judge, tasks("a"), {"temperature": 0.0})
    assert judge.asked == ["a"] * 4


def test_a_crash_loses_only_what_was_not_yet_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_cache, "ASKED_AT_ONCE", 2)

    def dies(task: JudgeTask) -> Judgement:
        if task.summary == "c":
            raise KeyboardInterrupt
        return FULL

    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path / "c", FakeJudge(dies), tasks("a", "b", "c", "d"))
    judge = FakeJudge()
    judged(tmp_path / "c", judge, tasks("a", "b", "c", "d"))
    assert judge.asked == ["c", "d"]


def test_more_keys_than_one_query_takes(tmp_path: Path) -> None:
    many = tasks(*map(str, range(judge_cache.KEYS_AT_ONCE + 3)))
    judge = FakeJudge(lambda task: Reward(float(task.summary)))
    judged(tmp_path / "c", judge, many)
    again, counts = judged(tmp_path / "c", judge, many)
    assert [reward.value for reward in again] == [float(task.summary) for task in many]
    assert counts["judge/cache_hit_share"] == 1.0


WRITER = """
import sys
from actors.judge_cache import CachedJudge, JudgementCache
from tests.actors.test_judge_cache import FakeJudge, tasks
sys.stdin.readline()
for turn in range(20):
    cached = CachedJudge(FakeJudge(), JudgementCache(sys.argv[1]), {})
    cached.score(tasks(f"shared {turn}", f"{sys.argv[2]} {turn}"))
    assert not cached.counts()["judge/cache_errors"], "locked"
    cached.close()
"""


def test_several_processes_share_one_file(tmp_path: Path) -> None:
    path = tmp_path / "c"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(n)],
            cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(3)
    ]  # fmt: skip
    ended = []
    for writer in writers:  # all have imported by now or soon will; each starts at its line
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    for writer in writers:
        ended.append((writer.wait(120), writer.stderr.read() if writer.stderr else ""))
    assert [code for code, _ in ended] == [0, 0, 0], ended
    judge = FakeJudge()
    judged(path, judge, tasks(*(f"{who} {turn}" for who in ("shared", 0, 1, 2) for turn in range(20))))
    assert judge.asked == []


@pytest.mark.parametrize("kind", ["a folder", "garbage", "another program's", "a later format"])
def test_a_file_that_cannot_be_used_is_the_users_to_mend(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c"
    if kind == "a folder":
        path.mkdir()
    elif kind == "garbage":
        path.write_bytes(b"not a database, " * 100)
    else:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE judgements (key, judge, answer)")
        if kind == "a later format":
            db.execute(f"PRAGMA application_id = {judge_cache.APPLICATION_ID}")
            db.execute("PRAGMA user_version = 99")
        db.commit()
        db.close()
    with pytest.raises(UserError, match=r"judge\.cache = .*name another file"):
        JudgementCache(str(path))


def test_a_cache_that_fails_costs_no_judgement(tmp_path: Path) -> None:
    path, judge = tmp_path / "c", FakeJudge()
    cached = CachedJudge(judge, JudgementCache(str(path)), {})
    db = sqlite3.connect(path)
    db.execute("DROP TABLE judgements")
    db.close()
    assert cached.score(tasks("a")) == [FULL]
    assert cached.counts()["judge/cache_errors"] == 2  # a read and a write
    cached.close()


def test_the_file_says_whose_an_answer_is(tmp_path: Path) -> None:
    judged(tmp_path / "c", FakeJudge(version="m@7/p-1"), tasks("a"))
    ((judge, answer),) = sqlite3.connect(tmp_path / "c").execute("SELECT judge, answer FROM judgements").fetchall()
    assert judge == "fake/m@7/p-1"
    assert json.loads(answer)["value"] == FULL.value


def test_a_checkpoint_is_told_by_what_it_holds(tmp_path: Path) -> None:
    for name, weights in (("one", b"1"), ("same", b"1"), ("two", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    one, same, two = (checkpoint_digest(tmp_path / name) for name in ("one", "same", "two"))
    assert one == same != two


def test_the_rules_that_make_a_key_are_all_that_a_reward_is_made_of() -> None:
    waiting, made_of = ["speechsum.rewards"], set()
    while waiting:
        module = importlib.import_module(waiting.pop())
        made_of.add(module)
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        named = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        waiting += [name for name in named if name.startswith("speechsum.") and name != "speechsum.types"]
    assert set(RULES) == made_of


def test_the_recipe_chooses_the_cache(tmp_path: Path) -> None:
    assert not isinstance(make_judge(JudgeConfig(kind="lexical"), None), CachedJudge)
    config = JudgeConfig(kind="lexical", cache=str(tmp_path / "c"))
    actor = JudgeActor.__ray_metadata__.modified_class(config, None)
    asked = tasks("Maria sends the budget to Lisbon.", "Maria sends the budget to Lisbon.", "")
    assert actor.score(asked) == actor.score(asked)
    counts = actor._judge.counts()
    assert (counts["judge/cache_hits"], counts["judge/cache_misses"]) == (4, 2)
    assert actor.ready() == "lexical/lexical-1"


def test_an_unusable_cache_is_told_before_a_model_loads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"judge\.cache"):
        make_judge(JudgeConfig(kind="likelihood", cache=str(tmp_path)), "/no/model")


def test_every_count_of_a_judge_is_described(tmp_path: Path) -> None:
    endpoint = EndpointConfig(url="http://judge/v1", model="big")
    judge = make_judge(JudgeConfig(kind="rubric", endpoint=endpoint, cache=str(tmp_path / "c")), None)
    assert isinstance(judge, Observed)
    assert {"judge/retries", "judge/circuit_state", "judge/cache_hits"} <= judge.counts().keys()
    assert all(describe(name).meaning for name in judge.counts())
    assert judge.served_models == ()
    judge.close()
