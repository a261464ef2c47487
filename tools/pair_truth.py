"""What the preference pairs of a run say of truth, told by the facts of its data, which no judge reads.

    python tools/pair_truth.py runs/ablations/full-11

A summary is true if every fact that it states is the clip's. Only pairs that differ in that can teach it.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from speechsum.config import RunConfig
from speechsum.ledger import read_ledger
from speechsum.textscores import fact_precision
from speechsum.types import Prompt

Row = Mapping[str, Any]


def truth(rows: Iterable[Row], prompts: Mapping[str, Prompt]) -> dict[str, int]:
    """Counts over the completions of a ledger: the pairs, by which side is true, and how well the judge tells truth.

    `unlike` are all two samples of one draw of which one is true and one is not, `sorted` those of them that gave the
    true one the higher reward.
    """
    vocabulary = sorted({fact for p in prompts.values() for fact in (*p.facts, *p.clip_facts)})
    draws: dict[tuple[str, int], list[tuple[Row, bool | None]]] = defaultdict(list)
    for row in rows:
        prompt = prompts[row["prompt_id"]]
        share = fact_precision(row["text"], prompt.clip_facts or prompt.facts, vocabulary)
        draws[prompt.id, row["epoch"]].append((row, None if share is None else share == 1.0))
    found: Counter[str] = Counter()
    for draw in draws.values():
        for (row, true), (other, also) in combinations(draw, 2):
            if row["pair"] is not None and row["pair"] == other["pair"]:
                chosen, rejected = (true, also) if row["preferred"] else (also, true)
                found[f"{_word(chosen)} over {_word(rejected)}"] += 1
            if {true, also} == {True, False} and None not in (row["reward"], other["reward"]):
                found["unlike"] += 1
                found["sorted"] += (row["reward"] > other["reward"]) if true else (other["reward"] > row["reward"])
    return dict(found)


def _word(true: bool | None) -> str:
    return "nothing" if true is None else "true" if true else "false"


def main() -> None:
    """Prints the counts of one run folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    from cluster import assets
    from cluster.run_folder import RunFolder

    config = RunConfig.model_validate_json(RunFolder.open(run).config.read_text(encoding="utf-8"))
    prompts = assets.train_prompts(config, assets.student_checkpoint(config.model.path, print), print)
    rows = [row for row in read_ledger(run).to_pylist() if row["stage"] == "dpo"]
    for name, count in sorted(truth(rows, {p.id: p for p in prompts}).items()):
        print(f"{name:20} {count}")


if __name__ == "__main__":
    main()
