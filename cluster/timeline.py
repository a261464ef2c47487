"""`speechsum timeline`: the spans of some steps as a Chrome trace, which Perfetto and chrome://tracing draw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.dashboard.tail import JsonlTail
from cluster.run_folder import RunFolder
from cluster.spans import Span
from speechsum.errors import UserError
from speechsum.files import write_whole

ROLES = ("step", "rollout", "judge", "teacher", "learner", "sync")
"""From top to bottom; a role that is not among them comes last."""


def write_timeline(run: Path, out: Path, *, stage: str | None, first: int | None, steps: int) -> str:
    """Write the trace of `steps` steps of `stage` from step `first`, and say what it holds.

    Without `stage` it is the last one of which there are spans, without `first` its last steps. Raises `UserError` for
    a folder without spans, or without those that were asked for.
    """
    folder = RunFolder.open(run)
    spans = _spans(folder)
    stage = stage or spans[-1].stage
    of_stage = [span for span in spans if span.stage == stage]
    if not of_stage:
        known = ", ".join(dict.fromkeys(span.stage for span in spans))
        raise UserError(f"{folder.spans} has no stage {stage!r}; it has {known}")
    last = max(span.step for span in of_stage)
    first = max(1, last - steps + 1) if first is None else first
    shown = [span for span in of_stage if first <= span.step < first + steps]
    if not shown:
        lowest = min(span.step for span in of_stage)
        raise UserError(f"stage {stage!r} of {run} has spans of steps {lowest} to {last}, and none from {first} on")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(chrome_trace(shown)) + "\n")
    actors = len({span.actor for span in shown})
    end = min(last, first + steps - 1)
    return f"{out}: steps {first} to {end} of {stage}, {len(shown)} spans of {actors} actors"


def chrome_trace(spans: Sequence[Span]) -> dict[str, Any]:
    """`spans` in the Trace Event Format: a process for each role, a thread for each actor, times in microseconds.

    Time begins with the first span. The `otherData` say when that was.
    """
    began = min(span.start for span in spans)
    lanes = _lanes({span.actor for span in spans})
    events: list[dict[str, Any]] = []
    for actor, (process, thread) in lanes.items():
        place = {"ph": "M", "pid": process, "tid": thread}
        events.append({**place, "name": "process_name", "args": {"name": _role(actor)}})
        events.append({**place, "name": "process_sort_index", "args": {"sort_index": process}})
        events.append({**place, "name": "thread_name", "args": {"name": actor}})
    for span in sorted(spans, key=lambda span: span.start):
        process, thread = lanes[span.actor]
        events.append({
            "ph": "X", "name": span.name, "cat": _role(span.actor), "pid": process, "tid": thread,
            "ts": round((span.start - began) * 1e6), "dur": round((span.end - span.start) * 1e6),
            "args": {"stage": span.stage, "step": span.step, "groups": span.groups},
        })  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"began_unix_s": began}}


def _lanes(actors: set[str]) -> dict[str, tuple[int, int]]:
    """Process and thread of each actor, roles in their order and actors of a role by number."""
    roles = [*ROLES, *sorted({_role(actor) for actor in actors} - set(ROLES))]
    ranked = sorted(actors, key=lambda actor: (roles.index(_role(actor)), len(actor), actor))
    return {actor: (roles.index(_role(actor)) + 1, thread) for thread, actor in enumerate(ranked, 1)}


def _role(actor: str) -> str:
    return actor.split()[0]


def _spans(folder: RunFolder) -> list[Span]:
    tail = JsonlTail(folder.spans)
    tail.poll()
    if not tail.rows:
        raise UserError(f"{folder.spans} has no spans; `speechsum train` writes them after each step")
    return [Span(**row) for row in tail.rows]
