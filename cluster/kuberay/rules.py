"""What KubeRay 1.7 and Kueue refuse only when a RayJob arrives, told before it does.

The schema of the kind knows nothing of these: they are in KubeRay's `ValidateRayJobSpec` and `ValidateRayClusterSpec`
and in Kueue's webhook for RayJobs. Each rule reads a manifest as plain values and gives a sentence for each offence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from cluster.kuberay import own_rules
from cluster.kuberay.own_rules import autoscales, container, groups

Tree = dict[str, Any]

LONGEST_NAME = 47
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")
TOKEN_SINCE = (2, 52)
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
KUEUE_ELASTIC = "kueue.x-k8s.io/elastic-job"
KUEUE_WORKER_GROUPS = 7


def name_fits(job: Tree) -> Iterator[str]:
    """KubeRay makes longer names of it, and a service's name is a DNS label."""
    name = job["metadata"]["name"]
    if len(name) > LONGEST_NAME or not DNS_1035.fullmatch(name):
        yield (
            f"the RayJob would be called {name!r}; KubeRay takes up to {LONGEST_NAME} of a-z, 0-9 and -, from a letter "
            "on; set the recipe's name"
        )


def submission_mode_is_known(job: Tree) -> Iterator[str]:
    """The schema takes any word."""
    mode = job["spec"].get("submissionMode", SUBMISSION_MODES[0])
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode {mode!r} is none of {', '.join(SUBMISSION_MODES)}"


def submission_mode_fits(job: Tree) -> Iterator[str]:
    """Two modes have no pod of their own to submit from."""
    spec = job["spec"]
    if spec.get("submissionMode") == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode takes neither submitterPodTemplate nor submitterConfig; remove them"
    if spec.get("submissionMode") == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode cannot retry; set backoffLimit to 0"


def cluster_is_given_once(job: Tree) -> Iterator[str]:
    """A job has a cluster of its own or selects one."""
    spec = job["spec"]
    if ("rayClusterSpec" in spec) == bool(spec.get("clusterSelector")):
        yield "a RayJob has either rayClusterSpec or clusterSelector"


def suspended_job_is_shut_down(job: Tree) -> Iterator[str]:
    """Suspending is deleting the cluster."""
    if job["spec"].get("suspend") and not job["spec"].get("shutdownAfterJobFinishes"):
        yield "a suspended RayJob needs shutdownAfterJobFinishes: true"


def time_to_live_needs_shutdown(job: Tree) -> Iterator[str]:
    """A time after which nothing happens is a mistake."""
    seconds = job["spec"].get("ttlSecondsAfterFinished", 0)
    if seconds < 0:
        yield f"ttlSecondsAfterFinished is {seconds}; it cannot be below 0"
    if seconds > 0 and not job["spec"].get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true"


def limits_are_positive(job: Tree) -> Iterator[str]:
    """Deadlines from 1 on, retries from 0 on."""
    for key, least in (("activeDeadlineSeconds", 1), ("preRunningDeadlineSeconds", 1), ("backoffLimit", 0)):
        if job["spec"].get(key, least) < least:
            yield f"{key} is {job['spec'][key]}; it has to be at least {least}"


def deletion_rules_stand_alone(job: Tree) -> Iterator[str]:
    """The older ways to say the same are refused beside them."""
    strategy = job["spec"].get("deletionStrategy", {})
    if "deletionRules" in strategy and job["spec"].get("shutdownAfterJobFinishes"):
        yield "deletionRules and shutdownAfterJobFinishes exclude each other; keep one"
    if "deletionRules" in strategy and ("onSuccess" in strategy or "onFailure" in strategy):
        yield "deletionRules and onSuccess or onFailure exclude each other; keep the rules"


def deletion_conditions_name_one_status(job: Tree) -> Iterator[str]:
    """Also a CEL rule of the schema, which JSON Schema cannot say."""
    for i, (_, condition) in enumerate(_deletion_rules(job)):
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            yield f"deletionRules[{i}] needs either jobStatus or jobDeploymentStatus"


