"""Ray for one run: found where it is said to be, and its metrics where the run says they are."""

from __future__ import annotations

import re
import threading
import time
import urllib.request

import pytest
import ray

from cluster.groups import fetch
from cluster.memory import MemoryWatch
from cluster.runtime import ray_session
from cluster.trackers import RayTracker
from speechsum.errors import RunError, UserError

DEADLINE_S = 60


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "nonsense", "127.0.0.1:port"])
def test_an_address_without_a_cluster_is_the_users_mistake(address: str) -> None:
    with pytest.raises(UserError, match="--address"), ray_session(address, MemoryWatch(), lambda text: None):
        pytest.fail("joined")
    assert not ray.is_initialized()


@ray.remote
class Failing:
    """An actor that fails in every way that `fetch` has to tell."""

    def __init__(self, broken: str = "") -> None:
        if broken:
            raise ValueError(f"first line\n{broken}")

    def user_error(self) -> None:
        raise UserError("model.adapter does not fit")

    def other_error(self) -> None:
        raise ZeroDivisionError("by nought")


@pytest.mark.slow
def test_a_local_session_shows_its_metrics_and_tells_what_failed() -> None:
    said: list[str] = []
    with ray_session(None, MemoryWatch(), said.append):
        actor = Failing.remote()
        with pytest.raises(UserError, match=r"^model\.adapter does not fit$"):
            fetch(actor.user_error.remote())
        with pytest.raises(RunError, match=r"^an actor failed: ZeroDivisionError: by nought$"):
            fetch(actor.other_error.remote())
        with pytest.raises(RunError, match="an actor died: the reason of it"):
            fetch(Failing.remote("the reason of it").user_error.remote())
        RayTracker("night").log({"learner/loss": 1.5})
        assert "speechsum_learner_loss" in scraped(said[-1], "speechsum_learner_loss")


def scraped(text: str, name: str) -> str:
    """The metrics page, asked again until `name` is on it: Ray passes figures on every few seconds."""
    (address,) = re.findall(r"http://\S+", text)
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(address, timeout=5) as page:
            found = page.read().decode()
        if name in found:
            return found
        threading.Event().wait(0.5)
    return ""
