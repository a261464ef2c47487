"""The paper's claims, taken apart: paper-mini's recipes and variants of them over seeds, each a run of its own.

    python tools/ablations.py run runs/ablations --seeds 3          # every variant; what is finished is left out
    python tools/ablations.py table runs/ablations                  # as Markdown: how each stands after each stage

`full` is recipes/paper-mini.toml and `grpo` recipes/paper-mini-grpo.toml. `opd` and `dpo` are these stages of `full`
alone, `sft-dpo` leaves distillation out, `own-teacher` distils from the student's own text mode, and `longer-sft`
spends on references the time that `full` takes for all its stages. `early` is the other way round: a student that hears
badly, an early stop of the starter's alignment, and references that are all whole; so is `early-longer-sft`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

from speechsum.commands import calm_threads, stay_on_this_machine
from speechsum.config import RunConfig, StageConfig, load_recipe
from speechsum.statistics import mean_ci, paired_difference

RECIPES = Path(__file__).parents[1] / "recipes"
SFT_STEPS_FOR_THE_SAME_TIME = 150
HELD_AGAINST = {
    "grpo": ("full", "dpo"), "longer-sft": ("full", "dpo"), "own-teacher": ("full", "opd"), "sft-dpo": ("full", "dpo"),
    "opd": ("full", "opd"), "dpo": ("full", "dpo"), "early-longer-sft": ("early", "dpo"),
}  # fmt: skip
"""The end of a variant, and the variant and stage whose weights it is compared with."""

MEASURES = {
    "judge": "judge", "second_judge": "second judge", "fact_f1": "fact F1", "fact_recall": "recall",
    "hallucination": "hallucination", "repetition": "repetition", "wrong_audio_recall": "recall, wrong audio",
}  # fmt: skip


def variants(seed: int) -> dict[str, RunConfig]:
    """Recipes by name, the most telling first."""
    full, grpo = (
        load_recipe(RECIPES / f"{name}.toml").model_copy(update={"seed": seed})
        for name in ("paper-mini", "paper-mini-grpo")
    )
    sft, opd, dpo = full.stage
    own = full.teacher.model_copy(update={"adapter": full.model.adapter})
    longer = sft.model_copy(update={"steps": SFT_STEPS_FOR_THE_SAME_TIME})
    early = _early(full)
    return {
        "full": full,
        "grpo": grpo,
        "longer-sft": _with(full, longer),
        "own-teacher": _with(full, sft, opd).model_copy(update={"teacher": own}),
        "sft-dpo": _with(full, sft, dpo),
        "opd": _with(full, opd),
        "dpo": _with(full, dpo),
        "early": early,
        "early-longer-sft": _with(early, longer),
    }


def _early(full: RunConfig) -> RunConfig:
    sft, opd, dpo = full.stage
    speech = full.data.speech.model_copy(update={"terse": 0.0})
    optimizer = opd.optimizer.model_copy(update={"lr": 2e-4, "projector_lr": 2e-4})
    recipe = _with(full, sft.model_copy(update={"steps": 30}), opd.model_copy(update={"optimizer": optimizer}), dpo)
    return recipe.model_copy(update={
        "model": full.model.model_copy(update={"adapter": "early"}),
        "data": full.data.model_copy(update={"speech": speech}),
    })  # fmt: skip


def _with(recipe: RunConfig, *stages: StageConfig) -> RunConfig:
    return recipe.model_copy(update={"stage": stages})


def run_all(folder: Path, seeds: range, only: list[str]) -> None:
    """Every variant under every seed; a run that was cut short goes on where it was."""
    calm_threads()
    stay_on_this_machine()
    from cluster.train import run

    for seed in seeds:
        for name, config in variants(seed).items():
            target = folder / f"{name}-{seed}"
            if (not only or name in only) and not (target / "summary.json").exists():
                run(config, target, address=None, resume=target.exists(), overwrite=False)


Values = dict[str, list[float | None]]


class Variant:
    """The finished runs of one variant, which differ by seed: their held-out items side by side."""

    def __init__(self) -> None:
        self.seeds: list[str] = []
        self.minutes: list[float] = []
        self.items: list[tuple[str, str]] = []
        self.recordings: list[tuple[str, str]] = []
        self.rows: dict[str, Values] = {}

    def add(self, run_dir: Path) -> None:
        """One more run: its start and its stages, without those who read in the student's place (`eval.rows`)."""
        evaluation = json.loads((run_dir / "eval.json").read_text(encoding="utf-8"))
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        rows = {"before": "before", **{stage: stage for stage in summary["stages"]}, "after": summary["stages"][-1]}
        seed = run_dir.name.rsplit("-", 1)[1]
        self.seeds.append(seed)
        self.minutes.append(summary["wall_s"] / 60)
        for item in evaluation["items"]:
            self.items.append((seed, item["id"]))
            self.recordings.append((seed, item["recording"]))
            for row in (row for row in rows if row in item["answers"]):
                own = self.rows.setdefault(rows[row], defaultdict(list))
                for measure in MEASURES:
                    own[measure].append(item["answers"][row]["measures"].get(measure))

    def answers(self, row: str, measure: str) -> dict[tuple[str, str], float | None]:
        """What each item got from the weights of a row."""
        return dict(zip(self.items, self.rows[row][measure], strict=True))

    def lead(self, stage: str, other: Variant) -> list[str]:
        """By how much this stands after `stage` above the end of `other`, on the items of the seeds that both have."""
        recordings = dict(zip(self.items, self.recordings, strict=True))
        cells = []
        for measure in MEASURES:
            theirs = other.answers(list(other.rows)[-1], measure)
            pairs = [
                (before, value, recordings[key])
                for key, value in self.answers(stage, measure).items()
                if value is not None and (before := theirs.get(key)) is not None
            ]
            if not pairs:
                cells.append("")
                continue
            found = paired_difference([p[0] for p in pairs], [p[1] for p in pairs], groups=[p[2] for p in pairs])
            low, high = found["ci95"]
            cells.append(f"{found['mean']:+.3f} ({low:+.3f}, {high:+.3f})")
        return cells

    def lines(self, name: str) -> list[str]:
        """A table row for the start and after each stage: means, and the gain over the row above with its interval."""
        found: list[str] = []
        above: Values | None = None
        for row, values in self.rows.items():
            cells = [self._cell(values[m], above[m] if above else None) for m in MEASURES]
            found.append(f"| {name} | {'start' if row == 'before' else f'after {row}'} | " + " | ".join(cells) + " |")
            above = values
        return found

    def _cell(self, values: list[float | None], above: list[float | None] | None) -> str:
        pairs = [
            (value, before, recording)
            for value, before, recording in zip(values, above or values, self.recordings, strict=True)
            if value is not None and before is not None
        ]
        if not pairs:
            return ""
        now, past, groups = [p[0] for p in pairs], [p[1] for p in pairs], [p[2] for p in pairs]
        text = f"{mean_ci(now, groups=groups)['mean']:.3f}"
        if above is None:  # the start
            return text
        low, high = paired_difference(past, now, groups=groups)["ci95"]
        return f"{text} ({low:+.3f}, {high:+.3f})"


