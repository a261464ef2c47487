"""Each rule fires on the manifest that breaks it, and no other does; on what is rendered none does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from cluster.kuberay import rules
from cluster.kuberay.render import manifests
from cluster.kuberay.rules import RULES
from speechsum.errors import UserError

Tree = dict[str, Any]
Change = Callable[[Tree], Any]


def fired(job: Tree) -> list[str]:
    return [rule.__name__ for rule in RULES if list(rule(job))]


def put(path: str, value: Any) -> Change:
    """Set one value, such as `spec.suspend`; a number in the path counts into a list."""

    def change(job: Tree) -> None:
        *parents, leaf = path.split(".")
        node: Any = job
        for part in parents:
            node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(leaf)] = value
        else:
            node[leaf] = value

    return change


def drop(path: str) -> Change:
    def change(job: Tree) -> None:
        *parents, leaf = path.split(".")
        node: Any = job
        for part in parents:
            node = node[int(part)] if part.isdigit() else node[part]
        del node[int(leaf) if leaf.isdigit() else leaf]

    return change


def both(*changes: Change) -> Change:
    def change(job: Tree) -> None:
        for one in changes:
            one(job)

    return change


CLUSTER = "spec.rayClusterSpec"
HEAD = f"{CLUSTER}.headGroupSpec"
LEARNER, ROLLOUT, JUDGE = (f"{CLUSTER}.workerGroupSpecs.{i}" for i in range(3))
HEAD_POD, ROLLOUT_POD = f"{HEAD}.template.spec", f"{ROLLOUT}.template.spec"
SECOND_VARIABLE = f"{HEAD_POD}.containers.0.env.1"
RULE = "spec.deletionStrategy.deletionRules"
NO_DELETION = drop("spec.deletionStrategy")
VARIABLE = {"value": "true"}

BREAKS: list[tuple[str, Change]] = [
    ("name_fits", put("metadata.name", "a" * 48)),
    ("name_fits", put("metadata.name", "3b-model")),
    ("name_fits", put("metadata.name", "qwen2.5")),
    ("submission_mode_is_known", put("spec.submissionMode", "K8sjobMode")),
    ("submission_mode_fits", put("spec.submissionMode", "SidecarMode")),
    ("submission_mode_fits", put("spec.submissionMode", "InteractiveMode")),
    ("cluster_is_given_once", put("spec.clusterSelector", {"ray.io/cluster": "theirs"})),
    ("suspended_job_is_shut_down", put("spec.suspend", True)),
    ("time_to_live_needs_shutdown", put("spec.ttlSecondsAfterFinished", 60)),
    (
        "time_to_live_needs_shutdown",
        both(NO_DELETION, put("spec.shutdownAfterJobFinishes", True), put("spec.ttlSecondsAfterFinished", -1)),
    ),
    ("limits_are_positive", put("spec.activeDeadlineSeconds", 0)),
    ("limits_are_positive", put("spec.preRunningDeadlineSeconds", 0)),
    ("limits_are_positive", put("spec.backoffLimit", -1)),
    ("deletion_rules_stand_alone", put("spec.shutdownAfterJobFinishes", True)),
    ("deletion_rules_stand_alone", put("spec.deletionStrategy.onSuccess", {"policy": "DeleteCluster"})),
    ("deletion_conditions_name_one_status", drop(f"{RULE}.1.condition.jobStatus")),
    ("deletion_conditions_name_one_status", put(f"{RULE}.0.condition.jobDeploymentStatus", "Failed")),
    ("deletion_rules_differ", put(f"{RULE}.1.condition.jobStatus", "SUCCEEDED")),
    ("deletion_times_keep_their_order", put(f"{RULE}.3.condition.ttlSeconds", 299)),
    ("workers_are_not_deleted_from_an_autoscaler", put(f"{RULE}.1.policy", "DeleteWorkers")),
    ("replicas_are_in_range", put(f"{ROLLOUT}.replicas", 17)),
    ("replicas_are_in_range", put(f"{ROLLOUT}.minReplicas", 1)),
    ("replicas_are_in_range", put(f"{JUDGE}.minReplicas", -1)),
    ("resources_are_said_once", put(f"{ROLLOUT}.rayStartParams.num-gpus", "1")),
    ("resources_are_said_once", put(f"{HEAD}.rayStartParams.resources", '{"driver": 1}')),
    ("labels_are_labels", put(f"{ROLLOUT}.rayStartParams.labels", "market=spot")),
    ("labels_are_labels", put(f"{ROLLOUT}.labels.zone", "a b")),
    ("pods_are_not_restarted", put(f"{ROLLOUT_POD}.restartPolicy", "Always")),
    ("pods_are_not_restarted", put(f"{HEAD_POD}.restartPolicy", "OnFailure")),
    ("autoscaler_is_chosen_once", put(SECOND_VARIABLE, VARIABLE | {"name": "RAY_enable_autoscaler_v2"})),
    ("idle_time_needs_version_two", drop(f"{CLUSTER}.autoscalerOptions.version")),
    ("suspended_groups_do_not_scale", put(f"{ROLLOUT}.suspend", True)),
    ("redis_is_asked_for_openly", put(SECOND_VARIABLE, VARIABLE | {"name": "RAY_REDIS_ADDRESS"})),
    ("token_needs_a_recent_ray", put(f"{CLUSTER}.authOptions.enableK8sTokenAuth", True)),
    ("groups_have_names_of_their_own", put(f"{JUDGE}.groupName", "rollout")),
    ("driver_stays_on_the_head", drop("spec.entrypointResources")),
    ("driver_stays_on_the_head", put("spec.entrypointResources", '{"chauffeur": 1}')),
    ("driver_stays_on_the_head", put(f"{ROLLOUT}.resources.driver", "1")),
    ("head_has_no_gpu", put(f"{HEAD}.resources.GPU", "1")),
    ("head_has_no_gpu", put(f"{HEAD_POD}.containers.0.resources.limits.nvidia/gpu", "1")),
    ("learner_stays", put(f"{LEARNER}.maxReplicas", 2)),
    ("learner_stays", put(f"{LEARNER}.labels", {"ray.io/market-type": "spot"})),
    ("grace_outlasts_the_drain", put(f"{ROLLOUT_POD}.terminationGracePeriodSeconds", 20)),
    ("grace_outlasts_the_drain", drop(f"{HEAD_POD}.terminationGracePeriodSeconds")),
    ("grace_outlasts_the_drain", drop(f"{ROLLOUT_POD}.containers.0.env")),
    ("shared_memory_is_memory", drop(f"{ROLLOUT_POD}.volumes.3.emptyDir.medium")),
    ("shared_memory_is_memory", drop(f"{ROLLOUT_POD}.volumes.3.emptyDir.sizeLimit")),
    ("shared_memory_is_memory", put(f"{ROLLOUT_POD}.volumes.3.emptyDir.sizeLimit", "48Gi")),
    ("nothing_runs_as_root", drop(f"{ROLLOUT_POD}.securityContext.runAsNonRoot")),
    ("nothing_runs_as_root", put("spec.submitterPodTemplate.spec.securityContext.runAsUser", 0)),
    ("nothing_runs_as_root", drop(f"{HEAD_POD}.containers.0.securityContext.allowPrivilegeEscalation")),
    ("root_is_read_only", drop(f"{HEAD_POD}.containers.0.securityContext.readOnlyRootFilesystem")),
    ("root_is_read_only", drop(f"{ROLLOUT_POD}.containers.0.volumeMounts.1")),
    ("volumes_do_not_meet", put(f"{ROLLOUT_POD}.volumes.4.name", "home")),
    ("volumes_do_not_meet", put(f"{ROLLOUT_POD}.containers.0.volumeMounts.4.mountPath", "/tmp")),
    ("metrics_have_ports", drop(f"{HEAD_POD}.containers.0.ports.3")),
    ("metrics_have_ports", drop(f"{ROLLOUT_POD}.containers.0.ports")),
    ("ray_is_the_locked_one", put(f"{CLUSTER}.rayVersion", "2.59.0")),
]  # fmt: skip

KUEUE_BREAKS: list[tuple[str, Change]] = [
    ("kueue_can_give_back", both(drop("spec.shutdownAfterJobFinishes"), drop("spec.suspend"),
                                 drop("spec.ttlSecondsAfterFinished"))),
    ("kueue_knows_what_it_grants", put(f"{CLUSTER}.enableInTreeAutoscaling", True)),
    ("kueue_counts_the_groups", put(f"{JUDGE}.groupName", "head")),
    ("kueue_counts_the_groups", lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"].extend(
        copy.deepcopy(job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]) | {"groupName": f"rollout-{i}"}
        for i in range(5))),
]  # fmt: skip


def named(case: Any) -> str | None:
    return case if isinstance(case, str) else None


@pytest.fixture
def job(gke, rendered) -> Tree:
    return rendered(*gke)["RayJob"]


@pytest.fixture
def queued(kueue, rendered) -> Tree:
    return rendered(*kueue)["RayJob"]


def test_what_is_rendered_breaks_no_rule(pair, rendered) -> None:
    assert fired(rendered(*pair)["RayJob"]) == []


@pytest.mark.parametrize(("rule", "change"), BREAKS, ids=named)
def test_a_rule_fires_alone(job: Tree, rule: str, change: Change) -> None:
    change(job)
    assert fired(job) == [rule]


@pytest.mark.parametrize(("rule", "change"), KUEUE_BREAKS, ids=named)
def test_a_rule_of_kueue_fires_alone(queued: Tree, rule: str, change: Change) -> None:
    change(queued)
    assert fired(queued) == [rule]


@pytest.mark.parametrize("version", ["2.51.1", "", "latest"])
def test_a_token_needs_a_recent_ray_that_is_also_the_locked_one(job: Tree, version: str) -> None:
    job["spec"]["rayClusterSpec"]["rayVersion"] = version
    assert fired(job) == ["token_needs_a_recent_ray", "ray_is_the_locked_one"]


def test_a_group_without_a_container_lacks_all_that_a_container_has(job: Tree) -> None:
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["template"]["spec"]["containers"] = []
    assert fired(job)[0] == "groups_have_containers"


def test_every_rule_has_a_manifest_that_breaks_it() -> None:
    tried = {rule for rule, _ in (*BREAKS, *KUEUE_BREAKS)} | {"groups_have_containers"}
    assert tried == {rule.__name__ for rule in RULES}


def test_kueues_rules_are_for_its_own_queue_alone(queued: Tree) -> None:
    del queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    queued["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] = True
    assert fired(queued) == []


def test_a_render_that_breaks_a_rule_is_refused(gke) -> None:
    config, profile = gke
    with pytest.raises(UserError, match=r"would be called 'a{60}'"):
        manifests(config.model_copy(update={"name": "a" * 60}), profile)
    with pytest.raises(UserError, match="set the profile's ray_version to it"):
        manifests(config, profile.model_copy(update={"ray_version": "2.59.0"}))


def test_all_that_is_broken_is_told(job: Tree) -> None:
    job["metadata"]["name"] = "A"
    job["spec"]["submissionMode"] = "none"
    assert len(rules.broken(job)) == 2
