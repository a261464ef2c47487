"""The code a job runs: what git tracks, as a zip for Ray to unpack into the job's working directory.

Git's own list keeps ignored files out, and with them runs and environments; data is left out by its suffix as well,
for a job reads it where it lies. Contents are those of the working tree, so an edit counts before it is committed.
"""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from speechsum.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
"""The checkout that this very code is from."""

LIMIT_BYTES = 64 << 20
"""Before compression. Ray's dashboard takes 100 MiB in one request."""

DATA_SUFFIXES = frozenset(".wav .flac .ogg .mp3 .opus .m4a .parquet .arrow .npy .npz .pt .ckpt .distcp".split())
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Of every entry in a zip, so that equal contents are equal bytes and Ray uploads them once."""

SHOWN = 3


@dataclass(frozen=True, slots=True)
class CodePackage:
    """Files by their path inside the job's folder, and the revision they are of. `code_package` -> `submit`.

    `dirty` says that tracked files differ from the revision; `untracked` names files that stay behind because git
    neither tracks nor ignores them, `data` how many tracked ones were taken for data.
    """

    files: dict[str, Path]
    revision: str
    dirty: bool
    untracked: tuple[str, ...]
    data: int

    @property
    def size(self) -> int:
        """Bytes before compression."""
        return sum(path.stat().st_size for path in self.files.values())

    def digest(self) -> str:
        """SHA-256 over names and contents."""
        total = hashlib.sha256()
        for name, path in sorted(self.files.items()):
            total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
        return total.hexdigest()

    def write(self, path: Path) -> None:
        """The zip."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, file in sorted(self.files.items()):
                entry = zipfile.ZipInfo(name, EPOCH)
                entry.external_attr = (file.stat().st_mode & 0xFFFF) << 16
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)


def code_package(root: Path = ROOT, limit: int = LIMIT_BYTES) -> CodePackage:
    """What would be uploaded from the checkout at `root`.

    Raises `UserError` where `root` is no checkout, where a tracked link leads out of it, or above `limit` bytes.
    """
    tracked = _git(root, "ls-files", "-z").split("\0")
    files = {name: root / name for name in tracked if name and (root / name).is_file()}
    if not files:
        raise UserError(f"git tracks no file in {root}, which is what a job's code is taken from; run a clone")
    code = {name: path for name, path in files.items() if path.suffix.lower() not in DATA_SUFFIXES}
    for name, path in code.items():
        if not path.resolve().is_relative_to(root.resolve()):
            raise UserError(f"{name} is a link out of {root}; replace it by the file, or take it out of git")
    package = CodePackage(
        code,
        revision=_git(root, "rev-parse", "HEAD").strip(),
        dirty=bool(_git(root, "status", "--porcelain", "--untracked-files=no", "--", ".").strip()),
        untracked=tuple(name for name in _git(root, "ls-files", "-zo", "--exclude-standard").split("\0") if name),
        data=len(files) - len(code),
    )
    _refuse_above(limit, package)
    return package


def _refuse_above(limit: int, package: CodePackage) -> None:
    if package.size <= limit:
        return
    sizes = sorted(((path.stat().st_size, name) for name, path in package.files.items()), reverse=True)
    biggest = ", ".join(f"{name} ({mib(size)})" for size, name in sizes[:SHOWN])
    raise UserError(
        f"the code is {mib(package.size)}, above the limit of {mib(limit)} for an upload; the biggest files are "
        f"{biggest}; take what is no code out of git (`git rm --cached`) and read it from where it lies"
    )


def mib(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 2**20:.1f} MiB"


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise UserError("a job's code is what git tracks, and there is no git on this machine; install it") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip() or "no reason given").splitlines()[0]
        raise UserError(
            f"a job's code is what git tracks, and git says of {root}: {reason}; run a clone that has a commit"
        ) from None
    return done.stdout
