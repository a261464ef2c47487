"""Means with their uncertainty, by the bootstrap over recordings.

Several requests about one recording rise and fall together, so resampling single answers would claim more certainty
than there is; what is drawn again is the recording with all its answers. Percentile intervals: B. Efron and
R. Tibshirani, An Introduction to the Bootstrap, Chapman & Hall 1993, chapters 6, 8 and 13.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

INTERVAL_PERCENT = (2.5, 97.5)
CELLS_AT_ONCE = 2_000_000
TIE = 1e-6
"""Scores nearer than this are equal: rounding moves an engine's answers as much."""

Floats = npt.NDArray[np.float64]


class Estimate(TypedDict):
    """A mean and its 95 % interval `[low, high]`, ready for JSON."""

    mean: float
    ci95: list[float]


def mean_ci(
    values: Sequence[float], *, groups: Sequence[Hashable] | None = None, n: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of `values` with a percentile interval from `n` resamples of recordings.

    `groups` names the recording of each value; without it each value is a recording of its own. A single recording
    says nothing of the spread, and its interval is the mean itself.
    """
    checked = _checked(values, groups, n)
    sums, counts = _per_group(checked, groups)
    low, high = np.percentile(_resampled_means(sums, counts, n, seed), INTERVAL_PERCENT)
    return {"mean": float(checked.mean()), "ci95": [float(low), float(high)]}


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of `after - before`, item by item in the same order, with its interval.

    Differences are taken first: what makes an item hard is then the same on both sides and drops out.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired difference needs as many values before as after, got {len(before)}, {len(after)}")
    differences = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return mean_ci(differences.tolist(), groups=groups, n=n, seed=seed)


def win_rate(
    before: Sequence[float],
    after: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Share of items, in the same order, on which `after` is the higher; a tie is half a win. With its interval."""
    if len(before) != len(after):
        raise ValueError(f"a win rate needs as many values before as after, got {len(before)}, {len(after)}")
    gains = _checked(after, None, 1) - _checked(before, None, 1)
    wins = np.where(np.abs(gains) <= TIE, 0.5, gains > 0)
    return mean_ci(wins.tolist(), groups=groups, n=n, seed=seed)


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation in [-1, 1], equal values sharing the mean of their ranks; None where a side is all one value.

    C. Spearman, "The Proof and Measurement of Association between Two Things", Am. J. of Psychology 15 (1904).
    """
    if len(left) != len(right):
        raise ValueError(f"a correlation needs as many values on both sides, got {len(left)}, {len(right)}")
    centred = [_ranks(_checked(side, None, 1)) - (len(side) + 1) / 2 for side in (left, right)]
    spread = float(np.prod([np.sqrt(ranks @ ranks) for ranks in centred]))
    return float(centred[0] @ centred[1]) / spread if spread else None


def _ranks(values: Floats) -> Floats:
    """Rank of each value from 1, `[n]`; of equal values each has the mean of the ranks they fill."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place], dtype=np.float64)


def _checked(values: Sequence[float], groups: Sequence[Hashable] | None, n: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"a mean needs at least one value in a flat list, got an array of shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"value {int(np.argmin(np.isfinite(array)))} is not finite; leave failed measurements out")
    if groups is not None and len(groups) != len(array):
        raise ValueError(f"groups must name a recording for each value, got {len(groups)} for {len(array)} values")
    if n < 1:
        raise ValueError(f"n = {n}: at least one resample is needed")
    return array


def _per_group(values: Floats, groups: Sequence[Hashable] | None) -> tuple[Floats, Floats]:
    """Sum and number of values of each recording, both `[recordings]`."""
    if groups is None:
        return values, np.ones_like(values)
    index: dict[Hashable, int] = {}
    of_value = np.array([index.setdefault(group, len(index)) for group in groups])
    sums = np.bincount(of_value, weights=values).astype(np.float64)
    return sums, np.bincount(of_value).astype(np.float64)


def _resampled_means(sums: Floats, counts: Floats, n: int, seed: int) -> Floats:
    """`[n]` means, each over as many recordings as there are, drawn with replacement; in slices to bound memory."""
    rng = np.random.default_rng(seed)
    recordings = len(sums)
    slice_size = max(1, CELLS_AT_ONCE // recordings)
    means: list[Floats] = []
    for start in range(0, n, slice_size):
        drawn = rng.integers(recordings, size=(min(slice_size, n - start), recordings))
        means.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    return np.concatenate(means)
