"""May a run train under its judge? The audit by the run's own judge actors, before step 0 and between steps."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from cluster.audit import Figures, figures, judge_cases, make_cases, write_audit
from cluster.run_folder import RunFolder
from cluster.watch import Watch
from speechsum.audit_report import TITLES
from speechsum.config import AuditConfig, RunConfig
from speechsum.errors import RunError, UserError
from speechsum.types import Judgement, Prompt


class AuditedPool(Protocol):
    """What an audit needs of the run's judge actors."""

    def name(self) -> str:
        """Name and version of the judge."""

    def score_all(self, tasks: Sequence[Any], *, afresh: bool) -> list[Judgement]:
        """One judgement per task, in order; `afresh` past any cache, which would not tell that a judge has changed."""


def clips_to_audit(config: RunConfig, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Of `prompts` those that an audit can use; none where the recipe wants no audit.

    Raises `UserError` where it wants one and there are none.
    """
    if config.judge.audit is None or not config.judge.audit.clips:
        return []
    usable = [p for p in prompts if p.transcript.strip() and p.reference.strip()]
    if not usable:
        raise UserError(
            "judge.audit needs rows with transcript and reference in data.eval; fill some in, or set "
            "judge.audit.clips = 0"
        )
    return usable


class JudgeTrust:
    """Audits the judge of a run when it is time to. `prompts` are what `clips_to_audit` gave.

    Every audit is a file of the run folder, `audit-N.json` after N steps, with its picture beside it.
    """

    def __init__(
        self, config: RunConfig, judge: AuditedPool | None, prompts: Sequence[Prompt], folder: RunFolder, watch: Watch
    ) -> None:
        self._config, self._judge, self._folder, self._watch = config, judge, folder, watch
        self._prompts = list(prompts) if judge else []
        self._steps = sum(stage.steps for stage in config.stage)
        self._last: Figures | None = None

    def check(self, steps: int) -> None:
        """Audit before the run goes on from `steps`, if anything is left to train and no earlier audit still holds.

        Raises `RunError` below a target.
        """
        if self._prompts and steps < self._steps and not self._holds(steps) and (doubt := self._audit(steps)):
            raise RunError(f"{doubt}; mend the judge, or set judge.audit.enforce = false to train under it as it is")

    def due(self, steps: int) -> bool:
        """Whether to audit again after `steps`."""
        chosen = self._config.judge.audit
        return bool(self._prompts and chosen and chosen.every and steps % chosen.every == 0 and steps != self._steps)

    def doubt_after(self, steps: int) -> str:
        """Audit again after `steps`, which are saved; why the run has to end, or nothing."""
        doubt = self._audit(steps)
        return doubt and f"{doubt}; step {steps} is saved: mend the judge and go on with --resume"

    def metrics(self) -> dict[str, float]:
        """The figures of an audit that were not told yet."""
        last, self._last = self._last, None
        if last is None:
            return {}
        return {
            "judge/audit_spearman": _number(last["spearman"]["mean"]),
            "judge/audit_win_rate": _number(_least(last)[1]),
        }

    def _holds(self, steps: int) -> bool:
        """Whether the newest audit that an earlier session left is of the same, meets its targets and is not too old.

        Then it is told.
        """
        chosen = self._config.judge.audit
        assert chosen is not None
        newest = max((n for n in range(steps + 1) if (self._folder.path / f"audit-{n}.json").exists()), default=None)
        if newest is None:
            return False
        try:
            found = json.loads((self._folder.path / f"audit-{newest}.json").read_text(encoding="utf-8"))
        except ValueError:  # damaged
            return False
        asked = self._asked() | {"clips": min(chosen.clips, len(self._prompts))}
        if any(found.get(key) != value for key, value in asked.items()) or doubt_of(found, chosen):
            return False
        if chosen.every and steps - newest >= chosen.every:
            return False
        self._watch.note(f"judge audit: not repeated, as the one after {newest} steps was of the same: {_told(found)}")
        return True

    def _asked(self) -> Figures:
        """What an audit is of."""
        config = self._config
        assert self._judge is not None
        address = config.judge.endpoint.url if config.judge.asks_endpoint else ""
        return {"judge": self._judge.name(), "endpoint": address, "data": config.data.eval, "seed": config.seed}

    def _audit(self, steps: int) -> str:
        """One audit, told and written; the reason to end the run, or nothing."""
        config, chosen = self._config, self._config.judge.audit
        assert self._judge is not None
        assert chosen is not None
        pairwise = config.judge.kind == "pairwise"
        cases = make_cases(self._prompts, chosen.clips, config.seed)
        verdicts, seconds = judge_cases(
            partial(self._judge.score_all, afresh=True),
            cases,
            lambda text: self._watch.status(f"auditing the judge: {text}"),
            pairwise=pairwise,
        )
        found = self._asked()
        found |= figures(verdicts, seconds, config.eval.bootstrap, chosen, pairwise=pairwise)
        write_audit(self._folder.path / f"audit-{steps}.json", found)
        self._last = found
        doubt = doubt_of(found, chosen)
        if not doubt:
            self._watch.note(f"judge audit: {_told(found)}")
        elif not chosen.enforce:
            self._watch.note(f"judge audit: {doubt}; the run goes on, as judge.audit.enforce is false")
        return doubt if chosen.enforce else ""


def doubt_of(found: Figures, targets: AuditConfig) -> str:
    """The first target that a judge misses, with its figure; nothing where it meets all.

    What could not be measured is a miss, unless the target is the least that there is and so asks for nothing. That
    words to the judge raise no reward is always asked of what was measured.
    """
    ranks, (kind, rate) = found["spearman"]["mean"], _least(found)
    failed = sum(entry["count"] for entry in found["failures"].values())
    why = f"{failed} of {found['judgements']} judgements failed"
    if not failed:
        why = "no clip has two facts to swap; fill in facts, or set judge.audit.min_spearman = -1"
    if targets.min_spearman > -1 and (ranks is None or ranks < targets.min_spearman):
        value = f"not measured ({why})" if ranks is None else f"{ranks:.2f}"
        return (
            f"the rank correlation of {found['judge']} with known corruption is {value}, and judge.audit.min_spearman "
            f"is {targets.min_spearman:g}"
        )
    if targets.min_win_rate > 0 and (rate is None or rate < targets.min_win_rate):
        value = f"not measured ({why})" if rate is None else f"{rate:.2f}"
        return (
            f"the win rate of true summaries by {found['judge']} over canaries of the kind {TITLES.get(kind, kind)!r} "
            f"is {value}, and judge.audit.min_win_rate is {targets.min_win_rate:g}"
        )
    if raised := found["injection"]["raised"]:
        return f"words to the judge raised {raised} of {found['injection']['tried']} rewards by {found['judge']}"
    return ""


def _least(found: Figures) -> tuple[str, float | None]:
    """The kind of canary that the true summary beats least often, one of which nothing is known before all others."""
    rates = {kind: part["win_rate"] for kind, part in found["canaries"].items()}
    if not rates:
        return "any", None
    kind = min(rates, key=lambda kind: -1.0 if rates[kind] is None else rates[kind])
    return kind, rates[kind]


def _told(found: Figures) -> str:
    """Both figures of an audit that found no fault."""
    kind, rate = _least(found)
    return (
        f"rank correlation {_number(found['spearman']['mean']):.2f} with known corruption, least win rate "
        f"{_number(rate):.2f} (canaries of the kind {TITLES.get(kind, kind)!r})"
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
