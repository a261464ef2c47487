"""A short training run on Ray's own autoscaler: rollout actors 1 -> 3 under load, a node killed, back to 1 when idle.

    python -m tools.elastic_demo runs/elastic       # from the root of a checkout, as root on Linux; over five minutes

Everything is the real thing except the size of the model, which is the tests' random one, and the nodes, which are
Ray's fake ones: processes of this machine that autoscaler v2 starts and ends. All of it runs in namespaces of its own,
so that nothing outlives it and nobody else can reach it. Leaves in the folder the run, `elastic.json` (the account) and
`elastic.svg`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from speechsum.config import RunConfig, parse
from speechsum.data import PromptStream
from speechsum.errors import StopAsked
from speechsum.ledger import read_ledger
from speechsum.types import AudioRef, Prompt
from tests.tiny import recording, tiny_checkpoint

CLIPS, SEED = 32, 5
STORE_BYTES = 100 << 20
ADDRESS = "127.0.0.1:6379"
"""Nobody else is in the network namespace, so that every port is free."""

KILL_AFTER_S = 10.0
"""How long three actors work together before the node of one is killed."""

LOAD = {"steps": 120, "groups_per_step": 8, "group_size": 8}
"""Enough for three actors to load, one to be killed and its successor to load; on two fast cores 28 were too few."""

IDLE_STEPS = 10_000
"""The last stage has no end of its own: `Observer` stops the run once the pool and its nodes have shrunk."""

WIDTH, HEIGHT, LEFT, TOP, FOOT = 760, 250, 56, 24, 30


# --- the cluster -------------------------------------------------------------------------------------------------


@contextmanager
def autoscaled_cluster() -> Iterator[str]:
    """A head on loopback whose autoscaler adds and removes fake nodes; gives its address. It ends with the namespace.

    `ray.cluster_utils.AutoscalingCluster` would do it, but the wheel lacks a file that it reads, and it begins by
    ending every other Ray of the machine.
    """
    folder = Path(os.environ["RAY_TMPDIR"])
    (folder / "autoscaler.json").write_text(json.dumps(_autoscaler()))
    head = {
        "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    }  # fmt: skip
    options = {
        "port": ADDRESS.rsplit(":", 1)[1], "node-ip-address": "127.0.0.1", "num-cpus": 1,
        "resources": json.dumps({"learner": 1, "judge": 1}), "object-store-memory": STORE_BYTES,
        "temp-dir": folder / "ray", "include-dashboard": "false", "autoscaling-config": folder / "autoscaler.json",
    }  # fmt: skip
    subprocess.run(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--disable-usage-stats",
         *(f"--{name}={value}" for name, value in options.items())],
        env=os.environ | head, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    yield ADDRESS
    shutil.rmtree(folder, ignore_errors=True)  # after a failure it stays, with Ray's logs


def _own_environment() -> dict[str, str]:
    """What Ray reads when it is imported, by every process of the demo: a token, and folders of its own."""
    folder = tempfile.mkdtemp(prefix="sse-", dir="/tmp")  # short, for a socket's path may have 107 characters
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2}
    return dict(os.environ) | token | {"RAY_TMPDIR": folder, "HOME": folder, "PYTHONPATH": os.getcwd()}


def _loopback_up() -> None:
    """A new network namespace has nothing but a loopback interface that is down."""
    flags, up_and_running = 0x8914, 0x41  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, flags, struct.pack("16sh14x", b"lo", up_and_running))


def _autoscaler() -> dict[str, Any]:
    """A cluster's configuration with one kind of node, which has room for one rollout actor."""
    provider = {
        "type": "external", "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True,
        "launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID, "gcs_address": ADDRESS,
    }  # fmt: skip
    room = {"CPU": 1, "rollout": 1, "object_store_memory": STORE_BYTES}
    lists = (
        "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
        "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
    )  # fmt: skip
    return {key: [] for key in lists} | {
        "cluster_name": "fake", "max_workers": 4, "provider": provider, "auth": {},
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "rollout": {"resources": room, "node_config": {}, "min_workers": 0, "max_workers": 4},
        },
        "upscaling_speed": 1.0, "idle_timeout_minutes": 0.1, "docker": {}, "file_mounts": {},
        "file_mounts_sync_continuously": False,
    }  # fmt: skip


# --- the run -----------------------------------------------------------------------------------------------------


