"""The paper's claims, taken apart: variants of recipes/paper-mini.toml over seeds, each a run of its own.

    python tools/ablations.py run runs/ablations --seeds 3          # every variant, those that are finished left out
    python tools/ablations.py table runs/ablations > docs/ablations.md

`full` is the recipe. `opd` and `dpo` leave the other stages out but the first, `own-teacher` distils from the student's
own text mode before any of it, and `longer-sft` spends on references the time that `full` takes for all its stages.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cluster.train import run
from speechsum.config import RunConfig, StageConfig, load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "paper-mini.toml"
SFT_STEPS_FOR_THE_SAME_TIME = 150
MEASURES = ("judge", "second_judge", "fact_f1", "hallucination", "repetition", "wrong_audio_recall")


def variants(recipe: RunConfig) -> dict[str, RunConfig]:
    """Recipes by name."""
    sft, opd, dpo = recipe.stage
    own = recipe.teacher.model_copy(update={"adapter": recipe.model.adapter})
    longer = sft.model_copy(update={"steps": SFT_STEPS_FOR_THE_SAME_TIME})
    return {
        "full": recipe,
        "sft": _with(recipe, sft),
        "longer-sft": _with(recipe, longer),
        "opd": _with(recipe, sft, opd),
        "dpo": _with(recipe, sft, dpo),
        "own-teacher": _with(recipe, sft, opd).model_copy(update={"teacher": own}),
    }


def _with(recipe: RunConfig, *stages: StageConfig) -> RunConfig:
    return recipe.model_copy(update={"stage": stages})


def run_all(folder: Path, seeds: int, only: list[str]) -> None:
    """Every variant under every seed; a run that was cut short goes on where it was."""
    recipe = load_recipe(RECIPE)
    for seed in range(recipe.seed, recipe.seed + seeds):
        for name, config in variants(recipe.model_copy(update={"seed": seed})).items():
            if not only or name in only:
                target = folder / f"{name}-{seed}"
                run(config, target, address=None, resume=target.exists(), overwrite=False)


def table(folder: Path) -> str:
    """A row for each finished run: how its last weights stand, and how much that is above where it began."""
    lines = ["| run | minutes | " + " | ".join(MEASURES) + " |", "| --- " * (len(MEASURES) + 2) + "|"]
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text(encoding="utf-8"))
        cells = [_cell(summary["eval"], measure) for measure in MEASURES]
        lines.append(f"| {path.parent.name} | {summary['wall_s'] / 60:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(evaluation: dict[str, Any], measure: str) -> str:
    after, gain = evaluation["after"].get(measure), evaluation["difference"].get(measure)
    if after is None:
        return ""
    low, high = gain["ci95"] if gain else (float("nan"), float("nan"))
    return f"{after['mean']:.3f} ({low:+.3f}, {high:+.3f})"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], metavar="VARIANT")
    options = parser.parse_args()
    if options.command == "run":
        run_all(options.folder, options.seeds, options.only)
    else:
        print(table(options.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
