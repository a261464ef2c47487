"""Means and intervals against numbers worked out by hand."""

import numpy as np
import pytest

from speechsum.statistics import mean_ci, paired_difference, spearman, win_rate


def test_equal_values_leave_no_doubt() -> None:
    assert mean_ci([0.5] * 7) == {"mean": 0.5, "ci95": [0.5, 0.5]}


def test_two_values_have_three_possible_means() -> None:
    # Drawing two of {0, 1} gives means 0, 1/2, 1 with chances 1/4, 1/2, 1/4: the outer 2.5 % are 0 and 1.
    assert mean_ci([0.0, 1.0], n=4000) == {"mean": 0.5, "ci95": [0.0, 1.0]}


def test_many_values_agree_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, size=900)
    result = mean_ci(values.tolist(), n=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert result["mean"] == pytest.approx(values.mean())
    assert result["ci95"] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.02)


def test_one_seed_one_answer() -> None:
    values = np.random.default_rng(5).random(30).tolist()
    assert mean_ci(values, seed=3) == mean_ci(values, seed=3)
    assert mean_ci(values, seed=3) != mean_ci(values, seed=4)


def test_answers_about_one_recording_count_as_one() -> None:
    values = [0.0, 1.0] * 20
    alone = mean_ci(values)
    grouped = mean_ci(values, groups=["low", "high"] * 20)
    # Two recordings, one all 0 and one all 1: as uncertain as two values, however many answers each has.
    assert grouped == {"mean": 0.5, "ci95": [0.0, 1.0]}
    assert alone["ci95"][1] - alone["ci95"][0] < 0.4


def test_recordings_of_different_size_weigh_by_their_answers() -> None:
    # Drawing twice from {a: 3 answers of 1, b: 1 answer of 0}: means 1, 3/4, 0.
    result = mean_ci([1.0, 1.0, 1.0, 0.0], groups=["a", "a", "a", "b"], n=4000)
    assert result == {"mean": 0.75, "ci95": [0.0, 1.0]}


def test_pairing_takes_out_what_makes_an_item_hard() -> None:
    before = [0.1, 0.9, 0.3, 0.6]
    after = [value + 0.1 for value in before]
    result = paired_difference(before, after)
    assert result["mean"] == pytest.approx(0.1)
    assert result["ci95"] == pytest.approx([0.1, 0.1])


def test_slices_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50).tolist()
    whole = mean_ci(values, n=300)
    monkeypatch.setattr("speechsum.statistics.CELLS_AT_ONCE", 1000)
    assert mean_ci(values, n=300) == whole


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "at least one value"),
        ([1.0, float("nan")], {}, "value 1 is not finite"),
        ([1.0, 2.0], {"groups": ["a"]}, "got 1 for 2"),
        ([1.0], {"n": 0}, "at least one resample"),
    ],
)
def test_what_cannot_be_averaged_is_refused(values: list[float], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_ci(values, **options)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="as many values before as after"):
        paired_difference([1.0], [1.0, 2.0])


def test_win_rate_by_hand() -> None:
    # Two wins, a loss, a tie and a tie by rounding: (1 + 1 + 0 + 1/2 + 1/2) / 5.
    result = win_rate([0.1, 0.2, 0.3, 0.4, 0.5], [0.2, 0.9, 0.1, 0.4, 0.5 + 1e-9])
    assert result["mean"] == pytest.approx(0.6)
    assert win_rate([0.0, 0.0], [1.0, 2.0]) == {"mean": 1.0, "ci95": [1.0, 1.0]}


def test_win_rate_resamples_recordings() -> None:
    # One recording always wins and one always loses: as uncertain as two items, however many answers each has.
    result = win_rate([0.5] * 8, [1.0, 0.0] * 4, groups=["up", "down"] * 4)
    assert result == {"mean": 0.5, "ci95": [0.0, 1.0]}


def test_a_win_rate_needs_pairs() -> None:
    with pytest.raises(ValueError, match="as many values before as after"):
        win_rate([1.0], [1.0, 2.0])


def test_rank_correlation_by_hand() -> None:
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert spearman([1, 2, 3], [5, 0, -5]) == pytest.approx(-1.0)
    # Ranks 1 2 3 4 5 against 2 1 4 3 5: squared differences 1 1 1 1 0, so 1 - 6 * 4 / (5 * 24) = 0.8.
    assert spearman([0, 1, 2, 3, 4], [0.2, 0.1, 0.4, 0.3, 0.9]) == pytest.approx(0.8)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    # Ranks 1 2.5 2.5 4 against 1 2 3 4, both about 2.5: 4.5 / sqrt(4.5 * 5).
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5.0))
    # Ranks 1.5 1.5 3 against 1 2 3: 1.5 / sqrt(1.5 * 2).
    assert spearman([7, 7, 8], [1, 2, 3]) == pytest.approx(1.5 / np.sqrt(3.0))


def test_one_value_alone_has_no_rank_correlation() -> None:
    assert spearman([0.5, 0.5, 0.5], [1, 2, 3]) is None
    assert spearman([1.0], [2.0]) is None


@pytest.mark.parametrize(
    ("left", "right", "message"), [([1.0], [1.0, 2.0], "got 1, 2"), ([1.0, float("nan")], [1.0, 2.0], "not finite")]
)
def test_what_cannot_be_ranked_is_refused(left: list[float], right: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spearman(left, right)
