"""From a recipe and a profile to YAML: everything that a run needs in its namespace, in the order to apply it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.kuberay import rules
from cluster.kuberay.companions import network_policy, recipe_map, run_claim
from cluster.kuberay.monitoring import dashboard_maps, pod_monitor, prometheus_rule
from cluster.kuberay.objects import Manifest
from cluster.kuberay.profile import ClusterProfile
from cluster.kuberay.rayjob import ray_job
from cluster.kuberay.recipe import fitted
from speechsum.config import RunConfig
from speechsum.errors import UserError


def manifests(config: RunConfig, profile: ClusterProfile) -> list[Manifest]:
    """All objects of a run, the RayJob last.

    Raises `UserError` where recipe and profile do not fit, and where KubeRay would refuse the job.
    """
    config = fitted(config, profile)
    job = ray_job(config, profile)
    if broken := rules.broken(job.tree()):
        raise UserError("; ".join(broken))
    found: list[Manifest] = [recipe_map(config, profile)]
    if profile.storage.pvc is not None:
        found.append(run_claim(config, profile, profile.storage.pvc))
    found.append(network_policy(config, profile))
    if profile.monitoring:
        found += [pod_monitor(config, profile), prometheus_rule(config, profile), *dashboard_maps(config, profile)]
    return [*found, job]


def as_yaml(manifest: Manifest) -> str:
    """One document, keys in the order of the types, texts of several lines as blocks."""
    return yaml.dump(manifest.tree(), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def write(found: list[Manifest], folder: Path) -> list[Path]:
    """A file for each object, numbered in the order in which `kubectl apply -f FOLDER` should take them.

    Raises `UserError` where another render has left files that would be applied with these.
    """
    texts = {f"{i:02d}-{m.kind.lower()}-{m.metadata.name}.yaml": as_yaml(m) for i, m in enumerate(found)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if strangers := sorted({path.name for path in folder.glob("*.y*ml")} - texts.keys()):
            raise UserError(
                f"{folder} holds {strangers[0]}, which `kubectl apply -f {folder}` would apply too; "
                "remove it or choose another --out"
            )
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out: cannot write to {folder}: {error.strerror}; name a folder that can be") from None
    return [folder / name for name in texts]


class _Dumper(yaml.SafeDumper):
    """Repeats what occurs twice instead of pointing at it, as people expect of manifests."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
