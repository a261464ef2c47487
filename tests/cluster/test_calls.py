"""What a call of an actor comes to where it has no answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions

from cluster import calls
from cluster.elastic import START_TIMEOUT_S, ActorDied
from speechsum.errors import RunError


@pytest.mark.parametrize(
    ("error", "told", "message"),
    [
        (exceptions.OutOfMemoryError("full"), ActorDied, "rollout 0 was lost: OutOfMemoryError: full"),
        (exceptions.NodeDiedError("gone"), ActorDied, "rollout 0 was lost: NodeDiedError: gone"),
        (exceptions.RuntimeEnvSetupError("no"), ActorDied, "rollout 0 was lost: RuntimeEnvSetupError: no"),
        (exceptions.ActorUnschedulableError("no"), ActorDied, "rollout 0 was lost: ActorUnschedulableError: .* no"),
        (exceptions.RayActorError(), ActorDied, "rollout 0 died: The actor experienced an error"),
        (exceptions.OutOfDiskError("full"), RunError, "no answer of rollout 0: OutOfDiskError: .*; see the Ray logs"),
    ],
)
def test_what_ray_raises_is_told_as_a_death_or_ends_the_run(
    error: Exception, told: type[RunError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(ref: Any, timeout: float | None) -> None:
        raise error

    monkeypatch.setattr(calls.ray, "get", get)
    with pytest.raises(RunError, match=message) as raised:
        calls.fetch("ref", who="rollout 0")
    assert type(raised.value) is told


def test_who_has_no_place_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def wait(refs: list[str], timeout_s: float) -> list[str]:
        waits.append(timeout_s)
        return [ref for ref in refs if ref == "loaded"]

    monkeypatch.setattr(calls, "fetch", lambda ref, who: ref)
    monkeypatch.setattr(calls, "wait_for_one", wait)
    loaded = SimpleNamespace(role="judge", ready=lambda: ["loaded"])
    waiting = SimpleNamespace(role="rollout", ready=lambda: ["first", "second"])
    said: list[str] = []
    calls.wait_until_loaded([loaded], said.append)
    assert said == ["models loaded: 1 of 1"]
    with pytest.raises(RunError, match=r"no model has loaded for 1800 s, .* waited for: rollout 2; do the nodes offer"):
        calls.wait_until_loaded([loaded, waiting], said.append)
    assert said[1:] == ["models loaded: 1 of 3"]
    assert waits == [START_TIMEOUT_S] * 3  # each that loads gives the others more time
