"""What Prometheus and Grafana are given on a cluster. The rules themselves are tested beside their source."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cluster.kuberay.companions import CONFIG_MAP_LIMIT
from cluster.kuberay.monitoring import dashboard_maps
from cluster.monitoring.alerts import default_rules
from speechsum.errors import UserError
from speechsum.metrics import METRICS, series


def test_alerts_ask_for_series_that_are_exported(gke, rendered) -> None:
    [group] = rendered(*gke)["PrometheusRule"]["spec"]["groups"]
    exported = {series(name) for name in METRICS}
    for alert in group["rules"]:
        named = re.findall(r"ray_\w+", alert["expr"])
        assert named
        assert set(named) <= exported
        assert alert["expr"].count('{app_kubernetes_io_instance="qwen2-5-omni-3b"}') == len(named)
        assert alert["expr"].count("(") == alert["expr"].count(")")
    assert [alert["alert"] for alert in group["rules"]] == [alert.alert for alert in default_rules().rules]


def test_thresholds_are_the_recipes_own(gke, rendered) -> None:
    [group] = rendered(*gke)["PrometheusRule"]["spec"]["groups"]
    exprs = {alert["alert"]: alert["expr"] for alert in group["rules"]}
    assert exprs["SpeechsumJudgeFailing"].endswith("> 0.1")  # half of what ends the run
    assert exprs["SpeechsumEnginesApart"].endswith("> 0.03")


def test_counters_gain_what_ray_adds() -> None:
    assert series("learner/tokens") == "ray_speechsum_learner_tokens_total"
    assert series("learner/logprob_gap") == "ray_speechsum_learner_logprob_gap"


def test_every_pod_is_scraped_by_ports_that_it_has(gke, rendered) -> None:
    found = rendered(*gke)
    monitor = found["PodMonitor"]["spec"]
    head = found["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert monitor["selector"]["matchLabels"].items() <= head["metadata"]["labels"].items()
    assert {end["port"] for end in monitor["podMetricsEndpoints"]} <= {
        port["name"] for port in head["spec"]["containers"][0]["ports"]
    }


def test_without_the_operator_its_kinds_are_left_out(gke, rendered) -> None:
    assert {"PodMonitor", "PrometheusRule"}.isdisjoint(rendered(*gke, monitoring=False))


def test_dashboards_become_config_maps(gke, tmp_path: Path) -> None:
    (tmp_path / "Training_run.json").write_text('{"title": "run"}')
    (tmp_path / "notes.txt").write_text("no dashboard")
    [found] = dashboard_maps(*gke, tmp_path)
    tree = found.tree()
    assert tree["metadata"]["name"] == "qwen2-5-omni-3b-dashboard-training-run"
    assert tree["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(tree["data"]["Training_run.json"]) == {"title": "run"}


def test_our_own_dashboard_is_rendered(gke) -> None:
    [found] = dashboard_maps(*gke)
    assert json.loads(found.tree()["data"]["dashboard.json"])["uid"] == "speechsum"


def test_what_is_no_dashboard_is_refused(gke, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        dashboard_maps(*gke, tmp_path)
    path.write_text(json.dumps("x" * CONFIG_MAP_LIMIT))
    with pytest.raises(UserError, match="a ConfigMap holds 1048576"):
        dashboard_maps(*gke, tmp_path)
