"""Whole runs on a tiny model: every part is the real one, in its own process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import bench
from cluster.train import run
from learner.checkpoint import load_state
from speechsum import cli
from speechsum.config import EngineConfig, parse
from speechsum.families import FAMILIES
from speechsum.ledger import read_ledger
from speechsum.metrics import describe
from speechsum.prompting import PromptBuilder
from speechsum.types import SamplingParams
from tests.processes import leftover_processes

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def finished(recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run folder and summary of one whole run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    summary = run(parse(recipe, "tiny"), folder, address=None, resume=False, overwrite=False)
    return folder, summary


def test_the_run_folder_keeps_its_contract(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = finished
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["stages"] == ["sft", "grpo"]
    assert summary["steps"] == 5
    assert summary["wall_s"] > 0
    assert summary["peak_rss_gb"] > 0
    for name in ("before", "after"):
        evaluation = summary["eval"][name]
        assert evaluation["n"] == 4
        for metric in ("judge", "fact_recall", "fact_precision", "wrong_audio_recall", "rougeL"):
            if metric == "fact_precision" and evaluation[metric] is None:
                continue  # no summary names a fact, right or wrong: an untrained model rarely does
            low, high = evaluation[metric]["ci95"]
            assert low <= evaluation[metric]["mean"] <= high
    assert summary["rollout_vs_vllm"] is None  # `speechsum bench` measures it
    assert summary["sync"]["sync/publish_s"] > 0
    assert json.loads((folder / "config.json").read_text())["name"] == "tiny"
    assert list((folder / "checkpoints").glob("step_*/MANIFEST.json"))


def test_rollout_and_learner_agree_before_anything_is_trained(finished: tuple[Path, dict[str, Any]]) -> None:
    parity = finished[1]["parity"]
    assert parity["logprob_gap_mean"] < 1e-3  # float32 on both sides
    assert parity["greedy_equal"] == 1.0


def test_every_trajectory_is_trained_on_once_or_dropped_for_a_reason(finished: tuple[Path, dict[str, Any]]) -> None:
    rows = read_ledger(finished[0]).to_pylist()
    assert len({r["trajectory_id"] for r in rows}) == len(rows)
    trained = [r for r in rows if r["group_step"] is not None]
    assert len(trained) + sum(bool(r["drop_reason"]) for r in rows) == len(rows)
    assert {r["group_step"] for r in trained} == {1, 2, 3}
    assert all(np.isfinite(r["logprobs"]).all() and len(r["logprobs"]) == len(r["token_ids"]) for r in rows)


def test_metrics_are_all_described_and_staleness_is_bounded(finished: tuple[Path, dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    assert [(m["stage"], m["step"]) for m in lines] == [("sft", 1), ("sft", 2), ("grpo", 1), ("grpo", 2), ("grpo", 3)]
    for line in lines:
        for name in set(line) - {"time", "stage", "step"}:
            describe(name)
    assert max(m["buffer/staleness_max"] for m in lines[2:]) <= 1


def test_the_judge_was_audited_before_the_first_step_and_between_steps(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    assert {path.name for path in folder.glob("audit-*.json")} == {"audit-0.json", "audit-2.json", "audit-4.json"}
    assert json.loads((folder / "audit-4.json").read_text())["judge"] == "lexical/lexical-1"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [(m["stage"], m["step"]) for m in lines if "judge/audit_win_rate" in m]
    assert told == [("sft", 1), ("grpo", 1), ("grpo", 3)]  # with the step that comes next


def test_the_export_loads_in_plain_transformers(finished: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AudioFlamingo3ForConditionalGeneration

    model, info = AudioFlamingo3ForConditionalGeneration.from_pretrained(
        finished[0] / "model", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.architectures == ["AudioFlamingo3ForConditionalGeneration"]


PLAIN_VLLM = """
import json, sys
import numpy as np
from vllm import LLM, SamplingParams
path, ids = sys.argv[1], json.loads(sys.argv[2])
llm = LLM(path, dtype="float32", enforce_eager=True, max_model_len=256, kv_cache_memory_bytes=2**27)
prompt = {"prompt_token_ids": ids, "multi_modal_data": {"audio": (np.load(sys.argv[3]), 16_000)}}
(answer,) = llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True), use_tqdm=False)
print("answer", json.dumps([answer.prompt_token_ids, list(answer.outputs[0].token_ids)]))
"""


def test_the_export_loads_in_plain_vllm(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """In a process that knows nothing of us, it hears and says what it does in our own engine."""
    from actors.engine import Engine, EngineOutput, EngineRequest

    model, samples = finished[0] / "model", tmp_path / "samples.npy"
    np.save(samples, np.sin(np.arange(24_000, dtype="float32") / 20))
    ids = PromptBuilder.load(model, FAMILIES["audio_flamingo3"]).request_ids("Sum up.")
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN_VLLM, str(model), json.dumps(ids), str(samples)],
        env=os.environ | {"VLLM_PLUGINS": "", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    answers = [line for line in plain.stdout.splitlines() if line.startswith("answer ")]
    assert answers, plain.stderr[-3000:]
    engine = Engine(model, EngineConfig(max_model_len=256, max_num_seqs=2, kv_cache_gb=0.1, threads=1), dtype="float32")
    (own,) = engine.generate(
        [EngineRequest(tuple(ids), np.load(samples))], SamplingParams(temperature=0.0, max_tokens=8)
    )
    engine.close()
    assert isinstance(own, EngineOutput)
    heard, said = json.loads(answers[0].removeprefix("answer "))
    assert heard == own.prompt_ids.tolist()
    assert len(heard) > len(ids) + 30  # a second and a half of it, at 25 tokens a second
    assert said[: len(own.samples[0].token_ids)] == own.samples[0].token_ids.tolist()


def test_nothing_is_left_running(finished: tuple[Path, dict[str, Any]]) -> None:
    assert leftover_processes() == []


@pytest.mark.parametrize("checkpoints", [0, 1])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    checkpoints: int, finished: tuple[Path, dict[str, Any]], recipe: dict[str, Any], tmp_path: Path
) -> None:
    """What came after the checkpoint (or, without one, everything) is done and told again, and nothing twice."""
    folder = tmp_path / "tiny"
    shutil.copytree(finished[0], folder)
    (folder / "summary.json").unlink()
    for late in sorted((folder / "checkpoints").glob("step_*"))[checkpoints:]:
        shutil.rmtree(late)
    before = sum(load_state(path)["progress"]["wall_s"] for path in (folder / "checkpoints").glob("step_*"))
    summary = run(parse(recipe, "tiny"), folder, address=None, resume=True, overwrite=False)
    assert summary["steps"] == 5
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(m["stage"], m["step"]) for m in lines] == [("sft", 1), ("sft", 2), ("grpo", 1), ("grpo", 2), ("grpo", 3)]
    rows = read_ledger(folder).to_pylist()
    assert len({r["trajectory_id"] for r in rows}) == len(rows)
    if checkpoints:
        assert summary["eval"]["before"] == finished[1]["eval"]["before"]
        assert summary["parity"] == finished[1]["parity"]
        assert 0 < before < summary["wall_s"]


def test_a_finished_run_has_nothing_to_go_on_with(
    finished: tuple[Path, dict[str, Any]], recipe: dict[str, Any]
) -> None:
    folder, summary = finished
    assert run(parse(recipe, "tiny"), folder, address=None, resume=True, overwrite=False) == summary


def test_a_benchmark_adds_its_figures_to_the_run(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(finished[0], folder)
    figures = bench.run(folder, "sync")["sync"]
    assert 0 < figures["adapter_receive_s"] < figures["adapter_push_s"]
    assert 0 < figures["adapter_bytes"] < figures["full_bytes"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["bench"] == {"sync": figures}
    assert summary["sync"] == finished[1]["sync"] | figures
    assert summary | {"sync": None} == finished[1] | {"sync": None, "bench": summary["bench"]}
    shown = capsys.readouterr().out
    assert "measuring sync: pushing weights" in shown
    assert "full_push_s" in shown


def test_a_rollout_actor_is_held_against_bare_vllm(finished: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(finished[0], folder)
    figures = bench.run(folder, "rollout")["rollout"]
    assert figures["ratio"] == figures["rollout_tokens_per_s"] / figures["vllm_tokens_per_s"] > 0
    assert json.loads((folder / "summary.json").read_text())["rollout_vs_vllm"] == figures["ratio"]


def test_a_prompt_run_once_gives_the_same_step_as_one_repeated(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(finished[0], folder)
    tree = json.loads((folder / "config.json").read_text())
    tree["model"] |= {"max_audio_s": 8, "max_prompt_tokens": 240}  # for one recording made of all
    tree["rollout"]["engine"]["max_model_len"] = 320
    (folder / "config.json").write_text(json.dumps(tree))
    figures = bench.run(folder, "prompt_once")["prompt_once"]
    assert figures["loss_repeated"] == pytest.approx(figures["loss_once"], rel=1e-4)
    assert figures["grad_norm_repeated"] == pytest.approx(figures["grad_norm_once"], rel=1e-3)
    assert figures["once_s"] > 0
    assert figures["ideal"] > 1


def test_an_exported_model_summarises_recordings(
    finished: tuple[Path, dict[str, Any]], manifest: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clips = [str(manifest.parent / f"{i}.wav") for i in (0, 7)]
    assert (
        cli.main(["summarize", *clips, "--checkpoint", str(finished[0] / "model"), "--json", "--max-tokens", "8"]) == 0
    )
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]  # and nothing else on standard output
    assert [row["audio"] for row in rows] == clips
    assert all(isinstance(row["summary"], str) for row in rows)
