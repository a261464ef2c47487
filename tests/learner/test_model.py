"""A row that holds a group is as good as a row for each completion, and both as good as transformers' own forward."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor

from learner.losses import grpo_loss, token_weights
from learner.model import PADDING, SpeechPolicy, pack, tree_mask
from speechsum.families import FAMILIES
from speechsum.lora import adapted_weights, pair_names, whole_tensors
from speechsum.types import TrainingSample
from tests.learner.bench import CLIPS, FAMILY, LORA, Bench, sample
from tests.tiny import LAYERS, noise
from tests.tiny_families import granite_speech


@pytest.fixture(scope="module")
def bench(tiny_path):
    return Bench(tiny_path)


def alone(item):
    """The same completions, each in a sample of its own."""
    return [
        TrainingSample(item.prompt_id, item.audio, item.prompt_ids, (completion,)) for completion in item.completions
    ]


# --- layout ----------------------------------------------------------------------------------------------------------


def test_pack_by_hand():
    rows = pack([sample([10, 11, 12], [[20, 21], [30]]), sample([13], [[40, 41, 42], [50, 51]])], pad_id=9)
    assert rows.ids.tolist() == [[10, 11, 12, 20], [13, 40, 41, 50]]
    assert rows.positions.tolist() == [[0, 1, 2, 3], [0, 1, 2, 1]]
    assert rows.segments.tolist() == [[0, 0, 0, 1], [0, 1, 1, 2]]
    assert rows.predictors.tolist() == [2, 3, 2, 4, 5, 6, 4, 7]
    assert rows.targets.tolist() == [20, 21, 30, 40, 41, 42, 50, 51]
    assert rows.tokens == 8


def test_padding_by_hand():
    rows = pack([sample([10, 11], [[20, 21]]), sample([13], [[40]])], pad_id=9)
    assert rows.ids.tolist() == [[10, 11, 20], [13, 9, 9]]
    assert rows.segments.tolist() == [[0, 0, 1], [0, PADDING, PADDING]]
    assert rows.predictors.tolist() == [1, 2, 3]


def test_rows_move_whole():
    rows = pack([sample([10, 11], [[20, 21]]), sample([13], [[40]])], pad_id=9)
    there = rows.to(torch.device("meta"))
    for field in fields(rows):
        ours, moved = getattr(rows, field.name), getattr(there, field.name)
        assert (moved.device.type, moved.shape, moved.dtype) == ("meta", ours.shape, ours.dtype)


def test_mask_by_hand():
    (mask,) = tree_mask(torch.tensor([[0, 0, 1, 1, 2, PADDING, PADDING]]), torch.float32)[0]
    assert (mask == 0).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]
    assert set(mask.unique().tolist()) == {0.0, torch.finfo(torch.float32).min}


IDS = st.lists(st.integers(0, 300), min_size=1, max_size=6)


@given(st.lists(st.tuples(IDS, st.lists(IDS, min_size=1, max_size=4)), min_size=1, max_size=4))
@settings(deadline=None)
def test_every_target_is_predicted_from_its_prompt_and_its_own_past(shapes):
    rows = pack([sample(prompt, completions) for prompt, completions in shapes], pad_id=2)
    visible = (tree_mask(rows.segments, torch.float32) == 0)[:, 0]
    length = rows.ids.shape[1]
    n = 0
    for b, (prompt, completions) in enumerate(shapes):
        for completion in completions:
            for t, target in enumerate(completion):
                row, at = divmod(int(rows.predictors[n]), length)
                seen = visible[row, at]
                assert row == b
                assert rows.targets[n] == target
                assert rows.ids[row][seen].tolist() == prompt + completion[:t]
                assert rows.positions[row][seen].tolist() == list(range(len(prompt) + t))
                n += 1
    assert n == len(rows.targets) == len(rows.predictors)


# --- one forward for a group -----------------------------------------------------------------------------------------


def test_a_group_in_one_row_equals_a_row_for_each_completion(bench):
    group = bench.sample([5, 1, 9, 3])
    weights = torch.linspace(-1, 2, 18)
    packed, _ = bench.run([group])
    packed_grads = bench.gradients(packed, weights)
    single, _ = bench.run(alone(group))
    single_grads = bench.gradients(single, weights)
    torch.testing.assert_close(packed, single, atol=2e-5, rtol=1e-5)
    assert all(float(g.abs().max()) > 0 for g in packed_grads.values())
    for name, gradient in packed_grads.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient / scale, single_grads[name] / scale, atol=2e-5, rtol=0)


@pytest.mark.parametrize("clip", list(CLIPS))
def test_log_probs_are_those_of_transformers_own_forward(bench, clip):
    group = bench.sample([4, 7], clip)
    found, _ = bench.run([group])
    processor = AutoProcessor.from_pretrained(bench.path)
    audio = processor(text=["<sound>"], audio=[noise(CLIPS[clip], list(CLIPS).index(clip))], sampling_rate=16_000)
    expected = []
    for completion in group.completions:
        ids = torch.from_numpy(np.concatenate([group.prompt_ids, completion.token_ids])).long()[None]
        with torch.no_grad():
            logits = bench.model(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False,
                input_features=audio["input_features"], input_features_mask=audio["input_features_mask"],
            ).logits  # fmt: skip
        logprobs = logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1)
        expected.append(logprobs.gather(-1, torch.tensor(completion.token_ids.tolist())[:, None])[:, 0])
    torch.testing.assert_close(found.detach(), torch.cat(expected), atol=5e-5, rtol=1e-5)


def test_no_unit_of_the_decoder_drops_out_while_it_trains(tiny_path, tmp_path):
    path = Path(shutil.copytree(tiny_path, tmp_path / "drops-out"))
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.5
    (path / "config.json").write_text(json.dumps(config))
    bench = Bench(path)
    bench.policy.train()
    group = bench.sample([5, 3])
    assert torch.equal(bench.run([group])[0], bench.run([group])[0])


def test_no_unit_of_the_projector_drops_out_while_it_trains(tmp_path):
    family = FAMILIES["granite_speech"]
    model = family.load(granite_speech(tmp_path), "float32", "eager")
    policy = SpeechPolicy(model, family, LORA, train_projector=True)
    policy.train()
    states = torch.randn(15, policy.audio_width)
    assert torch.equal(family.project(policy.projector, states), family.project(policy.projector, states))


def test_company_and_padding_change_nothing(bench):
    long, short = bench.sample([9, 4], "one"), bench.sample([2, 3], "two", instruction="budget", seed=1)
    together, entropy = bench.run([long, short])
    n = long.response_tokens
    for item, part in ((long, slice(0, n)), (short, slice(n, None))):
        logprobs, alone_entropy = bench.run([item])
        torch.testing.assert_close(together[part], logprobs, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(entropy[part], alone_entropy, atol=2e-5, rtol=1e-5)
    other_padding, _ = bench.run([long, short], pad_id=77)
    assert torch.equal(together, other_padding)
    grads, other = (bench.gradients(x, torch.ones(len(x))) for x in (together, other_padding))
    assert all(torch.equal(grads[n], other[n]) for n in grads)


def test_the_order_of_rows_carries_the_audio_along(bench):
    first, second = bench.sample([3], "one"), bench.sample([4], "two")
    forth, back = bench.run([first, second])[0], bench.run([second, first])[0]
    torch.testing.assert_close(forth, torch.cat([back[4:], back[:4]]), atol=2e-5, rtol=1e-5)


def test_a_placeholder_that_the_policy_sampled_is_just_a_token(bench):
    plain = bench.sample([4], "two")
    ids = plain.completions[0].token_ids.tolist()
    odd = sample(plain.prompt_ids, [[ids[0], bench.audio_id, *ids[2:]]], "two")
    found, _ = bench.run([odd])
    usual, _ = bench.run([plain])
    assert torch.isfinite(found).all()
    assert found[0] == usual[0]  # same past
    assert not torch.isclose(found[2], usual[2])  # another past
    assert pack([odd], 2).heard(bench.audio_id).sum() == len(bench.states["two"])


# --- the head --------------------------------------------------------------------------------------------------------


def scored(bench, monkeypatch):
    """The hidden states that get logits, a chunk at a time, as the policy runs."""
    chunks = []
    score = bench.policy._score

    def spy(hidden, *rest):
        chunks.append(hidden.detach())
        return score(hidden, *rest)

    monkeypatch.setattr(bench.policy, "_score", spy)
    return chunks


@pytest.mark.parametrize("chunk", [1, 4, 7, 1024])
def test_logits_exist_for_response_tokens_alone_and_a_chunk_at_a_time(bench, chunk, monkeypatch):
    group = bench.sample([5, 2, 7])
    whole = bench.run([group])[0]
    chunks = scored(bench, monkeypatch)
    found, _ = bench.run([group], chunk=chunk)
    assert sum(map(len, chunks)) == group.response_tokens == 14
    assert max(map(len, chunks)) <= chunk
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=1e-6)


def test_temperature_and_entropy(bench, monkeypatch):
    group = bench.sample([6])
    chunks = scored(bench, monkeypatch)
    found, entropy = bench.run([group], temperature=0.7)
    logits = bench.policy.head(chunks[0].to(bench.policy.head.weight.dtype)).detach()
    expected = torch.distributions.Categorical(logits=logits.double() / 0.7)
    targets = torch.tensor(group.completions[0].token_ids.tolist())
    torch.testing.assert_close(found.detach().double(), expected.log_prob(targets), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected.entropy(), atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad


@pytest.mark.parametrize("chunk", [2, 1024])
def test_candidates_and_the_rest_are_one_distribution(bench, monkeypatch, chunk):
    group = bench.sample([6])
    chunks = scored(bench, monkeypatch)
    candidates = torch.stack([torch.randperm(300, generator=torch.manual_seed(i))[:5] for i in range(6)])
    _, _, others = bench.score([group], candidates, temperature=0.7, chunk=chunk)
    logits = bench.policy.head(torch.cat(chunks).to(bench.policy.head.weight.dtype)).detach()
    whole = (logits.double() / 0.7).softmax(-1)
    named = whole.gather(-1, candidates)
    expected = torch.cat([named, 1 - named.sum(-1, keepdim=True)], -1).log()
    torch.testing.assert_close(others.detach().double(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(others.shape, generator=torch.manual_seed(0))
    got = bench.gradients(others, weights)
    assert all(torch.isfinite(g).all() for g in got.values())
    assert any(g.abs().sum() > 0 for g in got.values())


# --- what is trained -------------------------------------------------------------------------------------------------


def test_names_are_pairs_on_the_language_model_and_the_projector_whole(bench):
    names = set(bench.policy.trainable())
    adapted = adapted_weights(names)
    assert len(adapted) == LAYERS * len(LORA.targets)
    assert all(n.startswith("language_model.model.layers.") for n in adapted)
    assert {w.split(".")[-2] for w in adapted} == set(LORA.targets)
    assert {p for w in adapted for p in pair_names(w)} | set(whole_tensors(names)) == names
    assert whole_tensors(names) == tuple(
        f"multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("bias", "weight")
    )


def test_every_parameter_has_the_name_it_has_on_disk(bench):
    from safetensors import safe_open

    with safe_open(bench.path / "model.safetensors", "pt") as file:
        on_disk = {n for n in file.keys() if not n.startswith("audio_tower.")}  # noqa: SIM118
    frozen = {bench.policy.adapter_name(n) for n, _ in bench.policy.named_parameters() if "lora_" not in n}
    assert frozen == on_disk


def test_the_projector_may_stay_frozen(tiny_path):
    policy = SpeechPolicy(FAMILY.load(tiny_path, "float32"), FAMILY, LORA, train_projector=False)
    assert whole_tensors(policy.trainable()) == ()


def test_a_fresh_adapter_changes_nothing_but_learns(tiny_path):
    decoder = FAMILY.load(tiny_path, "float32", "eager").model.language_model
    fresh = Bench(tiny_path, trained=False)
    group = fresh.sample([6])
    ids = torch.tensor([[*group.prompt_ids.tolist(), *group.completions[0].token_ids.tolist()]])
    with torch.no_grad():
        states = [d(input_ids=ids).last_hidden_state for d in (decoder, fresh.policy.decoder)]
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)
    gradients = fresh.gradients(fresh.run([group])[0], torch.ones(6))
    assert all((float(g.abs().max()) > 0) == ("lora_A" not in n) for n, g in gradients.items())


def test_what_is_trained_is_float32_even_when_the_model_is_not(tiny_path):
    policy = SpeechPolicy(FAMILY.load(tiny_path, "bfloat16"), FAMILY, LORA, train_projector=True)
    found = {(p.requires_grad, p.dtype) for p in policy.parameters()}
    assert found == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("on_policy", [True, False])
def test_a_step_raises_what_was_better_and_lowers_what_was_worse(tiny_path, on_policy):
    bench = Bench(tiny_path)
    group = bench.sample([5, 5])
    before, _ = bench.run([group])
    advantages = torch.tensor([1.0, -1.0]).repeat_interleave(5)
    weights = token_weights([5, 5], loss_tokens=10, sequences=2)
    output = grpo_loss(
        before, before.detach() - 0.01, advantages, weights, torch.full((10,), on_policy), [5, 5],
        ratio="token", objective="clip", clip_low=0.2, clip_high=0.28, is_cap=2.0,
    )  # fmt: skip
    output.loss.backward()
    with torch.no_grad():
        for parameter in bench.policy.trainable().values():
            parameter -= 1e-3 * parameter.grad / (parameter.grad.norm() + 1e-9)
    after, _ = bench.run([group])
    better, worse = (after - before).detach().split(5)
    assert better.sum() > 0 > worse.sum()
