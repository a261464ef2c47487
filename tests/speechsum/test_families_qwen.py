"""Qwen2.5-Omni's thinker, tiny and random: what we split off the library's model adds up to the library's model."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    Qwen2_5OmniConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)

from learner.model import SpeechPolicy, pack
from learner.publisher import merged_tensor
from speechsum.config import LoraConfig
from speechsum.errors import UserError
from speechsum.families import FAMILIES
from speechsum.lora import adapted_weights, whole_tensors
from speechsum.prompting import PromptBuilder
from speechsum.types import AudioRef, Completion, TrainingSample, read_only
from tests.tiny import noise, tiny_tokenizer

FAMILY = FAMILIES["qwen2_5_omni"]
HIDDEN, WIDTH, LAYERS = 32, 48, 2
SECONDS = (0.1, 2.0, 0.777, 3.99, 4.0, 4.01, 5.123)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}{% if p['type'] == 'audio' %}"
    "<|audio_bos|><|AUDIO|><|audio_eos|>{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _thinker(tokenizer) -> dict:
    text = {
        "hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": len(tokenizer), "tie_word_embeddings": False,
        "initializer_range": 0.3, "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    audio = {
        "num_mel_bins": 128, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
        "d_model": WIDTH, "output_dim": HIDDEN, "initializer_range": 0.2,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": HIDDEN}
    ids = {f"audio_{end}_token_id": tokenizer.convert_tokens_to_ids(f"<|audio_{tag}|>")
           for end, tag in (("start", "bos"), ("end", "eos"))}  # fmt: skip
    return {
        "model_type": "qwen2_5_omni_thinker", "text_config": text, "audio_config": audio, "vision_config": vision,
        "audio_token_index": tokenizer.convert_tokens_to_ids("<|AUDIO|>"), "initializer_range": 0.3,
        "vision_start_token_id": 3, **ids,
    }  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A checkpoint as they are published: thinker and talker in one file, the template where only processors look."""
    folder = tmp_path_factory.mktemp("qwen") / "checkpoint"
    tokenizer = tiny_tokenizer(audio=False)
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]})
    config = Qwen2_5OmniConfig(thinker_config=_thinker(tokenizer), architectures=["Qwen2_5OmniModel"])
    torch.manual_seed(0)
    model = Qwen2_5OmniThinkerForConditionalGeneration(config.thinker_config)
    state = {f"thinker.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    config.save_pretrained(folder)
    state["talker.model.norm.weight"] = torch.ones(4)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    WhisperFeatureExtractor(feature_size=128, chunk_length=10, return_attention_mask=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(path):
    return FAMILY.load(path, "float32", "eager")


@pytest.fixture(scope="module")
def extractor(path):
    return AutoFeatureExtractor.from_pretrained(path)


def library_inputs(extractor, clips) -> dict[str, torch.Tensor]:
    """What transformers' own processor makes of recordings: all of them padded to the extractor's whole window."""
    out = extractor(clips, sampling_rate=16_000, padding="max_length", return_attention_mask=True, return_tensors="pt")
    return {"input_features": out.input_features, "feature_attention_mask": out.attention_mask}


# --- the model -------------------------------------------------------------------------------------------------------


def test_the_whole_checkpoint_is_loaded_and_frozen(path, model):
    from safetensors import safe_open

    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    with safe_open(path / "model.safetensors", "pt") as file:
        on_disk = {n for n in file.keys() if not n.startswith("talker.")}  # noqa: SIM118
        assert {FAMILY.disk_name(n) for n in model.state_dict()} == on_disk
        assert all(torch.equal(t, file.get_tensor(FAMILY.disk_name(n))) for n, t in model.state_dict().items())


def test_projected_states_are_the_librarys_audio_features(model, extractor):
    clips = [noise(s, seed) for seed, s in enumerate(SECONDS)]
    found = FAMILY.encode(model, extractor, clips)
    with torch.no_grad():
        expected = model.get_audio_features(**library_inputs(extractor, clips), return_dict=True).last_hidden_state
        projected = model.audio_tower.proj(torch.cat(found))
    assert {part.shape[1] for part in found} == {WIDTH}
    assert len(found[1]) == 2 * FAMILY.tokens_per_s
    torch.testing.assert_close(projected, expected, atol=1e-5, rtol=1e-5)


def test_states_do_not_depend_on_the_company(model, extractor):
    clips = [noise(s, seed) for seed, s in enumerate(SECONDS)]
    for clip, found in zip(clips, FAMILY.encode(model, extractor, clips), strict=True):
        (alone,) = FAMILY.encode(model, extractor, [clip])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
        assert found.untyped_storage().nbytes() == found.nbytes


def test_encoding_never_runs_the_projector_and_puts_it_back(model, extractor):
    projector, layer = model.audio_tower.proj, model.audio_tower.layers[0]
    with _refusing(projector):  # sharded over ranks it could not run here
        FAMILY.encode(model, extractor, [noise(0.5)])
    with _refusing(layer), pytest.raises(RuntimeError, match="must not run"):
        FAMILY.encode(model, extractor, [noise(0.5)])
    assert model.audio_tower.proj is projector


@contextmanager
def _refusing(module):
    def refuse(*_):
        raise RuntimeError("must not run")

    handle = module.register_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


# --- the prompt ------------------------------------------------------------------------------------------------------


def test_requests_come_from_the_processors_template(path):
    builder = PromptBuilder.load(path, FAMILY)
    config = AutoConfig.from_pretrained(path)
    assert FAMILY.text_config(config).hidden_size == HIDDEN
    assert builder.audio_id == FAMILY.audio_token_id(config)
    assert builder.tokenizer.decode(builder.request_ids("sum up")) == (
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>sum up<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(UserError, match="control token"):
        builder.request_ids("sum up <|audio_eos|>")


# --- the policy ------------------------------------------------------------------------------------------------------


def sample(builder, states, sizes, instruction: str, seed: int) -> TrainingSample:
    rng = np.random.default_rng(seed)
    completions = tuple(
        Completion(read_only(rng.integers(4, 200, n), "int32"), read_only(np.zeros(n), "float32"), 0.0, 0)
        for n in sizes
    )
    prompt = builder.expand(builder.request_ids(instruction), len(states))
    return TrainingSample("p", AudioRef("a"), prompt, completions)


def test_log_probs_are_those_of_transformers_own_forward(path, extractor):
    builder = PromptBuilder.load(path, FAMILY)
    clips = [noise(1.3, 1), noise(4.2, 2)]
    plain, ours = (FAMILY.load(path, "float32", "eager") for _ in range(2))
    policy = SpeechPolicy(ours, FAMILY, LoraConfig(rank=2, alpha=4), train_projector=True)
    states = FAMILY.encode(ours, extractor, clips)
    assert policy.audio_width == WIDTH
    samples = [sample(builder, states[0], [5, 3], "sum up", 0), sample(builder, states[1], [4], "what was said?", 1)]
    rows, audio = pack(samples, builder.end_id), torch.cat(states)
    nobody = torch.zeros(len(rows.targets), 0, dtype=torch.long)
    found, _, _ = policy(rows, audio, builder.audio_id, nobody, 1.0, 4)
    deaf, _, _ = policy(rows, torch.zeros_like(audio), builder.audio_id, nobody, 1.0, 4)
    expected = []
    for group, clip in zip(samples, clips, strict=True):
        for completion in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt_ids, completion.token_ids])).long()[None]
            with torch.no_grad():
                logits = plain(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False,
                               **library_inputs(extractor, [clip])).logits  # fmt: skip
            logprobs = logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
            expected.append(logprobs.gather(-1, torch.tensor(completion.token_ids.tolist())[:, None])[:, 0])
    torch.testing.assert_close(found.detach(), torch.cat(expected), atol=5e-5, rtol=1e-5)
    assert float((found - deaf).detach().abs().max()) > 0.1
    found.sum().backward()
    assert float(policy.projector.weight.grad.abs().max()) > 0


