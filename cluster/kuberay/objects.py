"""The kinds of Kubernetes that a run needs, as frozen types with only the fields that it uses.

Field order is the order in the YAML. A field that is None is left out, so there are no empty sections.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Part(BaseModel):
    """Base of everything here: frozen, unknown fields refused, camelCase in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    def tree(self) -> dict[str, Any]:
        """Plain values under Kubernetes' names."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Metadata(Part):
    """Name, place and labels of an object; `name` is None in a pod template."""

    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class Manifest(Part):
    """An object that stands alone in a file."""

    api_version: str
    kind: str
    metadata: Metadata


class SecretKey(Part):
    """A key of a secret."""

    name: str
    key: str


class ValueFrom(Part):
    """Where a variable's value comes from."""

    secret_key_ref: SecretKey


class EnvVar(Part):
    """A variable with a value, or with the place of one."""

    name: str
    value: str | None = None
    value_from: ValueFrom | None = None


class Mount(Part):
    """A volume's place in a container."""

    name: str
    mount_path: str
    sub_path: str | None = None
    read_only: bool | None = None


class EmptyDir(Part):
    """Space that ends with the pod; `medium` Memory is RAM."""

    medium: Literal["Memory"] | None = None
    size_limit: str | None = None


class ClaimSource(Part):
    """A claim, mounted."""

    claim_name: str
    read_only: bool | None = None


class ConfigMapSource(Part):
    """A config map, mounted: a file for each key."""

    name: str


class CsiSource(Part):
    """A volume that a driver makes for the pod."""

    driver: str
    volume_attributes: dict[str, str]


class Volume(Part):
    """A volume with one of the sources."""

    name: str
    empty_dir: EmptyDir | None = None
    persistent_volume_claim: ClaimSource | None = None
    config_map: ConfigMapSource | None = None
    csi: CsiSource | None = None


class Capabilities(Part):
    """Of Linux."""

    drop: tuple[str, ...] = ("ALL",)


class ContainerSecurity(Part):
    """No way up, and nothing to write to but volumes."""

    allow_privilege_escalation: bool = False
    read_only_root_filesystem: bool = True
    capabilities: Capabilities = Capabilities()


class Seccomp(Part):
    """The container runtime's own list of system calls."""

    type: str = "RuntimeDefault"


class PodSecurity(Part):
    """A number and not a name, since only of a number can Kubernetes tell that it is not root."""

    run_as_non_root: bool = True
    run_as_user: int
    run_as_group: int
    fs_group: int
    fs_group_change_policy: Literal["OnRootMismatch"] = "OnRootMismatch"
    seccomp_profile: Seccomp = Seccomp()


class Resources(Part):
    """Requests and limits, which are alike here: what is asked for is there."""

    requests: dict[str, str]
    limits: dict[str, str]

    @classmethod
    def fixed(cls, amounts: dict[str, str]) -> Resources:
        """The same amounts as request and limit."""
        return cls(requests=amounts, limits=amounts)


class ContainerPort(Part):
    """A named port."""

    name: str
    container_port: int


class Container(Part):
    """One container. `command` is left to KubeRay."""

    name: str
    image: str
    env: tuple[EnvVar, ...] | None = None
    ports: tuple[ContainerPort, ...] | None = None
    resources: Resources
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: tuple[Mount, ...]


class Toleration(Part):
    """A taint put up with."""

    key: str
    operator: Literal["Exists", "Equal"]
    value: str | None = None
    effect: str


class Named(Part):
    """A reference by name."""

    name: str


class PodSpec(Part):
    """What runs in a pod and where the pod may run."""

    restart_policy: Literal["Never"] = "Never"
    termination_grace_period_seconds: int
    service_account_name: str | None = None
    automount_service_account_token: bool
    image_pull_secrets: tuple[Named, ...] | None = None
    node_selector: dict[str, str] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    security_context: PodSecurity
    containers: tuple[Container, ...]
    volumes: tuple[Volume, ...]


class PodTemplate(Part):
    """A pod to be made."""

    metadata: Metadata
    spec: PodSpec


class Selector(Part):
    """Objects that bear these labels; with none given, every object."""

    match_labels: dict[str, str] | None = None


class ConfigMap(Manifest):
    """Files as text."""

    api_version: Literal["v1"] = "v1"
    kind: Literal["ConfigMap"] = "ConfigMap"
    data: dict[str, str]


class ClaimSpec(Part):
    """How large a volume, of what class."""

    access_modes: tuple[str, ...]
    storage_class_name: str | None = None
    resources: StorageRequest


class StorageRequest(Part):
    """Its size."""

    requests: dict[str, str]


class Claim(Manifest):
    """A volume to be made."""

    api_version: Literal["v1"] = "v1"
    kind: Literal["PersistentVolumeClaim"] = "PersistentVolumeClaim"
    spec: ClaimSpec


class Peer(Part):
    """Pods, by their labels and those of their namespace."""

    namespace_selector: Selector | None = None
    pod_selector: Selector | None = None


class Port(Part):
    """A port that is open."""

    protocol: Literal["TCP", "UDP"] = "TCP"
    port: int


class Ingress(Part):
    """Who may come in, by which ports; every port where none is given."""

    from_: tuple[Peer, ...] = Field(alias="from")
    ports: tuple[Port, ...] | None = None


class Egress(Part):
    """Where to one may go out, by which ports; anywhere where no peer is given."""

    to: tuple[Peer, ...] | None = None
    ports: tuple[Port, ...] | None = None


class NetworkPolicySpec(Part):
    """All that is not listed is refused."""

    pod_selector: Selector
    policy_types: tuple[str, ...] = ("Ingress", "Egress")
    ingress: tuple[Ingress, ...]
    egress: tuple[Egress, ...]


class NetworkPolicy(Manifest):
    """Who may talk to the run's pods."""

    api_version: Literal["networking.k8s.io/v1"] = "networking.k8s.io/v1"
    kind: Literal["NetworkPolicy"] = "NetworkPolicy"
    spec: NetworkPolicySpec
