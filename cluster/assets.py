"""Turns the names in a recipe into files: checkpoints, adapters, manifests. What the starter lacks is made here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from learner.checkpoint import export_merged
from speechsum.audio import AudioLimits
from speechsum.config import STARTER, LoraConfig, RunConfig
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


def student_checkpoint(path: str, say: Say, cache: Path | None = None) -> Path:
    """The student's base checkpoint folder; the starter is assembled on first use, in `cache`."""
    if path != STARTER:
        return checkpoint_folder(path)
    folder = (cache or starter.default_cache()) / "starter"
    if not folder.exists():
        say("assembling the starter model from its packages (once)")
    return starter.build(folder)


def aligned_starter(say: Say) -> Path:
    """The starter as it ships: its aligned adapter merged into a plain checkpoint, once per adapter."""
    adapter = adapter_file("aligned")
    assert adapter is not None
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest()[:12]
    folder = starter.default_cache() / f"starter-aligned-{digest}"
    if not folder.exists():
        from safetensors.torch import load_file

        lora = LoraConfig()
        export_merged(student_checkpoint(STARTER, say), load_file(adapter), lora.alpha / lora.rank, folder)
    return folder


def judge_checkpoint(path: str, say: Say, cache: Path | None = None) -> Path:
    """The likelihood judge's text model; by default the starter's own language model, untouched."""
    if path != STARTER:
        return checkpoint_folder(path)
    folder = (cache or starter.default_cache()) / "starter-text"
    return starter.build_text(folder, student_checkpoint(STARTER, say, cache))


def checkpoint_folder(path: str) -> Path:
    """A local Hugging Face checkpoint whose code is transformers' own. Raises `UserError` otherwise."""
    folder = Path(path)
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{path!r} has no config.json; name a local folder in Hugging Face format")
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config} is not JSON ({error}); copy the checkpoint again") from None
    if "auto_map" in described:
        raise UserError(f"{path!r} needs code of its own (auto_map), which is not run; use a native checkpoint")
    return folder


def adapter_file(name: str) -> Path | None:
    """The adapter to start from: none, one that comes with the starter, or an exported file."""
    if name == "none":
        return None
    if name in STARTER_ADAPTERS:
        return Path(str(resources.files("speechsum.starter") / f"{name}.safetensors"))
    path = Path(name)
    if not path.is_file():
        known = ", ".join(("none", *STARTER_ADAPTERS))
        raise UserError(f"model.adapter = {name!r} is no file; use {known} or a .safetensors file")
    return path


def train_prompts(config: RunConfig, checkpoint: Path, say: Say) -> list[Prompt]:
    """The training manifest, checked in one pass; starter speech is spoken on first use."""
    clips, seed = config.data.speech.train_clips, config.seed
    return _prompts(config, config.data.train, checkpoint, say, clips=clips, seed=seed, held_out=False)


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


def _speech(config: RunConfig, clips: int, seed: int, held_out: bool, say: Say, cache: Path | None = None) -> Path:
    speech = config.data.speech
    requests = tuple(r for r in speech.requests if not (held_out and r == "transcription"))
    side = "held-out" if held_out else "train"
    folder = (cache or starter.default_cache()) / "speech" / f"{side}-{seed}-{clips}-{'-'.join(requests)}"
    try:
        return synthesize(
            folder, clips=clips, seed=seed, held_out=held_out, kinds=requests, workers=speech.workers,
            progress=lambda done, total: say(f"speaking the {side} clips: {done} of {total}"),
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"data.speech, {side} side: {error}") from error
