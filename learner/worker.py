"""One learner rank as a Ray actor: a process group, a `Learner`, and nothing else."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import ray

from learner import checkpoint as checkpoints
from learner.publisher import Publisher
from speechsum.config import RunConfig, StageConfig
from speechsum.types import PushMode, TrainingSample, WeightsVersion
from speechsum.weights import WeightsPayload


@ray.remote
class LearnerWorker:
    """Rank `rank` of `config.learner.ranks`.

    Methods are collective: the group calls them on every rank at once, all but `address` and `open_door`, which only
    the first rank is asked.
    """

    def __init__(self, config: RunConfig, rank: int, checkpoint: str) -> None:
        self.config = config
        self.rank = rank
        self.checkpoint = Path(checkpoint)

    def address(self) -> tuple[str, int]:
        """A host and free port where rank 0 can meet others."""
        with _door() as door:
            return _name(door)

    def open_door(self) -> tuple[str, int]:
        """Where the ranks can meet: a port that stays open for `join`, on this node's own address and no other."""
        self.door = _door()
        return _name(self.door)

    def join(self, host: str, port: int) -> None:
        """Meet the other ranks, then load the model."""
        import torch
        import torch.distributed as dist

        from learner.learner import Learner

        chosen = self.config.learner
        torch.set_num_threads(chosen.threads_per_rank)
        if host in ("127.0.0.1", "::1"):
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # it would listen where the host's name leads to
        patience = timedelta(seconds=chosen.collective_timeout_s)
        door = None if self.rank else self.door.detach()  # left to itself, the store listens on all interfaces
        store = dist.TCPStore(
            host, port, chosen.ranks, is_master=self.rank == 0, timeout=patience, master_listen_fd=door
        )
        dist.init_process_group(chosen.backend, store=store, rank=self.rank, world_size=chosen.ranks, timeout=patience)
        self.learner = Learner(self.config, self.checkpoint)
        self.publisher = Publisher(self.checkpoint, self.learner.policy.scale, self.learner.dtype)

    def begin_stage(self, stage: StageConfig) -> None:
        """See `Learner.begin_stage`."""
        self.learner.begin_stage(stage)

    def step(
        self, shard: Sequence[TrainingSample], loss_tokens: int, sequences: int, policy_version: int
    ) -> dict[str, float]:
        """See `Learner.step`. `shard` arrives by reference from the object store.

        A rank that fails leaves the process group, so that its peers fail at once instead of waiting for it.
        """
        try:
            return self.learner.step(shard, loss_tokens=loss_tokens, sequences=sequences, policy_version=policy_version)
        except BaseException:
            self.close()
            raise

    def logprobs(self, samples: Sequence[TrainingSample], temperature: float) -> list[np.ndarray]:
        """See `Learner.logprobs`."""
        return self.learner.logprobs(samples, temperature)

    def greedy(self, samples: Sequence[TrainingSample]) -> list[np.ndarray]:
        """See `Learner.greedy`."""
        return self.learner.greedy(samples)

    @ray.method(num_returns=2)
    def publish(self, version: int, mode: PushMode) -> tuple[WeightsVersion | None, WeightsPayload | None]:
        """The stamp and, as an object of its own, the payload; both None on every rank but the first."""
        tensors = self.learner.adapter()
        if self.rank:
            return None, None
        payload = self.publisher.payload(version, mode, tensors)
        return payload.version, payload

    def connect(self, backend: str, actors: Sequence[Any], host: str, port: int) -> None:
        """Meet the rollout actors for pushes from GPU to GPU: see `learner.broadcast`."""
        from learner.broadcast import Broadcaster, MergedSource

        source = MergedSource(self.publisher, self.learner)
        self.broadcaster = Broadcaster(backend, self.rank, actors, source, (host, port))

    def broadcast(self, version: int) -> None:
        """See `Broadcaster.send`."""
        self.broadcaster.send(version)

    def load_adapter(self, path: str) -> None:
        """Start from the adapter in a safetensors file."""
        from safetensors.torch import load_file

        self.learner.load_adapter(load_file(path))

    def save(self, folder: str, number: int, state: dict[str, Any], keep: int) -> str | None:
        """Checkpoint weights, optimizer and `state`; gives the folder on rank 0."""
        tensors, moments = self.learner.adapter(), self.learner.optimizer_state()
        reference = self.learner.reference()
        if self.rank:
            return None
        state = state | {"optimizer_step": self.learner.optimizer_step}
        return str(checkpoints.save_checkpoint(Path(folder), number, tensors, moments, state, keep, reference))

    def restore(self, path: str) -> None:
        """Continue from a checkpoint that verified. The stage must have begun."""
        tensors, moments, state = checkpoints.load_checkpoint(Path(path))
        self.learner.load_adapter(tensors)
        self.learner.load_optimizer_state(moments, int(state["optimizer_step"]))
        self.learner.load_reference(checkpoints.load_reference(Path(path)))

    def export(self, out: str) -> None:
        """A merged Hugging Face checkpoint at `out`."""
        tensors = self.learner.adapter()
        if self.rank == 0:
            checkpoints.export_merged(self.checkpoint, tensors, self.learner.policy.scale, Path(out))

    def export_adapter(self, path: str) -> None:
        """The adapter alone, in the model's dtype, as one safetensors file."""
        tensors = self.learner.adapter()
        if self.rank == 0:
            checkpoints.export_adapter(Path(path), tensors, self.learner.dtype)

    def close(self) -> None:
        """Leave the process group."""
        import torch.distributed as dist

        dist.destroy_process_group()


def _door() -> socket.socket:
    """A socket that listens on a free port of this node's address."""
    host = ray.util.get_node_ip_address()
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def _name(door: socket.socket) -> tuple[str, int]:
    host, port, *_ = door.getsockname()
    return host, port
