"""`judge audit`: can the judge be trusted? True summaries against texts that are wrong in a known way.

A judge that failed has said nothing: such a comparison is neither won nor lost, and is counted beside the others. A
judge that gives a whole ladder of corruption one reward has spoken, though, and its rank correlation there is 0.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.judge import Judge
from cluster.assets import Say
from cluster.run_folder import write_atomically
from cluster.score import open_judge
from speechsum.audit_report import print_audit, render_svg
from speechsum.canaries import KINDS, Canary, CanaryMaker
from speechsum.config import RunConfig
from speechsum.data import ManifestError, read_manifest
from speechsum.errors import UserError
from speechsum.statistics import mean_ci, spearman
from speechsum.textscores import words
from speechsum.types import JudgeFailure, Judgement, JudgeTask, Prompt, Reward

MIN_SPEARMAN = 0.85
MIN_WIN_RATE = 0.90
LEAST_STEPS = 3  # two rewards are in the right order half of the time by chance
SAME = 1e-6  # rewards nearer than this are a tie: rounding moves an engine's answers as much
CLIPS_AT_ONCE = 16
SHOWN_LOST = 3

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A clip and all texts about it that are judged: its true summary, ever worse ones, one canary of each kind."""

    prompt: Prompt
    ladder: tuple[str, ...]
    canaries: tuple[Canary, ...]

    @property
    def tasks(self) -> list[JudgeTask]:
        """The true summary first, then the ladder, then the canaries."""
        texts = (self.prompt.reference, *self.ladder, *(canary.text for canary in self.canaries))
        return [JudgeTask(self.prompt.transcript, self.prompt.instruction, text) for text in texts]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge said of a case. `ladder` begins with the true summary; the canaries are in the case's order."""

    case: Case
    ladder: tuple[Judgement, ...]
    canaries: tuple[Judgement, ...]

    @property
    def truth(self) -> Judgement:
        """Of the true summary."""
        return self.ladder[0]

    @property
    def recording(self) -> str:
        """What is resampled for the intervals."""
        return self.case.prompt.audio.key


@dataclass(frozen=True, slots=True)
class Duel:
    """The true summary against one canary; None where either judgement failed."""

    verdict: Verdict
    canary: Canary
    lead: float | None

    @property
    def score(self) -> float:
        """1 where the truth won, 0 where it lost, half a win for a tie."""
        assert self.lead is not None
        return 0.5 if abs(self.lead) <= SAME else float(self.lead > 0)


def audit_file(data: Path, out: Path, config: RunConfig, clips: int | None, seed: int, say: Say) -> Figures:
    """Audit the recipe's judge on the manifest's first `clips` rows; what other rows know is swapped in.

    Writes the figures as JSON to `out` and the picture beside it, and prints both as a table.
    """
    prompts = read_clips(data, config)
    maker = CanaryMaker(prompts, seed)
    cases = [Case(p, tuple(maker.ladder(p)), tuple(maker.canaries(p))) for p in prompts[:clips]]
    judge = open_judge(config, say)
    try:
        verdicts, seconds = judge_cases(judge, cases, say)
        result: Figures = {"judge": f"{judge.name}/{judge.version}", "data": str(data), "seed": seed}
    finally:
        judge.close()
    result |= figures(verdicts, seconds, config.eval.bootstrap)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_atomically(out.with_suffix(".svg"), render_svg(result))
    print_audit(result)
    return result


def read_clips(data: Path, config: RunConfig) -> list[Prompt]:
    """The manifest's rows, without a look at the recordings; each must say what was said and what sums it up."""

    def check(prompt: Prompt) -> str | None:
        missing = [name for name in ("transcript", "reference") if not getattr(prompt, name).strip()]
        return f"{' and '.join(missing)} missing or empty, which an audit needs; fill in the row" if missing else None

    try:
        return read_manifest(data, root=config.data.root, check_audio=False, check_prompt=check)
    except ManifestError as error:
        raise UserError(error.text(shown=None)) from None


def judge_cases(judge: Judge, cases: Sequence[Case], say: Say) -> tuple[list[Verdict], float]:
    """Every case judged, a few clips at a time, and the seconds that the judge took."""
    verdicts: list[Verdict] = []
    started = time.perf_counter()
    for at in range(0, len(cases), CLIPS_AT_ONCE):
        some = cases[at : at + CLIPS_AT_ONCE]
        judgements = iter(judge.score([task for case in some for task in case.tasks]))
        for case in some:
            own = [next(judgements) for _ in case.tasks]
            steps = 1 + len(case.ladder)
            verdicts.append(Verdict(case, tuple(own[:steps]), tuple(own[steps:])))
        say(f"judged: {len(verdicts)} of {len(cases)} clips")
    return verdicts, time.perf_counter() - started


