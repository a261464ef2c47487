"""Weights from GPU to GPU, by vLLM's own trainer side: NCCL between nodes, CUDA IPC where both share a GPU.

NOT RUN ON A GPU. What stands here is bookkeeping around `WeightTransferTrainerFactory`; the transfer, and the rules for
who waits for whom, are vLLM's. Every tensor of the model travels, merged: vLLM rebuilds its fused layers from all of
their parts. Unlike a push through the object store it carries no checksum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from learner.publisher import Publisher, touched

if TYPE_CHECKING:
    from torch import Tensor

    from learner.learner import Learner


class RolloutClient:
    """vLLM's `VLLMWeightSyncClient` over rollout actors: each call goes to all and waits for all.

    `version` is the number under which the weights now under way will be served.
    """

    def __init__(self, actors: Sequence[Any]) -> None:
        self.actors = list(actors)
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Bring every engine to the rendezvous; NCCL numbers them from 1 on, as the sender is 0."""
        ranked = "rank_offset" in init_info
        infos = [init_info | ({"rank_offset": i} if ranked else {}) for i in range(1, len(self.actors) + 1)]
        ray.get([actor.join_transfer.remote(info) for actor, info in zip(self.actors, infos, strict=True)])

    def start_weight_update(self) -> None:
        """See `Engine.start_update`."""
        ray.get([actor.start_update.remote() for actor in self.actors])

    def update_weights(self, update_info: Any) -> None:
        """See `Engine.take_update`."""
        ray.get([actor.take_update.remote(update_info) for actor in self.actors])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the weights in force as `version`; vLLM's own number is not used."""
        ray.get([actor.finish_update.remote(self.version) for actor in self.actors])


class MergedSource(WeightSource):
    """Every tensor of the model as the learner holds it, on the learner's device. To iterate is collective."""

    def __init__(self, publisher: Publisher, learner: Learner) -> None:
        self.publisher, self.learner = publisher, learner

    def metadata(self) -> list[ParamMeta]:
        """Names, dtypes and shapes of what iteration will yield, without gathering anything."""
        names, dtype = set(self.learner.parameters), self.publisher.dtype
        return [
            ParamMeta(name, dtype if touched(name, names) else base.dtype, tuple(base.shape))
            for name, base in self.publisher.base()
        ]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.publisher.merged(self.learner.adapter()):
            yield name, tensor.to(self.learner.device)


class Broadcaster:
    """One rank's end. `address` is where rank 0 can hold the rendezvous; IPC needs none."""

    def __init__(
        self, backend: str, rank: int, actors: Sequence[Any], source: WeightSource, address: tuple[str, int]
    ) -> None:
        self.client = RolloutClient(actors)
        info = _init_info(backend, rank, 1 + len(actors), address)
        self.engine = WeightTransferTrainerFactory.trainer_init(info, client=self.client, source=source)

    def send(self, version: int) -> None:
        """Send what `source` yields to all actors, which serve it as `version` from then on. Collective."""
        self.client.version = version
        self.engine.send_weights()


def _init_info(backend: str, rank: int, world_size: int, address: tuple[str, int]) -> Any:
    if backend == "nccl":
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        host, port = address
        return NCCLTrainerInitInfo(master_address=host, master_port=port, world_size=world_size, rank=rank)
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    return IPCTrainerInitInfo(packed=True, rank=rank)
