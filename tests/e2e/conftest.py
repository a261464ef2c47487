"""A small world for whole runs: a tiny random model and a manifest of noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import recording

CLIPS = 8


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight recordings of noise with requests, transcripts and facts."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(CLIPS):
        recording(folder / f"{i}.wav", 0.5 + i / 8, seed=i)
        rows.append({
            "id": f"clip-{i}", "audio": f"{i}.wav", "instruction": "summarize what is said in one sentence",
            "transcript": "anna must send the budget report by friday noon", "reference": "anna must send the report",
            "facts": ["anna", "friday"], "licence": "CC0-1.0",
        })  # fmt: skip
    path = folder / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="session")
def recipe(tiny_30s_path: Path, manifest: Path) -> dict[str, Any]:
    """SFT, then GRPO, with everything real except the size of the model: two ranks, one engine, the lexical judge."""
    engine = {"threads": 1, "max_model_len": 256, "max_num_seqs": 16, "kv_cache_gb": 0.1}
    optimizer = {"lr": 1e-3, "warmup_steps": 0}
    return {
        "name": "tiny", "seed": 3,
        "model": {"path": str(tiny_30s_path), "dtype": "float32", "max_audio_s": 4, "max_prompt_tokens": 220},
        "data": {"train": str(manifest), "eval": str(manifest)},
        "rollout": {"max_tokens": 32, "prompts_per_request": 2, "engine": engine},
        "judge": {
            "kind": "lexical", "audit": {"clips": 2, "min_spearman": -1, "min_win_rate": 0, "every": 2},
        },
        "eval": {"clips": 4, "max_tokens": 32, "bootstrap": 100},
        "preflight": {"prompts": 2},
        "stage": [
            {"name": "sft", "steps": 2, "groups_per_step": 4, "loss": {"kind": "sft"}, "optimizer": optimizer},
            {"name": "grpo", "steps": 3, "groups_per_step": 2, "group_size": 4, "max_staleness": 1,
             "loss": {"kind": "grpo"}, "optimizer": optimizer, "checkpoint_every": 1},
        ],
    }  # fmt: skip
