"""The learner: two ranks do what one does, and one does what its docstrings say."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from learner.checkpoint import load_checkpoint
from learner.learner import Learner
from learner.objective import PAIR_MEANS, SUMS, TOKEN_MEANS
from speechsum.errors import RunError, UserError
from speechsum.families import FAMILIES, Family
from speechsum.types import AudioRef, Completion, TrainingSample, read_only
from tests.learner import ranks
from tests.learner.ranks import FRESH, STALE, recipe, recordings, references, step
from tests.tiny import noise, recording

LR = 3e-3
SAME_WEIGHTS = {"atol": 0.02 * LR, "rtol": 0.0}
REDUCED = ("loss", "grad_norm", "lr", "entropy", *TOKEN_MEANS, *PAIR_MEANS, *SUMS)


def close(ours, theirs, **tolerance):
    """The same names in the same order, and nearly the same values."""
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance)


def same_metrics(ours, theirs):
    """Metrics are of all ranks; only times and padding depend on how many there are."""
    assert set(ours) == set(theirs)
    for name in REDUCED:
        if f"learner/{name}" in ours:
            assert ours[f"learner/{name}"] == pytest.approx(theirs[f"learner/{name}"], rel=1e-4, abs=1e-6, nan_ok=True)


# --- two ranks against one -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenes:
    """What a rank alone and each of two ranks noted, playing the same script."""

    folder: object
    alone: dict
    two: list


@pytest.fixture(scope="module")
def scenes(tiny_path, tmp_path_factory, single_rank):
    folder = tmp_path_factory.mktemp("ranks")
    recordings(folder)
    context = ranks.start(2, tiny_path, folder)
    alone = ranks.play(tiny_path, folder)  # while the others load
    return Scenes(folder, alone, ranks.wait(context, folder))


@pytest.fixture(params=["steps", "sft", "opd", "dpo"])
def stage_steps(request, scenes):
    return scenes.alone[request.param], scenes.two[0][request.param]


def test_ranks_agree_with_each_other_to_the_bit(scenes):
    first, second = scenes.two
    for note in ("start", "loaded", "stepped", "after_sft", "after_opd", "after_dpo", "reference"):
        assert first[note]
        close(first[note], second[note], atol=0.0, rtol=0.0)


def test_two_ranks_draw_the_same_adapter_as_one(scenes):
    close(scenes.alone["start"], scenes.two[0]["start"], atol=0.0, rtol=0.0)
    assert all(not t.any() for n, t in scenes.alone["start"].items() if n.endswith("lora_B"))


def test_an_adapter_comes_back_as_it_was_loaded(scenes):
    given = ranks.moved(scenes.alone["start"])
    for notes in (scenes.alone, *scenes.two):
        assert all(torch.equal(given[n], t) for n, t in notes["loaded"].items())


def test_same_loss_and_gradient_norm(stage_steps):
    for ours, theirs in zip(*stage_steps, strict=True):
        same_metrics(ours, theirs)
        assert ours["learner/skipped"] == 0
        assert ours["learner/grad_norm"] > 0.5  # so that the clip has work to do


def test_the_grpo_batch_is_a_telling_one(scenes):
    first, second = scenes.alone["steps"]
    assert first["learner/masked_tokens"] == second["learner/masked_tokens"] == 1
    assert 0 < first["learner/clip_share"] < second["learner/clip_share"] < 1
    assert first["learner/lr"] == LR / 2
    assert second["learner/lr"] == LR


@pytest.mark.parametrize("note", ["stepped", "after_lonely", "after_sft", "after_opd", "after_dpo"])
def test_same_weights(scenes, note):
    close(scenes.alone[note], scenes.two[0][note], **SAME_WEIGHTS)
    moved = (scenes.alone[note][n] - t for n, t in scenes.alone["loaded"].items())
    assert all(float(m.abs().max()) > LR / 2 for m in moved)


def test_same_moments(scenes):
    assert scenes.alone["no_moments"] == {}
    close(scenes.alone["moments"], scenes.two[0]["moments"], atol=1e-6, rtol=1e-3)
    assert len(scenes.alone["moments"]) == 2 * len(scenes.alone["start"])


def test_same_log_probs(scenes):
    for ours, theirs in zip(scenes.alone["logprobs"], scenes.two[0]["logprobs"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-4)


def test_a_preference_starts_from_the_stage_s_own_weights(scenes):
    first, second = scenes.alone["dpo"]
    assert first["learner/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["learner/dpo_margin"] == pytest.approx(0, abs=1e-5)
    assert second["learner/loss"] < first["learner/loss"]
    assert second["learner/dpo_accuracy"] > 0.5
    for notes in (scenes.alone, *scenes.two):
        close(notes["reference"], notes["after_opd"], atol=0.0, rtol=0.0)
        assert notes["dpo_lonely"]["learner/skipped"] == 0  # a rank without pairs takes part


def test_distilling_brings_the_student_to_the_teacher(scenes):
    first, second = (s["learner/teacher_divergence"] for s in scenes.alone["opd"])
    assert second < first
    assert scenes.alone["opd"][0]["learner/loss"] == pytest.approx(first, rel=1e-5)
    # the recipe's five tokens, though the teacher named seven
    assert scenes.alone["opd"][0]["learner/teacher_top"] == pytest.approx(0.85, abs=1e-5)


def test_a_poisoned_shard_skips_the_step_on_every_rank(scenes):
    for notes in (scenes.alone, *scenes.two):
        assert notes["poisoned"]["learner/skipped"] == 1
        assert not math.isfinite(notes["poisoned"]["learner/loss"])
        assert all(torch.equal(t, notes["after_poisoned"][n]) for n, t in notes["stepped"].items())


def test_a_rank_without_samples_takes_part(scenes):
    same_metrics(scenes.alone["lonely"], scenes.two[0]["lonely"])
    assert scenes.alone["lonely"]["learner/lr"] == LR  # the skipped step counted neither here nor there
    assert scenes.two[0]["lonely"]["learner/tokens"] > scenes.alone["lonely"]["learner/tokens"]  # the weightless ones


def test_nobody_has_samples(scenes):
    for notes in (scenes.alone, *scenes.two):
        assert (notes["nobody"]["learner/loss"], notes["nobody"]["learner/skipped"]) == (0, 0)
        assert all(torch.equal(t, notes["after_nobody"][n]) for n, t in notes["after_lonely"].items())


def test_restoring_gives_back_every_bit_and_continues_identically(scenes):
    for notes in (scenes.alone, *scenes.two):
        close(notes["restored"], notes["stepped"], atol=0.0, rtol=0.0)
        close(notes["restored_moments"], notes["moments"], atol=0.0, rtol=0.0)
        close(notes["after_replayed"], notes["after_lonely"], atol=0.0, rtol=0.0)
        same_metrics(notes["replayed"], notes["lonely"])


def test_one_rank_continues_what_two_saved(scenes, tiny_path):
    learner = Learner(recipe(), tiny_path)
    learner.begin_stage(learner.config.stage[0])
    tensors, moments, state = load_checkpoint(scenes.folder / "checkpoints-2" / "step_000002")
    learner.load_adapter(tensors)
    learner.load_optimizer_state(moments, state["optimizer_step"])
    close(learner.adapter(), scenes.two[0]["stepped"], atol=0.0, rtol=0.0)
    close(learner.optimizer_state(), scenes.two[0]["moments"], atol=0.0, rtol=0.0)
    files = [AudioRef(str(scenes.folder / f"{i}.wav")) for i in range(len(ranks.SECONDS))]
    same_metrics(step(learner, _as_they_were(learner, files, scenes)[:1]), scenes.two[0]["lonely"])
    close(learner.adapter(), scenes.two[0]["after_lonely"], **SAME_WEIGHTS)


def _as_they_were(learner, files, scenes):
    """The script's groups: their rollout log-probs are near those of the weights before the first step."""
    now = learner.adapter()
    learner.load_adapter(scenes.alone["loaded"])
    samples = ranks.groups(learner, files)
    learner.load_adapter(now)
    return samples


