"""Looks for processes that a test should have ended."""

from __future__ import annotations

import os
from pathlib import Path


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
