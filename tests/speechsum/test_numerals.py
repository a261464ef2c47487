"""Spelled numbers, by hand and there and back."""

import pytest

from speechsum.numerals import with_digits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one", "1"),
        ("a single sentence", "a 1 sentence"),
        ("twenty-five words", "25 words"),
        ("twenty five words", "25 words"),
        ("twenty to thirty", "20 to 30"),
        ("a hundred words", "100 words"),
        ("hundred", "100"),
        ("two hundred and five", "205"),
        ("nine hundred ninety-nine", "999"),
        ("one hundred and no more", "100 and no more"),
        ("12,000 of 1,234", "12000 of 1234"),
        ("1, 2,30", "1, 2,30"),
        ("someone tends a stone", "someone tends a stone"),
        ("", ""),
    ],
)
def test_with_digits(text: str, expected: str) -> None:
    assert with_digits(text) == expected