def deletion_rules_differ(job: Tree) -> Iterator[str]:
    """One time for each policy and status."""
    seen = Counter((policy, _status(condition)) for policy, condition in _deletion_rules(job))
    for (policy, status), times in seen.items():
        if times > 1:
            yield f"{times} deletionRules say when to {policy} after {status}; keep one"


def deletion_times_keep_their_order(job: Tree) -> Iterator[str]:
    """What holds something goes after what it holds."""
    times = {(policy, _status(c)): c.get("ttlSeconds", 0) for policy, c in _deletion_rules(job)}
    for status in dict.fromkeys(status for _, status in times):
        ordered = [(policy, times[policy, status]) for policy in DELETION_ORDER if (policy, status) in times]
        for (first, before), (second, after) in pairwise(ordered):
            if after < before:
                yield f"after {status}, {second} at {after} s comes before {first} at {before} s; raise it"


def workers_are_not_deleted_from_an_autoscaler(job: Tree) -> Iterator[str]:
    """It would bring them back."""
    if autoscales(job) and any(policy == "DeleteWorkers" for policy, _ in _deletion_rules(job)):
        yield "DeleteWorkers is not to be had with autoscaling; use DeleteCluster"


def groups_have_containers(job: Tree) -> Iterator[str]:
    """Ray runs in the first one."""
    for name, group in groups(job).items():
        if not group["template"]["spec"]["containers"]:
            yield f"group {name!r} has no container"


def replicas_are_in_range(job: Tree) -> Iterator[str]:
    """From the minimum to the maximum."""
    for name, group in groups(job).items():
        if name == own_rules.HEAD:
            continue
        low, now, high = (group.get(key, 0) for key in ("minReplicas", "replicas", "maxReplicas"))
        if not 0 <= low <= now <= high:
            yield f"group {name!r} has replicas {now} outside minReplicas {low} to maxReplicas {high}"


def resources_are_said_once(job: Tree) -> Iterator[str]:
    """Either by Ray's options or by the group's field."""
    for name, group in groups(job).items():
        twice = {"num-cpus", "num-gpus", "memory", "resources"} & group.get("rayStartParams", {}).keys()
        if twice and group.get("resources"):
            yield f"group {name!r} has resources and {sorted(twice)[0]!r} in rayStartParams; keep resources"


def labels_are_labels(job: Tree) -> Iterator[str]:
    """In a field of their own, and in Kubernetes' letters."""
    for name, group in groups(job).items():
        if "labels" in group.get("rayStartParams", {}):
            yield f"group {name!r} has labels in rayStartParams; move them to labels"
        for key, value in group.get("labels", {}).items():
            if len(value) > 63 or not LABEL_VALUE.fullmatch(value):
                yield f"group {name!r} has the label {key} = {value!r}, which is no label's value"


def pods_are_not_restarted(job: Tree) -> Iterator[str]:
    """Autoscaler v2 replaces pods; one that restarts in place would be counted twice."""
    if autoscales(job) and _autoscaler(job).get("version") == "v2":
        for name, group in groups(job).items():
            policy = group["template"]["spec"].get("restartPolicy", "Never")
            if policy != "Never":
                yield f"group {name!r} has restartPolicy {policy!r}; autoscaler v2 takes Never alone"


def autoscaler_is_chosen_once(job: Tree) -> Iterator[str]:
    """By its option and not by the variable that KubeRay itself sets."""
    if any(variable["name"] == "RAY_enable_autoscaler_v2" for variable in _head_variables(job)):
        yield "the head has RAY_enable_autoscaler_v2; say autoscalerOptions.version instead"


def idle_time_needs_version_two(job: Tree) -> Iterator[str]:
    """A group's own idle time is a matter of autoscaler v2, spelt out."""
    for name, group in groups(job).items():
        if "idleTimeoutSeconds" in group and _autoscaler(job).get("version") != "v2":
            yield f"group {name!r} has idleTimeoutSeconds; that needs autoscalerOptions.version: v2"


def suspended_groups_do_not_scale(job: Tree) -> Iterator[str]:
    """An autoscaler would bring them back."""
    for name, group in groups(job).items():
        if group.get("suspend") and autoscales(job):
            yield f"group {name!r} is suspended, which does not go with autoscaling"


