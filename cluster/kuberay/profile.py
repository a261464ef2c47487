"""What a cluster is like: one TOML file beside the recipe, which says what is run and nothing of where."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from speechsum.config import read_toml, validated
from speechsum.section import Positive, Section

EXAMPLE = Path("recipes/profiles/kind.toml")
DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")
QUANTITY = re.compile(r"(\d+)(Ki|Mi|Gi|Ti|k|M|G|T)?")
UNITS = {
    "": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip


def bytes_of(quantity: str) -> int:
    """`512Mi` as a number of bytes. Raises `ValueError` for what is no whole number with one of Kubernetes' units."""
    found = QUANTITY.fullmatch(quantity)
    if found is None:
        raise ValueError(f"{quantity!r} is no size; write a whole number and a unit, such as 64Gi")
    return int(found[1]) * UNITS[found[2] or ""]


def _is_size(quantity: str) -> str:
    bytes_of(quantity)
    return quantity


Size = Annotated[str, AfterValidator(_is_size)]
Count = Annotated[int, Field(ge=0)]


class TolerationConfig(Section):
    """A taint of the nodes that the pods put up with. Without a `value`, any value of the key."""

    key: str
    value: str | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] = "NoSchedule"


class PodConfig(Section):
    """Size and place of one kind of pod. `shm` is shared memory, and counts towards `memory`."""

    cpus: Positive
    memory: Size
    shm: Size
    gpus: Count = 0
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[TolerationConfig, ...] = ()

    @model_validator(mode="after")
    def _shared_memory_is_part_of_memory(self) -> Self:
        if bytes_of(self.shm) >= bytes_of(self.memory):
            raise ValueError(f"shm = {self.shm!r} is counted within memory = {self.memory!r}; lower shm")
        return self


class HeadConfig(PodConfig):
    """The head: Ray's control and the driver. It has no GPU and is never on spot."""

    gpus: Literal[0] = 0


class LearnerGroupConfig(PodConfig):
    """The learner's pods, always on demand; their number follows from `learner.ranks` of the recipe."""

    per_pod: Positive = 1


