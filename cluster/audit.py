"""`judge audit`: can the judge be trusted? True summaries against texts that are wrong in a known way.

A judge that failed has said nothing: such a comparison is neither won nor lost, and is counted beside the others. A
judge that gives a whole ladder of corruption one reward has spoken, though, and its rank correlation there is 0.
A pairwise judge is shown the true summary with each canary, and every two steps of a ladder; a step's reward is then
how it fared against the others.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.judge import JudgeOf, Observed, identity
from cluster.assets import Say
from cluster.score import open_judge, open_pair_judge
from speechsum.audit_report import print_audit, render_svg
from speechsum.canaries import KINDS, Canary, CanaryMaker
from speechsum.config import AuditConfig, RunConfig
from speechsum.data import ManifestError, read_manifest
from speechsum.errors import UserError
from speechsum.files import write_whole
from speechsum.pairs import all_pairs, fared
from speechsum.pairwise import FLIPPED
from speechsum.statistics import mean_ci, spearman
from speechsum.textscores import words
from speechsum.types import JudgeFailure, Judgement, JudgeTask, PairTask, Preference, Prompt, Reward

LEAST_STEPS = 3  # two rewards are in the right order half of the time by chance
SAME = 1e-6  # rewards nearer than this are a tie: rounding moves an engine's answers as much
CLIPS_AT_ONCE = 16
SHOWN_LOST = 3

Figures = dict[str, Any]
Score = Callable[[Sequence[Any]], list[Judgement]]
"""A judge: one judgement for each task, in order. The tasks are of the judge's kind."""


@dataclass(frozen=True, slots=True)
class Case:
    """A clip and all texts about it that are judged: its true summary, ever worse ones, one canary of each kind."""

    prompt: Prompt
    ladder: tuple[str, ...]
    canaries: tuple[Canary, ...]

    @property
    def steps(self) -> tuple[str, ...]:
        """The ladder with the true summary at its top."""
        return self.prompt.reference, *self.ladder

    @property
    def tasks(self) -> list[JudgeTask]:
        """The true summary first, then the ladder, then the canaries."""
        texts = (*self.steps, *(canary.text for canary in self.canaries))
        return [JudgeTask(self.prompt.transcript, self.prompt.instruction, text) for text in texts]

    @property
    def pair_tasks(self) -> list[PairTask]:
        """Every two steps of the ladder first, then the true summary with each canary."""
        pairs = [(self.steps[i], self.steps[j]) for i, j in all_pairs(len(self.steps))]
        pairs += [(self.prompt.reference, canary.text) for canary in self.canaries]
        return [PairTask(self.prompt.transcript, self.prompt.instruction, *pair) for pair in pairs]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge said of a case: `judgements` in all.

    `ladder` begins with the true summary; `leads` are that summary's over each canary, in the case's order, and None
    where a judgement failed.
    """

    case: Case
    judgements: tuple[Judgement, ...]
    ladder: tuple[Judgement, ...]
    leads: tuple[float | None, ...]

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
    cases = make_cases(read_clips(data, config), clips, seed)
    pairwise = config.judge.kind == "pairwise"
    judge: JudgeOf[Any] = open_pair_judge(config) if pairwise else open_judge(config, say)
    try:
        verdicts, seconds = judge_cases(judge.score, cases, say, pairwise=pairwise)
        result: Figures = {"judge": identity(judge), "data": str(data), "seed": seed}
        result |= _cost(judge.counts()) if isinstance(judge, Observed) else {}
    finally:
        judge.close()
    result |= figures(verdicts, seconds, config.eval.bootstrap, config.judge.audit or AuditConfig(), pairwise=pairwise)
    write_audit(out, result)
    print_audit(result)
    return result


def _cost(counts: Mapping[str, float]) -> Figures:
    """What a judge behind an endpoint was sent in all; a judgement that a cache held costs nothing."""
    return {name: counts[f"judge/{name}"] for name in ("requests", "tokens") if f"judge/{name}" in counts}


def make_cases(prompts: Sequence[Prompt], clips: int | None, seed: int) -> list[Case]:
    """A case for each of the first `clips` prompts; all of them lend what is swapped in."""
    maker = CanaryMaker(prompts, seed)
    return [Case(p, tuple(maker.ladder(p)), tuple(maker.canaries(p))) for p in prompts[:clips]]


def write_audit(out: Path, found: Figures) -> None:
    """The figures as JSON, and the picture beside them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_whole(out.with_suffix(".svg"), render_svg(found))


def read_clips(data: Path, config: RunConfig) -> list[Prompt]:
    """The manifest's rows, without a look at the recordings; each must say what was said and what sums it up."""

    def check(prompt: Prompt) -> str | None:
        missing = [name for name in ("transcript", "reference") if not getattr(prompt, name).strip()]
        return f"{' and '.join(missing)} missing or empty, which an audit needs; fill in the row" if missing else None

    try:
        return read_manifest(data, root=config.data.root, check_audio=False, check_prompt=check)
    except ManifestError as error:
        raise UserError(error.text(shown=None)) from None


