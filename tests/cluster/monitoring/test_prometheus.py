"""Every panel's query, put to a real Prometheus that scrapes what our emitters export."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import prometheus_client

from cluster.monitoring.dashboard import dashboard
from cluster.monitoring.grafana import QueryVariable, TimeSeries

DEADLINE_S = 60.0
PAUSE_S = 0.5


def test_every_panel_has_data(prometheus: str, exporter, cluster, tmp_path: Path) -> None:
    cluster.work()
    server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry=exporter.registry)
    port = free_port()
    config = {
        "global": {"scrape_interval": "200ms", "scrape_timeout": "200ms"},
        "scrape_configs": [
            {"job_name": "ray", "static_configs": [{"targets": [f"127.0.0.1:{server.server_port}"]}]}
        ],
    }  # fmt: skip
    path = tmp_path / "prometheus.yml"
    path.write_text(json.dumps(config))  # JSON is YAML
    process = subprocess.Popen([
        prometheus, f"--config.file={path}", f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ])  # fmt: skip
    try:
        left = unanswered(f"http://127.0.0.1:{port}", cluster)
    finally:
        process.terminate()
        process.wait(30)
        server.shutdown()
        thread.join()
        server.server_close()
    assert left == {}


def unanswered(address: str, cluster: Any) -> dict[str, str]:
    """Queries without data, by panel and line, once there are none or the time is up. Meanwhile the run goes on."""
    left = {
        f"{panel.title}: {target.legend_format}": target.expr.replace("$session", ".*")
        for panel in dashboard().panels if isinstance(panel, TimeSeries) for target in panel.targets
    }  # fmt: skip
    [sessions] = [v for v in dashboard().templating.list if isinstance(v, QueryVariable)]
    left["sessions"] = sessions.query.query.removeprefix("label_values(").split(",")[0]
    deadline = time.monotonic() + DEADLINE_S
    while left and time.monotonic() < deadline:
        cluster.work()
        left = {name: expr for name, expr in left.items() if not answer(address, expr)}
        threading.Event().wait(PAUSE_S if left else 0)
    return left


def answer(address: str, expr: str) -> list[Any]:
    """The values of a query; none while Prometheus starts. A query that it refuses is an error."""
    question = urllib.parse.urlencode({"query": expr})
    try:
        with urllib.request.urlopen(f"{address}/api/v1/query?{question}", timeout=10) as page:
            return list(json.load(page)["data"]["result"])
    except urllib.error.HTTPError as error:
        if error.code != 503:
            raise
        return []
    except urllib.error.URLError:
        return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
