"""The engine on a tiny random model: real vLLM, in this process."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from actors.engine import Engine, EngineBroken, EngineOutput, EngineRefusal, EngineRequest
from speechsum.config import EngineConfig
from speechsum.errors import RunError
from speechsum.families import FAMILIES
from speechsum.lora import merge, pair_names
from speechsum.prompting import PromptBuilder
from speechsum.types import PushMode, SamplingParams
from speechsum.weights import WeightsRefused, make_payload, to_numpy, to_torch
from tests.tiny import noise

GREEDY = SamplingParams(n=1, temperature=0.0, max_tokens=8)
SMALL = EngineConfig(threads=1, max_model_len=256, max_num_seqs=32, kv_cache_gb=0.05)


@pytest.fixture(scope="module")
def engine(tiny_path):
    engine = Engine(tiny_path, SMALL, dtype="float32", receives="object_store")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ids(tiny_path):
    return PromptBuilder.load(tiny_path, FAMILIES["audio_flamingo3"]).request_ids("summarize what is said")


@pytest.fixture(scope="module")
def state(tiny_path):
    from safetensors.torch import load_file

    return load_file(tiny_path / "model.safetensors")


def lora(state, seed, targets=("q_proj", "gate_proj")):
    """A large random adapter on `targets` plus a shifted projector bias, as an ADAPTER payload's tensors."""
    import torch

    torch.manual_seed(seed)
    tensors = {}
    for name, weight in state.items():
        if name.startswith("language_model.") and name.split(".")[-2] in targets and name.endswith("weight"):
            a, b = pair_names(name)
            tensors[a] = to_numpy(torch.randn(4, weight.shape[1]))
            tensors[b] = to_numpy(torch.randn(weight.shape[0], 4))
    tensors["multi_modal_projector.linear_2.bias"] = to_numpy(state["multi_modal_projector.linear_2.bias"] + 1.0)
    return tensors


def merged(state, tensors, scale):
    """The same adapter as a FULL payload's tensors, merged here."""
    full = {}
    for name, weight in state.items():
        a, b = pair_names(name)
        if a in tensors:
            weight = merge(weight, to_torch(tensors[a]), to_torch(tensors[b]), scale)
        full[name] = to_numpy(weight)
    return full | {k: v for k, v in tensors.items() if k in state}


def greedy(engine, ids):
    """Greedy completions of two clips; (ids, log-probs) pairs to compare."""
    outputs = engine.generate([EngineRequest(ids, noise(1.0, s)) for s in (1, 2)], GREEDY)
    return [(o.samples[0].token_ids.tolist(), o.samples[0].logprobs.tolist()) for o in outputs]


def test_seeded_requests_may_be_more_than_one_prefill_holds(engine, ids):
    """vLLM's CPU build falls over a seeded request whose prompt it has to run in two parts."""
    requests = [EngineRequest(ids, noise(8.0, s), seed=s) for s in range(32)]
    outputs = engine.generate(requests, SamplingParams(n=1, max_tokens=2))
    assert sum(len(out.prompt_ids) for out in outputs) > 2048
    assert len({out.samples[0].token_ids.tobytes() for out in outputs}) > 1


def test_placeholder_is_expanded_at_25_tokens_a_second(engine, ids):
    (out,) = engine.generate([EngineRequest(ids, noise(1.0))], GREEDY)
    assert len(out.prompt_ids) == len(ids) - 1 + 25
    assert out.prompt_ids.dtype == np.int32
    assert not out.prompt_ids.flags.writeable


def test_longer_than_one_window(engine, ids):
    (out,) = engine.generate([EngineRequest(ids, noise(3.0))], GREEDY)
    assert len(out.prompt_ids) == len(ids) - 1 + 75


def test_samples_of_a_group_differ_and_lengths_agree(engine, ids):
    (out,) = engine.generate([EngineRequest(ids, noise(1.0))], SamplingParams(n=4, max_tokens=8))
    assert len(out.samples) == 4
    assert len({tuple(s.token_ids) for s in out.samples}) > 1
    assert all(len(s.token_ids) == len(s.logprobs) <= 8 for s in out.samples)


def test_seed_decides_the_samples(engine, ids):
    sampling = SamplingParams(n=2, max_tokens=8)

    def draw(seed):
        (out,) = engine.generate([EngineRequest(ids, noise(1.0), seed)], sampling)
        return [s.token_ids.tolist() for s in out.samples]

    assert draw(7) == draw(7) != draw(8)


