"""Run folders as `train` would leave them, without a run: four stages of different kinds, judged and dropped."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from cluster.run_folder import RunFolder
from speechsum.config import RunConfig, parse
from speechsum.ledger import Ledger, LedgerRow

INJECTED = '<img src=x onerror="document.title=1">'
PROMPTS = 6
SIZE = 4
STEPS = 3


def config(data: Path, name: str = "made", **data_keys: Any) -> RunConfig:
    """Stages sft, opd, dpo and grpo, of `STEPS` steps each, on the manifest of `data`."""
    rolled = {"steps": STEPS, "groups_per_step": 2, "group_size": SIZE}
    stages = [
        {"name": "align", "steps": STEPS, "loss": {"kind": "sft"}},
        rolled | {"name": "distil", "loss": {"kind": "opd"}},
        rolled | {"name": "prefer", "loss": {"kind": "dpo"}},
        rolled | {"name": "reward", "loss": {"kind": "grpo"}, "max_staleness": 1},
    ]
    tree = {
        "name": name, "stage": stages, "teacher": {"path": "starter"}, "rollout": {"actors": 3},
        "data": {"train": str(data / "manifest.jsonl"), **data_keys},
    }  # fmt: skip
    return parse(tree, "test")


def write_data(data: Path) -> Path:
    """A manifest of `PROMPTS` prompts, each with a recording of a tone of its own, in WAV."""
    data.mkdir(parents=True)
    rows = []
    for number in range(PROMPTS):
        tone = np.sin(np.arange(16_000) * 2 * math.pi * (220 + 60 * number) / 16_000) / 4
        soundfile.write(data / f"p{number}.wav", tone, 16_000)
        rows.append({
            "id": f"p{number}", "audio": f"p{number}.wav", "instruction": f"Summarize talk {number}.",
            "transcript": f"In talk {number} a tone sounds for one second.", "reference": f"Tone {number} sounds.",
        })  # fmt: skip
    (data / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def figures(stage: str, step: int, **more: float | None) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    common = {"learner/loss": 1 / step, "learner/step_s": 4.0, "wall/step_s": 10.0, "wall/rss_gb": 9.0 + step / 10}
    own: dict[str, float] = {}
    if stage != "align":
        own = {"rollout/tokens": 600.0, "rollout/tokens_per_s": 200.0, "sync/publish_s": 1.0}
        own |= {"buffer/staleness_max": float(stage == "reward")}
    if stage == "distil":
        own |= {"teacher/teach_s": 2.0, "learner/teacher_divergence": 0.5 / step, "learner/teacher_top": 0.9}
    if stage in ("prefer", "reward"):
        own |= {"judge/reward_mean": 0.3 + step / 10, "judge/reward_std": 0.1, "judge/score_s": 2.5}
        own |= {"judge/gated_share": 0.125, "judge/failure_share": 0.0, "buffer/dropped_stale": 1.0}
    if stage == "prefer":
        own |= {"learner/dpo_accuracy": 0.5 + step / 10, "learner/dpo_margin": step / 10}
    return {"time": 1_700_000_000.0 + step, "stage": stage, "step": step, **common, **own, **more}


def append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """As `Watch` does."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def row(prompt: int, sample: int, stage: str = "reward", step: int | None = 1, **more: Any) -> LedgerRow:
    """A row of the ledger; of a reward that differs from sample to sample."""
    judged = stage in ("prefer", "reward")
    values: dict[str, Any] = {
        "trajectory_id": f"{stage}-{prompt}-{sample}", "run_id": "made", "stage": stage, "epoch": 0,
        "prompt_id": f"p{prompt}", "sample": sample, "group_step": step, "drop_reason": "" if step else "stale",
        "policy_version": 4, "prompt_tokens": 50, "response_tokens": 12, "finish_reason": "stop",
        "text": f"Tone {prompt}, said the {sample + 1}. way.", "token_ids": [1, 2], "logprobs": [-1.0, -2.0],
        "reward": 0.25 * sample if judged else None, "judge": "fake/1" if judged else "",
        "judge_failure": "", "gate": "",
        "breakdown": {"faithful": 0.25 * sample, "clear": 1.0} if judged else {},
        "advantage": None if step is None else sample - 1.5,
    }  # fmt: skip
    return LedgerRow(**(values | more))


def sample_row(prompt: int, stage: str, step: int, audio: str, text: str = "The best of them.") -> dict[str, Any]:
    """A line of samples.jsonl."""
    return {
        "stage": stage, "step": step, "prompt_id": f"p{prompt}", "audio_path": audio, "instruction": "Summarize it.",
        "text": text, "reference": "A reference.", "reward": 0.75, "breakdown": {"faithful": 0.75}, "policy_version": 2,
    }  # fmt: skip


def groups() -> list[LedgerRow]:
    """What became of a dozen groups: trained, dropped, gated, not judged, in pairs, and one that means harm."""
    rows: list[LedgerRow] = []
    for step in range(1, STEPS + 1):
        rows += [row(step, i, "distil", step) for i in range(SIZE)]
        rows += [row(step, i, "prefer", step, pair=i // 2, preferred=i % 2 == 1) for i in range(SIZE)]
        rows += [row(step, i, "reward", step) for i in range(SIZE)]
    rows += [row(0, i, "reward", None) for i in range(SIZE)]
    rows += [
        row(4, 0, "reward", 2, reward=0.0, breakdown={}, gate="echo", text="Summarize talk 4."),
        row(4, 1, "reward", None, reward=None, breakdown={}, judge_failure="timeout: 60 s", drop_reason="judge_failed"),
        row(4, 2, "reward", 2, text=INJECTED, reward=0.9),
        row(4, 3, "reward", 2, finish_reason="length"),
    ]
    return rows


def make_run(path: Path, data: Path, rows: Sequence[LedgerRow] | None = None, **changes: Any) -> RunFolder:
    """A whole run in `path`, whose recordings are in `data`."""
    folder = RunFolder.create(path, config(data, **changes))
    for stage in ("align", "distil", "prefer", "reward"):
        append(folder.metrics, [figures(stage, step) for step in range(1, STEPS + 1)])
    append(folder.samples, [sample_row(5, "reward", 3, str(data / "p5.wav"))])
    ledger = Ledger(folder.path)
    ledger.record(groups() if rows is None else rows)
    ledger.flush()
    return folder
