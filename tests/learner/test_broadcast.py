"""What is ours in a push from GPU to GPU, under vLLM's own trainer engine; only the NCCL calls are stood in for."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from vllm.distributed.weight_transfer import nccl_engine

from learner import broadcast
from learner.broadcast import Broadcaster, MergedSource
from learner.model import SpeechPolicy
from learner.publisher import Publisher
from speechsum.types import PushMode
from speechsum.weights import to_torch
from tests.learner.bench import FAMILY, LORA


class FakeActor:
    """Writes down what it is told, in place of a rollout actor."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *arguments: self.calls.append((name, *arguments)))


@pytest.fixture(scope="module")
def learner(tiny_path):
    """What a source reads of a `Learner`; its adapter has left zero."""
    torch.manual_seed(3)
    parameters = SpeechPolicy(FAMILY.load(tiny_path, "float32"), FAMILY, LORA, train_projector=True).trainable()
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.05)
    gathers = []

    def adapter():
        gathers.append(1)
        return parameters

    return SimpleNamespace(parameters=parameters, adapter=adapter, device=torch.device("cpu"), gathers=gathers)


@pytest.fixture
def wire(monkeypatch):
    """What would have gone over NCCL."""
    sent = []
    monkeypatch.setattr(broadcast.ray, "get", lambda refs: refs)
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: info)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", lambda iterator, **_: sent.extend(iterator))
    return sent


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # that of the checkpoint, and another
def test_a_broadcast_sends_the_merged_model_and_serves_it_under_its_version(learner, tiny_path, wire, dtype):
    publisher = Publisher(tiny_path, 2.0, dtype)
    actors = [FakeActor(), FakeActor()]
    sender = Broadcaster("nccl", 0, actors, MergedSource(publisher, learner), ("10.0.0.1", 4321))
    sender.send(7)

    ranks = [actor.calls[0][1]["rank_offset"] for actor in actors]
    assert ranks == [1, 2]
    for actor in actors:
        names = [name for name, *_ in actor.calls]
        assert names == ["join_transfer", "start_update", "take_update", "finish_update"]
        assert actor.calls[0][1]["master_address"] == "10.0.0.1"
        assert actor.calls[0][1]["world_size"] == 3
        assert actor.calls[-1] == ("finish_update", 7)

    announced = actors[0].calls[2][1]
    assert announced["names"] == [name for name, _ in wire]
    assert set(announced["names"]) == set(load_file(tiny_path / "model.safetensors"))
    expected = publisher.payload(7, PushMode.FULL, learner.parameters).tensors
    for name, tensor in wire:
        assert torch.equal(tensor, to_torch(np.array(expected[name])))


def test_another_rank_gathers_along_and_tells_the_actors_nothing(learner, tiny_path, wire):
    learner.gathers.clear()
    actor = FakeActor()
    source = MergedSource(Publisher(tiny_path, 2.0, torch.float32), learner)
    Broadcaster("nccl", 1, [actor], source, ("10.0.0.1", 4321)).send(1)
    assert learner.gathers == [1]
    assert actor.calls == []
    assert wire == []