def redis_is_asked_for_openly(job: Tree) -> Iterator[str]:
    """The address alone would turn fault tolerance on without KubeRay's knowing."""
    named = {variable["name"] for variable in _head_variables(job)}
    if "RAY_REDIS_ADDRESS" in named and "gcsFaultToleranceOptions" not in job["spec"]["rayClusterSpec"]:
        yield "the head has RAY_REDIS_ADDRESS; say gcsFaultToleranceOptions instead"


def token_needs_a_recent_ray(job: Tree) -> Iterator[str]:
    """And Kubernetes' own tokens are not for jobs."""
    cluster = job["spec"]["rayClusterSpec"]
    auth, version = cluster.get("authOptions", {}), cluster.get("rayVersion", "")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if auth.get("mode") == "token" and (numbers is None or (int(numbers[1]), int(numbers[2])) < TOKEN_SINCE):
        yield f"authOptions.mode token needs Ray 2.52 or later, and rayVersion is {version!r}"
    if auth.get("enableK8sTokenAuth"):
        yield "enableK8sTokenAuth is for RayClusters; a RayJob takes authOptions.mode: token"


def kueue_can_give_back(job: Tree) -> Iterator[str]:
    """What a finished job holds, nobody else in the queue gets."""
    if _queued(job) and not job["spec"].get("shutdownAfterJobFinishes"):
        yield "Kueue needs shutdownAfterJobFinishes: true"


def kueue_knows_what_it_grants(job: Tree) -> Iterator[str]:
    """A size that changes needs workload slices."""
    if _queued(job) and autoscales(job) and job["metadata"].get("annotations", {}).get(KUEUE_ELASTIC) != "true":
        yield f"Kueue takes an autoscaled RayJob only with the annotation {KUEUE_ELASTIC}: 'true'"


def kueue_counts_the_groups(job: Tree) -> Iterator[str]:
    """Eight kinds of pods in a workload, and one of them is the head."""
    workers = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    if _queued(job) and len(workers) > KUEUE_WORKER_GROUPS:
        yield f"Kueue takes {KUEUE_WORKER_GROUPS} worker groups, and there are {len(workers)}"
    if _queued(job) and any(group["groupName"] == "head" for group in workers):
        yield "Kueue calls the head 'head'; give the worker group another name"


def _deletion_rules(job: Tree) -> list[tuple[str, Tree]]:
    rules = job["spec"].get("deletionStrategy", {}).get("deletionRules", [])
    return [(rule["policy"], rule["condition"]) for rule in rules]


def _status(condition: Tree) -> str:
    return str(condition.get("jobStatus") or f"deployment {condition.get('jobDeploymentStatus')}")


def _autoscaler(job: Tree) -> Tree:
    return dict(job["spec"]["rayClusterSpec"].get("autoscalerOptions", {}))


def _head_variables(job: Tree) -> list[Tree]:
    return list(container(job["spec"]["rayClusterSpec"]["headGroupSpec"]).get("env", []))


def _queued(job: Tree) -> bool:
    return KUEUE_QUEUE in job["metadata"].get("labels", {})


ADMISSION: tuple[Callable[[Tree], Iterator[str]], ...] = (
    name_fits, submission_mode_is_known, submission_mode_fits, cluster_is_given_once, suspended_job_is_shut_down,
    time_to_live_needs_shutdown, limits_are_positive, deletion_rules_stand_alone, deletion_conditions_name_one_status,
    deletion_rules_differ, deletion_times_keep_their_order, workers_are_not_deleted_from_an_autoscaler,
    groups_have_containers, replicas_are_in_range, resources_are_said_once, labels_are_labels, pods_are_not_restarted,
    autoscaler_is_chosen_once, idle_time_needs_version_two, suspended_groups_do_not_scale, redis_is_asked_for_openly,
    token_needs_a_recent_ray, kueue_can_give_back, kueue_knows_what_it_grants, kueue_counts_the_groups,
)  # fmt: skip

RULES = (*ADMISSION, *own_rules.OWN)


def broken(job: Tree) -> list[str]:
    """What is wrong with a RayJob, as sentences; nothing where every rule holds."""
    return [sentence for rule in RULES for sentence in rule(job)]
