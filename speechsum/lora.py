"""Low-rank adapters (Hu et al. 2021): one merge and one naming, shared by every side.

The receiver of a push, a full push and the export all call `merge`, so an engine that merged for itself and a
checkpoint that was merged elsewhere hold the same bits. No torch at import.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

A_SUFFIX = ".lora_A"
B_SUFFIX = ".lora_B"


def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """`weight` [out, in] + scale * `b` [out, r] @ `a` [r, in], in the dtype of `weight`.

    The product and the sum are in float32 and rounded once: a bfloat16 product loses up to half a unit in the last
    place before the sum adds its own, and was also slower on the CPU.
    """
    import torch

    with torch.no_grad():
        merged = weight.to(torch.float32, copy=True)
        return merged.addmm_(b.to(torch.float32), a.to(torch.float32), alpha=scale).to(weight.dtype)


def pair_names(weight_name: str) -> tuple[str, str]:
    """`...q_proj.weight` -> (`...q_proj.lora_A`, `...q_proj.lora_B`), the names a payload carries."""
    stem = weight_name.removesuffix(".weight")
    return stem + A_SUFFIX, stem + B_SUFFIX


def adapted_weights(names: Iterable[str]) -> tuple[str, ...]:
    """The checkpoint names of the weights that a payload's `names` adapt, in order.

    Raises `ValueError` when one half of a pair is missing.
    """
    present = set(names)
    stems = {n.removesuffix(A_SUFFIX) for n in present if n.endswith(A_SUFFIX)}
    others = {n.removesuffix(B_SUFFIX) for n in present if n.endswith(B_SUFFIX)}
    if stems != others:
        raise ValueError(f"{sorted(stems ^ others)[0]} has one of lora_A and lora_B; send both")
    return tuple(f"{stem}.weight" for stem in sorted(stems))


def whole_tensors(names: Iterable[str]) -> tuple[str, ...]:
    """The names in an adapter payload that are complete tensors rather than halves of a pair, in order."""
    return tuple(sorted(n for n in names if not n.endswith((A_SUFFIX, B_SUFFIX))))
