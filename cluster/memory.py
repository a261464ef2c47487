"""How much memory a run takes, over all its processes, at its worst moment.

The run is many processes that share pages: the object store, forked code, files mapped twice. Adding up resident sizes
counts those again and again, so the kernel's proportional size is used (PSS, `proc(5)`: a page shared by n processes
counts as 1/n in each), and resident size only where the kernel does not tell.
"""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Self

PROC = Path("/proc")
MAX_LOAD = 0.05  # share of one core that sampling may take; reading PSS makes the kernel walk page tables


class MemoryWatch:
    """A thread that samples the run's memory and keeps the peak. Driver -> summary, `wall/rss_gb`.

    The run is this process, all its descendants, and whatever `follow` names: Ray's daemons may outlive or leave
    the process that started them, but they carry the session's name on their command line.
    """

    def __init__(self, interval_s: float = 1.0, proc: Path = PROC) -> None:
        self._interval_s = interval_s
        self._proc = proc
        self._mark = b""
        self._lock = threading.Lock()
        self._last_gb = 0.0
        self._peak_gb = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def follow(self, mark: str) -> None:
        """Count processes whose command line or environment holds `mark` too (a Ray session's name or folder)."""
        self._mark = mark.encode()

    @property
    def peak_gb(self) -> float:
        """The most that was seen so far, in GB (1e9 bytes)."""
        return self._peak_gb

    @property
    def last_gb(self) -> float:
        """What the latest sample found, in GB."""
        return self._last_gb

    def sample(self) -> float:
        """Measure now; returns GB."""
        found = sum(_memory_bytes(self._proc / str(pid)) for pid in self.processes()) / 1e9
        with self._lock:
            self._last_gb = found
            self._peak_gb = max(self._peak_gb, found)
        return found

    def processes(self) -> set[int]:
        """Ids of all processes that belong to the run."""
        children: defaultdict[int, list[int]] = defaultdict(list)
        pending = [os.getpid()]
        for folder in self._proc.iterdir():
            if folder.name.isdigit() and (parent := _parent(folder)) is not None:
                children[parent].append(int(folder.name))
                if self._mark and _carries(folder, self._mark):
                    pending.append(int(folder.name))
        found: set[int] = set()
        while pending:
            pid = pending.pop()
            if pid not in found:
                found.add(pid)
                pending += children[pid]
        return found

    def close(self) -> None:
        """Take a last sample and stop the thread."""
        if self._thread is not None and not self._stop.is_set():
            self._stop.set()
            self._thread.join()
            self.sample()

    def _watch(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            started = time.monotonic()
            self.sample()
            pause = max(self._interval_s, (time.monotonic() - started) / MAX_LOAD)


def _read(path: Path) -> bytes:
    """A file of /proc, empty when the process is gone or not ours."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parent(folder: Path) -> int | None:
    """The parent's id. The name before it may hold spaces and brackets, so fields count from the last bracket."""
    fields = _read(folder / "stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else None


def _carries(folder: Path, mark: bytes) -> bool:
    return mark in _read(folder / "cmdline") or mark in _read(folder / "environ")


def _memory_bytes(folder: Path) -> int:
    for file, label in (("smaps_rollup", b"Pss:"), ("status", b"VmRSS:")):
        for line in _read(folder / file).splitlines():
            if line.startswith(label):
                return int(line.split()[1]) * 1024
    return 0
