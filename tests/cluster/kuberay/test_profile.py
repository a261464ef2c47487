"""Profiles: what is accepted, what is refused and in which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.kuberay.pods import HOME
from cluster.kuberay.profile import bytes_of, load_profile
from speechsum.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
PROFILES = sorted((ROOT / "recipes" / "profiles").glob("*.toml"))
KIND = (ROOT / "recipes" / "profiles" / "kind.toml").read_text(encoding="utf-8")


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "profile.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        load_profile(path)
    assert str(path) in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_profiles_that_ship_fit_the_project(path: Path) -> None:
    profile = load_profile(path)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "NOT RUN YET" in text
    locked = re.search(r'"ray\[default\]==([\d.]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert locked is not None
    assert profile.ray_version == locked[1]


def test_user_and_home_are_those_of_the_image() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    user = load_profile(PROFILES[0]).user
    assert f"USER {user}:{user}" in dockerfile
    assert f"HOME={HOME}" in dockerfile


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("allow_tags = true", "", "name it by digest, repository@sha256:"),
        ('namespace = "speechsum"', "", "'namespace' is missing; add it"),
        ("max_replicas = 1", "max_replica = 1", "did you mean 'max_replicas'"),
        ("max_replicas = 1", "max_replicas = 1\nmin_replicas = 2", "min_replicas = 2 exceeds max_replicas = 1"),
        ('shm = "512Mi"', 'shm = "8Gi"', "shm = '8Gi' is counted within memory = '4Gi'"),
        ('memory = "4Gi"', 'memory = "4 GB"', "'4 GB' is no size"),
        ("cpus = 1", "cpus = 1\ngpus = 1", "head.gpus"),
        ("[learner]", "[learner]\nspot = true", "unknown key 'learner.spot'"),
        ("[storage.pvc]", '[storage]\nbucket = "gs://runs"\n[storage.pvc]', "give storage.pvc or storage.bucket"),
        ('size = "10Gi"', 'size = "much"', "'much' is no size"),
        ("[limits]", "[limits]\nkeep_record_s = 1", "limits.keep_record_s = 1 is over before"),
        ("[limits]", '[queue]\nkind = "kueue"\n[limits]', "give both or neither"),
        ("[limits]", '[queue]\nkind = "volcano"\nname = "q"\nelastic = true\n[limits]', "is a mode of Kueue"),
    ],
)
def test_what_is_wrong_is_told_with_the_remedy(tmp_path: Path, before: str, after: str, words: str) -> None:
    assert before in KIND
    assert words in refusal(tmp_path, KIND.replace(before, after, 1))


BUCKET = KIND.replace('[storage.pvc]\nsize = "10Gi"\naccess_mode = "ReadWriteOnce"', '[storage]\nbucket = "gs://runs"')


@pytest.mark.parametrize(
    ("bucket", "words"),
    [("gs://runs", "set service_account to one of those"), ("s3://runs", "use storage.pvc elsewhere")],
)
def test_a_bucket_has_to_rename_folders_and_know_who_asks(tmp_path: Path, bucket: str, words: str) -> None:
    assert words in refusal(tmp_path, BUCKET.replace("gs://runs", bucket))


def test_a_missing_profile_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no profile at .*; `ls recipes/profiles` shows"):
        load_profile(tmp_path / "nope.toml")


def test_nothing_can_be_changed_afterwards() -> None:
    profile = load_profile(PROFILES[0])
    with pytest.raises(ValidationError):
        profile.head.memory = "1Gi"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "size"), [("7", 7), ("2k", 2_000), ("512Mi", 536_870_912), ("3G", 3 * 10**9), ("1Ti", 1_099_511_627_776)]
)
def test_sizes_in_bytes(text: str, size: int) -> None:
    assert bytes_of(text) == size
