"""Which floating-point format a model computes in, where its recipe leaves that open."""

from __future__ import annotations

from typing import Literal

Precision = Literal["auto", "bfloat16", "float32"]
"""`auto` is bfloat16 where the hardware multiplies it fast and float32 elsewhere; each node decides for itself."""


def resolved(precision: Precision, *, gpu: bool) -> Literal["bfloat16", "float32"]:
    """What `precision` means on this node, for a model on its GPU or its CPU."""
    if precision != "auto":
        return precision
    return "bfloat16" if gpu or cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether oneDNN has bfloat16 kernels for this CPU (x86 with AVX-512, Arm with BF16).

    Where it has none, as on most laptops, PyTorch and vLLM multiply bfloat16 one dot product at a time, at a fraction
    of float32's speed (docs/experiments.md).
    """
    import torch

    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
