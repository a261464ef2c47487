"""How a run is seen from outside: what Prometheus scrapes, what it alarms about, which dashboards Grafana shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cluster.kuberay.companions import config_map, metadata
from cluster.kuberay.objects import ConfigMap, Selector
from cluster.kuberay.operators import (
    MetricsEndpoint,
    PodMonitor,
    PodMonitorSpec,
    PrometheusRule,
    PrometheusRuleSpec,
)
from cluster.kuberay.pods import METRICS_PORTS, labels
from cluster.kuberay.profile import ClusterProfile
from cluster.kuberay.recipe import run_name
from cluster.monitoring.alerts import rules_of_recipe
from speechsum.config import RunConfig
from speechsum.errors import UserError

DASHBOARDS = Path(__file__).parents[1] / "monitoring"
INSTANCE = "app.kubernetes.io/instance"


def pod_monitor(config: RunConfig, profile: ClusterProfile) -> PodMonitor:
    """Every pod of the run, by the names of its ports; workers have the first alone."""
    return PodMonitor(
        metadata=metadata(config, profile, "pods"),
        spec=PodMonitorSpec(
            selector=Selector(match_labels=labels(run_name(config))),
            pod_target_labels=(INSTANCE, "ray.io/group"),
            pod_metrics_endpoints=tuple(MetricsEndpoint(port=name) for name in METRICS_PORTS),
        ),
    )


def prometheus_rule(config: RunConfig, profile: ClusterProfile) -> PrometheusRule:
    """The alerts on this run alone, with the recipe's own limits."""
    name = run_name(config)
    only = f'{{{re.sub("[^a-z]", "_", INSTANCE)}="{name}"}}'  # as Prometheus writes the pods' label
    groups = (rules_of_recipe(config, name, only),)
    return PrometheusRule(metadata=metadata(config, profile, "alerts"), spec=PrometheusRuleSpec(groups=groups))


def dashboard_maps(config: RunConfig, profile: ClusterProfile, folder: Path = DASHBOARDS) -> list[ConfigMap]:
    """A config map for each dashboard of the folder, with the label that Grafana's sidecar looks for."""
    maps = []
    for path in sorted(folder.glob("*.json")):
        about = metadata(config, profile, f"dashboard-{re.sub(r'[^a-z0-9]+', '-', path.stem.lower())}")
        marked = about.model_copy(update={"labels": labels(run_name(config)) | {"grafana_dashboard": "1"}})
        maps.append(config_map(marked, {path.name: _json_text(path)}))
    return maps


def _json_text(path: Path) -> str:
    """The file as it is. Raises `UserError` where Grafana could not read it."""
    text = path.read_text(encoding="utf-8")
    try:
        json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); export the dashboard again or remove the file") from None
    return text
