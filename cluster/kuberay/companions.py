"""What stands beside the RayJob: the recipe, the volume of the run folder, and who may talk to the pods."""

from __future__ import annotations

from urllib.parse import urlsplit

from cluster.kuberay.objects import (
    Claim,
    ClaimSpec,
    ConfigMap,
    Egress,
    Ingress,
    Metadata,
    NetworkPolicy,
    NetworkPolicySpec,
    Peer,
    Port,
    Selector,
    StorageRequest,
)
from cluster.kuberay.pods import HEAD_PORTS, METRICS_PORTS, labels
from cluster.kuberay.profile import ClaimConfig, ClusterProfile
from cluster.kuberay.recipe import as_toml, run_name
from speechsum.config import RunConfig
from speechsum.errors import UserError

CONFIG_MAP_LIMIT = 1 << 20
NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""A label that Kubernetes itself puts on every namespace."""


def metadata(config: RunConfig, profile: ClusterProfile, suffix: str) -> Metadata:
    """Name and labels of an object of the run."""
    name = run_name(config)
    return Metadata(name=f"{name}-{suffix}", namespace=profile.namespace, labels=labels(name))


def config_map(about: Metadata, data: dict[str, str]) -> ConfigMap:
    """Raises `UserError` for more than Kubernetes keeps in one."""
    size = sum(len(key) + len(text.encode()) for key, text in data.items())
    if size > CONFIG_MAP_LIMIT:
        raise UserError(f"{', '.join(data)}: {size} bytes, and a ConfigMap holds {CONFIG_MAP_LIMIT}; make it smaller")
    return ConfigMap(metadata=about, data=data)


def recipe_map(config: RunConfig, profile: ClusterProfile) -> ConfigMap:
    """The resolved recipe as a file."""
    return config_map(metadata(config, profile, "recipe"), {"recipe.toml": as_toml(config)})


def run_claim(config: RunConfig, profile: ClusterProfile, wanted: ClaimConfig) -> Claim:
    """The volume of the run folder. It outlives the job: whoever has the results deletes it."""
    return Claim(
        metadata=metadata(config, profile, "runs"),
        spec=ClaimSpec(
            access_modes=(wanted.access_mode,),
            storage_class_name=wanted.storage_class,
            resources=StorageRequest(requests={"storage": wanted.size}),
        ),
    )


def network_policy(config: RunConfig, profile: ClusterProfile) -> NetworkPolicy:
    """The run's pods talk among themselves; the operator reaches the dashboard, Prometheus the metrics, no one else.

    Whoever reaches the ports of a Ray cluster runs code there, and its metrics ask for no token.
    """
    ours = Selector(match_labels=labels(run_name(config)))
    network = profile.network
    operator, scraper = (
        Peer(namespace_selector=Selector(match_labels={NAMESPACE_NAME: name}))
        for name in (network.operator_namespace, network.monitoring_namespace)
    )
    outside = sorted({*network.egress_ports, *_judge_ports(config)})
    return NetworkPolicy(
        metadata=metadata(config, profile, "network"),
        spec=NetworkPolicySpec(
            pod_selector=ours,
            ingress=(
                Ingress(from_=(Peer(pod_selector=ours),)),
                Ingress(from_=(operator,), ports=(Port(port=HEAD_PORTS["dashboard"]),)),
                Ingress(from_=(scraper,), ports=tuple(Port(port=port) for port in METRICS_PORTS.values())),
            ),
            egress=(
                Egress(to=(Peer(pod_selector=ours),)),
                # by port alone: a name server may be a pod, or an address of the node's own
                Egress(ports=(Port(protocol="UDP", port=53), Port(port=53))),
                Egress(ports=tuple(Port(port=port) for port in outside)),
            ),
        ),
    )


def _judge_ports(config: RunConfig) -> set[int]:
    """Where the judges' endpoints listen; a name may resolve to anywhere, so the port is all that is known."""
    addresses = [urlsplit(endpoint.url) for endpoint in config.endpoints]
    return {address.port or (80 if address.scheme == "http" else 443) for address in addresses}
