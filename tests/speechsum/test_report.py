"""The summary as a person sees it."""

import io
from typing import Any

import pytest
from rich.console import Console

from speechsum.metrics import METRICS, describe
from speechsum.report import print_summary
from speechsum.types import FailureKind


def estimate(mean: float, low: float, high: float) -> dict[str, Any]:
    return {"mean": mean, "ci95": [low, high]}


def printed(summary: dict[str, Any]) -> str:
    text = io.StringIO()
    print_summary(summary, Console(file=text, width=80))
    return text.getvalue()


def row(text: str, measure: str) -> str:
    (found,) = (line for line in text.splitlines() if line.strip().startswith(f"{measure}  "))
    return found


FULL = {
    "stages": ["align", {"name": "grpo", "steps": 30}],
    "steps": 40,
    "wall_s": 480.0,
    "peak_rss_gb": 7.26,
    "eval": {
        "before": {"judge": estimate(0.4, 0.35, 0.45), "fact_recall": estimate(0.6, 0.5, 0.7), "n": 48},
        "after": {"judge": estimate(0.5, 0.45, 0.55), "fact_recall": estimate(0.61, 0.5, 0.72), "n": 48},
        "difference": {"judge": estimate(0.1, 0.06, 0.14), "fact_recall": estimate(0.01, -0.04, 0.06)},
        "examples": [
            {"instruction": f"One [sentence] of {i}.", "transcript": "S", "before": "A\nB", "after": "C"}
            for i in (1, 2, 3)
        ],
    },
    "parity": {"mean_gap": 0.0123, "greedy_equal": True},
    "rollout_vs_vllm": 0.953,
    "sync": {"full": {"seconds": 0.71}, "adapter": {"seconds": 0.12}},
}


def test_changes_are_marked_where_their_interval_leaves_out_zero() -> None:
    text = printed(FULL)
    assert row(text, "judge reward").strip().endswith("+0.100 (+0.060, +0.140) *")
    assert "0.40 (0.35–0.45)" in row(text, "judge reward")
    assert "*" not in row(text, "fact recall")
    assert "48 items" in text


def test_the_figures_of_the_run_are_all_there() -> None:
    text = printed(FULL)
    for part in ("align, grpo", "steps: 40", "8.0 min", "7.3 GB", "0.95 of its tokens/s"):
        assert part in text
    assert "mean_gap 0.0123, greedy_equal yes" in text
    assert "full.seconds 0.71" in text


def test_two_examples_are_shown_on_one_line_each() -> None:
    text = printed(FULL)
    assert "asked: One [sentence] of 2." in text
    assert "One [sentence] of 3." not in text
    assert "before  A / B" in text
    assert "said  S" in text


@pytest.mark.parametrize(
    "summary",
    [
        {},
        {"eval": None, "sync": None, "parity": None, "rollout_vs_vllm": None, "wall_s": None},
        {"eval": {"before": {"judge": None, "rougeL": {"mean": None}}, "after": {}}},
    ],
)
def test_holes_are_shown_as_holes(summary: dict[str, Any]) -> None:
    assert "judge reward" in printed(summary)


def test_without_a_paired_difference_the_plain_one_is_shown() -> None:
    text = printed({"eval": {"before": {"judge": {"mean": 0.4}}, "after": {"judge": {"mean": 0.5}}}})
    assert "+0.100" in row(text, "judge reward")


def test_every_metric_says_what_it_means() -> None:
    assert describe("sync/publish_s").unit == "s"
    assert {f"judge/failed_{kind.value}" for kind in FailureKind} <= METRICS.keys()
    assert all("/" in name and metric.meaning for name, metric in METRICS.items())


def test_an_undescribed_metric_is_an_error() -> None:
    with pytest.raises(KeyError, match="learner/vibes"):
        describe("learner/vibes")
