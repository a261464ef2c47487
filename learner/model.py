"""The policy as the learner sees it: frozen encoder outside, projector and LoRA inside, log-probs out.

A group travels as one row: the prompt once, then its completions one after the other. Each completion's positions
continue the prompt's, and a mask lets it see the prompt and itself but no sibling, so a forward over P + G R tokens
equals G forwards over P + R. Logits exist only where a response token is predicted, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from speechsum.config import LoraConfig
from speechsum.families import Family
from speechsum.types import TrainingSample

PROMPT = 0
PADDING = -1


@dataclass(frozen=True)
class PackedRows:
    """A microbatch as tensors. B rows (groups), L tokens after padding, N response tokens over all rows.

    `ids` [B, L], `positions` [B, L], `segments` [B, L] (0 prompt, k the k-th completion, -1 padding),
    `predictors` [N] (flat index into B x L of the hidden state that predicts each response token), `targets` [N].
    The last token of a completion predicts nothing and is not run.
    """

    ids: Tensor
    positions: Tensor
    segments: Tensor
    predictors: Tensor
    targets: Tensor

    @property
    def tokens(self) -> int:
        """Padded tokens of the forward."""
        return self.ids.numel()

    def to(self, device: torch.device) -> PackedRows:
        """The same rows on `device`."""
        return PackedRows(*(getattr(self, field.name).to(device) for field in fields(self)))

    def heard(self, audio_id: int) -> Tensor:
        """Where audio goes [B, L]: the prompts' placeholders. One that the policy itself sampled is just a token."""
        return (self.ids == audio_id) & (self.segments == PROMPT)


def pack(samples: Sequence[TrainingSample], pad_id: int) -> PackedRows:
    """Lay out samples as rows, one group each."""
    rows = [_pack_one(sample) for sample in samples]
    length = max(len(ids) for ids, _, _, _, _ in rows)

    def padded(values: list[int], fill: int) -> list[int]:
        return values + [fill] * (length - len(values))

    return PackedRows(
        ids=torch.tensor([padded(r[0], pad_id) for r in rows]),
        positions=torch.tensor([padded(r[1], 0) for r in rows]),
        segments=torch.tensor([padded(r[2], PADDING) for r in rows]),
        predictors=torch.tensor([b * length + i for b, r in enumerate(rows) for i in r[3]]),
        targets=torch.tensor([t for r in rows for t in r[4]]),
    )


def _pack_one(sample: TrainingSample) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    prompt = sample.prompt_ids.tolist()
    ids, positions, segments = list(prompt), list(range(len(prompt))), [PROMPT] * len(prompt)
    predictors: list[int] = []
    targets: list[int] = []
    for k, completion in enumerate(sample.completions, start=1):
        tokens = completion.token_ids.tolist()
        predictors += [len(prompt) - 1, *range(len(ids), len(ids) + len(tokens) - 1)]
        targets += tokens
        positions += range(len(prompt), len(prompt) + len(tokens) - 1)
        segments += [k] * (len(tokens) - 1)
        ids += tokens[:-1]
    return ids, positions, segments, predictors, targets