def test_audio_positions_are_the_same_on_all_three_axes(path, model):
    builder = PromptBuilder.load(path, FAMILY)
    ids = torch.from_numpy(np.array(builder.expand(builder.request_ids("sum up"), 33))).long()[None]
    positions, _ = model.get_rope_index(ids, attention_mask=torch.ones_like(ids), audio_seqlens=torch.tensor([132]))
    assert torch.equal(positions, torch.arange(ids.shape[1]).expand(3, 1, -1))


def test_what_is_trained_is_named_as_on_disk(path, model):
    from safetensors import safe_open

    fresh = FAMILY.load(path, "float32", "eager")
    policy = SpeechPolicy(fresh, FAMILY, LoraConfig(rank=2, alpha=4), train_projector=True)
    tensors = {name: torch.ones_like(p) for name, p in policy.trainable().items()}
    with safe_open(path / "model.safetensors", "pt") as file:
        on_disk = {n: file.get_tensor(n) for n in file.keys()}  # noqa: SIM118
    adapted = set(adapted_weights(tensors))
    assert len(adapted) == 7 * LAYERS
    assert whole_tensors(tensors) == ("thinker.audio_tower.proj.bias", "thinker.audio_tower.proj.weight")
    assert adapted | set(whole_tensors(tensors)) <= set(on_disk)
    merged = {n: merged_tensor(t, n, tensors, 1.0, t.dtype) for n, t in on_disk.items()}
    assert {n for n in on_disk if not torch.equal(merged[n], on_disk[n])} == adapted | set(whole_tensors(tensors))
    frozen = {policy.adapter_name(n) for n, p in policy.named_parameters() if not p.requires_grad}
    assert frozen == {n for n in on_disk if n.startswith(("thinker.model.", "thinker.lm_head."))}
