"""Write docker/requirements-<device>.txt: every package of an image build, by version and hash, as pip resolves it.

    .venv/bin/python tools/lock.py cpu
    .venv/bin/python tools/lock.py gpu

What pyproject.toml asks for is pinned to the versions in the environment this runs in, so an image holds what was
tested; the rest follows from them. The lock is for this Python and platform. Locking `gpu` needs the default index to
be the only source, for a wheel of PyTorch's CPU build would be taken before the CUDA one.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from setup import OPTIONAL, ROOT, read_pyproject, requirements, torch_index_arguments, torch_index_reachable

LEFT_OUT = {"cpu": OPTIONAL, "gpu": ()}
"""Built for CUDA on the default index and never used by us: set-up removes them beside a CPU build of PyTorch."""


def project_name(requirement: str) -> str:
    """`ray[default]==2.60.0` -> `ray`, in the spelling that pip compares by."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def tested(wanted: Iterable[str]) -> list[str]:
    """The installed version of each requirement that is installed, without a build's own mark such as `+cpu`."""
    pins = []
    for name in map(project_name, wanted):
        try:
            pins.append(f"{name}=={importlib.metadata.version(name).partition('+')[0]}")
        except importlib.metadata.PackageNotFoundError:
            continue  # the other build's vLLM
    return pins


def resolve(arguments: Sequence[str], pins: Sequence[str]) -> list[dict[str, Any]]:
    """What pip would install: its own report, one entry for each package."""
    with tempfile.TemporaryDirectory() as folder:
        constraints, report = Path(folder) / "constraints.txt", Path(folder) / "report.json"
        constraints.write_text("\n".join(pins), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--only-binary", ":all:"]
        subprocess.run([*command, "--constraint", constraints, "--report", report, *arguments], check=True)
        found: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))["install"]
        return found


def locked(package: dict[str, Any]) -> str:
    """One line of the lock."""
    about, download = package["metadata"], package["download_info"]
    digest = download["archive_info"].get("hashes", {}).get("sha256")
    if digest is None:  # pip tells none of a file on this machine
        digest = hashlib.sha256(Path(unquote(urlsplit(download["url"]).path)).read_bytes()).hexdigest()
    return f"{project_name(about['name'])}=={about['version']} --hash=sha256:{digest}"


def lock(device: str, packages: Iterable[dict[str, Any]]) -> str:
    """The whole file. Raises `ValueError` where the other build of PyTorch was found."""
    lines = sorted(line for line in map(locked, packages) if project_name(line) not in LEFT_OUT[device])
    if any("+cpu" in line for line in lines) != (device == "cpu"):
        raise ValueError(f"pip found the wrong build of PyTorch for {device}; see which indexes and links it looks at")
    python = f"CPython {sys.version_info[0]}.{sys.version_info[1]}"
    header = f"# Written by `python tools/lock.py {device}` for {python} on Linux x86-64; each hash is of one wheel."
    return "\n".join([header, *lines, ""])


def main() -> None:
    """Resolve for the named device and write its file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("device", choices=("cpu", "gpu"))
    device = parser.parse_args().device
    pyproject = read_pyproject(ROOT / "pyproject.toml")
    wanted = requirements(pyproject, [device])
    packages = resolve([*torch_index_arguments(device, torch_index_reachable), *wanted], tested(wanted))
    packages += resolve(["--no-deps", *pyproject["tool"]["speechsum"]["setup"]["weights-only"]], [])
    path = ROOT / "docker" / f"requirements-{device}.txt"
    path.write_text(lock(device, packages), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(packages)} packages")


if __name__ == "__main__":
    main()
