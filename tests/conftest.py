"""Checkpoints that many tests read and none changes, and how every test begins."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.tiny import tiny_checkpoint

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # as the command line does, before Ray is imported


@pytest.fixture(scope="session", autouse=True)
def _heeds_ctrl_c() -> None:
    """A job in the background ignores Ctrl-C and so do its children; those that tests interrupt must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The audio checkpoint, made once: windows of two seconds, float32."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_30s_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the windows of 30 s that real models have."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint-30s", window_s=30)