def make_recipe(folder: Path) -> RunConfig:
    """GRPO, which keeps rollout actors busy, and then SFT, which leaves them idle."""
    clips = folder / "clips"
    clips.mkdir(parents=True)
    model = tiny_checkpoint(clips / "model", window_s=30)
    rows = []
    for i in range(CLIPS):
        recording(clips / f"{i}.wav", 2.0, seed=i)
        rows.append({
            "id": f"clip-{i}", "audio": f"{i}.wav", "instruction": "summarize what is said in one sentence",
            "transcript": "anna must send the budget report by friday noon", "reference": "anna must send the report",
        })  # fmt: skip
    (clips / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data, engine = str(clips / "manifest.jsonl"), {"threads": 1, "max_model_len": 384, "kv_cache_gb": 0.1}
    stages = [
        {"name": "load", "loss": {"kind": "grpo"}, "max_staleness": 1, **LOAD},
        {"name": "idle", "loss": {"kind": "sft"}, "steps": IDLE_STEPS, "groups_per_step": 16},
    ]
    return parse({
        "name": "elastic", "seed": SEED, "data": {"train": data, "eval": data}, "eval": {"clips": 0},
        "model": {"path": str(model), "dtype": "float32", "max_audio_s": 4, "max_prompt_tokens": 220},
        "rollout": {"max_tokens": 128, "prompts_per_request": 2, "engine": engine, "resources": {"rollout": 1},
                    "pool": {"min": 1, "max": 3, "target_s": 0.5, "idle_s": 15}},
        "judge": {"kind": "lexical", "resources": {"judge": 1}}, "watch": {"wandb": "disabled"},
        "learner": {"ranks": 1, "resources": {"learner": 1}}, "preflight": {"prompts": 2}, "stage": stages,
    }, "the demo")  # fmt: skip


@dataclass
class Observer(threading.Thread):
    """Looks at the cluster twice a second from outside, kills a node in the middle, and stops the run at its end."""

    seen: list[dict[str, float]] = field(default_factory=list)
    killed_at: float | None = None

    def __post_init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Until one actor is left on one node after the killing, or `stop`."""
        together_since = 0.0
        while not self._over.wait(0.5):
            if not ray.is_initialized():
                continue
            alive = _rollout_nodes()
            nodes = sum(node["Alive"] for node in ray.nodes()) - 1
            now = time.time()
            self.seen.append({"time": now, "actors": len(alive), "nodes": nodes})
            together_since = (together_since or now) if len(alive) == 3 else 0.0
            if self.killed_at is None and together_since and now - together_since > KILL_AFTER_S:
                self.killed_at = now
                _kill_node(alive[0])
            if self.killed_at and len(alive) == nodes == 1:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()


def _rollout_nodes() -> list[str]:
    """The nodes of the rollout actors that have loaded."""
    actors = ray._private.state.actors().values()
    return [a["Address"]["NodeID"] for a in actors if a["State"] == "ALIVE" and "RolloutActor" in a["ActorClassName"]]


def _kill_node(node: str, processes: Path = Path("/proc")) -> None:
    """What a machine without power does: the raylet is gone at once, and its actors with it."""
    for entry in processes.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # others end while they are looked at
            if not entry.name.isdigit() or b"raylet/raylet" not in (entry / "cmdline").read_bytes().split(b"\0")[0]:
                continue
            if f"RAY_OVERRIDE_NODE_ID_FOR_TESTING={node}".encode() in (entry / "environ").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
                return
    raise AssertionError(f"no raylet of node {node}")


# --- the account -------------------------------------------------------------------------------------------------


def account(folder: Path, observer: Observer) -> dict[str, Any]:
    """Every draw of the data stream against the ledger, and what the pool did meanwhile."""
    rows = read_ledger(folder / "run").to_pylist()
    metrics = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    groups = Counter((row["epoch"], row["prompt_id"]) for row in rows)
    unanswered = int(sum(line.get("buffer/dropped_rollout", 0) for line in metrics))
    prompts = [Prompt(f"clip-{i}", AudioRef(""), "") for i in range(CLIPS)]
    stream = PromptStream(prompts, SEED).take(len(groups) + unanswered)
    drawn = {(draw.epoch, draw.prompt.id) for draw in stream}
    trained = Counter(row["group_step"] for row in rows if row["group_step"] is not None)
    figures = {
        "prompts drawn": len(drawn), "prompts in the ledger": len(groups), "dropped unanswered": unanswered,
        "prompts lost": len(drawn - groups.keys()) - unanswered, "prompts not drawn": len(groups.keys() - drawn),
        "trajectories": len(rows), "twice in the ledger": len(rows) - len({row["trajectory_id"] for row in rows}),
        "incomplete groups": sum(n != LOAD["group_size"] for n in groups.values()), "steps trained": len(trained),
        "dropped trajectories": dict(Counter(row["drop_reason"] for row in rows if row["drop_reason"])),
        "actors lost": metrics[-1]["rollout/actors_lost"],
        "starts failed": metrics[-1]["rollout/starts_failed"],
        "requests returned": metrics[-1]["rollout/requests_returned"],
        "most actors": max(s["actors"] for s in observer.seen), "most nodes": max(s["nodes"] for s in observer.seen),
        "actors at the end": metrics[-1]["rollout/actors_serving"], "nodes at the end": observer.seen[-1]["nodes"],
    }  # fmt: skip
    return figures | {"killed_at": observer.killed_at, "seen": observer.seen}


def check(figures: dict[str, Any]) -> list[str]:
    """What of the promise was not kept."""
    wanted = {
        "prompts lost": 0, "prompts not drawn": 0, "twice in the ledger": 0, "incomplete groups": 0,
        "steps trained": LOAD["steps"], "actors lost": 1, "most actors": 3, "actors at the end": 1,
        "nodes at the end": 1,
    }  # fmt: skip
    return [f"{name} is {figures[name]}, not {value}" for name, value in wanted.items() if figures[name] != value]


def draw(folder: Path, figures: dict[str, Any]) -> None:
    """Tokens per second of each step, and the number of actors and nodes, over time in one picture."""
    seen = figures["seen"]
    begin, end = seen[0]["time"], seen[-1]["time"]
    rates = throughput([json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()])
    top = max(rate for _, rate in rates)

    def line(points: list[tuple[float, float]], most: float, style: str) -> str:
        places = " ".join("{:.1f},{:.1f}".format(*place(when, value / most)) for when, value in points)
        return f'<polyline points="{places}" fill="none" {style}/>'

    def place(when: float, share: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - 2 * LEFT) * (when - begin) / (end - begin)
        return x, HEIGHT - FOOT - (HEIGHT - FOOT - TOP) * share

    parts = [
        line(rates, top, 'stroke="#1f6feb" stroke-width="1.5"'),
        line([(s["time"], s["nodes"]) for s in seen], 4, 'stroke="#d1242f" stroke-dasharray="4 3"'),
        line([(s["time"], s["actors"]) for s in seen], 4, 'stroke="#d1242f" stroke-width="2.5"'),
        _text(LEFT, 14, f"response tokens per second, up to {top:.0f}", "#1f6feb"),
        _text(290, 14, "rollout actors that have loaded, and nodes (dashed)", "#d1242f"),
        _text(LEFT, HEIGHT - 8, "0 s"),
        _text(WIDTH - LEFT, HEIGHT - 8, f"{end - begin:.0f} s"),
        *(_text(WIDTH - LEFT + 8, place(end, n / 4)[1] + 4, str(n), "#d1242f") for n in range(4)),
    ]
    if figures["killed_at"]:
        killed = figures["killed_at"]
        parts.append(line([(killed, 0), (killed, 1)], 1, 'stroke="#888" stroke-dasharray="2 3"'))
        parts.append(_text(place(killed, 0)[0] + 4, TOP + 12, "a node is killed", "#555"))
    (folder / "elastic.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def throughput(lines: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Times and tokens per second, two points for each step: its beginning and its end."""
    points: list[tuple[float, float]] = []
    for line in lines:
        since = points[-1][0] if points else line["time"] - line["wall/step_s"]
        rate = line.get("rollout/tokens", 0.0) / (line["time"] - since)
        points += [(since, rate), (line["time"], rate)]
    return points


def _text(x: float, y: float, words: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}">{words}</text>'


def inside(folder: Path) -> int:
    """The demo proper, in its own namespace."""
    from cluster.train import run

    _loopback_up()
    config = make_recipe(folder)
    with autoscaled_cluster() as address:
        observer = Observer()
        observer.start()
        try:
            with suppress(StopAsked):
                run(config, folder / "run", address=address, resume=False, overwrite=False)
        finally:
            observer.stop()
    figures = account(folder, observer)
    (folder / "elastic.json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(folder, figures)
    for name, value in figures.items():
        if name != "seen":
            print(f"{name}: {value}")
    broken = check(figures)
    print("; ".join(broken) or "every prompt is accounted for, once")
    return bool(broken)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return inside(options.folder.absolute())
    own = ["unshare", "--pid", "--fork", "--mount-proc", "--net", "--kill-child"]
    command = [*own, sys.executable, "-m", "tools.elastic_demo", str(options.folder), "--inside"]
    return os.execvpe(command[0], command, _own_environment())


if __name__ == "__main__":
    sys.exit(main())
