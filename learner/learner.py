"""One rank of the learner. No Ray in here: a test runs it as it is.

Every public method is collective: all ranks call it in the same order with the same arguments, their shard aside.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from learner.losses import LossOutput, grpo_loss, sft_loss, token_weights
from learner.model import PackedRows, SpeechPolicy, audio_states, pack
from learner.parallelize import shard
from speechsum.audio import AudioLimits, augment_audio, load_audio
from speechsum.batching import microbatches
from speechsum.config import AugmentConfig, RunConfig, StageConfig
from speechsum.errors import RunError, UserError
from speechsum.families import FAMILIES
from speechsum.prompting import PromptBuilder
from speechsum.types import AudioRef, Completion, TrainingSample, read_only

MOMENTS = ("exp_avg", "exp_avg_sq")
STATES_CACHE_BYTES = 4 << 30
TIE_NATS = 1e-3
NEAR_ZERO = 1e-5  # a temperature; the gaps it gives are too wide by NEAR_ZERO x log(vocabulary), 1e-4 nats, at most


class Learner:
    """The trainable policy on one rank: steps, log-probs, and its weights in full."""

    def __init__(self, config: RunConfig, checkpoint: Path) -> None:
        from transformers import AutoFeatureExtractor

        self.config = config
        on_gpu = config.learner.backend == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.dtype = getattr(torch, config.model.dtype)
        self.family = FAMILIES[config.model.family]
        self.prompts = PromptBuilder.load(checkpoint, self.family)
        self.extractor = AutoFeatureExtractor.from_pretrained(checkpoint)
        self.limits = AudioLimits(max_s=config.model.max_audio_s)
        torch.manual_seed(config.seed)  # ranks must draw the same LoRA before sharding
        attention = "sdpa" if self.device.type == "cuda" else "eager"  # torch's CPU flash backward is the slower one
        self.model = self.family.load(checkpoint, config.model.dtype, attention).to(self.device)
        policy = SpeechPolicy(self.model, self.family, config.model.lora, train_projector=config.model.train_projector)
        if config.learner.activation_checkpointing:
            policy.decoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        mesh = init_device_mesh(self.device.type, (dist.get_world_size(),))
        self.policy = shard(policy.to(self.device), mesh, self.dtype)
        self.policy.train()
        self.parameters = self.policy.trainable()
        self.optimizer_step = 0
        self._states: OrderedDict[str, Tensor] = OrderedDict()
        self._states_bytes = 0

    # --- stages -------------------------------------------------------------------------------------------------

    def begin_stage(self, stage: StageConfig) -> None:
        """A fresh optimizer for `stage`; weights stay as the last stage left them."""
        self.stage = stage
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
        totals: dict[str, float] = {}
        padded = 0
        samples = [self._expanded(s) for s in samples]
        for group in self._equal_microbatches(samples):
            rows, output, sums = self._forward_loss(group, loss_tokens, sequences, policy_version)
            output.loss.backward()
            padded += rows.tokens
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        norm = float(_full(nn.utils.clip_grad_norm_(self.parameters.values(), self.stage.optimizer.max_grad_norm)))
        lr = self._set_lr()
        totals = self._all_reduce(totals | {"padded_tokens": float(padded)})
        skipped = not (math.isfinite(norm) and math.isfinite(totals["loss"]))
        if not skipped:
            self.optimizer.step()
            self.optimizer_step += 1
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - started
        return _step_metrics(totals, loss_tokens, norm, lr, seconds) | {"learner/skipped": float(skipped)}

    def _forward_loss(
        self, group: list[TrainingSample], loss_tokens: int, sequences: int, policy_version: int
    ) -> tuple[PackedRows, LossOutput, dict[str, Tensor]]:
        rows, logprobs, entropy = self._forward(group, self._temperature(), augment=self._augments())
        completions = [c for s in group for c in s.completions]
        lengths = [len(c.token_ids) for c in completions]
        norm = self.stage.loss.length_norm if self.stage.loss.kind == "grpo" else "token"
        weights = token_weights(
            lengths, loss_tokens=loss_tokens, sequences=sequences, norm=norm, max_tokens=self.config.rollout.max_tokens
        ).to(self.device)
        if not loss_tokens or group[0].prompt_id == FILLER:
            weights = torch.zeros_like(weights)
        if self.stage.loss.kind == "sft":
            output = sft_loss(logprobs, weights)
        else:
            output = self._grpo(logprobs, weights, completions, policy_version)
        real = (weights > 0).float()
        sums = {"loss": output.loss.detach(), "entropy": (entropy * real).sum()}
        return rows, output, sums | ({} if group[0].prompt_id == FILLER else output.sums)

    def _grpo(
        self, logprobs: Tensor, weights: Tensor, completions: list[Completion], policy_version: int
    ) -> LossOutput:
        loss = self.stage.loss
        assert loss.kind == "grpo"
        lengths = [len(c.token_ids) for c in completions]
        times = torch.tensor(lengths)
        advantages = torch.tensor([c.advantage for c in completions]).repeat_interleave(times)
        fresh = torch.tensor([c.policy_version == policy_version for c in completions]).repeat_interleave(times)
        rollout = torch.from_numpy(np.concatenate([c.logprobs for c in completions]))
        return grpo_loss(
            logprobs, rollout.to(self.device), advantages.to(self.device), weights, fresh.to(self.device), lengths,
            ratio=loss.ratio, objective=loss.objective,
            clip_low=loss.clip_low, clip_high=loss.clip_high, is_cap=loss.is_cap,
        )  # fmt: skip

    def logprobs(self, samples: Sequence[TrainingSample], temperature: float = 1.0) -> list[np.ndarray]:
        """Log-probs [R] of every completion of every sample, in order. Each rank runs all of them."""
        with torch.no_grad():
            result = []
            for sample in samples:
                _, logprobs, _ = self._forward([sample], temperature)
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
        """What the engine sampled at; references were sampled by nobody."""
        return 1.0 if self.stage.loss.kind == "sft" else (self.config.rollout.temperature or 1.0)

    def _augments(self) -> bool:
        """Whether recordings are disturbed while they are trained on; what the engine heard never is."""
        return self.stage.loss.kind == "sft" and self.config.data.augment != AugmentConfig()

    def _forward(
        self, group: Sequence[TrainingSample], temperature: float, *, augment: bool = False
    ) -> tuple[PackedRows, Tensor, Tensor]:
        rows = pack(group, self.prompts.end_id)
        rows = PackedRows(**{k: getattr(rows, k).to(self.device) for k in PackedRows.__dataclass_fields__})
        audio = self._audio(group, augment=augment)
        placeholders = int(rows.heard(self.prompts.audio_id).sum())
        if placeholders != len(audio):
            raise RunError(
                f"the engine saw {placeholders} audio tokens and the learner encoded {len(audio)}: "
                "rollout and learner disagree on the recording"
            )
        logprobs, entropy = self.policy(
            rows, audio, self.prompts.audio_id, temperature, self.config.learner.logprob_chunk
        )
        return rows, logprobs, entropy

    def _equal_microbatches(self, samples: Sequence[TrainingSample]) -> list[list[TrainingSample]]:
        """As many microbatches on every rank: a rank that has fewer runs weightless ones, or collectives would hang."""
        mine = microbatches(samples, self.config.learner.microbatch_tokens)
        most = torch.tensor([len(mine)], device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return mine + [[_filler(self.prompts.end_id)]] * (int(most) - len(mine))

    def _all_reduce(self, totals: dict[str, float]) -> dict[str, float]:
        names = sorted(SUMMED)
        values = torch.tensor([totals.get(n, 0.0) for n in names], dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return dict(zip(names, values.tolist(), strict=True))

    def _expanded(self, sample: TrainingSample) -> TrainingSample:
        """A sample from data carries one placeholder; here, where the clip is heard, it becomes one per audio token."""
        ids = sample.prompt_ids.tolist()
        if ids.count(self.prompts.audio_id) != 1:
            return sample
        return replace(sample, prompt_ids=self.prompts.expand(ids, len(self._audio([sample]))))

    # --- audio --------------------------------------------------------------------------------------------------

    def _audio(self, group: Sequence[TrainingSample], *, augment: bool = False) -> Tensor:
        """Encoder states [A, D] of the group's clips in row order; a clip is encoded once and kept unless augmented."""
        group = [s for s in group if s.prompt_id != FILLER]
        if not group:
            return torch.zeros(0, self.policy.audio_width, device=self.device)
        if augment:
            return torch.cat(self.family.encode(self.model, self.extractor, [self._augmented(s.audio) for s in group]))
        missing = {s.audio.key: s.audio for s in group if s.audio.key not in self._states}
        if missing:
            clips = [load_audio(ref, self.limits) for ref in missing.values()]
            for key, states in zip(missing, self.family.encode(self.model, self.extractor, clips), strict=True):
                self._states[key] = states
                self._states_bytes += states.nbytes
        for sample in group:
            self._states.move_to_end(sample.audio.key)
        states = audio_states(group, self._states)
        while self._states_bytes > STATES_CACHE_BYTES:
            self._states_bytes -= self._states.popitem(last=False)[1].nbytes
        return states

    def _augmented(self, ref: AudioRef) -> np.ndarray:
        seed = [self.config.seed, self.optimizer_step, *ref.key.encode()]
        clip = load_audio(ref, self.limits)
        return augment_audio(clip, self.config.data.augment, np.random.default_rng(seed))

    # --- weights and state --------------------------------------------------------------------------------------

    def adapter(self) -> dict[str, Tensor]:
        """Trainable tensors in full, float32, on the CPU, by the names they travel under. A gather on all ranks."""
        return {name: _full(p.detach()).to("cpu", copy=True) for name, p in self.parameters.items()}

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
            _assign(parameter, tensors[name])

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's moments in full, as `moment:name`; empty before the first step."""
        state = self.optimizer.state
        return {
            f"{moment}:{name}": _full(state[p][moment]).to("cpu", copy=True)
            for name, p in self.parameters.items() for moment in MOMENTS if p in state
        }  # fmt: skip

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
                _assign(slot[moment], tensors[f"{moment}:{name}"])


