"""From training samples to token-balanced shards, one for each learner rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from speechsum.types import Batch, TrainingSample


def make_batch(samples: Sequence[TrainingSample], ranks: int) -> Batch:
    """Longest-first onto the lightest rank (LPT, Graham 1969): shards differ by at most one sample's tokens.

    A rank may get nothing; it then runs a weightless microbatch so that collectives still meet.
    """
    shards: list[list[TrainingSample]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for sample in sorted(samples, key=lambda s: (-s.tokens, s.prompt_id)):
        lightest = load.index(min(load))
        shards[lightest].append(sample)
        load[lightest] += sample.tokens
    return Batch(
        shards=tuple(tuple(s) for s in shards),
        loss_tokens=sum(s.response_tokens for s in samples),
        sequences=sum(len(s.completions) for s in samples),
    )


def microbatches(samples: Iterable[TrainingSample], max_tokens: int) -> list[list[TrainingSample]]:
    """Samples of similar length together, each microbatch at most `max_tokens` after padding to its longest.

    A sample alone may exceed the bound: a group is never split, for its prompt runs once.
    """
    result: list[list[TrainingSample]] = []
    for sample in sorted(samples, key=lambda s: (-s.tokens, s.prompt_id)):
        longest = result[-1][0].tokens if result else 0
        if result and longest * (len(result[-1]) + 1) <= max_tokens:
            result[-1].append(sample)
        else:
            result.append([sample])
    return result
