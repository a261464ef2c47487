"""Each alert on made-up series, evaluated by promtool: one history in which it fires, and one in which it must not."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.monitoring.alerts import default_rules
from speechsum.metrics import series

RULES = {rule.alert: rule for rule in default_rules().rules}
HOURS_4 = 240
HISTORIES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "RolloutStalled": (
        {"prompts/running": "8x240", "prompts/waiting": "4x240", "rollout_actor/tokens": "0+50x180 9000x60"},
        {"prompts/running": "8x180 0x60", "prompts/waiting": "0x240", "rollout_actor/tokens": "0+50x180 9000x60"},
    ),
    "NoStep": ({"learner/tokens": "0+10x180 1800x60"}, {"learner/tokens": "0+10x240"}),
    "StalenessAtBound": (
        {"buffer/staleness_max": "2x240", "buffer/staleness_bound": "2x240", "buffer/dropped_stale": "_x225 3x15"},
        {"buffer/staleness_max": "2x240", "buffer/staleness_bound": "2x240", "buffer/dropped_stale": "3x240"},
    ),
    "JudgeFailing": (
        {"judge/scored": "0+100x240", "judge/failures": "0+11x240"},
        {"judge/scored": "0+100x240", "judge/failures": "0+9x240"},
    ),
    "RewardCollapsing": (
        {"judge/reward_mean": "0.5x120 0.2x120"},
        {"judge/reward_mean": "0.5x120 0.35x120"},
    ),
    "CheckpointOld": (  # a step takes 10 minutes and every fifth is saved: old after 150 minutes
        {"checkpoint/saved_s": "3600x240", "checkpoint/every_steps": "5x240", "wall/step_s": "600x240"},
        {"checkpoint/saved_s": "6000x240", "checkpoint/every_steps": "5x240", "wall/step_s": "600x240"},
    ),
    "EnginesApart": ({"learner/logprob_gap": "0.031x240"}, {"learner/logprob_gap": "0.029x240"}),
    "StepsSkipped": ({"learner/skipped": "_x230 1x10"}, {"learner/skipped": "1x240"}),
    "GroupsWasted": (
        {"buffer/dropped": "0+5x240", "buffer/trained_groups": "0+4x240"},
        {"buffer/dropped": "0+4x240", "buffer/trained_groups": "0+4x240"},
    ),
}
UNTRUE_ELSEWHERE = {
    "RolloutStalled": {"learner/tokens": "0+10x240"},  # SFT: nobody is asked for anything
    "StalenessAtBound": {"buffer/staleness_max": "0x240", "buffer/staleness_bound": "0x240",
                         "buffer/dropped_stale": "0+1x240"},  # synchronous: 0 is no bound to be at
    "CheckpointOld": {"checkpoint/saved_s": "14000x240", "checkpoint/every_steps": "1x240", "wall/step_s": "2x240"},
}  # fmt: skip


def history(alert: str, told: dict[str, str], fires: bool) -> dict[str, Any]:
    """A test as promtool takes it, looked at after four hours of a sample a minute, on two actors of one session."""
    rule = RULES[f"Speechsum{alert}"]
    expected = {
        "exp_labels": {"SessionName": "night", **rule.labels}, "exp_annotations": rule.annotations,
    }  # fmt: skip
    return {
        "interval": "1m",
        "input_series": [
            {"series": f'{series(name)}{{SessionName="night", actor="{actor}"}}', "values": values}
            for name, values in told.items() for actor in (0, 1)
        ],
        "alert_rule_test": [
            {"eval_time": f"{HOURS_4}m", "alertname": rule.alert, "exp_alerts": [expected] if fires else []}
        ],
    }  # fmt: skip


def test_every_alert_has_its_histories() -> None:
    assert {f"Speechsum{alert}" for alert in HISTORIES} == RULES.keys()


@pytest.mark.parametrize("alert", HISTORIES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, promtool: str, tmp_path: Path) -> None:
    bad, good = HISTORIES[alert]
    tests = [history(alert, bad, True), history(alert, good, False)]
    if alert in UNTRUE_ELSEWHERE:
        tests.append(history(alert, UNTRUE_ELSEWHERE[alert], False))
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [default_rules().tree()]}))
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    result = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
