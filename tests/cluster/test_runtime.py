"""Ray for one run: found where it is said to be, and its metrics where the run says they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from cluster.calls import fetch
from cluster.memory import MemoryWatch
from cluster.runtime import _make_token, _refuse_other_listeners, ray_session
from cluster.trackers import RayTracker
from speechsum.errors import RunError, UserError
from tests.processes import LOOPBACK, listening

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "nonsense", "127.0.0.1:port"])
def test_an_address_without_a_cluster_is_the_users_mistake(address: str) -> None:
    with pytest.raises(UserError, match="--address"), ray_session(address, MemoryWatch(), lambda text: None):
        pytest.fail("joined")
    assert not ray.is_initialized()


def test_a_missing_token_is_the_users_mistake(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", "from cluster.runtime import _join; _join('127.0.0.1:1')"],
        env=environment | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"},
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert "UserError: the Ray cluster at '127.0.0.1:1' wants a token; set RAY_AUTH_TOKEN" in done.stderr


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
        RayTracker("night").step({"learner/loss": 1.5})
        assert "speechsum_learner_loss" in scraped(said[-1], "speechsum_learner_loss")
        assert listening(os.getpid()) <= LOOPBACK  # the metrics ask for no token, so they are nobody else's
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert os.environ["RAY_AUTH_TOKEN"] not in session_files()


def session_files() -> str:
    """All that this Ray has written: logs, settings, command lines."""
    folder = Path(ray._private.worker.global_worker.node.get_session_dir_path())
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("address", ["192.0.2.2", "fd00::2", "0.0.0.0"])
def test_a_ray_that_others_reach_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0"):
        _refuse_other_listeners(address)


@pytest.mark.parametrize(
    ("set_by_user", "made"),
    [
        ({}, True),
        ({"RAY_AUTH_MODE": "token"}, True),
        ({"RAY_AUTH_MODE": "disabled"}, False),
        ({"RAY_AUTH_TOKEN_PATH": "/run/secrets/token"}, False),
    ],
)
def test_a_token_is_made_unless_the_user_has_one(
    set_by_user: dict[str, str], made: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # remembered, so that what is set here goes again
        monkeypatch.delenv(name)
    for name, value in set_by_user.items():
        monkeypatch.setenv(name, value)
    _make_token()
    assert len(os.environ.get("RAY_AUTH_TOKEN", "")) == (64 if made else 0)


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