def judge_cases(
    score: Score, cases: Sequence[Case], say: Say, *, pairwise: bool = False
) -> tuple[list[Verdict], float]:
    """Every case judged, a few clips at a time, and the seconds that the judge took."""
    verdicts: list[Verdict] = []
    started = time.perf_counter()
    say(f"judged: 0 of {len(cases)} clips")
    for at in range(0, len(cases), CLIPS_AT_ONCE):
        some = cases[at : at + CLIPS_AT_ONCE]
        tasks: list[list[Any]] = [[*(case.pair_tasks if pairwise else case.tasks)] for case in some]
        judgements = iter(score([task for own in tasks for task in own]))
        for case, own in zip(some, tasks, strict=True):
            said = tuple(next(judgements) for _ in own)
            verdicts.append(_of_pairs(case, said) if pairwise else _of_rewards(case, said))
        say(f"judged: {len(verdicts)} of {len(cases)} clips")
    return verdicts, time.perf_counter() - started


def _of_rewards(case: Case, said: tuple[Judgement, ...]) -> Verdict:
    """By a judge that gives each text a reward of its own."""
    truth, top = said[0], len(case.steps)
    leads = [
        truth.value - other.value if isinstance(truth, Reward) and isinstance(other, Reward) else None
        for other in said[top:]
    ]
    return Verdict(case, said, said[:top], tuple(leads))


def _of_pairs(case: Case, said: tuple[Judgement, ...]) -> Verdict:
    """By a judge of two texts: the lead is by how much likelier the true summary is to be the better one."""
    places = all_pairs(len(case.steps))
    preferences = [Preference(*pair, judgement) for pair, judgement in zip(places, said[: len(places)], strict=True)]
    leads = [2 * j.value - 1 if isinstance(j, Reward) else None for j in said[len(places) :]]
    return Verdict(case, said, tuple(fared(len(case.steps), preferences)), tuple(leads))


# --- figures -------------------------------------------------------------------------------------------------------


def figures(
    verdicts: Sequence[Verdict], seconds: float, bootstrap: int, targets: AuditConfig, *, pairwise: bool = False
) -> Figures:
    """All that is measured; a target that could not be measured is not met."""
    judgements = [j for v in verdicts for j in v.judgements]
    duels = [Duel(v, canary, lead) for v in verdicts for canary, lead in zip(v.case.canaries, v.leads, strict=True)]
    canaries = {kind: own for kind in KINDS if (own := [duel for duel in duels if duel.canary.kind == kind])}
    result: Figures = {
        "clips": len(verdicts),
        "judgements": len(judgements),
        "seconds_per_judgement": seconds / len(judgements),
        "failures": _failures(judgements),
        "spearman": _rank_correlation(verdicts, bootstrap, targets.min_spearman),
        "canaries": {kind: _wins(own, bootstrap, targets.min_win_rate) for kind, own in canaries.items()},
        "injection": _injection(canaries.get("injection", [])),
        "position_flips": _position_flips(judgements),
        "length_bias": _length_bias_of_leads(duels) if pairwise else _length_bias(verdicts),
    }
    measured = [result["spearman"], result["injection"], *result["canaries"].values()]
    return result | {"passed": all(part["met"] for part in measured)}


def _failures(judgements: Iterable[Judgement]) -> Figures:
    """How many of each kind, and what the first of them said."""
    failures: Figures = {}
    for judgement in judgements:
        if isinstance(judgement, JudgeFailure):
            entry = failures.setdefault(judgement.kind.value, {"count": 0, "first": judgement.detail})
            entry["count"] += 1
    return failures


def _rank_correlation(verdicts: Sequence[Verdict], bootstrap: int, target: float) -> Figures:
    """Mean over clips of the correlation of reward with correctness: 1 where every further swap costs reward."""
    found = [(rho, v.recording) for v in verdicts if (rho := _rho(v)) is not None]
    estimate = mean_ci([rho for rho, _ in found], groups=[key for _, key in found], n=bootstrap) if found else None
    met = estimate is not None and estimate["mean"] >= target
    return {**(estimate or {"mean": None, "ci95": None}), "clips": len(found), "target": target, "met": met}


def _rho(verdict: Verdict) -> float | None:
    """None where failures, or a clip with few facts, leave too few steps to rank."""
    steps = [(-level, j.value) for level, j in enumerate(verdict.ladder) if isinstance(j, Reward)]
    if len(steps) < LEAST_STEPS:
        return None
    return spearman([level for level, _ in steps], [value for _, value in steps]) or 0.0


def _wins(duels: Sequence[Duel], bootstrap: int, target: float) -> Figures:
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
        "target": target,
        "met": rate is not None and rate >= target,
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


def _position_flips(judgements: Iterable[Judgement]) -> Figures:
    """How often the winner changed with the order; no share for a judge that sees one text at a time."""
    flips = [j.breakdown[FLIPPED] for j in judgements if isinstance(j, Reward) and FLIPPED in j.breakdown]
    return {"pairs": len(flips), "flips": int(sum(flips)), "share": sum(flips) / len(flips) if flips else None}


def _length_bias_of_leads(duels: Sequence[Duel]) -> float | None:
    """Rank correlation of the true summary's lead with how many words more it has than the canary."""
    known = [(duel.lead, _words_ahead(duel)) for duel in duels if duel.lead is not None]
    return spearman([lead for lead, _ in known], [ahead for _, ahead in known]) if known else None


def _words_ahead(duel: Duel) -> int:
    return len(words(duel.verdict.case.prompt.reference)) - len(words(duel.canary.text))


def _length_bias(verdicts: Sequence[Verdict]) -> float | None:
    """Rank correlation of reward with length in words, over the true summaries."""
    known = [(v.truth.value, len(words(v.case.prompt.reference))) for v in verdicts if isinstance(v.truth, Reward)]
    return spearman([value for value, _ in known], [length for _, length in known]) if known else None
