"""Tiny random checkpoints of the families, in the real architectures and with the names their publishers use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.tiny import HIDDEN, LAYERS, tiny_checkpoint, tiny_tokenizer, write_generation_config

PLAIN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def granite_speech(path: Path) -> Path:
    """Two conformer blocks, a Q-Former over windows of fifteen frames, a Granite decoder with its multipliers."""
    import torch
    from transformers import (
        GraniteSpeechConfig,
        GraniteSpeechFeatureExtractor,
        GraniteSpeechForConditionalGeneration,
        GraniteSpeechProcessor,
    )

    tokenizer = tiny_tokenizer(audio=False)
    tokenizer.chat_template = PLAIN_TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|audio|>"]})
    text = {
        "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": _padded(tokenizer), "max_position_embeddings": 512,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": True, "initializer_range": 0.3,
        "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 4.0,
    }  # fmt: skip
    encoder = {"num_layers": 2, "hidden_dim": 32, "num_heads": 2, "context_size": 40, "max_pos_emb": 64}
    projector = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "encoder_hidden_size": 32, "cross_attention_frequency": 1, "initializer_range": 0.2,
    }  # fmt: skip
    config = GraniteSpeechConfig(
        text_config=text, encoder_config=encoder, projector_config=projector, has_lora_adapter=False,
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"), initializer_range=0.2, dtype="float32",
        architectures=["GraniteSpeechForConditionalGeneration"],
    )  # fmt: skip
    torch.manual_seed(0)
    _save(path, GraniteSpeechForConditionalGeneration(config), "granite_speech", skip="lm_head.")
    config.save_pretrained(path)
    features = GraniteSpeechFeatureExtractor()
    features.save_pretrained(path)
    GraniteSpeechProcessor(features, tokenizer, chat_template=PLAIN_TEMPLATE).save_pretrained(path)
    write_generation_config(path, tokenizer)
    return path


def _padded(tokenizer: Any) -> int:
    return -(-len(tokenizer) // 64) * 64


def _save(
    path: Path, model: Any, family: str, *, skip: str = "\0", extra: Mapping[str, Any] | None = None,
    split: Callable[[str, Any], dict[str, Any]] = lambda name, tensor: {name: tensor},
) -> None:  # fmt: skip
    """The model's tensors under their published names; those that begin with `skip` are tied to others."""
    from safetensors.torch import save_file

    from speechsum.families import FAMILIES

    state = {
        name: tensor.clone().contiguous()
        for ours, whole in model.state_dict().items() if not ours.startswith(skip)
        for name, tensor in split(FAMILIES[family].disk_name(ours), whole).items()
    }  # fmt: skip
    path.mkdir(parents=True, exist_ok=True)
    save_file(state | dict(extra or {}), path / "model.safetensors", metadata={"format": "pt"})


