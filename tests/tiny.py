"""A tiny random checkpoint in the starter's layout, made without any download, and what goes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from speechsum.types import AudioRef

WORDS = "summarize what is said the meeting moved to friday anna must send report by noon budget nine in one sentence"
HIDDEN, LAYERS, WINDOW_S = 64, 2, 2
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'audio' %}<sound>\n{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(audio: bool = True, **named: str) -> Any:
    """Byte-level BPE trained on a line of text: any string has ids. `named` are special tokens of some model."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>"],
    )  # fmt: skip
    core.train_from_iterator([WORDS] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>", **named,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    if audio:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<sound>"]})
    return tokenizer


def _text_config(tokenizer: Any, vocab: int) -> dict[str, Any]:
    return {
        "model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": vocab, "tie_word_embeddings": True,
        "max_position_embeddings": 512, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.eos_token_id, "initializer_range": 0.3,
    }  # fmt: skip


def tiny_checkpoint(path: Path, *, window_s: int = WINDOW_S, windows: int = 2, dtype: str = "float32") -> Path:
    """An Audio Flamingo 3 layout with random weights (0.2 M), windows of `window_s`, on-disk names as vLLM reads."""
    import torch
    from safetensors.torch import save_file
    from transformers import (
        AudioFlamingo3Config,
        AudioFlamingo3ForConditionalGeneration,
        AudioFlamingo3Processor,
        WhisperFeatureExtractor,
    )

    from speechsum.families import FAMILIES

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    vocab = -(-len(tokenizer) // 64) * 64
    audio = {
        "num_mel_bins": 80, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN, "max_source_positions": 50 * window_s, "initializer_range": 0.1,
    }  # fmt: skip
    config = AudioFlamingo3Config(
        audio_config=audio, text_config=_text_config(tokenizer, vocab),
        architectures=[FAMILIES["audio_flamingo3"].model_class],
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"), dtype=dtype,
    )  # fmt: skip
    model = AudioFlamingo3ForConditionalGeneration(config).to(getattr(torch, dtype))
    names = FAMILIES["audio_flamingo3"].disk_name
    state = {names(k): v.clone().contiguous() for k, v in model.state_dict().items()}
    state["language_model.lm_head.weight"] = state["language_model.model.embed_tokens.weight"].clone()  # tied in vLLM
    config.save_pretrained(path)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    features = WhisperFeatureExtractor(feature_size=80, chunk_length=window_s, return_attention_mask=True)
    AudioFlamingo3Processor(
        features, tokenizer, chat_template=TEMPLATE, max_audio_len=windows * window_s
    ).save_pretrained(path)
    write_generation_config(path, tokenizer)
    return path


def tiny_text_checkpoint(path: Path) -> Path:
    """A text-only causal LM of the same size, for judges."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    tokenizer = tiny_tokenizer(audio=False)
    vocab = -(-len(tokenizer) // 64) * 64
    Qwen2ForCausalLM(Qwen2Config(**_text_config(tokenizer, vocab))).save_pretrained(path)
    tokenizer.save_pretrained(path)
    write_generation_config(path, tokenizer)
    return path


def write_generation_config(path: Path, tokenizer: Any) -> None:
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    (path / "generation_config.json").write_text(json.dumps(ids))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """A recording nobody needs to synthesise: float32 mono at 16 kHz."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(16_000 * seconds))).astype(np.float32)


def recording(path: Path, seconds: float, seed: int = 0) -> AudioRef:
    """`noise` as a file that holds every bit of it."""
    import soundfile

    soundfile.write(path, noise(seconds, seed), 16_000, format="WAV", subtype="FLOAT")
    return AudioRef(str(path))
