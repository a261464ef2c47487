"""Distillation by sequence: the teacher reads every transcript and writes the reference that a student is tuned on.

It is the way for a teacher whose token ids are not the student's, which on-policy distillation has to refuse.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import assets
from cluster.groups import TeacherPool, fetch
from cluster.memory import MemoryWatch
from cluster.runtime import ray_session
from speechsum.audio import AudioLimits
from speechsum.config import RunConfig
from speechsum.data import read_manifest
from speechsum.errors import UserError
from speechsum.types import Prompt, SamplingParams


def teach(config: RunConfig, data: Path, out: Path) -> None:
    """`speechsum data teach`: the manifest `data` with the teacher's greedy summaries as its references, at `out`.

    Audio paths stay as they are, so `out` belongs beside `data`. Raises `UserError` before any model loads.
    """
    if not config.teacher.path:
        raise UserError("the recipe names no teacher; set teacher.path to a checkpoint, or to 'starter'")
    if out.suffix != data.suffix or out.resolve().parent != data.resolve().parent or out.resolve() == data.resolve():
        raise UserError(
            f"--out {out} has to be another {data.suffix} file in the folder of {data}: audio is named from there"
        )
    folder = assets.teacher_folder(config.teacher, print)
    prompts = read_manifest(
        data, root=config.data.root, limits=AudioLimits(max_s=config.model.max_audio_s), check_prompt=_has_transcript
    )
    sampling = SamplingParams(n=1, temperature=0.0, max_tokens=config.rollout.max_tokens)
    with MemoryWatch() as memory, ray_session(None, memory, print):
        pool = TeacherPool(config, folder, audio=assets.hears(folder), top_k=1, vocabulary=1)
        try:
            fetch(pool.ready())
            written = pool.write_all(prompts, sampling)
        finally:
            pool.close()
    _write(data, out, written)


def _has_transcript(prompt: Prompt) -> str | None:
    return None if prompt.transcript.strip() else "transcript missing or empty, which is what the teacher reads"


def _write(data: Path, out: Path, references: Sequence[str]) -> None:
    """Every row as it was, with another reference."""
    aside = out.with_suffix(".unfinished")
    if data.suffix == ".jsonl":
        rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
        lines = [json.dumps(row | {"reference": text}) for row, text in zip(rows, references, strict=True)]
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        table = pq.read_table(data)
        if "reference" in table.column_names:
            table = table.drop_columns("reference")
        pq.write_table(table.append_column("reference", pa.array(references, pa.string())), aside)
    aside.replace(out)
