"""Rollouts: version rules and failures on a stand-in engine, then the real one on a tiny model."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from actors.engine import Engine, EngineOutput, EngineRefusal, EngineSample
from actors.rollout import BASE_VERSION, Rollout, RolloutFailure, StaleWeights
from speechsum.audio import AudioError, AudioFault
from speechsum.config import EngineConfig
from speechsum.families import FAMILIES
from speechsum.prompting import PromptBuilder, transcript_ids
from speechsum.types import AudioRef, FinishReason, Prompt, PushMode, SamplingParams, TrajectoryGroup, trajectory_id
from speechsum.weights import WeightsRefused, make_payload, to_numpy
from tests.tiny import noise

SAMPLING = SamplingParams(n=2, max_tokens=4, seed=5)


class StandInEngine:
    """Says the prompt's length; keeps what it was given."""

    def __init__(self, *, logprob=-1.0, refuse=()):
        self.logprob, self.refuse = logprob, refuse
        self.seeds, self.received = [], []

    def generate(self, requests, sampling):
        self.seeds += [r.seed for r in requests]
        return [self._one(i, r, sampling) for i, r in enumerate(requests)]

    def write(self, prompts, sampling):
        return [f"{len(ids)} ids" for ids in prompts]

    def _one(self, i, request, sampling):
        if i in self.refuse:
            return EngineRefusal("too long")
        sample = EngineSample(np.array([7, 2], np.int32), np.full(2, self.logprob, np.float32), "hi", FinishReason.STOP)
        return EngineOutput(np.array(request.prompt_ids, np.int32), (sample,) * sampling.n)

    def update_weights(self, payload):
        payload.verify()
        self.received.append(payload.version.version)


def draw(name, epoch=0, instruction="summarize what is said"):
    return epoch, Prompt(id=name, audio=AudioRef(f"/data/{name}.wav"), instruction=instruction)


def payload(version, value=1.0):
    return make_payload(version, PushMode.FULL, {"w": np.full(3, value, np.float32)})


@pytest.fixture(scope="module")
def builder(tiny_path):
    return PromptBuilder.load(tiny_path, FAMILIES["audio_flamingo3"])


@pytest.fixture
def make(builder):
    def load(ref, limits):
        if "broken" in ref.path:
            raise AudioError(ref.key, AudioFault.TRUNCATED, "is cut short")
        return noise(0.5, seed=len(ref.path))

    return lambda engine=None: Rollout(engine or StandInEngine(), builder, load=load)


def test_group_carries_ids_version_and_logprobs(make):
    rollout = make()
    rollout.receive(payload(3))
    (group,) = rollout.generate([draw("a", epoch=2)], SAMPLING, "run", 3)
    assert group.prompt.id == "a"
    assert [t.id for t in group.trajectories] == [trajectory_id("run", 2, "a", i) for i in range(2)]
    assert {t.policy_version for t in group.trajectories} == {3}
    assert all(len(t.token_ids) == len(t.logprobs) == 2 for t in group.trajectories)
    assert pickle.loads(pickle.dumps(group)).prompt == group.prompt


def test_older_weights_than_asked_for_are_never_served(make):
    rollout = make()
    assert rollout.generate([draw("a")], SAMPLING, "run", BASE_VERSION)
    with pytest.raises(StaleWeights, match="holds weights version -1, asked for at least 0"):
        rollout.generate([draw("a")], SAMPLING, "run", 0)
    rollout.receive(payload(4))
    assert rollout.generate([draw("a")], SAMPLING, "run", 2)


def test_in_text_mode_the_transcript_is_read_by_the_weights_that_were_asked_for(make, builder):
    rollout = make()
    prompts = [Prompt(said, AudioRef("/data/broken.wav"), "sum up", said) for said in ("anna", "anna must send report")]
    expected = [f"{len(transcript_ids(builder.tokenizer, 'sum up', p.transcript))} ids" for p in prompts]
    assert rollout.write(prompts, SAMPLING, BASE_VERSION) == expected
    assert len(set(expected)) == 2
    with pytest.raises(StaleWeights, match="asked for at least 1"):
        rollout.write(prompts, SAMPLING, 1)


