"""`summarize`: a trained checkpoint, or the starter, on somebody's own recordings. No Ray: one engine, here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

from actors.rollout import BASE_VERSION, Rollout, RolloutFailure
from cluster import assets
from speechsum.audio import AudioError, AudioLimits, inspect_audio
from speechsum.config import EngineConfig, ModelConfig
from speechsum.errors import RunError, UserError
from speechsum.prompting import PromptBuilder
from speechsum.types import AudioRef, Prompt, SamplingParams

CLIPS_PER_CALL = 16
RUN_ID = "summarize"
LONGEST_S = 3600.0
"""Seconds of a recording for models whose processor would take any."""

SPARE_TOKENS = 16
"""Audio tokens that a processor may add to its rate times the seconds, as it rounds up and marks beginning and end."""


def summarize(
    paths: Sequence[Path], checkpoint: Path | None, instruction: str, max_tokens: int
) -> Iterator[dict[str, str]]:
    """A row with `audio` and `summary` for each recording, in order, as soon as its batch is done."""
    limits = _limits(checkpoint)
    longest_s = _check(paths, limits)
    folder = checkpoint or assets.aligned_starter(lambda text: None)
    builder = PromptBuilder.load(folder, assets.family_of(folder))
    audio_tokens = ceil(longest_s * builder.family.tokens_per_s) + SPARE_TOKENS
    context = len(builder.request_ids(instruction)) + audio_tokens + max_tokens
    assets.check_context(folder, context, "the instruction, the longest recording and --max-tokens together")
    from actors.engine import Engine

    rollout = Rollout(Engine(folder, EngineConfig(max_model_len=context)), builder, limits)
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


def _limits(checkpoint: Path | None) -> AudioLimits:
    """Recordings as long as the model's processor takes whole."""
    if checkpoint is None:
        return AudioLimits(max_s=ModelConfig().max_audio_s)  # the starter's, which is not assembled for a bad recording
    folder = assets.checkpoint_folder(str(checkpoint))
    return AudioLimits(max_s=min(assets.family_of(folder).longest_audio_s(folder), LONGEST_S))


def _check(paths: Sequence[Path], limits: AudioLimits) -> float:
    """Seconds of the longest recording. All that are no good are told at once, before a model loads."""
    seconds, problems = [], []
    for path in paths:
        try:
            seconds.append(inspect_audio(AudioRef(str(path.absolute())), limits).seconds)
        except AudioError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return max(seconds)
