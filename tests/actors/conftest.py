"""The tiny judge's checkpoint, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import tiny_text_checkpoint


@pytest.fixture(scope="session")
def tiny_text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only causal LM with random weights."""
    return tiny_text_checkpoint(tmp_path_factory.mktemp("tiny-text"))
