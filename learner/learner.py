"""One rank of the learner. No Ray in here: a test runs it as it is.

Every public method is collective: all ranks call it in the same order with the same arguments, their shard aside.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from learner.clips import EncodedClips
from learner.losses import LossOutput
from learner.model import PackedRows, SpeechPolicy, pack
from learner.objective import PAIR_MEANS, SUMS, TOKEN_MEANS, Counts, Objective, Scores
from learner.parallelize import assign, gather, shard
from speechsum.audio import AudioLimits, augment_audio, load_audio
from speechsum.batching import microbatches
from speechsum.config import AugmentConfig, RunConfig, StageConfig
from speechsum.errors import RunError, UserError
from speechsum.families import FAMILIES
from speechsum.precision import resolved
from speechsum.prompting import PromptBuilder
from speechsum.types import AudioRef, Completion, TrainingSample, read_only

MOMENTS = ("exp_avg", "exp_avg_sq")
TIE_NATS = 1e-3
NEAR_ZERO = 1e-5  # a temperature; the gaps it gives are too wide by NEAR_ZERO x log(vocabulary), 1e-4 nats, at most


class Learner:
    """The trainable policy on one rank: steps, log-probs, and its weights in full."""

    def __init__(self, config: RunConfig, checkpoint: Path) -> None:
        from transformers import AutoFeatureExtractor

        self.config = config
        on_gpu = config.learner.backend == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        dtype = resolved(config.model.dtype, gpu=on_gpu)
        self.dtype = getattr(torch, dtype)
        self.family = FAMILIES[config.model.family]
        self.prompts = PromptBuilder.load(checkpoint, self.family)
        self.extractor = AutoFeatureExtractor.from_pretrained(checkpoint, trust_remote_code=False)
        self.limits = AudioLimits(max_s=config.model.max_audio_s)
        torch.manual_seed(config.seed)  # ranks must draw the same LoRA before sharding
        attention = "sdpa" if self.device.type == "cuda" else "eager"  # torch's CPU flash backward is the slower one
        self.model = self.family.load(checkpoint, dtype, attention).to(self.device)
        policy = SpeechPolicy(self.model, self.family, config.model.lora, train_projector=config.model.train_projector)
        if config.learner.activation_checkpointing:
            policy.decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        self.policy = shard(policy.to(self.device), mesh, self.dtype)
        self.policy.train()
        self.parameters = self.policy.trainable()
        self.optimizer_step = 0
        self._clips = EncodedClips(partial(load_audio, limits=self.limits), self._encoded)

    # --- stages -------------------------------------------------------------------------------------------------

    def begin_stage(self, stage: StageConfig) -> None:
        """A fresh optimizer for `stage`; weights stay as the last stage left them, and are its reference."""
        self.stage = stage
        self.objective = Objective(stage.loss, self.config.rollout.max_tokens)
        self._reference = self._local_copy() if self.objective.reads_reference else {}
        self._reference_logprobs: dict[bytes, Tensor] = {}
        chosen = stage.optimizer
        lora = [p for n, p in self.parameters.items() if "lora_" in n]
        projector = [p for n, p in self.parameters.items() if "lora_" not in n]
        groups = [
            {"params": lora, "peak": chosen.lr},
            {"params": projector, "peak": chosen.projector_lr or chosen.lr},
        ]
        self.optimizer = torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=chosen.lr, betas=chosen.betas, weight_decay=chosen.weight_decay
        )
        self.optimizer_step = 0

    def _set_lr(self) -> float:
        """Linear warm-up, then constant or a cosine down to a tenth."""
        chosen, done = self.stage.optimizer, self.optimizer_step
        factor = min(1.0, (done + 1) / (chosen.warmup_steps + 1))
        if chosen.schedule == "cosine":
            share = min(1.0, max(0, done - chosen.warmup_steps) / max(1, self.stage.steps - chosen.warmup_steps))
            factor *= 0.55 + 0.45 * math.cos(math.pi * share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        return chosen.lr * factor

    # --- a step -------------------------------------------------------------------------------------------------

    def step(
        self, samples: Sequence[TrainingSample], *, loss_tokens: int, sequences: int, policy_version: int
    ) -> dict[str, float]:
        """One optimizer step on this rank's shard; metrics are of all ranks.

        `loss_tokens` and `sequences` are global denominators. A loss or gradient that is not finite skips the step
        and is counted in `learner/skipped`.
        """
        started = time.perf_counter()
        counts = Counts(loss_tokens, sequences)
        totals = {"loss": 0.0, "entropy": 0.0}
        padded = 0
        groups = self._equal_microbatches([self._expanded(s) for s in samples])
        references = self._reference_scores(groups)
        referred = time.perf_counter()
        for group, reference in zip(groups, references, strict=True):
            rows, output, sums = self._forward_loss(group, reference, counts, policy_version)
            output.loss.backward()
            padded += rows.tokens
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        passed = time.perf_counter()
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.stage.optimizer.max_grad_norm)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        lr = self._set_lr()
        totals = self._all_reduce(totals | {"padded_tokens": float(padded)})
        skipped = not (math.isfinite(norm) and math.isfinite(totals["loss"]))
        if not skipped:
            self.optimizer.step()
            self.optimizer_step += 1
        self.optimizer.zero_grad()
        done = time.perf_counter()
        phases = {
            "learner/reference_s": referred - started,
            "learner/forward_backward_s": passed - referred,
            "learner/optimizer_s": done - passed,
        }
        return _step_metrics(totals, counts, norm, lr, done - started) | phases | {"learner/skipped": float(skipped)}

    def _forward_loss(
        self, group: list[TrainingSample], reference: Tensor, counts: Counts, policy_version: int
    ) -> tuple[PackedRows, LossOutput, dict[str, Tensor]]:
        """The loss of a microbatch with its graph. A filler's is the sum of all that is computed, times zero."""
        rows, logprobs, entropy, candidates = self._forward(
            group, self._temperature(), augment=self._augments(), top_k=self.objective.top_k
        )
        if _is_filler(group):
            output = LossOutput(0.0 * (logprobs.sum() + candidates.sum()), {})
            return rows, output, {}
        completions = [c for s in group for c in s.completions]
        weights = self.objective.weights([len(c.token_ids) for c in completions], counts).to(self.device)
        output = self.objective(Scores(logprobs, candidates, reference), weights, completions, counts, policy_version)
        real = (weights > 0).float()
        sums = {"loss": output.loss.detach(), "entropy": (entropy * real).sum()}
        return rows, output, sums | output.sums

    def logprobs(self, samples: Sequence[TrainingSample], temperature: float = 1.0) -> list[np.ndarray]:
        """Log-probs [R] of every completion of every sample, in order. Each rank runs all of them."""
        with torch.no_grad():
            result = []
            for sample in samples:
                _, logprobs, _, _ = self._forward([sample], temperature)
                lengths = [len(c.token_ids) for c in sample.completions]
                result += [part.float().cpu().numpy() for part in logprobs.split(lengths)]
        self.policy.reshard()  # no backward follows that would: the next forward must not see these weights still
        return result

    def greedy(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """Whether each token [R] of every completion is the one that the learner, too, finds likeliest there.

        So is a token within `TIE_NATS` of the best: bfloat16 gives many tokens the same logit, and who wins a tie is
        no disagreement. As the temperature T goes to zero, T log p goes to minus the gap to the best.
        """
        return [-NEAR_ZERO * cold <= TIE_NATS for cold in self.logprobs(samples, NEAR_ZERO)]

    def _temperature(self) -> float:
        """What the engine sampled at, where the loss compares with that; the model's own distribution otherwise."""
        return (self.config.rollout.temperature or 1.0) if self.objective.compares_with_rollout else 1.0

    def _augments(self) -> bool:
        """Whether recordings are disturbed while they are trained on; what the engine heard never is."""
        return self.stage.loss.kind == "sft" and self.config.data.augment != AugmentConfig()

    def _forward(
        self, group: Sequence[TrainingSample], temperature: float, *, augment: bool = False, top_k: int = 0
    ) -> tuple[PackedRows, Tensor, Tensor, Tensor]:
        """The rows and what `SpeechPolicy` says of them, and of the teacher's `top_k` likeliest tokens."""
        rows = pack(group, self.prompts.end_id).to(self.device)
        audio = self._audio(group, augment=augment)
        placeholders = int(rows.heard(self.prompts.audio_id).sum())
        if placeholders != len(audio):
            raise RunError(
                f"the engine saw {placeholders} audio tokens and the learner encoded {len(audio)} for "
                f"{', '.join(s.prompt_id for s in group)}; "
                "give every node the recordings that the rollout actors heard and go on with --resume"
            )
        top = _top_ids(group, top_k)
        logprobs, entropy, others = self.policy(
            rows, audio, self.prompts.audio_id, top.to(self.device), temperature, self.config.learner.logprob_chunk
        )
        return rows, logprobs, entropy, others

    # --- the reference ------------------------------------------------------------------------------------------

    def _reference_scores(self, groups: Sequence[list[TrainingSample]]) -> list[Tensor]:
        """Log-probs [N] of each microbatch under the stage's first weights, each completion's computed once.

        Forwards are collective, so one rank that lacks a completion's makes all of them run.
        """
        if not self.objective.reads_reference:
            return [torch.empty(0, device=self.device)] * len(groups)
        known = self._reference_logprobs
        lacking = any(_identity(s, c) not in known for group in groups for s in group for c in s.completions)
        if self._any_rank(lacking):
            with torch.no_grad(), self._as_at_first():
                for group in groups:
                    _, logprobs, _, _ = self._forward(group, self._temperature())
                    completions = [(s, c) for s in group for c in s.completions]
                    parts = logprobs.split([len(c.token_ids) for _, c in completions])
                    known |= {_identity(*c): part.clone() for c, part in zip(completions, parts, strict=True)}
        scores = [torch.cat([known[_identity(s, c)] for s in group for c in s.completions]) for group in groups]
        if self.stage.kind.completions == "rollout":
            known.clear()  # nobody will write these again
        return scores

    @contextlib.contextmanager
    def _as_at_first(self) -> Iterator[None]:
        """The stage's first weights in force, and the present ones again afterwards."""
        present = self._local_copy()
        self._put(self._reference)
        try:
            yield
        finally:
            self.policy.reshard()  # or the next forward would see these weights still
            self._put(present)

    def _local_copy(self) -> dict[str, Tensor]:
        """This rank's part of every trainable tensor."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def _put(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[name])

    def reference(self) -> dict[str, Tensor]:
        """The stage's first weights in full, on the CPU; empty where its loss reads none. A gather on all ranks."""
        return gather(self._reference)

    def load_reference(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `reference` gave, on any number of ranks; between two stages there is none to restore."""
        for name, target in self._reference.items() if tensors else ():
            assign(target, tensors[name])

    # --- microbatches -------------------------------------------------------------------------------------------

    def _equal_microbatches(self, samples: Sequence[TrainingSample]) -> list[list[TrainingSample]]:
        """As many microbatches on every rank: a rank that has fewer runs weightless ones, or collectives would hang."""
        mine = microbatches(samples, self.config.learner.microbatch_tokens)
        filler = [_filler(self.prompts.end_id)]
        return mine + [filler] * (self._most(len(mine)) - len(mine))

    def _any_rank(self, flag: bool) -> bool:
        return bool(self._most(int(flag)))

    def _most(self, number: int) -> int:
        """The greatest of the ranks' numbers."""
        most = torch.tensor([number], device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    def _all_reduce(self, totals: dict[str, float]) -> dict[str, float]:
        """Sums over the ranks, of what any of them has: a rank may have had fillers alone."""
        there = torch.tensor([float(n in totals) for n in SUMMED])
        sums = torch.tensor([totals.get(n, 0.0) for n in SUMMED])
        values = torch.stack([there, sums]).to(device=self.device, dtype=torch.float64)
        dist.all_reduce(values)
        some, summed = values.tolist()
        return {n: total for n, anywhere, total in zip(SUMMED, some, summed, strict=True) if anywhere}

    def _expanded(self, sample: TrainingSample) -> TrainingSample:
        """A sample from data carries one placeholder; here, where the clip is heard, it becomes one per audio token."""
        ids = sample.prompt_ids.tolist()
        if ids.count(self.prompts.audio_id) != 1:
            return sample
        return replace(sample, prompt_ids=self.prompts.expand(ids, len(self._audio([sample]))))

    # --- audio --------------------------------------------------------------------------------------------------

    def _audio(self, group: Sequence[TrainingSample], *, augment: bool = False) -> Tensor:
        """Encoder states [A, D] of the group's clips in row order; a clip is encoded once and kept unless augmented.

        A prompt without a placeholder reads a transcript, and its recording stays closed.
        """
        heard = [s.audio for s in group if self.prompts.audio_id in s.prompt_ids]
        if not heard:
            return torch.zeros(0, self.policy.audio_width, device=self.device)
        if augment:
            return torch.cat(self._encoded([self._augmented(ref) for ref in heard]))
        return torch.cat(self._clips.states(heard))

    def _encoded(self, clips: Sequence[np.ndarray]) -> list[Tensor]:
        return self.family.encode(self.model, self.extractor, clips)

    def _augmented(self, ref: AudioRef) -> np.ndarray:
        seed = [self.config.seed, self.optimizer_step, *ref.key.encode()]
        clip = load_audio(ref, self.limits)
        return augment_audio(clip, self.config.data.augment, np.random.default_rng(seed))

    # --- weights and state --------------------------------------------------------------------------------------

    def adapter(self) -> dict[str, Tensor]:
        """Trainable tensors in full, float32, on the CPU, by the names they travel under. A gather on all ranks."""
        return gather(self.parameters)

    def load_adapter(self, tensors: dict[str, Tensor]) -> None:
        """Replace the trainable tensors; names and shapes must match exactly."""
        wrong = sorted(set(tensors) ^ set(self.parameters))
        if wrong:
            raise UserError(
                f"the adapter does not fit this model and LoRA configuration; {wrong[0]!r} is on one side only"
            )
        for name, parameter in self.parameters.items():
            theirs, ours = tuple(tensors[name].shape), tuple(parameter.shape)
            if theirs != ours:
                raise UserError(
                    f"the adapter's {name!r} has shape {theirs}, the model's {ours}; "
                    "use the LoRA rank it was trained with"
                )
        for name, parameter in self.parameters.items():
            assign(parameter, tensors[name])

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's moments in full, as `moment:name`; empty before the first step."""
        state = self.optimizer.state
        held = [(name, p) for name, p in self.parameters.items() if p in state]
        return gather({f"{moment}:{name}": state[p][moment] for name, p in held for moment in MOMENTS})

    def load_optimizer_state(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore what `optimizer_state` gave, on any number of ranks."""
        self.optimizer_step = step
        for name, parameter in self.parameters.items():
            if f"{MOMENTS[0]}:{name}" not in tensors:
                continue
            slot = self.optimizer.state[parameter]
            slot["step"] = torch.tensor(float(step))
            for moment in MOMENTS:
                slot[moment] = torch.zeros_like(parameter)
                assign(slot[moment], tensors[f"{moment}:{name}"])


FILLER = "\0filler"
SUMMED = ("loss", "entropy", "padded_tokens", *TOKEN_MEANS, *PAIR_MEANS, *SUMS)


def _filler(end_id: int) -> TrainingSample:
    """A sample without weight, for ranks that have run out."""
    completion = Completion(read_only([end_id, end_id], "int32"), read_only([0.0, 0.0], "float32"), 0.0, 0)
    return TrainingSample(FILLER, AudioRef(""), read_only([end_id, end_id], "int32"), (completion,))


def _is_filler(group: Sequence[TrainingSample]) -> bool:
    return group[0].prompt_id == FILLER


def _top_ids(group: Sequence[TrainingSample], k: int) -> Tensor:
    """The teacher's `k` likeliest tokens [N, k] in the place of each response token; of a filler any will do."""
    taught = [c.teacher for s in group for c in s.completions]
    if not k or _is_filler(group):
        return torch.zeros(sum(s.response_tokens for s in group), min(k, 1), dtype=torch.long)
    return torch.from_numpy(np.concatenate([t.top_ids[:, :k] for t in taught if t])).long()


def _identity(sample: TrainingSample, completion: Completion) -> bytes:
    """Equal for the same words in answer to the same prompt."""
    return hashlib.blake2b(sample.prompt_id.encode() + b"\0" + completion.token_ids.tobytes(), digest_size=16).digest()


def _step_metrics(totals: dict[str, float], counts: Counts, norm: float, lr: float, seconds: float) -> dict[str, float]:
    """Sums over all ranks as the step's metrics; what the stage's loss does not speak of is left out."""
    tokens, pairs = max(counts.loss_tokens, 1), max(counts.sequences // 2, 1)
    metrics = {
        "learner/loss": totals["loss"],
        "learner/grad_norm": norm,
        "learner/lr": lr,
        "learner/entropy": totals["entropy"] / tokens,
        "learner/tokens": totals["padded_tokens"],
        "learner/tokens_per_s": totals["padded_tokens"] / seconds,
        "learner/step_s": seconds,
    }
    metrics |= {f"learner/{n}": totals[n] / tokens for n in TOKEN_MEANS if n in totals}
    metrics |= {f"learner/{n}": totals[n] / pairs for n in PAIR_MEANS if n in totals}
    return metrics | {f"learner/{n}": totals[n] for n in SUMS if n in totals}