# --- one rank --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture
def make(tiny_path, single_rank):
    """A learner in its first stage, from changes to the recipe and to the stage's optimizer and loss."""

    def build(*, begun=True, stage=0, optimizer=None, loss=None, steps=8, **sections):
        learner = Learner(recipe(**sections), tiny_path)
        chosen = learner.config.stage[stage]
        changes = {
            "optimizer": chosen.optimizer.model_copy(update=optimizer or {}),
            "loss": chosen.loss.model_copy(update=loss or {}),
            "steps": steps,
        }
        if begun:
            learner.begin_stage(chosen.model_copy(update=changes))
        return learner

    return build


def group(learner, files, lengths=(4, 3), *, versions=(FRESH, FRESH), advantages=(1.0, -1.0), logprobs=None):
    """One group on the first recording; its rollout log-probs are the learner's own unless given."""
    rng = np.random.default_rng(7)
    ids = learner.prompts.expand(learner.prompts.request_ids("budget"), 25)
    made = [
        Completion(read_only(rng.integers(4, 330, n), "int32"), read_only([0.0] * n, "float32"), a, v)
        for n, v, a in zip(lengths, versions, advantages, strict=True)
    ]
    sample = TrainingSample("g", files[0], ids, tuple(made))
    found = learner.logprobs([sample]) if logprobs is None else logprobs
    return replace(sample, completions=tuple(replace(c, logprobs=lp) for c, lp in zip(made, found, strict=True)))


