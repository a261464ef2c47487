"""What a rank of the learner does in `test_learner`: the same script, whether it is alone or one of two."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from learner.checkpoint import load_checkpoint, save_checkpoint
from learner.learner import Learner
from speechsum.batching import make_batch
from speechsum.config import RunConfig, parse
from speechsum.types import AudioRef, Completion, TeacherLogprobs, TrainingSample, read_only
from tests.tiny import recording

COLLECTIVE_TIMEOUT = timedelta(seconds=60)
DEADLINE_S = 240  # for everything; a hang must fail the test, not stop it
SECONDS = (1.0, 0.4, 2.52, 0.68, 1.32)
LENGTHS = ((5, 3), (2, 2, 2), (9, 4), (1, 6), (3, 3))
INSTRUCTIONS = ("summarize what is said", "budget", "the meeting moved to friday", "report", "in one sentence")
FRESH, STALE = 1, 0


def recipe(**sections: dict[str, Any]) -> RunConfig:
    """Float32, an odd LoRA rank so that shards are uneven, and a gradient clip that bites."""
    optimizer = {"lr": 3e-3, "projector_lr": 1e-3, "warmup_steps": 1, "max_grad_norm": 0.5, "weight_decay": 0.01}
    tree: dict[str, Any] = {
        "name": "test",
        "seed": 3,
        "model": {"dtype": "float32", "lora": {"rank": 3, "alpha": 6}, "max_audio_s": 4},
        "rollout": {"max_tokens": 16},
        "learner": {"microbatch_tokens": 130, "logprob_chunk": 7},
        "stage": [
            {"name": "grpo", "steps": 8, "group_size": 4, "loss": {"kind": "grpo"}, "optimizer": optimizer},
            {"name": "sft", "steps": 8, "loss": {"kind": "sft"}, "optimizer": optimizer},
            {"name": "opd", "steps": 8, "loss": {"kind": "opd", "top_k": 5}, "optimizer": optimizer},
            {"name": "dpo", "steps": 8, "group_size": 2, "loss": {"kind": "dpo", "beta": 2.0}, "optimizer": optimizer},
        ],
        "teacher": {"path": "starter"},
    }
    return parse(tree | {k: tree.get(k, {}) | v for k, v in sections.items()}, "tests")


def recordings(folder: Path) -> list[AudioRef]:
    """One file for each group."""
    return [recording(folder / f"{i}.wav", s, i) for i, s in enumerate(SECONDS)]


def groups(learner: Learner, refs: Iterable[AudioRef]) -> list[TrainingSample]:
    """Groups of fresh and stale completions, with rollout log-probs near the learner's own and one that is missing."""
    rng = np.random.default_rng(0)
    made = []
    for number, (ref, lengths, instruction) in enumerate(zip(refs, LENGTHS, INSTRUCTIONS, strict=True)):
        ids = learner.prompts.expand(learner.prompts.request_ids(instruction), round(25 * SECONDS[number]))
        completions = [
            Completion(read_only(rng.integers(4, 330, n), "int32"), read_only([0.0] * n, "float32"),
                       float(rng.normal()), (FRESH, STALE)[k % 2])
            for k, n in enumerate(lengths)
        ]  # fmt: skip
        made.append(TrainingSample(f"g{number}", ref, ids, tuple(completions)))
    found = iter(learner.logprobs(made))
    for number, group in enumerate(made):
        told = [replace(c, logprobs=_near(next(found), rng)) for c in group.completions]
        made[number] = replace(group, completions=tuple(told))
    missing = made[2].completions[0].logprobs.copy()
    missing[4] = np.nan
    return [*made[:2], _with_first(made[2], logprobs=read_only(missing, "float32")), *made[3:]]


