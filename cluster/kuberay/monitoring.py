"""How a run is seen from outside: what Prometheus scrapes, what it alarms about, which dashboards Grafana shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cluster.kuberay.companions import config_map, metadata
from cluster.kuberay.objects import ConfigMap, Selector
from cluster.kuberay.operators import (
    Alert,
    MetricsEndpoint,
    PodMonitor,
    PodMonitorSpec,
    PrometheusRule,
    PrometheusRuleSpec,
    RuleGroup,
)
from cluster.kuberay.pods import METRICS_PORTS, labels
from cluster.kuberay.profile import ClusterProfile
from cluster.kuberay.recipe import run_name
from cluster.trackers import ray_name
from speechsum.config import RunConfig
from speechsum.errors import UserError
from speechsum.metrics import METRICS

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
    """Alerts for what costs money unseen. Thresholds are the recipe's own."""
    name = run_name(config)
    groups = (RuleGroup(name=f"{name}.speechsum", rules=_alerts(config, name)),)
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


def _alerts(config: RunConfig, name: str) -> tuple[Alert, ...]:
    only = f'{{{re.sub("[^a-z]", "_", INSTANCE)}="{name}"}}'  # as Prometheus writes the pods' label

    def now(metric: str) -> str:
        return f"max({series(metric)}{only})"

    def grown(metric: str) -> str:
        return f"sum(increase({series(metric)}{only}[30m]))"

    fatal, apart = config.judge.max_failure_share, config.preflight.max_logprob_gap
    rows = [
        ("NoStep", f"{grown('learner/tokens')} == 0", "5m", "critical",
         "no step was finished in half an hour, and the learner's pods are paid for"),
        ("JudgeFailing", f"{now('judge/failure_share')} > {fatal / 2:g}", "5m", "warning",
         f"judgements fail; at a share of {fatal:g} the run ends"),
        ("EnginesApart", f"{now('learner/logprob_gap')} > {apart:g}", "15m", "warning",
         "rollout and learner disagree on the same tokens by more than preflight allows"),
        ("StepsSkipped", f"{grown('learner/skipped')} > 0", "0m", "warning",
         "a step's loss or gradient was not finite, and it changed nothing"),
        ("GroupsWasted", f"{grown('buffer/dropped')} > {grown('buffer/trained_groups')}", "15m", "warning",
         "more groups are thrown away than trained on"),
    ]  # fmt: skip
    return tuple(
        Alert(
            alert=f"Speechsum{title}", expr=expr, for_=since, labels={"severity": severity},
            annotations={"summary": f"{name}: {summary}"},
        )
        for title, expr, since, severity, summary in rows
    )  # fmt: skip


def series(name: str) -> str:
    """A metric's name in Prometheus: Ray puts its mark before it, and `_total` after what adds up."""
    return f"ray_{ray_name(name)}" + ("_total" if METRICS[name].adds_up else "")
