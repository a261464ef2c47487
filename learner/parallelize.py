"""FSDP2 over the policy: every decoder layer a unit, the rest the root; and its tensors whole again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional

from learner.model import SpeechPolicy


def shard(policy: SpeechPolicy, mesh: DeviceMesh, dtype: torch.dtype) -> SpeechPolicy:
    """Shard in place over `mesh`; compute in `dtype`, reduce gradients in float32.

    Gradients are summed over ranks, not averaged: losses are already divided by global counts.
    """
    precision = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in policy.decoder.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(policy, mesh=mesh, mp_policy=precision)
    for module in (*policy.decoder.layers, policy):
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    return policy


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Full copies on the CPU of tensors of one dtype, each sharded by `shard` or not at all; called on every rank.

    One collective for all of them: an adapter has hundreds of small tensors, and a round trip for each took ten times
    as long. Rank r of W holds the r-th of `torch.chunk(tensor, W)`, so only the last shares are short.
    """
    sharded = {name: t.detach() for name, t in tensors.items() if isinstance(t, DTensor)}
    whole = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items() if not isinstance(t, DTensor)}
    if sharded:
        whole |= _gather_sharded(sharded)
    return {name: whole[name] for name in tensors}


def _gather_sharded(tensors: Mapping[str, DTensor]) -> dict[str, Tensor]:
    mesh = next(iter(tensors.values())).device_mesh
    shares = [_padded_share(t, mesh.size()) for t in tensors.values()]
    sent = torch.cat(shares)
    received = sent.new_empty(mesh.size() * sent.numel())
    dist.all_gather_single(received, sent, group=mesh.get_group())
    columns = received.to("cpu").view(mesh.size(), -1).split([s.numel() for s in shares], dim=1)
    return {
        name: column.reshape(-1)[: t.numel()].view(t.shape)
        for (name, t), column in zip(tensors.items(), columns, strict=True)
    }


def _padded_share(tensor: DTensor, ranks: int) -> Tensor:
    """This rank's rows of `tensor` in one row, with zeros up to the length of the first rank's."""
    rows = tensor.shape[0]
    share = tensor.to_local().reshape(-1)
    longest = -(-rows // ranks) * (tensor.numel() // rows)
    return functional.pad(share, (0, longest - share.numel()))


def assign(target: Tensor, value: Tensor) -> None:
    """Copy a full tensor into one that may be sharded, each rank its part."""
    with torch.no_grad():
        value = value.to(dtype=target.dtype, device=target.device)
        if isinstance(target, DTensor):
            value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
        target.copy_(value)