def test_learning_rate_warms_up_and_stays(make, files):
    learner = make(optimizer={"lr": 1.0e-3, "warmup_steps": 3})
    sample = group(learner, files)
    rates = [step(learner, [sample])["learner/lr"] for _ in range(5)]
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3])


def test_learning_rate_falls_to_a_tenth(make, files):
    learner = make(optimizer={"lr": 1.0e-3, "warmup_steps": 1, "schedule": "cosine"}, steps=4)
    sample = group(learner, files)
    rates = [step(learner, [sample])["learner/lr"] for _ in range(6)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 0.775e-3, 0.325e-3, 0.1e-3, 0.1e-3])


def test_activations_computed_twice_change_nothing_but_the_work(make, files):
    """Checkpointed layers run forward again in backward, and the step is the same."""
    runs, steps = {}, {}
    for on in (False, True):
        learner = make(stage=1, learner={"activation_checkpointing": on})
        learner.load_adapter(ranks.moved(learner.adapter()))
        runs[on] = []
        learner.policy.decoder.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=runs[on]: seen.append(1))
        steps[on] = step(learner, references(learner, files)), learner.adapter()
    assert len(runs[True]) == 2 * len(runs[False]) > 0
    same_metrics(steps[True][0], steps[False][0])
    close(steps[True][1], steps[False][1], **SAME_WEIGHTS)


def test_the_projector_has_its_own_rate(make, files):
    learner = make(optimizer={"lr": 1e-3, "projector_lr": 1e-5, "warmup_steps": 0, "weight_decay": 0.0})
    before = learner.adapter()
    step(learner, [group(learner, files)])
    moved = {n: float((t - before[n]).abs().max()) for n, t in learner.adapter().items()}
    assert max(m for n, m in moved.items() if "lora_" not in n) == pytest.approx(1e-5, rel=0.1)
    assert max(m for n, m in moved.items() if "lora_" in n) == pytest.approx(1e-3, rel=0.1)


def test_gradients_are_clipped_by_their_global_norm(make, files):
    learner = make(optimizer={"max_grad_norm": 0.01, "betas": (0.0, 0.95)})
    norm = step(learner, [group(learner, files)])["learner/grad_norm"]
    first = [t for n, t in learner.optimizer_state().items() if n.startswith("exp_avg:")]
    assert norm > 0.1  # as it was before the clip
    assert math.sqrt(sum(float(t.square().sum()) for t in first)) == pytest.approx(0.01, rel=1e-3)


def test_only_the_adapter_moves(make, files):
    learner = make()
    frozen = {n: p.full_tensor().clone() for n, p in learner.policy.named_parameters() if not p.requires_grad}
    step(learner, [group(learner, files)])
    now = dict(learner.policy.named_parameters())
    assert frozen
    assert all(torch.equal(t, now[n].full_tensor()) for n, t in frozen.items())


def test_microbatches_change_nothing_but_the_padding(make, files):
    notes = []
    for tokens in (20, 100_000):
        learner = make(learner={"microbatch_tokens": tokens})
        notes.append((step(learner, ranks.groups(learner, files)), learner.adapter()))
    same_metrics(notes[0][0], notes[1][0])
    close(notes[0][1], notes[1][1], **SAME_WEIGHTS)
    assert notes[0][0]["learner/tokens"] < notes[1][0]["learner/tokens"]


def test_a_fresh_token_on_agreeing_engines_has_ratio_one(make, files):
    learner = make()
    metrics = step(learner, [group(learner, files)])
    assert metrics["learner/logprob_gap"] == pytest.approx(0, abs=1e-5)
    assert metrics["learner/is_weight_mean"] == pytest.approx(1, abs=1e-5)
    assert metrics["learner/clip_share"] == 0
    assert metrics["learner/loss"] == pytest.approx(-(4 - 3) / 7, abs=1e-5)