def _near(logprobs: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return read_only(logprobs + rng.normal(0, 0.2, len(logprobs)), "float32")


def _with_first(group: TrainingSample, **changes: Any) -> TrainingSample:
    first, *others = group.completions
    return replace(group, completions=(replace(first, **changes), *others))


def references(learner: Learner, refs: Iterable[AudioRef]) -> list[TrainingSample]:
    """SFT samples as the data gives them: one placeholder, no log-probs."""
    none = read_only([], "float32")
    return [
        TrainingSample(
            f"r{i}", ref, read_only(learner.prompts.request_ids(instruction), "int32"),
            (Completion(learner.prompts.completion_ids(f"anna must send {instruction}"), none, 0.0, 0),),
        )
        for i, (ref, instruction) in enumerate(zip(refs, INSTRUCTIONS, strict=True))
    ]  # fmt: skip


def taught(samples: Iterable[TrainingSample]) -> list[TrainingSample]:
    """The same groups with a lesson for every completion; the teacher knows seven tokens and is sure of the first."""
    rng = np.random.default_rng(2)

    def lesson(length: int) -> TeacherLogprobs:
        ids = np.stack([rng.permutation(300)[:7] for _ in range(length)])
        top = np.log(np.tile([0.6, 0.1, 0.05, 0.05, 0.05, 0.02, 0.01], (length, 1)))
        sampled = rng.normal(-3, 0.5, length)
        return TeacherLogprobs(read_only(sampled, "float32"), read_only(ids, "int32"), read_only(top, "float32"))

    return [
        replace(s, completions=tuple(replace(c, teacher=lesson(len(c.token_ids))) for c in s.completions))
        for s in samples
    ]


def paired(samples: Iterable[TrainingSample]) -> list[TrainingSample]:
    """The first two completions of every group as a pair."""
    return [replace(s, completions=s.completions[:2]) for s in samples]


def step(learner: Learner, samples: list[TrainingSample]) -> dict[str, float]:
    """One step of all ranks on `samples`, each rank on its shard."""
    batch = make_batch(samples, dist.get_world_size())
    return learner.step(
        batch.shards[dist.get_rank()],
        loss_tokens=batch.loss_tokens, sequences=batch.sequences, policy_version=FRESH,
    )  # fmt: skip


def moved(tensors: dict[str, torch.Tensor], by: float = 0.05) -> dict[str, torch.Tensor]:
    """A LoRA that has left zero, the same wherever it is made."""
    noise = torch.Generator().manual_seed(1)
    return {n: t + by * torch.randn(t.shape, generator=noise) for n, t in sorted(tensors.items())}


def play(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """The whole script. What it notes must not depend on the number of ranks."""
    learner = Learner(recipe(learner={"ranks": dist.get_world_size()}), checkpoint)
    grpo, sft, opd, dpo = learner.config.stage
    refs = [AudioRef(str(folder / f"{i}.wav")) for i in range(len(SECONDS))]
    notes: dict[str, Any] = {"start": learner.adapter()}
    learner.load_adapter(moved(notes["start"]))
    notes["loaded"] = learner.adapter()

    learner.begin_stage(grpo)
    samples = groups(learner, refs)
    notes["no_moments"] = learner.optimizer_state()
    notes["steps"] = [step(learner, samples) for _ in range(2)]
    notes["stepped"], notes["moments"] = learner.adapter(), learner.optimizer_state()
    if dist.get_rank() == 0:
        saved = folder / f"checkpoints-{dist.get_world_size()}"
        state = {"optimizer_step": learner.optimizer_step}
        save_checkpoint(saved, 2, notes["stepped"], notes["moments"], state, keep=2)

    poisoned = [*samples[1:], _with_first(samples[0], advantage=float("nan"))]
    notes["poisoned"], notes["after_poisoned"] = step(learner, poisoned), learner.adapter()
    notes["lonely"], notes["after_lonely"] = step(learner, samples[:1]), learner.adapter()
    notes["nobody"], notes["after_nobody"] = step(learner, []), learner.adapter()

    dist.barrier()
    tensors, moments, state = load_checkpoint(folder / f"checkpoints-{dist.get_world_size()}" / "step_000002")
    learner.begin_stage(grpo)
    learner.load_adapter(tensors)
    learner.load_optimizer_state(moments, state["optimizer_step"])
    notes["restored"], notes["restored_moments"] = learner.adapter(), learner.optimizer_state()
    notes["replayed"], notes["after_replayed"] = step(learner, samples[:1]), learner.adapter()

    learner.begin_stage(sft)
    notes["sft"] = [step(learner, references(learner, refs)) for _ in range(2)]
    notes["after_sft"] = learner.adapter()
    notes["logprobs"] = learner.logprobs(samples)

    learner.begin_stage(opd)
    notes["opd"] = [step(learner, taught(samples)) for _ in range(2)]
    notes["after_opd"] = learner.adapter()

    learner.begin_stage(dpo)
    notes["dpo"] = [step(learner, paired(samples)) for _ in range(2)]
    notes["dpo_lonely"] = step(learner, paired(samples[:1]))
    notes["after_dpo"], notes["reference"] = learner.adapter(), learner.reference()
    return notes


def one_of_many(rank: int, ranks: int, checkpoint: str, folder: str) -> None:
    """Entry of a spawned process; leaves its notes in `folder`."""
    torch.set_num_threads(1)
    meet(rank, ranks, Path(folder))
    torch.save(play(Path(checkpoint), Path(folder)), Path(folder) / f"notes-{rank}.pt")
    dist.destroy_process_group()


def meet(rank: int, ranks: int, folder: Path) -> None:
    """Join the process group through a file in `folder`."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous-of-{ranks}", rank=rank, world_size=ranks,
        timeout=COLLECTIVE_TIMEOUT,
    )  # fmt: skip


def start(ranks: int, checkpoint: Path, folder: Path) -> Any:
    """Spawn the ranks; `wait` collects them."""
    from torch.multiprocessing import start_processes

    return start_processes(
        one_of_many, (ranks, str(checkpoint), str(folder)), nprocs=ranks, join=False, start_method="spawn"
    )


def wait(context: Any, folder: Path) -> list[dict[str, Any]]:
    """The notes of every rank. A rank that raises or hangs ends them all."""
    deadline = time.monotonic() + DEADLINE_S
    try:
        while not context.join(timeout=max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"the ranks have not finished in {DEADLINE_S} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"notes-{r}.pt", weights_only=False) for r in range(len(context.processes))]
