"""The RayJob of a run: a head that alone can hold the driver, a learner that stays, rollouts and judges that come."""

from __future__ import annotations

import json

from cluster.kuberay.objects import Metadata, Mount, Resources
from cluster.kuberay.operators import (
    AutoscalerOptions,
    DeletionCondition,
    DeletionRule,
    DeletionStrategy,
    HeadGroup,
    RayClusterSpec,
    RayJob,
    RayJobSpec,
    WorkerGroup,
)
from cluster.kuberay.pods import HOME, RECIPE_FOLDER, RUNS, SCRATCH, Pods, labels
from cluster.kuberay.profile import ClusterProfile, LimitsConfig, PodConfig, QueueConfig, bytes_of
from cluster.kuberay.recipe import pods_needed, run_name, uses_starter
from speechsum.config import RunConfig

QUEUE_LABEL = {"kueue": "kueue.x-k8s.io/queue-name", "volcano": "volcano.sh/queue-name"}
ELASTIC = {"kueue.x-k8s.io/elastic-job": "true"}
MARKET = "ray.io/market-type"
DRIVER = "driver"
"""A Ray resource that only the head offers, so that the driver never lands on a worker."""


def ray_job(config: RunConfig, profile: ClusterProfile) -> RayJob:
    """The run as KubeRay takes it, in the variant of the profile's queue."""
    name, queue, limits = run_name(config), profile.queue, profile.limits
    kueue = queue.kind == "kueue"
    pods = Pods(name, profile, uses_starter(config))
    return RayJob(
        metadata=Metadata(
            name=name,
            namespace=profile.namespace,
            labels=labels(name) | ({} if queue.kind == "none" else {QUEUE_LABEL[queue.kind]: queue.name}),
            annotations=ELASTIC if queue.elastic else None,
        ),
        spec=RayJobSpec(
            suspend=True if kueue else None,  # Kueue lets it go when there is room
            entrypoint=f"python -m cluster.kuberay.start {RECIPE_FOLDER}/recipe.toml {RUNS}/{name}",
            entrypoint_resources=json.dumps({DRIVER: 1}),
            backoff_limit=limits.retries,
            active_deadline_seconds=limits.deadline_s,
            pre_running_deadline_seconds=limits.start_deadline_s,
            # Kueue asks for the first, and KubeRay allows no deletion rules beside it
            shutdown_after_job_finishes=True if kueue else None,
            ttl_seconds_after_finished=limits.keep_succeeded_s if kueue else None,
            deletion_strategy=None if kueue else _deletion(limits),
            submitter_pod_template=pods.submitter(),
            ray_cluster_spec=_cluster(config, profile, pods),
        ),
    )


def _deletion(limits: LimitsConfig) -> DeletionStrategy:
    """A failed cluster stays a while to be looked at; the record of the job outlives both."""
    succeeded = DeletionCondition(job_status="SUCCEEDED", ttl_seconds=limits.keep_succeeded_s)
    failed = DeletionCondition(job_status="FAILED", ttl_seconds=limits.keep_failed_s)
    never_ran = DeletionCondition(job_deployment_status="Failed", ttl_seconds=limits.keep_failed_s)
    long_done = DeletionCondition(job_status="SUCCEEDED", ttl_seconds=limits.keep_record_s)
    return DeletionStrategy(
        deletion_rules=(
            DeletionRule(policy="DeleteCluster", condition=succeeded),
            DeletionRule(policy="DeleteCluster", condition=failed),
            DeletionRule(policy="DeleteCluster", condition=never_ran),
            DeletionRule(policy="DeleteSelf", condition=long_done),
        )
    )


def _cluster(config: RunConfig, profile: ClusterProfile, pods: Pods) -> RayClusterSpec:
    autoscaled = is_autoscaled(profile.queue)
    return RayClusterSpec(
        ray_version=profile.ray_version,
        enable_in_tree_autoscaling=autoscaled,
        autoscaler_options=_autoscaler(profile) if autoscaled else None,
        head_group_spec=HeadGroup(
            ray_start_params=_start_params(profile.head),
            resources={"CPU": "0", DRIVER: "1"},
            labels={MARKET: "on-demand"},
            template=pods.head(),
        ),
        worker_group_specs=tuple(
            _group(role, needed, profile, pods) for role, needed in pods_needed(config, profile).items()
        ),
    )


def is_autoscaled(queue: QueueConfig) -> bool:
    """Kueue grants a run what it asks for at once, unless it is told that the run is elastic."""
    return queue.kind != "kueue" or queue.elastic


def _autoscaler(profile: ClusterProfile) -> AutoscalerOptions:
    return AutoscalerOptions(
        idle_timeout_seconds=min(profile.rollout.idle_s, profile.judge.idle_s),
        resources=Resources.fixed({"cpu": "500m", "memory": "1Gi"}),
        volume_mounts=(*SCRATCH, Mount(name="home", mount_path=HOME)),
    )


def _group(role: str, needed: int, profile: ClusterProfile, pods: Pods) -> WorkerGroup:
    """The learner's size is fixed. The others begin at their minimum, or where nothing scales at what is needed."""
    group = getattr(profile, role)
    elastic = role != "learner" and is_autoscaled(profile.queue)
    gpus = {"GPU": str(group.gpus)} if group.gpus else {}
    return WorkerGroup(
        group_name=role,
        replicas=group.min_replicas if elastic else needed,
        min_replicas=group.min_replicas if elastic else needed,
        max_replicas=group.max_replicas if elastic else needed,
        idle_timeout_seconds=group.idle_s if elastic else None,
        ray_start_params=_start_params(group),
        resources={"CPU": str(group.cpus), **gpus, role: str(group.per_pod)},
        labels={MARKET: "spot" if role != "learner" and group.spot else "on-demand"},
        template=pods.worker(role),
    )


def _start_params(pod: PodConfig) -> dict[str, str]:
    """Half of shared memory is Ray's object store; collectives and data loading need the other half."""
    return {"object-store-memory": str(bytes_of(pod.shm) // 2)}
