"""What the doctor finds, on made-up machines; imports are tried in real processes."""

from pathlib import Path

import pytest

from speechsum import doctor
from speechsum.doctor import Check, State


def test_the_probe_tells_fine_broken_missing_and_fatal_apart() -> None:
    statements = {
        "json": "import json",
        "csv": "raise OSError('libcuda.so.1: cannot open')",
        "no_such_package": "import no_such_package",
        "os": "import os; os._exit(139)",
        "math": "import math",
    }
    tried: list[str] = []
    assert doctor.probe(statements, tried.append) == {
        "json": "",
        "csv": "OSError: libcuda.so.1: cannot open",
        "no_such_package": "missing",
        "os": "its import ends the process",
        "math": "",
    }
    assert tried == list(statements)


def test_the_trap_of_builds_for_another_device_has_a_way_out() -> None:
    broken = "OSError: libcudart.so.13"
    probed = dict.fromkeys(doctor.PACKAGES, "") | {"torchcodec": broken, "torchvision": "missing", "torchaudio": broken}
    rows = {check.name: check for check in doctor.packages(probed)}
    assert rows["torchcodec"].state is State.FAIL
    assert "pip uninstall -y torchcodec" in rows["torchcodec"].remedy
    assert "make setup" in rows["torchaudio"].remedy
    assert "torchvision" not in rows  # not installed is how it should be
    assert rows["torch"].state is State.OK


def test_a_home_that_is_not_there_has_the_disk_it_would_be_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "none" / "me"))
    (cache,) = (check for check in doctor.machine() if check.name == "disk for the cache")
    assert cache.found.endswith(f" GB free at {tmp_path}")


def test_too_little_shared_memory_is_a_warning(tmp_path: Path) -> None:
    assert "--shm-size" in doctor.shared_memory(tmp_path / "none").remedy


def test_a_gpu_that_pytorch_cannot_use_is_told(tmp_path: Path) -> None:
    assert doctor.gpu(cuda=False, node=tmp_path).state is State.WARN
    none = doctor.gpu(cuda=False, precision="float32", node=tmp_path / "none")
    assert (none.state, none.found) == (State.OK, "none; runs use the CPU, in float32")
    assert doctor.gpu(cuda=True).state is State.OK


def test_the_hub_is_named_with_its_setting() -> None:
    assert "offline" in doctor.hub({"HF_HUB_OFFLINE": "1"}).found
    assert "offline" not in doctor.hub({}).found


@pytest.mark.parametrize(("starter", "code"), [(State.OK, 0), (State.WARN, 0), (State.FAIL, 1)])
def test_only_what_is_needed_makes_it_fail(
    starter: State, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = Check("fine", State.OK, "here")
    monkeypatch.setattr(doctor, "probe", lambda statements, progress: dict.fromkeys(doctor.PACKAGES, ""))
    monkeypatch.setattr(doctor, "machine", lambda: iter([fine]))
    monkeypatch.setattr(doctor, "starter", lambda: iter([Check("weights", starter, "?", "do this")]))
    assert doctor.run() == code
    assert ("not ready: weights" in capsys.readouterr().out) == bool(code)
