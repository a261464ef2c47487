"""A job on a real Ray head with token authentication: who is let in, what is streamed, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.processes import processes_marked

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
TOKEN = uuid.uuid4().hex * 2
DEADLINE_S = 90
RECIPE = 'name = "tiny"\n[[stage]]\nname = "align"\nsteps = 2\nloss = { kind = "sft" }\n'

WAITS = """
import signal, sys, time
from cluster import job_entry
from cluster.stopping import StopRequest
from speechsum import commands
from speechsum.errors import StopAsked

def waits(options):
    with StopRequest():
        print("waiting", flush=True)
        try:
            while True:
                signal.pause()
        except StopAsked:
            print("saving", flush=True)
            time.sleep(4)  # longer than Ray's own patience of 3 s
            raise

commands.doctor = waits
sys.exit(job_entry.main(["doctor"]))
"""

STRANGER = """
import sys, ray

@ray.remote(num_cpus=0)
class Actor:
    def ran(self):
        return "it ran"

ray.init(sys.argv[1])
print(ray.get(Actor.remote().ran.remote()))
"""

SUBMIT = """
import sys
from pathlib import Path
from cluster.code_package import code_package
from cluster.job_client import connect
from cluster.jobs import Follower
from cluster.submit import plan_job, send
from speechsum.config import load_recipe

address, checkout, name, command = sys.argv[1:]
recipe = Path(checkout) / "tiny.toml"
job = plan_job(
    recipe, load_recipe(recipe), [], run=name, run_dir=Path("/nowhere"), resume=False, grace_s=30,
    code=code_package(Path(checkout)), entrypoint=lambda arguments: command,
)
client = connect(address)
print(send(client, job), flush=True)
sys.exit(Follower(client, name, lambda text: print(text, end="", flush=True), lambda: False).run())
"""


@dataclass(frozen=True)
class Head:
    """A running head, and the environment whose processes are its own or speak to it."""

    address: str
    ray_address: str
    environment: dict[str, str]

    def answer(self, path: str, body: bytes | None = None, **headers: str) -> int:
        """The status with which the job API answers; a `body` is posted."""
        request = urllib.request.Request(self.address + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as page:
                return int(page.status)
        except urllib.error.HTTPError as refused:
            return refused.code

    def command(self, *arguments: str, **changed: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *arguments], env=self.environment | changed, cwd=ROOT, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@pytest.fixture
def head() -> Iterator[Head]:
    """A head of one CPU on loopback, with folders, ports and a home of its own; nothing of it is left afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ssh-", dir="/tmp"))  # short, for a socket's path may have 107 characters
    mark, port = uuid.uuid4().hex, free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "HOME": str(folder), "PYTHONPATH": str(ROOT), "SPEECHSUM_TEST": mark, "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN, "RAY_TMPDIR": str(folder), "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }  # fmt: skip
    options = {
        "port": free_port(), "node-ip-address": "127.0.0.1", "num-cpus": 1, "object-store-memory": 80 << 20,
        "temp-dir": folder / "ray", "dashboard-host": "127.0.0.1", "dashboard-port": port,
        "dashboard-agent-listen-port": free_port(), "ray-client-server-port": free_port(), "include-dashboard": "true",
    }  # fmt: skip
    started = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--disable-usage-stats",
         *(f"--{name}={value}" for name, value in options.items())],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until_up(f"http://127.0.0.1:{port}/api/gcs_healthz")
        yield Head(f"http://127.0.0.1:{port}", f"127.0.0.1:{options['port']}", environment)
    finally:
        started.terminate()
        started.wait(DEADLINE_S)
        wait_until_gone(mark)
        shutil.rmtree(folder)


def wait_until_up(url: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            threading.Event().wait(0.2)
    pytest.fail("the head did not come up")


def wait_until_gone(mark: str) -> None:
    deadline = time.monotonic() + 20
    while (left := processes_marked(mark)) and time.monotonic() < deadline:
        threading.Event().wait(0.2)
    assert not left


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a job in it."""
    (tmp_path / "waits.py").write_text(WAITS)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "Begin"]):
        subprocess.run([*git, *arguments], check=True)
    return tmp_path


def test_jobs_on_a_head_with_tokens(head: Head, checkout: Path) -> None:
    told = ["status", "--address", head.address]
    submit = ["-c", SUBMIT, head.address, str(checkout)]
    waiting = head.command(*submit, "waiting", f"exec {sys.executable} waits.py")
    failing = head.command(*submit, "failing", "echo $((6 * 7)); exit 7")
    wrong = head.command("-m", "speechsum", *told, RAY_AUTH_TOKEN="0" * 64)
    none = head.command("-m", "speechsum", *told, RAY_AUTH_MODE="disabled")
    stranger = head.command("-c", STRANGER, head.ray_address, RAY_AUTH_MODE="disabled")
    order = b'{"entrypoint": "touch /tmp/speechsum-was-here"}'
    assert head.answer("/api/jobs/") == head.answer("/api/jobs/", order) == 401
    assert head.answer("/api/jobs/", order, Authorization=f"Bearer {'0' * 64}") == 403
    assert head.answer("/api/jobs/", Authorization=f"Bearer {TOKEN}") == 200

    refused, _ = wrong.communicate(timeout=DEADLINE_S)
    assert wrong.returncode == 2
    assert "refuses the token" in refused
    asked, _ = none.communicate(timeout=DEADLINE_S)
    assert none.returncode == 2
    assert "wants a token" in asked
    printed, _ = failing.communicate(timeout=DEADLINE_S)
    assert "42\n" in printed
    assert failing.returncode == 7

    seen = until_it_waits(waiting)  # the log comes while the job runs
    watching = head.command("-m", "speechsum", "logs", "waiting", "-f", "--address", head.address)
    until_it_waits(watching)
    watching.send_signal(signal.SIGINT)
    left, _ = watching.communicate(timeout=DEADLINE_S)
    assert watching.returncode == 130
    assert "detached; waiting goes on" in left

    stop = head.command("-m", "speechsum", "stop", "waiting", "--address", head.address)
    stopped, _ = stop.communicate(timeout=DEADLINE_S)
    assert stop.returncode == 0, stopped
    assert "waiting ended with exit code 75" in stopped
    rest, _ = waiting.communicate(timeout=DEADLINE_S)
    assert "saving\n" in rest
    assert waiting.returncode == 75

    jobs = head.command("-m", "speechsum", *told)
    unknown = head.command("-m", "speechsum", "logs", "nobody", "-f", "--address", head.address)
    listed, _ = jobs.communicate(timeout=DEADLINE_S)
    rows = sorted(row.split()[:2] for row in listed.splitlines()[1:])
    assert rows == [["failing", "FAILED"], ["waiting", "STOPPED"]]
    missing, _ = unknown.communicate(timeout=DEADLINE_S)
    assert unknown.returncode == 2
    assert "knows no job nobody" in missing
    assert TOKEN not in "".join((refused, asked, printed, stopped, seen, rest, listed, missing))

    heard, _ = stranger.communicate(timeout=DEADLINE_S)
    assert stranger.returncode != 0
    assert "it ran" not in heard
    assert "Authentication token is missing or incorrect" in heard


def until_it_waits(following: subprocess.Popen[str]) -> str:
    """What a follower prints until the job in `WAITS` is where it waits."""
    assert following.stdout is not None
    seen = ""
    while not seen.endswith("waiting\n"):
        line = following.stdout.readline()
        assert line, seen
        seen += line
    return seen


def test_a_head_that_is_not_there() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "speechsum", "status", "--address", address]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 2
    assert done.stderr.startswith(f"speechsum: error: nothing answers at {address}")
