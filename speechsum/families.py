"""What differs between audio LLMs, and nothing else: placeholders, parts, names of weights.

A family says how to reach the frozen encoder, the projector and the decoder of a transformers model, and how the
names of its parameters in memory become the names in a checkpoint file, which are also those that vLLM loads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Family:
    """Audio Flamingo 3's layout: the base case, which the starter uses too.

    `renames` are (prefix in memory, prefix on disk) pairs, the first match wins.
    """

    name: str = "audio_flamingo3"
    model_type: str = "audioflamingo3"
    model_class: str = "AudioFlamingo3ForConditionalGeneration"
    audio_token: str = "<sound>"
    tokens_per_s: float = 25.0
    encoder: str = "model.audio_tower"
    projector: str = "model.multi_modal_projector"
    decoder: str = "model.language_model"
    head: str = "lm_head"
    renames: tuple[tuple[str, str], ...] = (
        ("model.language_model.", "language_model.model."),
        ("model.audio_tower.", "audio_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    )

    def disk_name(self, name: str) -> str:
        """The checkpoint's (and vLLM's) name of a parameter or module that transformers calls `name`."""
        for memory, disk in self.renames:
            if name.startswith(memory):
                return disk + name.removeprefix(memory)
        return name

    def longest_audio_s(self, checkpoint: Path) -> float:
        """Seconds beyond which the checkpoint's own processor would cut a recording."""
        return float(_read_json(checkpoint / "processor_config.json").get("max_audio_len", 600))

    def text_config(self, config: Any) -> Any:
        """The decoder's part of the model's configuration."""
        return config.get_text_config()

    def audio_token_id(self, config: Any) -> int:
        """Id that marks audio positions, as the model's configuration has it."""
        return int(config.audio_token_id)

    def load(self, checkpoint: Path | str, dtype: str, attention: str = "sdpa") -> Any:
        """The transformers model on the CPU, in evaluation mode, frozen; `attention` as transformers names it."""
        import torch
        import transformers

        cls = getattr(transformers, self.model_class)
        model = cls.from_pretrained(
            checkpoint, dtype=getattr(torch, dtype), attn_implementation=attention, use_safetensors=True
        )
        return model.requires_grad_(False).eval()

    def encode(self, model: Any, extractor: Any, clips: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Frozen encoder states [T_i, D] of each clip, before the projector; T_i is the count of audio tokens."""
        import torch

        window = int(extractor.chunk_length * SAMPLE_RATE)
        windows = [clip[i : i + window] for clip in clips for i in range(0, len(clip), window)]
        features = extractor(windows, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True,
                             padding="max_length")  # fmt: skip
        encoder = model.get_submodule(self.encoder)
        positions = encoder.embed_positions.weight
        mask = features.attention_mask.to(positions.device)
        frames = min(mask.shape[1], 4 * (int(mask.sum(-1).max()) // 4 + 2))
        with torch.no_grad():
            # Only as many frames as the longest clip needs: the rest is masked, so the states are the same.
            states = torch.func.functional_call(
                encoder, {"embed_positions.weight": positions[: frames // 2]},
                (features.input_features[..., :frames].to(positions), mask[:, :frames]),
            ).last_hidden_state  # fmt: skip
        lengths = [int(((n - 1) // 2 + 1 - 2) // 2 + 1) for n in mask.sum(-1)]
        per_clip = [-(-len(clip) // window) for clip in clips]
        pieces = iter([s[:n] for s, n in zip(states, lengths, strict=True)])
        return [torch.cat([next(pieces) for _ in range(n)]) for n in per_clip]


@dataclass(frozen=True)
class Qwen25Omni(Family):
    """The thinker of Qwen2.5-Omni: hears and writes, while the talker that would speak stays on disk.

    Recordings are one piece, up to the 300 s that its feature extractor takes. The projector is the encoder's last
    layer. An audio token's position is the same on all three axes of its rotary embedding, so plain positions will do.
    The mathematics is tested against transformers on random tiny models; neither the real weights nor vLLM's side of
    the family have been run, on a GPU or elsewhere.
    """

    name: str = "qwen2_5_omni"
    model_type: str = "qwen2_5_omni"
    model_class: str = "Qwen2_5OmniThinkerForConditionalGeneration"
    audio_token: str = "<|AUDIO|>"
    encoder: str = "audio_tower"
    projector: str = "audio_tower.proj"
    decoder: str = "model"
    renames: tuple[tuple[str, str], ...] = (("", "thinker."),)

    def longest_audio_s(self, checkpoint: Path) -> float:
        """See `Family`."""
        return float(_read_json(checkpoint / "preprocessor_config.json").get("chunk_length", 300))

    def audio_token_id(self, config: Any) -> int:
        """See `Family`; the checkpoint's configuration is of thinker and talker together."""
        return int(config.thinker_config.audio_token_id)

    def encode(self, model: Any, extractor: Any, clips: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """See `Family`. Silence is added only as deep as the last frame's window reaches: more changes nothing."""
        import torch

        samples = extractor.hop_length * (max(len(clip) for clip in clips) // extractor.hop_length + 4)
        features = extractor(list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True,
                             padding="max_length", max_length=samples)  # fmt: skip
        encoder = model.get_submodule(self.encoder)
        device = encoder.conv1.weight.device
        projector, encoder.proj = encoder.proj, torch.nn.Identity()  # the learner runs it, and may have sharded it
        try:
            with torch.no_grad():
                states = model.get_audio_features(
                    features.input_features.to(device), features.attention_mask.to(device), return_dict=True
                ).last_hidden_state
        finally:
            encoder.proj = projector
        lengths = [int(((n - 1) // 2 + 1 - 2) // 2 + 1) for n in features.attention_mask.sum(-1)]
        return [part.clone() for part in states.split(lengths)]  # a view would keep its whole batch in memory


def _read_json(path: Path) -> dict[str, Any]:
    """What a checkpoint's processor says of itself; nothing where it says nothing."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


FAMILIES = {family.name: family for family in (Family(), Qwen25Omni())}
