"""`summarize`: a trained checkpoint, or the starter, on somebody's own recordings. No Ray: one engine, here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from actors.rollout import BASE_VERSION, Rollout, RolloutFailure
from cluster import assets
from speechsum.audio import AudioLimits
from speechsum.config import EngineConfig, ModelConfig
from speechsum.errors import RunError, UserError
from speechsum.prompting import PromptBuilder
from speechsum.types import AudioRef, Prompt, SamplingParams

CLIPS_PER_CALL = 16
RUN_ID = "summarize"


def summarize(
    paths: Sequence[Path], checkpoint: Path | None, instruction: str, max_tokens: int
) -> Iterator[dict[str, str]]:
    """A row with `audio` and `summary` for each recording, in order, as soon as its batch is done."""
    from actors.engine import Engine

    folder = assets.checkpoint_folder(str(checkpoint)) if checkpoint else assets.aligned_starter(lambda text: None)
    builder = PromptBuilder.load(folder, assets.family_of(folder))
    request = Prompt("request", AudioRef(""), instruction)
    model = ModelConfig()
    if problem := builder.problem(request, max_prompt_tokens=model.max_prompt_tokens, max_audio_s=model.max_audio_s):
        raise UserError(problem)
    rollout = Rollout(Engine(folder, EngineConfig()), builder, AudioLimits(max_s=model.max_audio_s))
    sampling = SamplingParams(n=1, temperature=0.0, max_tokens=max_tokens)
    try:
        for start in range(0, len(paths), CLIPS_PER_CALL):
            part = paths[start : start + CLIPS_PER_CALL]
            draws = [(0, Prompt(str(p), AudioRef(str(p.absolute())), instruction)) for p in part]
            for path, group in zip(part, rollout.generate(draws, sampling, RUN_ID, BASE_VERSION), strict=True):
                if isinstance(group, RolloutFailure):
                    raise RunError(f"{path}: {group.reason}")
                yield {"audio": str(path), "summary": group.trajectories[0].text}
    finally:
        rollout.close()
