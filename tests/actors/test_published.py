"""What Ray's metrics are told, and that a gauge is told again for as long as it is true."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from actors import published
from actors.published import Published

SOON_S = 0.001
PATIENCE_S = 30.0


class FakeMetric:
    """Keeps what it is told, with the labels; `again` is set when a gauge has been set three times."""

    made: dict[str, FakeMetric]

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...], **settings: Any) -> None:
        self.told: list[tuple[str, float, Any]] = []
        self.again = threading.Event()
        self.made[name] = self

    def set_default_tags(self, tags: dict[str, str]) -> None:
        assert tags == {"actor": "0"}

    def set(self, value: float) -> None:
        self.told.append(("set", value, None))
        if len(self.told) >= 3:
            self.again.set()

    def inc(self, value: float, tags: Any) -> None:
        self.told.append(("inc", value, tags))

    def observe(self, value: float) -> None:
        self.told.append(("observe", value, None))


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    monkeypatch.setattr(FakeMetric, "made", {}, raising=False)
    for form in ("Counter", "Gauge", "Histogram"):
        monkeypatch.setattr(published, form, FakeMetric)
    monkeypatch.setattr(published.ray, "is_initialized", lambda: True)
    made = Published({"actor": "0"}, refresh_s=SOON_S)
    yield made
    made.close()


def test_a_gauge_is_set_again_until_it_is_forgotten(own: Published) -> None:
    own.tell({"learner/loss": 0.5, "wall/step_s": 60.0})
    loss, step = (FakeMetric.made[f"speechsum_{name}"] for name in ("learner_loss", "wall_step_s"))
    assert loss.again.wait(PATIENCE_S)
    own.forget({"learner/loss"})
    before = list(loss.told)
    step.told.clear()
    step.again.clear()
    assert step.again.wait(PATIENCE_S)
    assert loss.told == before
    assert set(step.told) == {("set", 60.0, None)}


def test_after_the_end_nothing_is_told(own: Published) -> None:
    own.tell({"learner/loss": 0.5})
    own.close()
    told = list(FakeMetric.made["speechsum_learner_loss"].told)
    own.close()
    assert FakeMetric.made["speechsum_learner_loss"].told == told


def test_counters_go_up_by_amounts_or_to_totals(own: Published) -> None:
    own.tell({"rollout/tokens": 5.0})
    own.tell({"rollout/tokens": 0.0})
    own.tell_totals({"rollout_actor/tokens": 3.0})
    own.tell_totals({"rollout_actor/tokens": 3.0})
    own.tell_totals({"rollout_actor/tokens": 10.0})
    own.add("judge/failures", 1, kind="timeout")
    assert {name: metric.told for name, metric in FakeMetric.made.items()} == {
        "speechsum_rollout_tokens": [("inc", 5.0, None)],
        "speechsum_rollout_actor_tokens": [("inc", 3.0, None), ("inc", 7.0, None)],
        "speechsum_judge_failures": [("inc", 1, {"kind": "timeout"})],
    }


def test_durations_are_observed(own: Published) -> None:
    own.observe("judge/call_s", 0.25)
    assert FakeMetric.made["speechsum_judge_call_s"].told == [("observe", 0.25, None)]