def test_failures_cost_their_own_prompt_only(make):
    rollout = make(StandInEngine(refuse={1}))
    good, broken, refused, control = rollout.generate(
        [draw("a"), draw("broken"), draw("b"), draw("c", instruction="hello <sound>")], SAMPLING, "run", BASE_VERSION
    )
    assert isinstance(good, TrajectoryGroup)
    assert isinstance(broken, RolloutFailure)
    assert broken.prompt_id == "broken"
    assert "truncated" in broken.reason
    assert refused == RolloutFailure("b", "engine: too long")
    assert isinstance(control, RolloutFailure)
    assert "<sound>" in control.reason
    assert rollout.metrics()["rollout/failures"] == 3
    assert rollout.metrics()["rollout/groups"] == 1


def test_non_finite_logprobs_do_not_leave_the_actor(make):
    (failure,) = make(StandInEngine(logprob=np.nan)).generate([draw("a")], SAMPLING, "run", BASE_VERSION)
    assert isinstance(failure, RolloutFailure)
    assert "finite" in failure.reason


def test_every_draw_has_a_seed_of_its_own_that_does_not_depend_on_its_batch(make):
    engine = StandInEngine()
    rollout = make(engine)
    rollout.generate([draw("a"), draw("b"), draw("a", epoch=1)], SAMPLING, "run", BASE_VERSION)
    rollout.generate([draw("b")], SAMPLING, "run", BASE_VERSION)
    a, b, a1, again = engine.seeds
    assert len({a, b, a1}) == 3
    assert again == b


def test_repeated_push_is_applied_once(make):
    engine = StandInEngine()
    rollout = make(engine)
    assert rollout.receive(payload(1)) == 1
    assert rollout.receive(payload(1)) == 1
    assert engine.received == [1]


@pytest.mark.parametrize("late", [payload(1), payload(2, value=9.0)])
def test_push_that_is_not_newer_is_refused(make, late):
    rollout = make()
    rollout.receive(payload(2))
    with pytest.raises(WeightsRefused, match="not newer than 2"):
        rollout.receive(late)
    assert rollout.version == 2


def test_refused_push_keeps_the_old_version_and_says_why(make):
    rollout = make()
    rollout.receive(payload(1))
    torn = replace(payload(2), tensors={"w": np.zeros(3, np.float32)})
    with pytest.raises(WeightsRefused, match="damaged"):
        rollout.receive(torn)
    assert rollout.version == 1
    assert rollout.metrics()["rollout/refused_pushes"] == 1
    assert rollout.generate([draw("a")], SAMPLING, "run", 1)
    with pytest.raises(StaleWeights, match="refused: weights version 2 arrived damaged"):
        rollout.generate([draw("a")], SAMPLING, "run", 2)
    rollout.receive(payload(2))
    assert rollout.refusal == ""


def test_push_must_be_the_announced_one(make):
    with pytest.raises(WeightsRefused, match="version 5 was announced, version 4 arrived"):
        make().receive(payload(4), payload(5).version)


@pytest.fixture(scope="module")
def engine(tiny_path):
    config = EngineConfig(threads=1, max_model_len=256, max_num_seqs=16, kv_cache_gb=0.05)
    engine = Engine(tiny_path, config, dtype="float32", receives="object_store")
    yield engine
    engine.close()


def test_real_engine_end_to_end(make, engine, tiny_path, builder):
    from safetensors.torch import load_file

    rollout = make(engine)
    draws = [draw("a"), draw("broken"), draw("bb")]
    first = rollout.generate(draws, SAMPLING, "run", BASE_VERSION)
    assert [type(r) for r in first] == [TrajectoryGroup, RolloutFailure, TrajectoryGroup]
    assert (first[0].prompt_ids == builder.audio_id).sum() == 12  # half a second
    again = rollout.generate(draws, SAMPLING, "run", BASE_VERSION)
    assert texts(first) == texts(again)
    state = {k: to_numpy(v * 1.5) for k, v in load_file(tiny_path / "model.safetensors").items()}
    assert rollout.receive(make_payload(0, PushMode.FULL, state)) == 0
    moved = rollout.generate(draws, SAMPLING, "run", 0)
    assert texts(moved) != texts(first)
    assert moved[0].trajectories[0].id == first[0].trajectories[0].id
    assert rollout.metrics()["rollout/audio_s"] == pytest.approx(3.0)


def texts(rolled):
    return [[t.token_ids.tolist() for t in r.trajectories] for r in rolled if isinstance(r, TrajectoryGroup)]