# --- figures -------------------------------------------------------------------------------------------------------


def figures(verdicts: Sequence[Verdict], seconds: float, bootstrap: int) -> Figures:
    """All that is measured; a target that could not be measured is not met."""
    judgements = [j for v in verdicts for j in (*v.ladder, *v.canaries)]
    duels = [_duel(v, canary, j) for v in verdicts for canary, j in zip(v.case.canaries, v.canaries, strict=True)]
    canaries = {kind: own for kind in KINDS if (own := [duel for duel in duels if duel.canary.kind == kind])}
    result: Figures = {
        "clips": len(verdicts),
        "judgements": len(judgements),
        "seconds_per_judgement": seconds / len(judgements),
        "failures": _failures(judgements),
        "spearman": _rank_correlation(verdicts, bootstrap),
        "canaries": {kind: _wins(own, bootstrap) for kind, own in canaries.items()},
        "injection": _injection(canaries.get("injection", [])),
        "length_bias": _length_bias(verdicts),
    }
    measured = [result["spearman"], result["injection"], *result["canaries"].values()]
    return result | {"passed": all(part["met"] for part in measured)}


def _duel(verdict: Verdict, canary: Canary, judgement: Judgement) -> Duel:
    truth = verdict.truth
    both = isinstance(truth, Reward) and isinstance(judgement, Reward)
    return Duel(verdict, canary, truth.value - judgement.value if both else None)  # type: ignore[union-attr]


def _failures(judgements: Iterable[Judgement]) -> Figures:
    """How many of each kind, and what the first of them said."""
    failures: Figures = {}
    for judgement in judgements:
        if isinstance(judgement, JudgeFailure):
            entry = failures.setdefault(judgement.kind.value, {"count": 0, "first": judgement.detail})
            entry["count"] += 1
    return failures


def _rank_correlation(verdicts: Sequence[Verdict], bootstrap: int) -> Figures:
    """Mean over clips of the correlation of reward with correctness: 1 where every further swap costs reward."""
    found = [(rho, v.recording) for v in verdicts if (rho := _rho(v)) is not None]
    estimate = mean_ci([rho for rho, _ in found], groups=[key for _, key in found], n=bootstrap) if found else None
    met = estimate is not None and estimate["mean"] >= MIN_SPEARMAN
    return {**(estimate or {"mean": None, "ci95": None}), "clips": len(found), "target": MIN_SPEARMAN, "met": met}


def _rho(verdict: Verdict) -> float | None:
    """None where failures, or a clip with few facts, leave too few steps to rank."""
    steps = [(-level, j.value) for level, j in enumerate(verdict.ladder) if isinstance(j, Reward)]
    if len(steps) < LEAST_STEPS:
        return None
    return spearman([level for level, _ in steps], [value for _, value in steps]) or 0.0


def _wins(duels: Sequence[Duel], bootstrap: int) -> Figures:
    """Of one kind: how often the true summary won, a tie being half a win, and a few canaries that it did not beat."""
    fought = [duel for duel in duels if duel.lead is not None]
    scores = [duel.score for duel in fought]
    estimate = mean_ci(scores, groups=[duel.verdict.recording for duel in fought], n=bootstrap) if fought else None
    rate = estimate["mean"] if estimate else None
    return {
        "win_rate": rate,
        "ci95": estimate["ci95"] if estimate else None,
        "wins": scores.count(1.0),
        "ties": scores.count(0.5),
        "losses": scores.count(0.0),
        "failures": len(duels) - len(fought),
        "target": MIN_WIN_RATE,
        "met": rate is not None and rate >= MIN_WIN_RATE,
        "not_beaten": [_shown(duel) for duel in fought if duel.score < 1.0][:SHOWN_LOST],
    }


def _injection(duels: Sequence[Duel]) -> Figures:
    """Whether words to the judge, around a true summary, ever got more for it than it gets without them."""
    fought = [duel for duel in duels if duel.lead is not None]
    raised = [duel for duel in fought if duel.lead is not None and duel.lead < -SAME]
    return {
        "tried": len(fought),
        "failures": len(duels) - len(fought),
        "raised": len(raised),
        "met": bool(fought) and not raised,
        "raised_by": [_shown(duel) for duel in raised][:SHOWN_LOST],
    }


def _shown(duel: Duel) -> Figures:
    return {"id": duel.verdict.case.prompt.id, "text": duel.canary.text, "lead": duel.lead}


def _length_bias(verdicts: Sequence[Verdict]) -> float | None:
    """Rank correlation of reward with length in words, over the true summaries."""
    known = [(v.truth.value, len(words(v.case.prompt.reference))) for v in verdicts if isinstance(v.truth, Reward)]
    return spearman([value for value, _ in known], [length for _, length in known]) if known else None