class ElasticGroupConfig(PodConfig):
    """Pods that come and go with the actors they hold, `per_pod` in each; unneeded for `idle_s`, one goes."""

    per_pod: Positive = 1
    spot: bool = False
    min_replicas: Count = 0
    max_replicas: Positive
    idle_s: Positive = 300

    @model_validator(mode="after")
    def _minimum_is_below_maximum(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas = {self.min_replicas} exceeds max_replicas = {self.max_replicas}; lower it")
        return self


class ClaimConfig(Section):
    """A volume to be made. More than one node writes to it, so a real cluster's class has to offer ReadWriteMany."""

    size: Size
    storage_class: str | None = None
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"


class StorageConfig(Section):
    """Where the run folder lies: a volume to be made (`pvc`) or a bucket, `gs://name`, mounted by GKE's driver."""

    pvc: ClaimConfig | None = None
    bucket: str | None = None

    @model_validator(mode="after")
    def _one_place_that_can_rename(self) -> Self:
        if (self.pvc is None) == (self.bucket is None):
            raise ValueError("storage needs one place for the run folder; give storage.pvc or storage.bucket")
        if self.bucket is not None and not re.fullmatch(r"gs://[a-z0-9][a-z0-9._-]+[a-z0-9]", self.bucket):
            raise ValueError(
                f"storage.bucket = {self.bucket!r} is no gs://name; a checkpoint is finished by renaming its folder, "
                "which no other bucket's driver does, so use storage.pvc elsewhere"
            )
        return self


class MountConfig(Section):
    """An existing claim with models or recordings, mounted in every pod, to be read only."""

    name: Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
    claim: str
    path: Annotated[str, Field(pattern=r"^/[^:]+$")]


class SecretConfig(Section):
    """An environment variable whose value is a `key` of the Kubernetes secret `name`. Values are never written here."""

    env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
    name: str
    key: str
    pods: tuple[Literal["head", "learner", "rollout", "judge", "teacher"], ...] = ("head", "judge")


class QueueConfig(Section):
    """Who admits the run. `elastic` lets Kueue admit an autoscaled one (its gate ElasticJobsViaWorkloadSlices)."""

    kind: Literal["none", "kueue", "volcano"] = "none"
    name: str = ""
    elastic: bool = False

    @model_validator(mode="after")
    def _queue_has_a_name(self) -> Self:
        if (self.kind == "none") != (self.name == ""):
            raise ValueError(f"queue.kind = {self.kind!r} with queue.name = {self.name!r}; give both or neither")
        if self.elastic and self.kind != "kueue":
            raise ValueError("queue.elastic is a mode of Kueue; set queue.kind = 'kueue' or leave it out")
        return self


class DrainConfig(Section):
    """Seconds between the notice and the end: of a worker's calls, of the driver; `margin_s` is added to either."""

    worker_s: Positive = 20
    driver_s: Positive = 60
    margin_s: Positive = 20


class LimitsConfig(Section):
    """What bounds the bill. Every retry is a new Ray cluster that goes on from the last checkpoint."""

    retries: Count = 3
    deadline_s: Positive = 172_800
    start_deadline_s: Positive = 3_600
    keep_succeeded_s: Count = 300
    keep_failed_s: Count = 3_600
    keep_record_s: Count = 86_400

    @model_validator(mode="after")
    def _record_outlives_the_cluster(self) -> Self:
        if self.keep_record_s < self.keep_succeeded_s:
            raise ValueError(
                f"limits.keep_record_s = {self.keep_record_s} is over before limits.keep_succeeded_s = "
                f"{self.keep_succeeded_s}; raise it"
            )
        return self


class NetworkConfig(Section):
    """Who may reach the run's pods, and which TCP ports of the outside they may reach."""

    operator_namespace: str = "kuberay-system"
    monitoring_namespace: str = "monitoring"
    egress_ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = (443, 6443)


class ClusterProfile(Section):
    """A whole profile. `monitoring` needs the Prometheus operator's kinds in the cluster.

    `service_account` is an existing one for head and workers; without it KubeRay makes one for the head.
    """

    namespace: str
    image: str
    allow_tags: bool = False
    image_pull_secret: str | None = None
    service_account: str | None = None
    ray_version: str
    user: Positive = 10001
    gpu_resource: str = "nvidia.com/gpu"
    monitoring: bool = True
    head: HeadConfig
    learner: LearnerGroupConfig
    rollout: ElasticGroupConfig
    judge: ElasticGroupConfig
    teacher: ElasticGroupConfig | None = None
    storage: StorageConfig
    mounts: tuple[MountConfig, ...] = ()
    secrets: tuple[SecretConfig, ...] = ()
    queue: QueueConfig = QueueConfig()
    drain: DrainConfig = DrainConfig()
    limits: LimitsConfig = LimitsConfig()
    network: NetworkConfig = NetworkConfig()

    @model_validator(mode="after")
    def _image_cannot_change(self) -> Self:
        if not self.allow_tags and not DIGEST.fullmatch(self.image):
            raise ValueError(
                f"image = {self.image!r} may become another image between two pods; name it by digest, "
                "repository@sha256:..., or set allow_tags = true"
            )
        return self

    @model_validator(mode="after")
    def _bucket_knows_who_asks(self) -> Self:
        if self.storage.bucket is not None and self.service_account is None:
            raise ValueError("storage.bucket lets in accounts that it knows; set service_account to one of those")
        return self


def load_profile(path: str | Path) -> ClusterProfile:
    """Read and validate a profile. Raises `UserError` naming the file, the key and the remedy."""
    return validated(ClusterProfile, read_toml(path, "profile", EXAMPLE), str(path))
