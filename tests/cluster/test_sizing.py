"""The wanted number of actors: hand-computed, and against a slow reference over any history."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.sizing import RATES_KEPT, Sizer
from speechsum.config import PoolConfig


@dataclass
class FakeClock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def sizer_of(least: int = 1, most: int = 4, start: int = 1, target_s: float = 10, idle_s: float = 30):
    clock = FakeClock()
    return Sizer(PoolConfig(min=least, max=most, target_s=target_s, idle_s=idle_s), start, clock), clock


def test_the_work_at_hand_is_to_be_done_within_the_target() -> None:
    sizer, _ = sizer_of()
    sizer.finished(work=16, seconds=8)  # 2 per second and actor, so 20 in ten seconds
    assert sizer.rate == 2
    assert [sizer.wanted(work) for work in (0, 1, 20, 21, 41, 61, 900)] == [1, 1, 1, 2, 3, 4, 4]


def test_it_grows_at_once_and_shrinks_only_when_it_has_been_idle() -> None:
    sizer, clock = sizer_of()
    sizer.finished(work=2, seconds=1)
    assert sizer.wanted(60) == 3
    clock.now += 29.9
    assert sizer.wanted(0) == 3
    clock.now += 0.2
    assert sizer.wanted(0) == 1
    assert sizer.wanted(40) == 2


def test_it_falls_to_the_largest_need_since_and_no_further() -> None:
    sizer, clock = sizer_of()
    sizer.finished(work=2, seconds=1)
    assert sizer.wanted(80) == 4
    clock.now += 20
    assert sizer.wanted(30) == 4
    clock.now += 15
    assert sizer.wanted(0) == 2
    clock.now += 20
    assert sizer.wanted(0) == 1


def test_nothing_is_known_before_a_call_was_measured() -> None:
    sizer, clock = sizer_of(start=2)
    assert sizer.rate is None
    assert sizer.wanted(1000) == 2
    clock.now += 1000
    assert sizer.wanted(0) == 2
    sizer.finished(work=0, seconds=3)  # a call whose every prompt failed says nothing
    assert sizer.rate is None


def test_one_slow_call_does_not_count_and_a_slower_stage_does() -> None:
    sizer, _ = sizer_of()
    for _ in range(RATES_KEPT):
        sizer.finished(work=2, seconds=1)
    sizer.finished(work=2, seconds=100)
    assert sizer.rate == 2
    for _ in range(RATES_KEPT):
        sizer.finished(work=1, seconds=2)
    assert sizer.rate == 0.5


@given(
    bounds=st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(0, 5)),
    rate=st.floats(0.01, 50),
    target_s=st.floats(0.5, 200),
    idle_s=st.floats(1, 100),
    history=st.lists(st.tuples(st.floats(0, 60), st.integers(0, 2000)), min_size=1, max_size=40),
)
def test_any_history(
    bounds: tuple[int, int, int], rate: float, target_s: float, idle_s: float, history: list[tuple[float, int]]
) -> None:
    """Within the bounds, never below what is needed now, and equal to the largest need within `idle_s`."""
    least, above, more = bounds
    sizer, clock = sizer_of(least, least + above + more, least + above, target_s, idle_s)
    sizer.finished(1, 1 / rate)
    seen: list[tuple[float, int]] = []
    for passed, outstanding in history:
        clock.now += passed
        need = math.ceil(outstanding / (sizer.rate * target_s))
        seen.append((clock.now, min(max(need, least), least + above + more)))
        wanted = sizer.wanted(outstanding)
        assert seen[-1][1] <= wanted <= least + above + more
        assert wanted == max(n for when, n in seen if when >= clock.now - idle_s)


@pytest.mark.parametrize("outstanding", [0, 10**6])
def test_a_fixed_pool_stays_as_it_is(outstanding: int) -> None:
    sizer, _ = sizer_of(least=3, most=3, start=3)
    assert sizer.wanted(outstanding) == 3
    sizer.finished(1, 1)
    assert sizer.wanted(outstanding) == 3
