"""Rewards of one group -> advantages of its trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

EPSILON = 1e-6


def group_advantages(
    rewards: Sequence[float | None], *, baseline: Literal["mean", "leave_one_out"], scale_by_std: bool
) -> list[float | None]:
    """A_i = r_i - mean(r), over std(r) + eps unless `scale_by_std` is false (GRPO 2402.03300, Dr.GRPO 2503.20783).

    `leave_one_out` takes the mean of the others instead, which is (r_i - mean(r)) n / (n - 1) (RLOO 2402.14740).
    None marks a judgement that failed: it has no advantage and takes no part in mean or deviation. The deviation
    is the population's. Fewer than two rewards, or all equal, teach nothing: every advantage is None.
    """
    known = np.array([r for r in rewards if r is not None], dtype=np.float64)
    if len(known) < 2 or np.ptp(known) < EPSILON:
        return [None] * len(rewards)
    scale = known.std() + EPSILON if scale_by_std else 1.0
    if baseline == "leave_one_out":
        scale *= 1.0 - 1.0 / len(known)
    return [None if r is None else float((r - known.mean()) / scale) for r in rewards]
