"""What the learner holds -> a stamped payload for the engines."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from speechsum.lora import merge, pair_names
from speechsum.types import PushMode
from speechsum.weights import WeightsPayload, make_payload, to_numpy

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Publisher:
    """Makes payloads on rank 0. `checkpoint` is the frozen base that engines started from.

    Merged, what training touches is in `dtype`, the one that learner and engines compute in: rounded to a coarser one,
    the engines would serve other weights than the learner trains. An adapter travels as it is trained, in float32.
    """

    def __init__(self, checkpoint: Path, scale: float, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.scale = scale
        self.dtype = dtype

    def payload(self, version: int, mode: PushMode, tensors: Mapping[str, Tensor]) -> WeightsPayload:
        """The adapter and projector as they are, or every tensor of the model, merged."""
        chosen = tensors if mode is PushMode.ADAPTER else dict(self.merged(tensors))
        return make_payload(version, mode, {n: to_numpy(t) for n, t in chosen.items()}, self.scale)

    def merged(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the model with the adapter in it, in the order of `base`."""
        for name, weight in self.base():
            yield name, merged_tensor(weight, name, tensors, self.scale, self.dtype)

    def base(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the checkpoint, by the name it has there."""
        from safetensors import safe_open

        for shard in sorted(self.checkpoint.glob("*.safetensors")):
            with safe_open(shard, "pt") as source:
                for name in source.keys():  # noqa: SIM118 (safe_open has keys but is no mapping)
                    yield name, source.get_tensor(name)


def merged_tensor(weight: Tensor, name: str, tensors: Mapping[str, Tensor], scale: float, dtype: torch.dtype) -> Tensor:
    """One tensor of the merged model: replaced or adapted, and then in `dtype`, or as the base has it."""
    if not touched(name, tensors):
        return weight
    if name in tensors:
        return tensors[name].to(dtype).contiguous()
    a, b = pair_names(name)
    return merge(weight.to(dtype), tensors[a], tensors[b], scale)


def touched(name: str, adapter: Collection[str]) -> bool:
    """Whether a tensor of the checkpoint is replaced or adapted by an adapter of these names."""
    return name in adapter or pair_names(name)[0] in adapter