def table(folder: Path) -> str:
    """The finished runs of `folder` as Markdown."""
    found: dict[str, Variant] = defaultdict(Variant)
    for path in sorted(folder.glob("*/summary.json")):
        found[path.parent.name.rsplit("-", 1)[0]].add(path.parent)
    lines = [
        "| variant | weights | " + " | ".join(MEASURES.values()) + " |",
        "| --- | --- " + "| --: " * len(MEASURES) + "|",
    ]
    known = [name for name in variants(0) if name in found]
    for name in known:
        lines += found[name].lines(name)
    for name, (against, stage) in HELD_AGAINST.items():
        if name in found and against in found:
            cells = found[against].lead(stage, found[name])
            lines.append(f"| {against} less {name} | after {stage} | " + " | ".join(cells) + " |")
    lines.append("")
    for name, variant in found.items():
        lines.append(f"- {name}: seeds {', '.join(variant.seeds)}; minutes "
                     f"{', '.join(f'{m:.0f}' for m in variant.minutes)}; {len(variant.recordings)} items")  # fmt: skip
    return "\n".join(lines)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--first-seed", type=int, default=11, metavar="S")
    parser.add_argument("--only", nargs="*", default=[], choices=list(variants(0)), metavar="VARIANT")
    options = parser.parse_args()
    if options.command == "run":
        run_all(options.folder, range(options.first_seed, options.first_seed + options.seeds), options.only)
    else:
        print(table(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
