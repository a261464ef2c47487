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

from speechsum.audio import SAMPLE_RATE

if TYPE_CHECKING:
    import torch


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

    def refusal(self, checkpoint: Path) -> str | None:
        """Why this checkpoint cannot be trained although its family can, or None."""
        return None

    def user_content(self, instruction: str) -> Any:
        """A request's turn as the family's chat template takes it: a recording, then what is wanted of it."""
        return [{"type": "audio"}, {"type": "text", "text": instruction}]

    def text_config(self, config: Any) -> Any:
        """The decoder's part of the model's configuration."""
        return config.get_text_config()

    def logits_divisor(self, config: Any) -> float:
        """What the head's output is divided by, temperature aside."""
        return 1.0

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

    def project(self, projector: Any, states: torch.Tensor) -> torch.Tensor:
        """States [A, D] that `encode` made, of one clip or several in a row -> embeddings [A, H] for the decoder."""
        projected: torch.Tensor = projector(states)
        return projected

    def state_width(self, projector: Any) -> int:
        """D of the states that `project` takes."""
        import torch

        return next(m.in_features for m in projector.modules() if isinstance(m, torch.nn.Linear))

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
    Tested on random tiny models (docs/families.md); the real weights have not been run, on a GPU or elsewhere.
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
        samples = extractor.hop_length * (max(len(clip) for clip in clips) // extractor.hop_length + 4)
        features = extractor(list(clips), sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True,
                             padding="max_length", max_length=samples)  # fmt: skip
        states = self._unprojected(model, features)
        lengths = [int(((n - 1) // 2 + 1 - 2) // 2 + 1) for n in features.attention_mask.sum(-1)]
        return [part.clone() for part in states.split(lengths)]  # a view would keep its whole batch in memory

    def _unprojected(self, model: Any, features: Any) -> torch.Tensor:
        """All clips' states in a row, by an encoder whose last layer, the learner's, is left out."""
        import torch

        encoder, last = model.get_submodule(self.encoder), self.projector.rpartition(".")[2]
        device = next(encoder.layers.parameters()).device
        projector = encoder.get_submodule(last)
        setattr(encoder, last, torch.nn.Identity())  # the learner runs it, and may have sharded it
        try:
            with torch.no_grad():
                states: torch.Tensor = model.get_audio_features(
                    features.input_features.to(device), features.attention_mask.to(device), return_dict=True
                ).last_hidden_state
        finally:
            setattr(encoder, last, projector)
        return states


@dataclass(frozen=True)
class Qwen3Omni(Qwen25Omni):
    """The thinker of Qwen3-Omni, a mixture of experts whose attention alone is adapted.

    The experts of a layer are one tensor in memory and many on disk; nothing of them is trained, so no name of theirs
    has to be translated. The projector is the encoder's last layer; the one before it stays frozen.
    """

    name: str = "qwen3_omni"
    model_type: str = "qwen3_omni_moe"
    model_class: str = "Qwen3OmniMoeThinkerForConditionalGeneration"
    audio_token: str = "<|audio_pad|>"
    tokens_per_s: float = 13.0
    projector: str = "audio_tower.proj2"

    def longest_audio_s(self, checkpoint: Path) -> float:
        """See `Family`; this processor cuts nothing."""
        return float("inf")

    def encode(self, model: Any, extractor: Any, clips: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """See `Family`. As in vLLM a clip is filled up to whole frames, and then heard by itself."""
        states = []
        for clip in clips:
            whole = np.pad(clip, (0, -len(clip) % extractor.hop_length))
            features = extractor(whole, sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True,
                                 padding="longest", truncation=False)  # fmt: skip
            states.append(self._unprojected(model, features))
        return states


@dataclass(frozen=True)
class GraniteSpeech(Family):
    """Granite-Speech: a conformer, and a Q-Former that makes three audio tokens of fifteen frames.

    A state is a third of such a window, five frames side by side, so that there is one for each audio token. The
    encoder sees no mask: a clip is encoded by itself, because silence added to fit a longer neighbour would be heard.
    """

    name: str = "granite_speech"
    model_type: str = "granite_speech"
    model_class: str = "GraniteSpeechForConditionalGeneration"
    audio_token: str = "<|audio|>"
    tokens_per_s: float = 10.0
    encoder: str = "model.encoder"
    projector: str = "model.projector"
    renames: tuple[tuple[str, str], ...] = (
        ("model.language_model.", "language_model.model."),
        ("model.encoder.", "encoder."),
        ("model.projector.", "projector."),
        ("lm_head.", "language_model.lm_head."),
    )

    def longest_audio_s(self, checkpoint: Path) -> float:
        """What vLLM plans its memory for; the processor itself cuts nothing."""
        return 500.0

    def refusal(self, checkpoint: Path) -> str | None:
        """See `Family`. Early releases keep half of the model in an adapter beside it, for prompts with audio only."""
        if not _read_json(checkpoint / "config.json").get("has_lora_adapter", True):
            return None
        return "has_lora_adapter is true; merge the adapter into the weights and set it to false in config.json"

    def user_content(self, instruction: str) -> Any:
        """See `Family`; the template takes plain text."""
        return self.audio_token + instruction

    def logits_divisor(self, config: Any) -> float:
        """See `Family`. Granite's decoders are trained with one; transformers 5.19 leaves it out of this model."""
        return float(self.text_config(config).logits_scaling)

    def project(self, projector: Any, states: torch.Tensor) -> torch.Tensor:
        """See `Family`. Every clip fills whole windows, so that none is shared between neighbours."""
        frames = states.reshape(1, len(states) * projector.downsample_rate, -1)
        projected: torch.Tensor = projector(frames)[0]
        return projected

    def state_width(self, projector: Any) -> int:
        """See `Family`."""
        return int(projector.downsample_rate * projector.qformer.config.encoder_hidden_size)

    def encode(self, model: Any, extractor: Any, clips: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """See `Family`."""
        import torch

        encoder, projector = model.get_submodule(self.encoder), model.get_submodule(self.projector)
        states = []
        with torch.no_grad():
            for clip in clips:
                features = extractor(np.ascontiguousarray(clip)).input_features
                frames = encoder(features.to(encoder.input_linear.weight)).last_hidden_state[0]
                filled = torch.nn.functional.pad(frames, (0, 0, 0, -len(frames) % projector.window_size))
                states.append(filled.reshape(len(filled) // projector.downsample_rate, -1))
        return states


def hears(folder: Path) -> bool:
    """Whether the checkpoint in `folder` is of an audio LLM that speechsum knows."""
    return _read_json(folder / "config.json").get("model_type") in {family.model_type for family in FAMILIES.values()}


def _read_json(path: Path) -> dict[str, Any]:
    """What a checkpoint's processor says of itself; nothing where it says nothing."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


FAMILIES = {family.name: family for family in (Family(), Qwen25Omni(), Qwen3Omni(), GraniteSpeech())}
