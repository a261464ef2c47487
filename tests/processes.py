"""Looks at processes: those that a test should have ended, and where those of a run can be reached."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


def leftover_processes() -> list[str]:
    """Command lines of this process's descendants, zombies aside."""
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            lines[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # it ended while we looked
        if fields[0] != "Z":
            parents[int(entry.name)] = int(fields[1])
    ours = {os.getpid()}
    while new := {p for p, parent in parents.items() if parent in ours} - ours:
        ours |= new
    return [lines[p] for p in sorted(ours - {os.getpid()}) if "resource_tracker" not in lines[p]]


def processes_marked(mark: str) -> list[str]:
    """Command lines of all processes, zombies aside, whose environment holds `mark`."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it ended while we looked, or is not ours
    return found


def listening(parent: int) -> set[str]:
    """The addresses at which a process and its descendants take TCP connections."""
    found: set[str] = set()
    family = psutil.Process(parent)
    for process in (family, *family.children(recursive=True)):
        try:
            found |= {c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.NoSuchProcess:
            continue  # it ended while we looked
    return found


LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