OMNI_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}{% if p['type'] == 'audio' %}"
    "AUDIO{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def qwen2_5_omni(path: Path) -> Path:
    """Thinker and talker in one file, as published; of the talker only a token piece."""
    import torch
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniThinkerForConditionalGeneration

    tokenizer = _omni_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    audio = {
        "num_mel_bins": 128, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 48,
        "output_dim": HIDDEN, "initializer_range": 0.2,
    }  # fmt: skip
    text = _omni_text(tokenizer) | {"model_type": "qwen2_5_omni_text"}
    thinker = {
        "text_config": text, "audio_config": audio,
        "vision_config": {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2,
                          "out_hidden_size": HIDDEN, "fullatt_block_indexes": [0]},
        "audio_token_index": tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
        "audio_start_token_id": tokenizer.convert_tokens_to_ids("<|audio_bos|>"),
        "audio_end_token_id": tokenizer.convert_tokens_to_ids("<|audio_eos|>"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<|IMAGE|>"),
        "video_token_index": tokenizer.convert_tokens_to_ids("<|VIDEO|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_bos|>"), "initializer_range": 0.3,
    }  # fmt: skip
    config = Qwen2_5OmniConfig(thinker_config=thinker, architectures=["Qwen2_5OmniModel"], dtype="float32")
    torch.manual_seed(0)
    _save(path, Qwen2_5OmniThinkerForConditionalGeneration(config.thinker_config), "qwen2_5_omni",
          extra={"talker.model.norm.weight": torch.ones(4)})  # fmt: skip
    return _save_omni(path, config, tokenizer)


def qwen3_omni(path: Path) -> Path:
    """Four experts a layer, two of them at work; on disk each expert has tensors of its own."""
    import torch
    from transformers import Qwen3OmniMoeConfig, Qwen3OmniMoeThinkerForConditionalGeneration

    tokenizer = _omni_tokenizer("<|audio_pad|>", "<|audio_start|>", "<|audio_end|>")
    audio = {
        "num_mel_bins": 128, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 64,
        "output_dim": HIDDEN, "downsample_hidden_size": 8, "initializer_range": 0.2,
    }  # fmt: skip
    text = _omni_text(tokenizer) | {
        "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "head_dim": 32, "norm_topk_prob": True,
    }  # fmt: skip
    thinker = {
        "text_config": text, "audio_config": audio,
        "vision_config": {
            "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": HIDDEN,
            "deepstack_visual_indexes": [0], "num_position_embeddings": 16, "image_size": 64,
            "apply_vit_abs_pos_embed": True,
        },
        "audio_token_id": tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        "audio_start_token_id": tokenizer.convert_tokens_to_ids("<|audio_start|>"),
        "image_token_id": tokenizer.convert_tokens_to_ids("<|IMAGE|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|VIDEO|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_bos|>"), "initializer_range": 0.2,
    }  # fmt: skip
    config = Qwen3OmniMoeConfig(
        thinker_config=thinker, architectures=["Qwen3OmniMoeForConditionalGeneration"], dtype="float32",
        enable_audio_output=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3OmniMoeThinkerForConditionalGeneration(config.thinker_config)
    _save(path, model, "qwen3_omni", split=_experts_apart)
    return _save_omni(path, config, tokenizer)


def _experts_apart(name: str, tensor: Any) -> dict[str, Any]:
    """A layer's stacked experts as the tensors that checkpoints hold; any other tensor as it is."""
    layer, _, kind = name.rpartition(".mlp.experts.")
    if not layer:
        return {name: tensor}
    halves = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[kind]
    return {
        f"{layer}.mlp.experts.{i}.{half}.weight": part.clone()
        for i, expert in enumerate(tensor)
        for half, part in zip(halves, expert.chunk(len(halves)), strict=True)
    }


def _omni_tokenizer(audio: str, start: str, end: str) -> Any:
    tokenizer = tiny_tokenizer(
        audio=False, audio_token=audio, audio_bos_token=start, audio_eos_token=end, image_token="<|IMAGE|>",
        video_token="<|VIDEO|>", vision_bos_token="<|vision_bos|>", vision_eos_token="<|vision_eos|>",
    )  # fmt: skip
    tokenizer.chat_template = OMNI_TEMPLATE.replace("AUDIO", start + audio + end)
    return tokenizer


def _omni_text(tokenizer: Any) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": _padded(tokenizer), "tie_word_embeddings": False,
        "initializer_range": 0.3, "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5]},
    }  # fmt: skip


def _save_omni(path: Path, config: Any, tokenizer: Any) -> Path:
    from transformers import WhisperFeatureExtractor

    config.save_pretrained(path)
    WhisperFeatureExtractor(feature_size=128, chunk_length=10, return_attention_mask=True).save_pretrained(path)
    tokenizer.save_pretrained(path)
    write_generation_config(path, tokenizer)
    return path


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "audio_flamingo3": tiny_checkpoint,
    "granite_speech": granite_speech,
    "qwen2_5_omni": qwen2_5_omni,
    "qwen3_omni": qwen3_omni,
}
"""How the tiny checkpoint of each family is made."""
