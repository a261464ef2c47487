"""What of a checkout is uploaded: what git tracks, as it stands, and nothing that is data."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster.code_package import CodePackage, code_package
from speechsum.errors import UserError


def git(root: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run(["git", "-C", root, *identity, *arguments], check=True, capture_output=True)


def commit(root: Path, **files: str) -> None:
    for name, text in files.items():
        (root / name).write_text(text)
    git(root, "add", "-A", "--force")
    git(root, "commit", "-qm", "More")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    commit(tmp_path, **{"a.py": "1", "talk.WAV": "sound", "old.py": "2", ".gitignore": "runs/\n"})
    return tmp_path


def archived(package: CodePackage, path: Path) -> dict[str, str]:
    package.write(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_tracked_code_as_it_stands(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert not code_package(root).dirty
    (root / "a.py").write_text("changed")
    (root / "old.py").unlink()
    (root / "new.py").write_text("3")
    (root / "runs").mkdir()
    (root / "runs" / "model.safetensors").write_text("weights")
    package = code_package(root)
    assert archived(package, tmp_path_factory.mktemp("zip") / "c.zip") == {".gitignore": "runs/\n", "a.py": "changed"}
    assert (package.dirty, package.untracked, package.data, package.size) == (True, ("new.py",), 1, 13)
    assert len(package.revision) == 40


def test_equal_contents_are_equal_bytes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ray uploads a package once for each hash of its bytes; a file that was only touched must not count."""
    folder = tmp_path_factory.mktemp("zip")
    first = code_package(root)
    first.write(folder / "1.zip")
    (root / "a.py").touch()
    second = code_package(root)
    second.write(folder / "2.zip")
    assert (folder / "1.zip").read_bytes() == (folder / "2.zip").read_bytes()
    digest = first.digest()
    assert second.digest() == digest
    (root / "a.py").write_text("other")
    assert code_package(root).digest() != digest


def test_too_much_is_refused_with_the_biggest_named(root: Path) -> None:
    commit(root, **{"b.py": "x" * 50, "c.py": "x" * 70, "d.py": "x" * 60})
    with pytest.raises(UserError, match=r"biggest files are c\.py \(0\.0 MiB\), d\.py .*, b\.py .*; take") as refused:
        code_package(root, limit=150)
    assert "talk" not in str(refused.value)
    assert code_package(root, limit=188).size == 188  # 50 + 60 + 70, and 8 from before


def test_a_link_out_of_the_checkout_is_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    secret = tmp_path_factory.mktemp("elsewhere") / "key"
    secret.write_text("secret")
    (root / "key").symlink_to(secret)
    commit(root)
    with pytest.raises(UserError, match="key is a link out of"):
        code_package(root)


def test_no_checkout_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="git says of"):
        code_package(tmp_path)
    git(tmp_path, "init", "-q")
    with pytest.raises(UserError, match="git tracks no file"):
        code_package(tmp_path)
