"""Who was at work when."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster import spans
from cluster.spans import Span, SpanLog


def test_calls_of_one_actor_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([10.0, 12.0, 13.0])
    monkeypatch.setattr(spans, "time", SimpleNamespace(time=lambda: next(seen)))
    log = SpanLog("speak")
    log.add("generate", "rollout 0", 1.0, step=1, groups=4)
    log.add("generate", "rollout 0", 2.0, step=1, groups=3)  # behind the other
    log.add("generate", "rollout 1", 11.0, step=2)
    assert log.take() == (
        Span("speak", 1, "generate", "rollout 0", 1.0, 10.0, 4),
        Span("speak", 1, "generate", "rollout 0", 10.0, 12.0, 3),
        Span("speak", 2, "generate", "rollout 1", 11.0, 13.0),
    )
    assert log.take() == ()
