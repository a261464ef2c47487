"""Which runs there are to be shown."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from cluster.dashboard.run_reader import RunReader
from cluster.run_folder import RunFolder
from speechsum.errors import UserError


class RunLibrary:
    """The runs at `paths`, each a run folder or a folder of them; looked for again each time, as new ones begin."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = [path.absolute() for path in paths]
        self._lock = threading.Lock()
        self._readers: dict[str, RunReader] = {}
        self._names: dict[Path, str] = {}
        for path in self._paths:
            if not path.is_dir():
                raise UserError(f"there is no run at {path}; name a run folder, or a folder of them")
        if not self.runs():
            raise UserError(f"no run in {', '.join(map(str, paths))}; name a folder that `train` made")

    def runs(self) -> dict[str, RunReader]:
        """Readers by name, the latest begun first. A name is kept once it is given, and two are never alike."""
        with self._lock:
            found = [folder for path in self._paths for folder in _folders(path)]
            begun = {folder: stamp for folder in dict.fromkeys(found) if (stamp := _begun(folder)) is not None}
            names = {self._name(folder): stamp for folder, stamp in begun.items()}
            return {name: self._readers[name] for name in sorted(names, key=lambda name: names[name], reverse=True)}

    def get(self, name: str) -> RunReader:
        """A run by name. Raises LookupError for one that is not there, or not any more."""
        return self.runs()[name]

    def _name(self, folder: Path) -> str:
        if folder not in self._names:
            taken = set(self._names.values())
            numbered = (folder.name if n == 1 else f"{folder.name} ({n})" for n in range(1, len(taken) + 2))
            self._names[folder] = next(name for name in numbered if name not in taken)
            self._readers[self._names[folder]] = RunReader(RunFolder(folder))
        return self._names[folder]


def _folders(path: Path) -> list[Path]:
    if RunFolder(path).config.is_file():
        return [path]
    try:
        return [child for child in sorted(path.iterdir()) if RunFolder(child).config.is_file()]
    except OSError:
        return []


def _begun(folder: Path) -> float | None:
    try:
        return RunFolder(folder).config.stat().st_mtime
    except FileNotFoundError:
        return None