def test_logprobs_are_of_the_tempered_distribution(engine, ids):
    """Sampled tokens against the softmax of logits / temperature, from the model in transformers."""
    import torch

    temperature = 0.5
    (out,) = engine.generate(
        [EngineRequest(ids, noise(1.0), 3)], SamplingParams(n=3, temperature=temperature, max_tokens=6)
    )
    logits = reference_logits(engine, out, noise(1.0))
    for sample, rows in zip(out.samples, logits, strict=True):
        tokens = torch.tensor(sample.token_ids).long()
        raw = torch.log_softmax(rows, -1).gather(1, tokens[:, None])[:, 0].numpy()
        tempered = torch.log_softmax(rows / temperature, -1).gather(1, tokens[:, None])[:, 0].numpy()
        np.testing.assert_allclose(sample.logprobs, tempered, atol=1e-3)
        assert np.abs(raw - tempered).max() > 0.01


def reference_logits(engine, out, samples):
    """[R, V] logits of each sample by transformers, prompt and audio included."""
    import torch
    from transformers import AutoProcessor

    path = engine.path
    model = FAMILIES["audio_flamingo3"].load(path, "float32")
    extractor = AutoProcessor.from_pretrained(path).feature_extractor
    features = extractor(
        samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True, padding="max_length"
    )
    rows = []
    for sample in out.samples:
        tokens = torch.tensor(np.concatenate([out.prompt_ids, sample.token_ids])).long()[None]
        with torch.no_grad():
            logits = model(
                input_ids=tokens, input_features=features.input_features, input_features_mask=features.attention_mask
            ).logits[0]
        rows.append(logits[len(out.prompt_ids) - 1 : -1])
    return rows


def test_prompt_logprobs_agree_with_generation(engine):
    """Greedy continuation of a text prompt, scored again as a prompt."""
    prompt = engine.tokenizer("the meeting moved to friday").input_ids
    (out,) = engine.generate([EngineRequest(prompt)], SamplingParams(n=1, temperature=1.0, max_tokens=6, seed=1))
    whole = [*prompt, *out.samples[0].token_ids.tolist()]
    (scored,) = engine.prompt_logprobs([whole], [len(prompt)])
    np.testing.assert_allclose(scored, out.samples[0].logprobs, atol=1e-4)


def test_candidates_are_the_likeliest_tokens_in_each_place(engine, tiny_path):
    """Against transformers on the same text: the tokens that are there, and the five likeliest instead of them."""
    import torch

    prompt = engine.tokenizer("the meeting moved to friday noon").input_ids
    (found,) = engine.candidates([prompt], [3], 5)
    model = FAMILIES["audio_flamingo3"].load(tiny_path, "float32")
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([prompt])).logits[0, 2:-1].log_softmax(-1)
    top = logprobs.topk(5)
    there = logprobs.gather(-1, torch.tensor(prompt[3:])[:, None])[:, 0]
    assert found.top.shape == (len(prompt) - 3, 5)
    np.testing.assert_allclose(found.sampled, there.numpy(), atol=1e-4)
    np.testing.assert_allclose(found.top, top.values.numpy(), atol=1e-4)
    assert (found.top_ids == top.indices.numpy()).mean() > 0.95  # two that are equally likely may change places


def test_writing_is_greedy_generation_from_text(engine, monkeypatch):
    prompt = engine.tokenizer("the meeting moved to").input_ids
    (text,) = engine.write([prompt], GREEDY)
    assert text == engine.generate([EngineRequest(prompt)], GREEDY)[0].samples[0].text
    with pytest.raises(RunError, match="would not take a prompt"):
        engine.write([[]], GREEDY)
    engine.write([[5] * 248], GREEDY)
    monkeypatch.setattr(engine, "generate", lambda requests, sampling: pytest.fail("something was generated"))
    with pytest.raises(RunError, match=r"a prompt has 249 tokens, and 248 fit before 8 of an answer; raise"):
        engine.write([prompt, [5] * 249], GREEDY)


def test_one_bad_prompt_does_not_fail_its_batch(engine, ids):
    good = EngineRequest(ids, noise(1.0))
    too_long = EngineRequest([*ids, *[5] * 400], noise(1.0))
    outputs = engine.generate([good, too_long, good], GREEDY)
    assert [type(o) for o in outputs] == [EngineOutput, EngineRefusal, EngineOutput]
    assert "256" in outputs[1].reason


