"""The dashboard: that it asks for what is exported, and that Grafana could draw it. There is no Grafana here."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.monitoring.alerts import default_rules
from cluster.monitoring.dashboard import dashboard
from cluster.monitoring.files import FOLDER, ROOT, made
from cluster.monitoring.grafana import TimeSeries
from cluster.monitoring.queries import Queries
from speechsum.metrics import METRICS, series

CHARTS = [panel for panel in dashboard().panels if isinstance(panel, TimeSeries)]
EXPRS = [target.expr for chart in CHARTS for target in chart.targets]
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


@pytest.mark.parametrize("path", made(), ids=lambda path: path.name)
def test_the_files_in_the_repository_are_those_that_the_code_makes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == made()[path], "run `python -m cluster.monitoring`"


def test_every_metric_of_the_table_is_documented() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page.count("\n| `") == len(METRICS)
    for name, metric in METRICS.items():
        assert f"| `{name}` | `{series(name)}` | {metric.form} | {metric.unit} | {', '.join(metric.labels)} |" in page


def test_what_is_exported_is_what_the_table_says(exporter, cluster) -> None:
    cluster.work()
    told = {series(name): (name, set(metric.labels)) for name, metric in METRICS.items()}
    for found, labels in exporter.series().items():
        name, described = told[HISTOGRAM.sub("", found) if found not in told else found]
        assert labels == described, name
    silent = {found for found in told if not any(s.startswith(found) for s in exporter.series())}
    assert silent == set()


@pytest.mark.parametrize("expr", [*EXPRS, *(rule.expr for rule in default_rules().rules)])
def test_queries_ask_for_what_is_exported(expr: str) -> None:
    exported = {series(name): metric.form for name, metric in METRICS.items()}
    named = re.findall(r"ray_\w+", expr)
    assert named
    for found in named:
        assert exported.get(found) or exported[HISTOGRAM.sub("", found)] == "histogram"


def test_every_series_is_of_the_chosen_session() -> None:
    for expr in EXPRS:
        assert len(re.findall(r"ray_\w+", expr)) == expr.count('{SessionName=~"$session"}')


def test_a_query_for_what_is_not_exported_is_refused() -> None:
    with pytest.raises(KeyError, match="learner/vibes"):
        Queries().latest("learner/vibes")
    with pytest.raises(AssertionError, match="sync/bytes is no gauge"):
        Queries().latest("sync/bytes")


def test_every_query_parses(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{i}", "expr": expr} for i, expr in enumerate(EXPRS)]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stderr
    assert f"{len(EXPRS)} rules found" in checked.stdout


def test_panels_have_places_of_their_own_and_lines_that_can_be_told_apart() -> None:
    panels = dashboard().panels
    assert len({panel.id for panel in panels}) == len(panels)
    for a, b in itertools.combinations((panel.grid_pos for panel in panels), 2):
        assert a.x + a.w <= b.x or b.x + b.w <= a.x or a.y + a.h <= b.y or b.y + b.h <= a.y
    for chart in CHARTS:
        assert chart.grid_pos.x + chart.grid_pos.w <= 24
        assert len({target.ref_id for target in chart.targets}) == len({t.legend_format for t in chart.targets})
        for target in chart.targets:
            for label in re.findall(r"{{(\w+)}}", target.legend_format):
                assert re.search(rf"by \([^)]*\b{label}\b", target.expr), (
                    "the legend names a label that was summed over"
                )


def test_the_json_has_grafanas_names_and_no_datasource_of_its_own() -> None:
    text = (FOLDER / "dashboard.json").read_text()
    tree = json.loads(text)
    assert tree["time"] == {"from": "now-3h", "to": "now"}
    assert {panel["type"] for panel in tree["panels"]} == {"row", "timeseries"}
    assert set(re.findall(r"\$\{?(\w+)", text)) == {v["name"] for v in tree["templating"]["list"]}
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"speechsum", "${datasource}"}
