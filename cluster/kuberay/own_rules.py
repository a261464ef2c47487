"""What a cluster would accept and a run would pay for: a driver on spot, a grace shorter than the drain, root.

Written like the rules of admission, and over plain values too, so that a manifest edited by hand can be checked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from cluster.kuberay.pods import GRACE_VARIABLE, METRICS_PORTS
from cluster.kuberay.profile import bytes_of

Tree = dict[str, Any]

HEAD = "headgroup"
"""KubeRay's own name for the group of the head."""


def groups(job: Tree) -> dict[str, Tree]:
    """Head and worker groups by name."""
    cluster = job["spec"]["rayClusterSpec"]
    return {HEAD: cluster["headGroupSpec"]} | {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def container(group: Tree) -> Tree:
    """The one that Ray runs in; empty where the group has none."""
    return next(iter(group["template"]["spec"]["containers"]), {})


def autoscales(job: Tree) -> bool:
    """Whether Ray's autoscaler changes the number of pods."""
    return bool(job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling"))


def groups_have_names_of_their_own(job: Tree) -> Iterator[str]:
    """Ray's autoscaler tells groups apart by name."""
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    if len({HEAD, *(group["groupName"] for group in workers)}) <= len(workers):
        yield "two groups have the same name"


def driver_stays_on_the_head(job: Tree) -> Iterator[str]:
    """What the entrypoint asks for is offered there and nowhere else; a spot worker would take the run with it."""
    wanted = json.loads(job["spec"].get("entrypointResources", "{}"))
    if not wanted:
        yield "the driver asks for no resource that only the head has; set entrypointResources"
    for resource in wanted:
        holders = {name for name, group in groups(job).items() if resource in group.get("resources", {})}
        if holders != {HEAD}:
            places = ", ".join(sorted(holders)) or "no group"
            yield f"the driver asks for {resource!r}, which {places} offers; only the head may"


def head_has_no_gpu(job: Tree) -> Iterator[str]:
    """It would be paid for and idle."""
    limits = container(groups(job)[HEAD]).get("resources", {}).get("limits", {})
    if any("gpu" in name.lower() for name in limits) or "GPU" in groups(job)[HEAD].get("resources", {}):
        yield "the head has a GPU, which nothing there uses; remove it"


def learner_stays(job: Tree) -> Iterator[str]:
    """Its ranks wait for each other, so losing one is losing the step of all."""
    learner = groups(job).get("learner", {})
    sizes = {learner.get(key) for key in ("minReplicas", "replicas", "maxReplicas")}
    if len(sizes) != 1 or sizes <= {0, None}:
        yield "the learner's group is not of one fixed size; make its replicas alike"
    if learner.get("labels", {}).get("ray.io/market-type") != "on-demand":
        yield "the learner's group is not labelled on-demand; it may not be evicted"


def grace_outlasts_the_drain(job: Tree) -> Iterator[str]:
    """Kubernetes kills at the end of the grace, whatever Ray is still waiting for."""
    for name, group in groups(job).items():
        variable = GRACE_VARIABLE["head" if name == HEAD else "worker"]
        values = {v["name"]: v.get("value") for v in container(group).get("env", [])}
        grace = group["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        if values.get(variable) is None:
            yield f"group {name!r} leaves {variable} to Ray's default; set it"
        elif grace <= float(values[variable]):
            yield f"group {name!r} is killed after {grace} s, and its {variable} is {values[variable]}; raise the grace"


def shared_memory_is_memory(job: Tree) -> Iterator[str]:
    """Ray's objects lie in /dev/shm; on disk they are slow, and beyond the pod's memory they kill it."""
    for name, group in groups(job).items():
        space = _mounted(group).get("/dev/shm", {}).get("emptyDir", {})
        if space.get("medium") != "Memory" or "sizeLimit" not in space:
            yield f"group {name!r} has no /dev/shm in memory with a size; mount an emptyDir of medium Memory"
            continue
        memory = container(group)["resources"]["limits"]["memory"]
        if bytes_of(space["sizeLimit"]) >= bytes_of(memory):
            yield f"group {name!r} has a /dev/shm of {space['sizeLimit']} in {memory} of memory; make it smaller"


def nothing_runs_as_root(job: Tree) -> Iterator[str]:
    """As a number, for Kubernetes to verify; and with no way up."""
    for name, template in _templates(job).items():
        security = template["spec"].get("securityContext", {})
        if not security.get("runAsNonRoot") or not security.get("runAsUser"):
            yield f"pods of {name!r} may run as root; set runAsNonRoot and runAsUser"
        for inside in template["spec"]["containers"]:
            if inside.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
                yield f"container {inside['name']!r} of {name!r} may gain privileges; set allowPrivilegeEscalation"


def root_is_read_only(job: Tree) -> Iterator[str]:
    """Then what Ray and the engines write needs a volume: /tmp, and Ray's session folder in it."""
    for name, template in _templates(job).items():
        for inside in template["spec"]["containers"]:
            if not inside.get("securityContext", {}).get("readOnlyRootFilesystem"):
                yield f"container {inside['name']!r} of {name!r} can write to its image; set readOnlyRootFilesystem"
        if missing := {"/tmp", "/tmp/ray"} - _mounted({"template": template}).keys():
            yield f"pods of {name!r} cannot write to {sorted(missing)[0]}; mount an emptyDir there"


def volumes_do_not_meet(job: Tree) -> Iterator[str]:
    """A profile may mount where, or under the name by which, a run's own volumes already are."""
    for name, template in _templates(job).items():
        volumes = Counter(volume["name"] for volume in template["spec"].get("volumes", []))
        places = Counter(mount["mountPath"] for mount in container({"template": template}).get("volumeMounts", []))
        for what, times in (*volumes.items(), *places.items()):
            if times > 1:
                yield f"pods of {name!r} have {times} volumes called or mounted at {what!r}; change the profile's"


def metrics_have_ports(job: Tree) -> Iterator[str]:
    """Prometheus finds them by name."""
    for name, group in groups(job).items():
        named = {port["name"] for port in container(group).get("ports", [])}
        wanted = set(METRICS_PORTS) if name == HEAD else {"metrics"}
        if missing := wanted - named:
            yield f"group {name!r} has no port called {sorted(missing)[0]!r}; name it"


def ray_is_the_locked_one(job: Tree) -> Iterator[str]:
    """Head, workers and driver have to be of one version: that of this project's lock, which the image has too."""
    version, locked = job["spec"]["rayClusterSpec"].get("rayVersion"), metadata.version("ray")
    if version != locked:
        yield f"rayVersion is {version!r} and speechsum is locked to Ray {locked}; set the profile's ray_version to it"


def _templates(job: Tree) -> dict[str, Tree]:
    """Every pod template by the name of its group; the submitter's is `submitter`."""
    found = {name: group["template"] for name, group in groups(job).items()}
    submitter = job["spec"].get("submitterPodTemplate")
    return found | ({"submitter": submitter} if submitter else {})


def _mounted(group: Tree) -> dict[str, Tree]:
    """The volume at each mount path of the Ray container."""
    volumes = {volume["name"]: volume for volume in group["template"]["spec"].get("volumes", [])}
    return {mount["mountPath"]: volumes.get(mount["name"], {}) for mount in container(group).get("volumeMounts", [])}


OWN: tuple[Callable[[Tree], Iterator[str]], ...] = (
    groups_have_names_of_their_own, driver_stays_on_the_head, head_has_no_gpu, learner_stays, grace_outlasts_the_drain,
    shared_memory_is_memory, nothing_runs_as_root, root_is_read_only, volumes_do_not_meet,
    metrics_have_ports, ray_is_the_locked_one,
)  # fmt: skip
