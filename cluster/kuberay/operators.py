"""The kinds that operators bring: KubeRay's RayJob (v1, as of KubeRay 1.7) and the Prometheus operator's two."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.kuberay.objects import ContainerSecurity, Manifest, Mount, Part, PodTemplate, Resources, Selector


class AutoscalerOptions(Part):
    """Ray's autoscaler, a container that KubeRay adds to the head. A group's own idle time needs `v2` spelt out."""

    version: Literal["v2"] = "v2"
    upscaling_mode: Literal["Default"] = "Default"
    idle_timeout_seconds: int
    resources: Resources
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: tuple[Mount, ...]


class AuthOptions(Part):
    """A token that KubeRay makes and hands to every pod of the run; without it whoever reaches the head runs code."""

    mode: Literal["token"] = "token"


class HeadGroup(Part):
    """The head. `resources` is what Ray may place there."""

    ray_start_params: dict[str, str]
    resources: dict[str, str]
    labels: dict[str, str]
    template: PodTemplate


class WorkerGroup(Part):
    """Like pods. `resources` is what Ray may place on each."""

    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    idle_timeout_seconds: int | None = None
    ray_start_params: dict[str, str]
    resources: dict[str, str]
    labels: dict[str, str]
    template: PodTemplate


class RayClusterSpec(Part):
    """The Ray cluster that a job gets for itself."""

    ray_version: str
    auth_options: AuthOptions = AuthOptions()
    enable_in_tree_autoscaling: bool
    autoscaler_options: AutoscalerOptions | None = None
    head_group_spec: HeadGroup
    worker_group_specs: tuple[WorkerGroup, ...]


class DeletionCondition(Part):
    """When: so long after this status."""

    job_status: Literal["SUCCEEDED", "FAILED"] | None = None
    job_deployment_status: Literal["Failed"] | None = None
    ttl_seconds: int


class DeletionRule(Part):
    """What is deleted, and when."""

    policy: Literal["DeleteCluster", "DeleteSelf"]
    condition: DeletionCondition


class DeletionStrategy(Part):
    """What is deleted after the end."""

    deletion_rules: tuple[DeletionRule, ...]


class SubmitterConfig(Part):
    """Retries of the pod that submits the job; the job itself is submitted once."""

    backoff_limit: int = 2


class RayJobSpec(Part):
    """A driver's command, and the cluster for it."""

    suspend: bool | None = None
    submission_mode: Literal["K8sJobMode"] = "K8sJobMode"
    entrypoint: str
    entrypoint_resources: str
    submitter_config: SubmitterConfig = SubmitterConfig()
    backoff_limit: int
    active_deadline_seconds: int
    pre_running_deadline_seconds: int
    shutdown_after_job_finishes: bool | None = None
    ttl_seconds_after_finished: int | None = None
    deletion_strategy: DeletionStrategy | None = None
    submitter_pod_template: PodTemplate
    ray_cluster_spec: RayClusterSpec


class RayJob(Manifest):
    """A run."""

    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayJob"] = "RayJob"
    spec: RayJobSpec


class MetricsEndpoint(Part):
    """A named port to scrape."""

    port: str


class PodMonitorSpec(Part):
    """Which pods are scraped; `pod_target_labels` become labels of every series."""

    selector: Selector
    pod_target_labels: tuple[str, ...]
    pod_metrics_endpoints: tuple[MetricsEndpoint, ...]


class PodMonitor(Manifest):
    """What Prometheus scrapes."""

    api_version: Literal["monitoring.coreos.com/v1"] = "monitoring.coreos.com/v1"
    kind: Literal["PodMonitor"] = "PodMonitor"
    spec: PodMonitorSpec


class Alert(Part):
    """A query that is true for long enough."""

    alert: str
    expr: str
    for_: str = Field(alias="for")
    labels: dict[str, str]
    annotations: dict[str, str]


class RuleGroup(Part):
    """Alerts that are evaluated together."""

    name: str
    rules: tuple[Alert, ...]


class PrometheusRuleSpec(Part):
    """Groups of alerts."""

    groups: tuple[RuleGroup, ...]


class PrometheusRule(Manifest):
    """Alerts on a run."""

    api_version: Literal["monitoring.coreos.com/v1"] = "monitoring.coreos.com/v1"
    kind: Literal["PrometheusRule"] = "PrometheusRule"
    spec: PrometheusRuleSpec
