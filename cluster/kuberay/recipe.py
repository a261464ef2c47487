"""A recipe made ready for a cluster: fitted to the profile's pods, and written down with everything resolved."""

from __future__ import annotations

import json
import re
from math import ceil
from pathlib import PurePosixPath
from typing import Any

from cluster import assets
from cluster.kuberay.profile import ClusterProfile, PodConfig
from speechsum.config import STARTER, PooledSection, RunConfig
from speechsum.errors import UserError

ROLES = ("learner", "rollout", "judge")


def run_name(config: RunConfig) -> str:
    """The recipe's name in the letters that Kubernetes allows."""
    return re.sub(r"[^a-z0-9]+", "-", config.name.lower()).strip("-")


def fitted(config: RunConfig, profile: ClusterProfile) -> RunConfig:
    """The recipe whose actors ask for a place on the pods of their own group.

    Raises `UserError` where they do not fit there, or where a path of the recipe lies in no volume of the profile.
    """
    if "teacher" in roles(config) and profile.teacher is None:
        raise UserError(
            "a stage or a row of the recipe asks a teacher, for which the profile has no pods; add [teacher] to it"
        )
    problems = [*_misfits(config, profile), *_paths_outside(config, profile)]
    if uses_starter(config) and profile.storage.bucket is not None:
        problems.append("the starter is assembled in a folder that all pods share, which a bucket is not; use a pvc")
    if problems:
        raise UserError("; ".join(problems))
    placed = {role: getattr(config, role).model_copy(update={"resources": {role: 1.0}}) for role in roles(config)}
    return config.model_copy(update=placed)


def roles(config: RunConfig) -> tuple[str, ...]:
    """Whose actors the run starts, each role in a group of pods of its own."""
    return (*ROLES, "teacher") if assets.asks_teacher(config) else ROLES


def pods_needed(config: RunConfig, profile: ClusterProfile) -> dict[str, int]:
    """How many pods of each group hold the actors that the run starts with."""
    return {role: _pods(_actors(config, role), role, profile) for role in roles(config)}


def uses_starter(config: RunConfig) -> bool:
    """Whether something of the recipe is made on first use, in the cache of the home folder."""
    return STARTER in assets.paths(config).values()


def as_toml(config: RunConfig) -> str:
    """The recipe as `load_recipe` reads it, every default spelt out.

    TOML has no null. What is None here could only be left out of a recipe, so leaving it out again gives it back.
    """
    tree = config.model_dump(mode="json", exclude_none=True)
    stages = tree.pop("stage")
    plain = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    tables = [("", plain), *((f"[{key}]", value) for key, value in tree.items() if isinstance(value, dict))]
    tables += [("[[stage]]", stage) for stage in stages]
    return "\n".join(_table(header, values) for header, values in tables)


def _actors(config: RunConfig, role: str) -> int:
    return config.learner.ranks if role == "learner" else int(getattr(config, role).actors)


def _pods(actors: int, role: str, profile: ClusterProfile) -> int:
    return ceil(actors / getattr(profile, role).per_pod)


def _most(config: RunConfig, role: str) -> tuple[str, int]:
    """The key that says how many actors of a role there may ever be, and its value."""
    chosen = getattr(config, role)
    if isinstance(chosen, PooledSection) and chosen.pool:
        return f"{role}.pool.max", chosen.pool.max
    return f"{role}.actors", _actors(config, role)


def _gpus(config: RunConfig, role: str) -> float:
    return config.learner.gpus_per_rank if role == "learner" else float(getattr(config, role).gpus_per_actor)


def _misfits(config: RunConfig, profile: ClusterProfile) -> list[str]:
    """Sentences on groups that cannot hold their actors."""
    found = []
    for role in roles(config):
        group = getattr(profile, role)
        if strange := sorted(getattr(config, role).resources.keys() - {role}):
            found.append(f"{role}.resources asks for {strange[0]!r}, which no pod of the profile offers; remove it")
        found += _without_gpus(role, group, group.per_pod * _gpus(config, role))
        key, most = _most(config, role)
        if role != "learner" and (needed := _pods(most, role, profile)) > group.max_replicas:
            found.append(
                f"{key} = {most} need {needed} pods and the profile's {role}.max_replicas is {group.max_replicas}; "
                "raise it or lower the actors, for those without a place are waited for in vain"
            )
    return found


def _without_gpus(role: str, group: PodConfig, wanted: float) -> list[str]:
    if wanted > group.gpus:
        return [
            f"a {role} pod of the profile has {group.gpus} GPUs and would hold actors that take {wanted:g}; "
            f"raise {role}.gpus or lower {role}.per_pod"
        ]
    if group.gpus and not wanted:
        return [f"a {role} pod of the profile has {group.gpus} GPUs of which the recipe uses none; set {role}.gpus = 0"]
    return []


def _paths_outside(config: RunConfig, profile: ClusterProfile) -> list[str]:
    """Sentences on paths that no pod would find."""
    mounted = [PurePosixPath(mount.path) for mount in profile.mounts]
    return [
        f"{key} = {value!r} lies in no volume of the profile; add [[mounts]] with the claim that holds it"
        for key, value in assets.paths(config).items()
        if value != STARTER and not any(PurePosixPath(value).is_relative_to(folder) for folder in mounted)
    ]


def _table(header: str, values: dict[str, Any]) -> str:
    lines = [f"{key} = {_value(value)}" for key, value in values.items()]
    return "\n".join([header, *lines] if header else lines) + "\n"


def _value(value: Any) -> str:
    """A value as TOML writes it, sections inline. JSON's strings, numbers and truth values are TOML's too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
