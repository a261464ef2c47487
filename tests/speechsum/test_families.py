"""The cropped encoder is the whole encoder, and audio tokens are counted as the processor counts them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoFeatureExtractor, AutoProcessor

from speechsum.families import FAMILIES
from tests.tiny import noise

FAMILY = FAMILIES["audio_flamingo3"]
SECONDS = [0.1, 0.13, 1.0, 7.77, 29.96, 29.985, 29.995, 30.0]


@pytest.fixture(scope="module")
def real_windows(tiny_30s_path):
    """Model, processor and extractor with windows of 30 s."""
    return _loaded(tiny_30s_path)


@pytest.fixture(scope="module")
def short_windows(tiny_path):
    """The same with windows of 2 s."""
    return _loaded(tiny_path)


def _loaded(path):
    model = FAMILY.load(path, "float32", "eager")
    return model, AutoProcessor.from_pretrained(path), AutoFeatureExtractor.from_pretrained(path)


def processor_counts(processor, clips):
    """Placeholders that the processor puts for each clip."""
    outs = [processor(text=["<sound>"], audio=[clip], sampling_rate=16_000) for clip in clips]
    return [int((out["input_ids"] == processor.audio_token_id).sum()) for out in outs]


def whole_states(model, extractor, clip):
    """What transformers' own encoder says of a clip of one window, nothing cropped before it runs."""
    features = extractor(clip, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True,
                         padding="max_length")  # fmt: skip
    with torch.no_grad():
        return model.model.audio_tower(features.input_features, features.attention_mask).last_hidden_state[0]


def test_cropped_states_are_the_whole_windows_states(real_windows):
    model, _, extractor = real_windows
    for seconds in (0.1, 0.97, 3.0, 29.98, 30.0):
        (found,) = FAMILY.encode(model, extractor, [noise(seconds)])
        whole = whole_states(model, extractor, noise(seconds))[: len(found)]
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=1e-4)


def test_states_do_not_depend_on_the_company(real_windows):
    model, _, extractor = real_windows
    clips = [noise(s, seed) for seed, s in enumerate((0.4, 2.0, 1.0))]
    together = FAMILY.encode(model, extractor, clips)
    for clip, found in zip(clips, together, strict=True):
        torch.testing.assert_close(found, FAMILY.encode(model, extractor, [clip])[0], atol=1e-4, rtol=1e-4)


def test_counts_match_the_processor_up_to_30_s(real_windows):
    model, processor, extractor = real_windows
    clips = [noise(s) for s in SECONDS]
    counts = [len(FAMILY.encode(model, extractor, [c])[0]) for c in clips]
    assert counts == processor_counts(processor, clips)
    assert counts[SECONDS.index(1.0)] == FAMILY.tokens_per_s
    assert counts[-1] == 30 * FAMILY.tokens_per_s


@given(st.integers(1600, 64_000))
@settings(max_examples=60, deadline=None)
def test_counts_match_the_processor_at_any_length(short_windows, samples):
    model, processor, extractor = short_windows
    clip = noise(samples / 16_000)
    (states,) = FAMILY.encode(model, extractor, [clip])
    assert len(clip) == samples
    assert [len(states)] == processor_counts(processor, [clip])


@pytest.mark.parametrize("extra", [1, 160, 161, 320, 321, 640, 641, 1600])
def test_a_scrap_beyond_the_window(short_windows, extra):
    model, processor, extractor = short_windows
    clip = noise(2 + extra / 16_000)
    (states,) = FAMILY.encode(model, extractor, [clip])
    assert [len(states)] == processor_counts(processor, [clip])


def test_windows_of_a_long_clip_are_encoded_one_by_one(short_windows):
    model, _, extractor = short_windows
    clip = noise(3.0)
    (states,) = FAMILY.encode(model, extractor, [clip])
    parts = FAMILY.encode(model, extractor, [clip[:32_000], clip[32_000:]])
    torch.testing.assert_close(states, torch.cat(parts), atol=1e-5, rtol=1e-5)


def test_states_are_cut_before_the_projector_and_carry_no_graph(short_windows):
    model, _, extractor = short_windows
    (states,) = FAMILY.encode(model, extractor, [noise(1.0)])
    assert states.shape == (25, model.model.multi_modal_projector.linear_1.in_features)
    assert not states.requires_grad


def test_encoding_leaves_the_encoder_as_it_was(short_windows):
    model, _, extractor = short_windows
    before = {n: p.clone() for n, p in model.named_parameters()}
    FAMILY.encode(model, extractor, [noise(0.3)])
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_loaded_model_is_frozen_and_in_evaluation_mode(short_windows):
    model, _, _ = short_windows
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_disk_names_are_those_in_the_file(short_windows, tiny_path):
    from safetensors import safe_open

    model, _, _ = short_windows
    with safe_open(tiny_path / "model.safetensors", "pt") as file:
        on_disk = set(file.keys())
    assert {FAMILY.disk_name(n) for n in model.state_dict()} == on_disk
    assert FAMILY.disk_name("something.else") == "something.else"


def test_config_is_read_through_the_family(tiny_path):
    config = AutoConfig.from_pretrained(tiny_path)
    assert FAMILY.text_config(config).model_type == "qwen2"
    assert FAMILY.audio_token_id(config) == config.audio_token_id


def test_silence_has_states_too(short_windows):
    model, _, extractor = short_windows
    (states,) = FAMILY.encode(model, extractor, [np.zeros(16_000, np.float32)])
    assert bool(torch.isfinite(states).all())