def test_full_push_changes_the_output_and_pushing_back_restores_it(engine, ids, state):
    before = greedy(engine, ids)
    engine.update_weights(make_payload(1, PushMode.FULL, merged(state, lora(state, 1), 0.5)))
    assert greedy(engine, ids) != before
    engine.update_weights(make_payload(2, PushMode.FULL, {k: to_numpy(v) for k, v in state.items()}))
    assert greedy(engine, ids) == before


def test_adapter_push_equals_full_push(engine, ids, state):
    tensors = lora(state, 2)
    engine.update_weights(make_payload(1, PushMode.FULL, merged(state, tensors, 0.5)))
    full = greedy(engine, ids)
    engine.update_weights(make_payload(2, PushMode.ADAPTER, tensors, scale=0.5))
    assert greedy(engine, ids) == full


def test_adapter_push_undoes_what_the_last_one_touched(engine, ids, state):
    engine.update_weights(make_payload(1, PushMode.FULL, {k: to_numpy(v) for k, v in state.items()}))
    before = greedy(engine, ids)
    engine.update_weights(make_payload(2, PushMode.ADAPTER, lora(state, 3), scale=0.5))
    assert greedy(engine, ids) != before
    zero = {k: np.zeros_like(v) for k, v in lora(state, 3, targets=("o_proj",)).items() if ".lora_" in k}
    engine.update_weights(make_payload(3, PushMode.ADAPTER, zero, scale=0.5))
    assert greedy(engine, ids) == before


def test_prefix_cache_is_dropped(engine, ids, state):
    """The same prompt right after a push must not read blocks of the old weights."""
    long = EngineRequest(ids, noise(4.0))
    engine.generate([long], GREEDY)
    engine.generate([long], GREEDY)
    tensors = lora(state, 4)
    engine.update_weights(make_payload(1, PushMode.ADAPTER, tensors, scale=0.5))
    warm = engine.generate([long], GREEDY)
    engine.reset_caches()
    cold = engine.generate([long], GREEDY)
    assert warm[0].samples[0].logprobs.tolist() == cold[0].samples[0].logprobs.tolist()


def test_damaged_payload_is_refused_and_the_old_weights_stay(engine, ids, state):
    before = greedy(engine, ids)
    payload = make_payload(9, PushMode.ADAPTER, lora(state, 5), scale=0.5)
    name = next(iter(payload.tensors))
    torn = replace(payload, tensors=payload.tensors | {name: payload.tensors[name] + 1})
    with pytest.raises(WeightsRefused, match="version 9 arrived damaged"):
        engine.update_weights(torn)
    assert greedy(engine, ids) == before


@pytest.mark.parametrize("fault", ["unknown", "shape", "half"])
def test_payload_of_another_model_is_refused_and_the_old_weights_stay(engine, ids, state, fault):
    before = greedy(engine, ids)
    tensors = lora(state, 6)
    if fault == "unknown":
        tensors["language_model.model.layers.99.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    elif fault == "shape":
        tensors["multi_modal_projector.linear_2.bias"] = np.zeros(3, np.float32)
    else:
        del tensors[next(n for n in tensors if n.endswith("lora_B"))]
    with pytest.raises(WeightsRefused):
        engine.update_weights(make_payload(9, PushMode.ADAPTER, tensors, scale=0.5))
    assert greedy(engine, ids) == before


def test_an_engine_that_cannot_drop_what_the_old_weights_made_serves_nobody():
    engine = Engine.__new__(Engine)
    engine._broken = ""
    engine._llm = SimpleNamespace(
        start_weight_update=lambda: None, finish_weight_update=lambda: None, reset_prefix_cache=lambda: False
    )
    engine.start_update()
    with pytest.raises(EngineBroken, match="prefix cache could not be dropped"):
        engine.finish_update()
    with pytest.raises(EngineBroken, match="start the engine again"):
        engine.prompt_logprobs([[1, 2]], [1])


def test_closed_engine_says_so(tiny_path):
    engine = Engine.__new__(Engine)
    engine._broken = "engine is closed"
    with pytest.raises(EngineBroken, match="closed"):
        engine.generate([], GREEDY)
