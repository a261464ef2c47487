"""The files that are kept in the repository and made from code."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from cluster.monitoring.alerts import default_rules
from cluster.monitoring.dashboard import dashboard
from speechsum.metrics import as_markdown

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


def made() -> dict[Path, str]:
    """The text of each, by its place. A test compares them with what is there."""
    rules = {"groups": [default_rules().tree()]}
    return {
        ROOT / "docs" / "metrics.md": as_markdown(),
        FOLDER / "dashboard.json": json.dumps(dashboard().tree(), indent=1) + "\n",
        FOLDER / "alerts.yaml": yaml.safe_dump(rules, sort_keys=False, width=120),
    }
