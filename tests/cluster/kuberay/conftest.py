"""A recipe and the profiles that ship, rendered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.kuberay.profile import ClusterProfile, load_profile
from cluster.kuberay.render import manifests
from speechsum.config import RunConfig, load_recipe

ROOT = Path(__file__).resolve().parents[3]
PROFILES = ROOT / "recipes" / "profiles"
PAIRS = {"kind": "demo", "gke-l4": "qwen2.5-omni-3b", "kueue-h100": "qwen2.5-omni-3b"}


def shipped(profile: str) -> tuple[RunConfig, ClusterProfile]:
    return load_recipe(ROOT / "recipes" / f"{PAIRS[profile]}.toml"), load_profile(PROFILES / f"{profile}.toml")


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[RunConfig, ClusterProfile]:
    return shipped(request.param)


@pytest.fixture
def gke() -> tuple[RunConfig, ClusterProfile]:
    return shipped("gke-l4")


@pytest.fixture
def kueue() -> tuple[RunConfig, ClusterProfile]:
    return shipped("kueue-h100")


@pytest.fixture
def kind() -> tuple[RunConfig, ClusterProfile]:
    return shipped("kind")


@pytest.fixture
def rendered():
    """Trees of all manifests by kind; of a kind that occurs twice, the first."""

    def render(config: RunConfig, profile: ClusterProfile, **changes: Any) -> dict[str, dict[str, Any]]:
        changed = ClusterProfile.model_validate(profile.model_dump() | changes)
        return {m.kind: m.tree() for m in reversed(manifests(config, changed))}

    return render