def tree_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive mask [B, 1, L, L]: a position looks at earlier ones of the prompt and of its own completion.

    Padding looks at itself alone, so that no row of the softmax is empty.
    """
    same = segments[:, :, None] == segments[:, None, :]
    to_prompt = (segments == PROMPT)[:, None, :]
    causal = torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()
    padding = (segments == PADDING)[:, :, None]
    own = torch.eye(segments.shape[1], dtype=torch.bool, device=segments.device)
    allowed = torch.where(padding, own, (same | to_prompt) & causal)[:, None]
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


class SpeechPolicy(nn.Module):
    """Projector, decoder with LoRA and head of an audio LLM, with one forward: rows -> response log-probs.

    Everything the loss needs is inside one `forward`, because FSDP gathers parameters around it.
    """

    def __init__(self, model: nn.Module, family: Family, lora: LoraConfig, *, train_projector: bool) -> None:
        super().__init__()
        self.projector = model.get_submodule(family.projector)
        self.decoder = model.get_submodule(family.decoder)
        self.head = model.get_submodule(family.head)
        self.family = family
        self.scale = lora.alpha / lora.rank
        self.logits_divisor = family.logits_divisor(model.config)
        _add_lora(self.decoder, lora)
        _without_dropout(self)
        self.projector.requires_grad_(train_projector).float()

    def forward(
        self, rows: PackedRows, audio: Tensor, audio_id: int, candidates: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs [N] float32 of the targets at `temperature`, their entropy [N] without gradient, and candidates.

        `audio` [A, D] holds encoder states in row order, one for each place in `rows.heard(audio_id)`. `candidates`
        [N, K] are other tokens of interest in each target's place; their log-probs come as [N, K + 1], the last being
        that of all tokens besides, or as [N, 0] where K is 0.
        """
        embeds = self.decoder.get_input_embeddings()(rows.ids)
        heard = self.family.project(self.projector, audio.to(self.projector_dtype)).to(embeds.dtype)
        embeds = embeds.masked_scatter(rows.heard(audio_id)[..., None], heard)
        hidden = self.decoder(
            inputs_embeds=embeds,
            attention_mask=tree_mask(rows.segments, embeds.dtype),
            position_ids=rows.positions,
            use_cache=False,
        ).last_hidden_state
        wanted = hidden.flatten(0, 1)[rows.predictors]
        parts = [
            checkpoint(self._score, h, t, c, temperature, use_reentrant=False)
            for h, t, c in zip(wanted.split(chunk), rows.targets.split(chunk), candidates.split(chunk), strict=True)
        ]
        logprobs, entropy, others = (torch.cat(part) for part in zip(*parts, strict=True))
        return logprobs, entropy, others

    @property
    def projector_dtype(self) -> torch.dtype:
        """What the projector computes in: its parameters' type, which FSDP's mixed precision may change."""
        return next(self.projector.parameters()).dtype

    @property
    def audio_width(self) -> int:
        """D of the encoder states."""
        return self.family.state_width(self.projector)

    def _score(
        self, hidden: Tensor, targets: Tensor, candidates: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Full-vocabulary logits of a chunk; recomputed in backward, so they never live together."""
        logits = nn.functional.linear(hidden.float(), self.head.weight.float()) / (self.logits_divisor * temperature)
        logprobs = logits.log_softmax(-1)
        with torch.no_grad():
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        others = logprobs.new_zeros(len(targets), 0)
        if candidates.shape[1]:
            rest = logprobs.scatter(-1, candidates, -torch.inf).logsumexp(-1, keepdim=True)
            others = torch.cat([logprobs.gather(-1, candidates), rest], -1)
        return logprobs.gather(-1, targets[:, None])[:, 0], entropy, others

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by the name they travel under: see `adapter_name`."""
        return {self.adapter_name(n): p for n, p in self.named_parameters() if p.requires_grad}

    def adapter_name(self, name: str) -> str:
        """A parameter's name in checkpoints and payloads: the disk name, with `.lora_A` / `.lora_B` for LoRA."""
        name = name.replace(".base_layer.", ".")
        for side in ("lora_A", "lora_B"):
            name = name.replace(f".{side}.default.weight", f".{side}")
        for ours, theirs in (("decoder.", self.family.decoder), ("projector.", self.family.projector),
                             ("head.", self.family.head)):  # fmt: skip
            if name.startswith(ours):
                return self.family.disk_name(f"{theirs}.{name.removeprefix(ours)}")
        return name


def _add_lora(decoder: nn.Module, lora: LoraConfig) -> None:
    """peft's LoRA on the decoder's linear layers, kept in float32; B starts at zero, so nothing changes yet."""
    from peft import LoraConfig as PeftLora
    from peft import inject_adapter_in_model

    inject_adapter_in_model(
        PeftLora(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0, bias="none"),
        decoder,
    )
    for name, parameter in decoder.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()


def _without_dropout(policy: nn.Module) -> None:
    """No unit drops out, whatever the checkpoint asks for: the engine's do not, and the two must agree.

    `eval` would do as much, but gradient checkpointing needs `train`.
    """
    for module in policy.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in [n for n, value in vars(module).items() if "dropout" in n and isinstance(value, float)]:
            setattr(module, name, 0.0)