FILLER = "\0filler"
SUMMED = ("loss", "entropy", "clip_share", "is_weight_mean", "logprob_gap", "masked_tokens", "padded_tokens")


def _filler(end_id: int) -> TrainingSample:
    """A sample without weight, for ranks that have run out."""
    completion = Completion(read_only([end_id, end_id], "int32"), read_only([0.0, 0.0], "float32"), 0.0, 0)
    return TrainingSample(FILLER, AudioRef(""), read_only([end_id, end_id], "int32"), (completion,))


def _full(tensor: Tensor) -> Tensor:
    """A DTensor gathered; a plain tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _assign(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into a sharded one, each rank its part."""
    from torch.distributed.tensor import distribute_tensor

    with torch.no_grad():
        value = value.to(dtype=target.dtype, device=target.device)
        if hasattr(target, "device_mesh"):
            value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
        target.copy_(value)


def _step_metrics(
    totals: dict[str, float], loss_tokens: int, norm: float, lr: float, seconds: float
) -> dict[str, float]:
    tokens = max(loss_tokens, 1)
    metrics = {
        "learner/loss": totals["loss"],
        "learner/grad_norm": norm,
        "learner/lr": lr,
        "learner/entropy": totals["entropy"] / tokens,
        "learner/tokens": totals["padded_tokens"],
        "learner/tokens_per_s": totals["padded_tokens"] / seconds,
        "learner/step_s": seconds,
    }
    if totals["is_weight_mean"]:
        metrics |= {f"learner/{n}": totals[n] / tokens for n in ("clip_share", "is_weight_mean", "logprob_gap")}
        metrics["learner/masked_tokens"] = totals["masked_tokens"]
    return metrics