def test_only_the_version_being_trained_is_on_policy(make, files):
    learner = make()
    off = [read_only(lp - 0.5, "float32") for lp in learner.logprobs([group(learner, files)])]
    fresh = step(learner, [group(learner, files, advantages=(1.0, 1.0), logprobs=off)])
    learner = make()
    stale = step(learner, [group(learner, files, advantages=(1.0, 1.0), versions=(STALE, STALE), logprobs=off)])
    assert fresh["learner/loss"] == pytest.approx(-math.exp(0.5), rel=1e-4)  # corrected, not clipped
    assert stale["learner/loss"] == pytest.approx(-1.28, rel=1e-4)  # clipped, not corrected
    assert (fresh["learner/clip_share"], stale["learner/clip_share"]) == (0, 1)


@pytest.mark.parametrize(
    ("norm", "expected"), [("token", (4 - 3) / 7), ("sequence", 0.0), ("max_tokens", (4 - 3) / (2 * 16))]
)
def test_length_norms_of_the_recipe_reach_the_loss(make, files, norm, expected):
    learner = make(loss={"length_norm": norm})
    assert step(learner, [group(learner, files)])["learner/loss"] == pytest.approx(-expected, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({"ratio": "token"}, lambda mean: -(1.28 + math.exp(-0.5)) / 2),
        ({"ratio": "sequence"}, lambda mean: -1.0),  # what rose and what fell cancel
        ({"ratio": "sequence", "objective": "cispo"}, lambda mean: -mean),
    ],
    ids=["token", "sequence", "cispo"],
)
def test_ratio_and_objective_of_the_recipe_reach_the_loss(make, files, loss, expected):
    learner = make(loss=loss)
    own = learner.logprobs([group(learner, files, (4, 2))])
    off = [read_only(lp - np.resize([0.5, -0.5], len(lp)), "float32") for lp in own]
    sample = group(learner, files, (4, 2), versions=(STALE, STALE), advantages=(1.0, 1.0), logprobs=off)
    found = step(learner, [sample])["learner/loss"]
    assert found == pytest.approx(expected(float(np.concatenate(own).mean())), rel=1e-4)


def test_log_probs_are_recomputed_at_the_rollouts_temperature(make, files):
    learner = make(rollout={"max_tokens": 16, "temperature": 0.7})
    plain = group(learner, files)
    warm = group(learner, files, logprobs=learner.logprobs([plain], 0.7))
    assert step(learner, [warm])["learner/logprob_gap"] == pytest.approx(0, abs=1e-5)
    assert step(learner, [plain])["learner/logprob_gap"] > 0.1


def test_log_probs_need_no_stage_and_are_at_the_temperature_asked_for(make, files):
    asked = [make(begun=begun, rollout={"temperature": 0.7}) for begun in (True, False)]
    sample = group(asked[0], files)
    for temperature in (1.0, 0.5):
        ours, theirs = (np.concatenate(one.logprobs([sample], temperature)) for one in asked)
        np.testing.assert_array_equal(ours, theirs)
    assert not np.allclose(*(np.concatenate(asked[0].logprobs([sample], t)) for t in (1.0, 0.7)))


def test_log_probs_are_those_of_the_weights_just_loaded(make, files):
    learner = make()
    sample = group(learner, files)
    before, adapter = np.concatenate(learner.logprobs([sample])), learner.adapter()
    learner.load_adapter(ranks.moved(adapter))
    other = np.concatenate(learner.logprobs([sample]))
    learner.load_adapter(adapter | {n: t for n, t in ranks.moved(adapter).items() if "lora_" not in n})
    projector_alone = np.concatenate(learner.logprobs([sample]))
    learner.load_adapter(adapter)
    np.testing.assert_array_equal(np.concatenate(learner.logprobs([sample])), before)
    assert not np.allclose(other, before, atol=1e-3)
    assert not np.allclose(projector_alone, before, atol=1e-3)


def test_greedy_knows_the_likeliest_tokens(make, files, tiny_path):
    learner = make()
    prompt = learner.prompts.expand(learner.prompts.request_ids("budget"), 25)
    ids = _greedy_ids(tiny_path, learner, prompt, noise(1.0, 0))
    off = [*ids[:2], ids[2] ^ 1, *ids[3:]]
    answers = [read_only(x, "int32") for x in (ids, off)]
    made = tuple(Completion(a, read_only([0.0] * 5, "float32"), 0.0, 0) for a in answers)
    right, wrong = learner.greedy([TrainingSample("g", files[0], prompt, made)])
    assert right.tolist() == [True] * 5
    assert wrong.tolist()[:3] == [True, True, False]


