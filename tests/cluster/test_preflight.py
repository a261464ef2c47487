"""Rollout and learner that disagree do not start together."""

from __future__ import annotations

import math

import pytest

from cluster.preflight import check
from speechsum.config import PreflightConfig
from speechsum.errors import RunError

LIMITS = PreflightConfig(max_logprob_gap=0.03, min_greedy_equal=0.9)


@pytest.mark.parametrize(
    ("gap", "equal", "refusal"),
    [
        (0.01, 1.0, None),
        (0.03, 0.9, None),
        (0.0301, 1.0, "disagree by 0.0301 nats"),
        (math.nan, 1.0, "disagree by nan nats"),
        (0.01, 0.89, "likeliest for 89%"),
        (0.01, math.nan, "likeliest for nan%"),
    ],
)
def test_beyond_a_limit_the_run_is_refused(gap: float, equal: float, refusal: str | None) -> None:
    parity = {"logprob_gap_mean": gap, "logprob_gap_max": gap, "tokens": 10, "greedy_equal": equal}
    if refusal is None:
        check(LIMITS, parity)
    else:
        with pytest.raises(RunError, match=refusal):
            check(LIMITS, parity)
