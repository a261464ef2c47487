"""Balance, bounds, and that nothing is lost."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechsum.batching import make_batch, microbatches
from speechsum.types import AudioRef, Completion, TrainingSample, read_only


def sample(number: int, prompt: int, responses: list[int]) -> TrainingSample:
    """A sample of given lengths."""
    completions = tuple(
        Completion(read_only(range(n), "int32"), read_only([0.0] * n, "float32"), 0.0, 0) for n in responses
    )
    return TrainingSample(f"p{number:03d}", AudioRef("a"), read_only(range(prompt), "int32"), completions)


@st.composite
def sample_lists(draw, max_size=12):
    lengths = draw(
        st.lists(st.tuples(st.integers(1, 60), st.lists(st.integers(1, 20), min_size=1, max_size=4)), max_size=max_size)
    )
    return [sample(i, prompt, responses) for i, (prompt, responses) in enumerate(lengths)]


def loads(batch) -> list[int]:
    return [sum(s.tokens for s in shard) for shard in batch.shards]


def test_by_hand():
    samples = [sample(i, p, [1]) for i, p in enumerate([2, 4, 6, 4])]  # tokens 3 5 7 5
    batch = make_batch(samples, 2)
    assert [[s.tokens for s in shard] for shard in batch.shards] == [[7, 3], [5, 5]]
    assert (batch.loss_tokens, batch.sequences) == (4, 4)


def test_counts_are_of_all_shards_and_of_responses_only():
    batch = make_batch([sample(0, 50, [3, 4]), sample(1, 10, [5])], 3)
    assert (batch.loss_tokens, batch.sequences) == (12, 3)
    assert batch.shards[2] == ()


@given(sample_lists(), st.integers(1, 5))
def test_shards_lose_nothing_and_differ_by_at_most_one_sample(samples, ranks):
    batch = make_batch(samples, ranks)
    assert len(batch.shards) == ranks
    assert sorted(s.prompt_id for shard in batch.shards for s in shard) == sorted(s.prompt_id for s in samples)
    load = loads(batch)
    assert max(load) - min(load) <= max((s.tokens for s in samples), default=0)
    assert batch.loss_tokens == sum(s.response_tokens for s in samples)


@given(sample_lists(max_size=7), st.integers(2, 3))
@settings(max_examples=40)
def test_the_fullest_shard_is_within_grahams_bound_of_the_best(samples, ranks):
    weights = [s.tokens for s in samples]
    best = min(
        max(sum(w for w, r in zip(weights, places, strict=True) if r == rank) for rank in range(ranks))
        for places in product(range(ranks), repeat=len(weights))
    )
    assert max(loads(make_batch(samples, ranks))) <= (4 / 3 - 1 / (3 * ranks)) * best + 1e-9


@given(sample_lists())
def test_the_order_of_arrival_does_not_matter(samples):
    assert make_batch(samples, 2) == make_batch(samples[::-1], 2)


@given(sample_lists(), st.integers(1, 200))
def test_microbatches_lose_nothing_and_keep_to_the_bound(samples, max_tokens):
    groups = microbatches(samples, max_tokens)
    assert sorted(s.prompt_id for g in groups for s in g) == sorted(s.prompt_id for s in samples)
    for group in groups:
        padded = len(group) * max(s.tokens for s in group)
        assert padded <= max_tokens or len(group) == 1


def test_microbatches_join_similar_lengths():
    samples = [sample(i, p, [1]) for i, p in enumerate([9, 29, 10, 30])]
    assert [[s.tokens for s in g] for g in microbatches(samples, 64)] == [[31, 30], [11, 10]]
    assert [[s.tokens for s in g] for g in microbatches(samples, 61)] == [[31], [30, 11], [10]]


def test_a_group_longer_than_the_bound_stays_whole():
    (only,) = microbatches([sample(0, 100, [50, 50])], 16)
    assert [len(s.completions) for s in only] == [2]


@pytest.mark.parametrize("ranks", [1, 3])
def test_no_samples(ranks):
    assert make_batch([], ranks).shards == ((),) * ranks
    assert microbatches([], 8) == []