def _greedy_ids(path, learner, prompt, clip, n=5):
    """Arg max after arg max, by transformers' own forward."""
    from transformers import AutoProcessor

    audio = AutoProcessor.from_pretrained(path)(text=["<sound>"], audio=[clip], sampling_rate=16_000)
    model = FAMILIES["audio_flamingo3"].load(path, "float32", "eager")
    ids = prompt.tolist()
    for _ in range(n):
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]), input_features=audio["input_features"],
                input_features_mask=audio["input_features_mask"],
            ).logits[0, -1]  # fmt: skip
        ids.append(int(logits.argmax()))
    return ids[-n:]


# --- recordings ------------------------------------------------------------------------------------------------------


class Counting(Family):
    """Counts the clips it encodes."""

    def encode(self, model, extractor, clips):
        seen.extend(len(c) for c in clips)
        return super().encode(model, extractor, clips)


seen: list[int] = []


@pytest.fixture
def encoded():
    """Lengths of the clips that were encoded, for learners whose family is `Counting()`."""
    seen.clear()
    return seen


def test_a_clip_is_encoded_once(make, files, encoded):
    learner = make(stage=1)
    learner.family = Counting()
    samples = references(learner, files)
    for _ in range(2):
        step(learner, [*samples, replace(samples[0], prompt_id="again")])
    assert sorted(encoded) == sorted(round(16_000 * s) for s in ranks.SECONDS)


def test_the_placeholder_of_the_data_becomes_one_for_each_audio_token(make, files):
    learner = make(stage=1)
    samples = references(learner, files)
    expanded = [
        replace(s, prompt_ids=learner.prompts.expand(s.prompt_ids.tolist(), round(25 * seconds)))
        for s, seconds in zip(samples, ranks.SECONDS, strict=True)
    ]
    other = make(stage=1)
    assert step(learner, samples)["learner/loss"] == pytest.approx(step(other, expanded)["learner/loss"], rel=1e-6)


def test_another_recording_than_the_engines_is_refused(make, files):
    learner = make()
    sample = group(learner, files)
    told = "the engine saw 25 audio tokens and the learner encoded 10 for g; give every node .* go on with --resume"
    with pytest.raises(RunError, match=told):
        step(learner, [replace(sample, audio=files[1])])


def test_a_placeholder_that_the_policy_sampled_does_not_stop_the_run(make, files):
    learner = make()
    sample = group(learner, files)
    first, second = sample.completions
    odd = first.token_ids.copy()
    odd[1] = learner.prompts.audio_id
    sample = replace(sample, completions=(replace(first, token_ids=read_only(odd, "int32")), second))
    assert step(learner, [sample])["learner/skipped"] == 0


def test_augmentation_is_heard_in_sft_steps_alone(make, tmp_path):
    files = [recording(tmp_path / f"{i}.wav", s, i) for i, s in enumerate(ranks.SECONDS)]
    augmented = {"data": {"augment": {"noise_snr_db": (0.0, 0.0)}}}
    clean, loud = make(stage=1), make(stage=1, begun=False, **augmented)
    sample = group(clean, files)
    np.testing.assert_array_equal(*(np.concatenate(x.logprobs([sample])) for x in (clean, loud)))
    loud.begin_stage(clean.stage)
    np.testing.assert_array_equal(*(np.concatenate(x.logprobs([sample])) for x in (clean, loud)))
    losses = [step(x, references(x, files))["learner/loss"] for x in (clean, loud)]
    assert abs(losses[0] - losses[1]) > 1e-3
    loud.begin_stage(loud.config.stage[0])
    assert step(loud, [group(loud, files)])["learner/logprob_gap"] == pytest.approx(0, abs=1e-5)


# --- adapters that do not fit ----------------------------------------------------------------------------------------


def test_an_adapter_of_other_targets_is_refused(make):
    learner = make()
    tensors = learner.adapter()
    extra = tensors | {"language_model.model.layers.9.mlp.up_proj.lora_A": torch.zeros(3, 64)}
    lacking = {n: t for n, t in tensors.items() if not n.endswith("layers.1.mlp.up_proj.lora_A")}
    for wrong in (extra, lacking):
        with pytest.raises(UserError, match=r"layers\.[19]\.mlp\.up_proj\.lora_A' is on one side only"):
            learner.load_adapter(wrong)


def test_an_adapter_of_another_rank_is_refused_before_anything_is_loaded(make):
    learner = make()
    before = learner.adapter()
    last = list(before)[-1]
    wrong = {n: torch.ones_like(t) for n, t in before.items()} | {last: torch.zeros(1, 1)}
    with pytest.raises(UserError, match=r"has shape \(1, 1\), the model's .*; use the LoRA rank"):
        learner.load_adapter(wrong)
    close(learner.adapter(), before, atol=0.0, rtol=0.0)
