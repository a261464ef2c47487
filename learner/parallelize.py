"""FSDP2 over the policy: every decoder layer a unit, the rest the root."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

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
