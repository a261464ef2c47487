"""Evaluations side by side: a row for each system, each row against the first, and every item with all its answers.

A row is a name with a summary for each item, whoever wrote them: a checkpoint, a cascade, a teacher. Intervals are by
recording. The result is plain JSON, and all that `eval_report` reads.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from speechsum.eval_measures import Rows
from speechsum.obeying import RULES, obeying, request_kind
from speechsum.statistics import mean_ci, paired_difference, win_rate
from speechsum.types import JudgeFailure, Judgement, Prompt

Evaluation = dict[str, Any]
"""Of one system, as JSON: `rows` (see `eval_measures.measure`), `summaries`, and perhaps `judges` (their names),
`judgements` of each (see `judgement_row`), `controls` (the summaries under each), `system` (what wrote them) and
`heard` (the transcripts that a cascade wrote them from)."""

Figures = dict[str, Any]
KIND_MEASURES = ("judge", "second_judge", "fact_f1", "hallucination", "obeyed")


@dataclass
class EvalTable:
    """Collects rows about the same `prompts`; the first is the baseline of the others. `bootstrap` resamples.

    `trained` are the kinds of request that training asks, by `kind_of`; None where nobody knows.
    """

    prompts: Sequence[Prompt]
    bootstrap: int = 2000
    trained: frozenset[str] | None = None
    rows: dict[str, Evaluation] = field(default_factory=dict)

    def add_row(self, name: str, evaluation: Evaluation) -> None:
        """One system's answers and scores. Raises ValueError on a name that is there already, or on other items."""
        if name in self.rows:
            raise ValueError(f"there are two rows called {name!r}; give each a name of its own")
        counts = {len(evaluation["summaries"]), *(len(values) for values in evaluation["rows"].values())}
        if counts != {len(self.prompts)}:
            raise ValueError(f"row {name!r} is about {sorted(counts)} items, the table about {len(self.prompts)}")
        self.rows[name] = evaluation

    def figures(self) -> Figures:
        """Means of each row, each row against the first, and the items; see `eval_report` for who shows them."""
        if not self.rows:
            raise ValueError("a table without rows has no figures; add one")
        baseline, *others = self.rows
        recordings = [p.audio.key for p in self.prompts]
        against = {
            name: compare(self.rows[baseline]["rows"], self.rows[name]["rows"], recordings, self.bootstrap)
            for name in others
        }
        return {
            "n": len(self.prompts),
            "recordings": len(set(recordings)),
            "judges": self.rows[baseline].get("judges", {}),
            "baseline": baseline,
            "systems": {name: row["system"] for name, row in self.rows.items() if row.get("system")},
            "rows": {name: means(row["rows"], recordings, self.bootstrap) for name, row in self.rows.items()},
            "against_baseline": against,
            "kinds": self._kinds(),
            "rules": self._rules(),
            "items": [self._item(place, prompt) for place, prompt in enumerate(self.prompts)],
        }

    def _kinds(self) -> Figures:
        """By kind of request, the most frequent first: `n`, whether it is `held_out`, means of `KIND_MEASURES`."""
        places: dict[str, list[int]] = {}
        for place, prompt in enumerate(self.prompts):
            places.setdefault(kind_of(prompt), []).append(place)
        return {
            kind: {
                "n": len(own),
                "held_out": None if self.trained is None else kind not in self.trained,
                "rows": {name: self._means_at(row["rows"], own) for name, row in self.rows.items()},
            }
            for kind, own in sorted(places.items(), key=lambda entry: -len(entry[1]))
        }

    def _means_at(self, rows: Rows, places: Sequence[int]) -> Figures:
        some = {key: [rows[key][place] for place in places] for key in KIND_MEASURES if key in rows}
        return means(some, [self.prompts[place].audio.key for place in places], self.bootstrap)

    def _rules(self) -> Figures:
        """By rule of `speechsum.obeying`: each row's mean score, over the items where the rule applies and can tell."""
        scores = {
            name: [obeying(s, p.instruction) for s, p in zip(row["summaries"], self.prompts, strict=True)]
            for name, row in self.rows.items()
        }
        recordings = [p.audio.key for p in self.prompts]
        found = {
            name: means({rule: [own.get(rule) for own in given] for rule in RULES}, recordings, self.bootstrap)
            for name, given in scores.items()
        }
        return {rule: own for rule in RULES if any((own := {n: f[rule] for n, f in found.items()}).values())}

    def _item(self, place: int, prompt: Prompt) -> Figures:
        answers = {
            name: {
                "summary": row["summaries"][place],
                "judgements": {judge: judged[place] for judge, judged in row.get("judgements", {}).items()},
                "controls": {control: said[place] for control, said in row.get("controls", {}).items()},
                "heard": row["heard"][place] if row.get("heard") else None,
                "measures": {key: values[place] for key, values in row["rows"].items()},
            }
            for name, row in self.rows.items()
        }
        return {
            "id": prompt.id, "recording": prompt.audio.key, "instruction": prompt.instruction, "kind": kind_of(prompt),
            "reference": prompt.reference, "transcript": prompt.transcript, "answers": answers,
        }  # fmt: skip


def kind_of(prompt: Prompt) -> str:
    """What kind of request an item makes: as its data calls it, else by the rules that its instruction speaks of."""
    return prompt.request or request_kind(prompt.instruction)


def means(rows: Rows, recordings: Sequence[Hashable], bootstrap: int) -> Figures:
    """`n`, of how many items each measure is `known`, and its mean with the interval; None where it is of no item."""
    figures: Figures = {"n": len(recordings), "known": {}}
    for key, values in rows.items():
        known = [(v, g) for v, g in zip(values, recordings, strict=True) if v is not None]
        scores, groups = [v for v, _ in known], [g for _, g in known]
        figures["known"][key] = len(known)
        figures[key] = mean_ci(scores, groups=groups, n=bootstrap) if known else None
    return figures


def compare(before: Rows, after: Rows, recordings: Sequence[Hashable], bootstrap: int) -> Figures:
    """`difference` of every measure, `win_rate` by the judge's reward and by the second judge's, and what they rest on.

    Items without a value on either side are left out: `pairs` counts the others, and the recordings they are about. A
    measure without any pair is absent.
    """
    figures: Figures = {"difference": {}, "win_rate": {}, "pairs": {}}
    for key in [key for key in before if key in after]:
        pairs = [
            (b, a, g) for b, a, g in zip(before[key], after[key], recordings, strict=True)
            if b is not None and a is not None
        ]  # fmt: skip
        if not pairs:
            continue
        b, a, g = zip(*pairs, strict=True)
        figures["difference"][key] = paired_difference(b, a, groups=g, n=bootstrap)
        figures["pairs"][key] = {"items": len(pairs), "recordings": len(set(g))}
        if key in ("judge", "second_judge"):
            figures["win_rate"][key] = win_rate(b, a, groups=g, n=bootstrap)
    return figures


def judgement_row(judgement: Judgement) -> Figures:
    """A judgement as JSON: `reward` (None where it failed), `failure`, `gate`, `breakdown`, `notes`."""
    if isinstance(judgement, JudgeFailure):
        failure = {"kind": judgement.kind.value, "detail": judgement.detail}
        return {"reward": None, "failure": failure, "gate": "", "breakdown": {}, "notes": ""}
    return {
        "reward": judgement.value, "failure": None, "gate": judgement.gate,
        "breakdown": dict(judgement.breakdown), "notes": judgement.notes,
    }  # fmt: skip
