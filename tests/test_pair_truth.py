"""What a ledger's pairs say of truth, counted by hand."""

from __future__ import annotations

from typing import Any

from speechsum.types import AudioRef, Prompt
from tools.pair_truth import truth

CLIP = Prompt("a", AudioRef("a.wav"), "Sum up.", "anna calls bob", facts=("anna",), clip_facts=("anna", "bob"))
OTHER = Prompt("b", AudioRef("b.wav"), "Sum up.", "carol calls", facts=("carol",), clip_facts=("carol",))


def row(text: str, reward: float | None, pair: int | None = None, preferred: bool | None = None) -> dict[str, Any]:
    return {
        "prompt_id": "a", "epoch": 0, "text": text, "reward": reward, "pair": pair, "preferred": preferred,
    }  # fmt: skip


def test_pairs_are_counted_by_which_side_is_true_and_the_judge_by_whom_it_prefers() -> None:
    rows = [
        row("Anna calls.", 0.6, 0, True),
        row("Carol calls.", 0.2, 0, False),
        row("Carol and Bob.", 0.7, 1, True),
        row("A call.", 0.1, 1, False),
        row("Bob.", None),
    ]
    assert truth(rows, {"a": CLIP, "b": OTHER}) == {
        "true over false": 1,
        "false over nothing": 1,
        "unlike": 2,  # Anna's with each of the two that name Carol; Bob's was not judged
        "sorted": 1,
    }


def test_samples_of_different_draws_are_not_compared() -> None:
    rows = [row("Anna calls.", 0.6, 0, True), {**row("Carol calls.", 0.2, 0, False), "epoch": 1}]
    assert truth(rows, {"a": CLIP, "b": OTHER}) == {}
