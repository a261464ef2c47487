"""Distillation by sequence: the teacher reads every transcript and writes the reference that a student is tuned on.

It is the way for a teacher whose token ids are not the student's, which on-policy distillation has to refuse.
"""

from __future__ import annotations

from pathlib import Path

from cluster import assets
from cluster.calls import wait_until_loaded
from cluster.manifest_copy import check_beside, write_copy
from cluster.memory import MemoryWatch
from cluster.placement import refuse_without_room
from cluster.pools import TeacherPool
from cluster.runtime import ray_session
from speechsum.audio import AudioLimits
from speechsum.config import RunConfig
from speechsum.data import PromptCheck, read_manifest
from speechsum.errors import UserError
from speechsum.families import hears
from speechsum.prompting import load_tokenizer, transcript_ids
from speechsum.types import Prompt, SamplingParams


def teach(config: RunConfig, data: Path, out: Path, say: assets.Say) -> None:
    """`speechsum data teach`: the manifest `data` with the teacher's greedy summaries as its references, at `out`.

    Audio paths stay as they are, so `out` belongs beside `data`. Raises `UserError` before any model loads.
    """
    if not config.teacher.path:
        raise UserError("the recipe names no teacher; set teacher.path to a checkpoint, or to 'starter'")
    check_beside(data, out)
    folder = assets.teacher_folder(config.teacher, say)
    prompts = read_manifest(
        data, root=config.data.root, limits=AudioLimits(max_s=config.model.max_audio_s),
        check_prompt=_can_be_read(config, folder),
    )  # fmt: skip
    sampling = SamplingParams(n=1, temperature=0.0, max_tokens=config.rollout.max_tokens)
    with MemoryWatch() as memory, ray_session(None, memory, say):
        refuse_without_room(config, {"teacher"})
        pool = TeacherPool(config, folder, audio=hears(folder), top_k=1, vocabulary=1)
        try:
            wait_until_loaded([pool])
            written = pool.write_all(prompts, sampling)
        finally:
            pool.close()
    write_copy(data, out, range(len(prompts)), {"reference": written})


def _can_be_read(config: RunConfig, teacher: Path) -> PromptCheck:
    """What the teacher asks of every row: something to read, and room to answer it."""
    tokenizer = load_tokenizer(teacher)
    room = config.teacher.engine.max_model_len - config.rollout.max_tokens

    def check(prompt: Prompt) -> str | None:
        if not prompt.transcript.strip():
            return "transcript missing or empty, which is what the teacher reads"
        if (length := len(transcript_ids(tokenizer, prompt.instruction, prompt.transcript))) > room:
            return (
                f"instruction and transcript take {length} tokens, and {room} fit before an answer; raise "
                "teacher.engine.max_model_len, or drop the row"
            )
        return None

    return check
