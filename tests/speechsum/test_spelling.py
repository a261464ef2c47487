"""Numbers as English words."""

from __future__ import annotations

import pytest

from speechsum.spelling import spell_numbers


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("0 or 10 or 19", "zero or ten or nineteen"),
        ("25 homes, 80 jobs.", "twenty five homes, eighty jobs."),
        ("300 of 3,000 and 2500", "three hundred of three thousand and two thousand five hundred"),
        ("It cost $85.", "It cost eighty five dollars."),
        ("999,999", "nine hundred ninety nine thousand nine hundred ninety nine"),
        ("July 5th, 3rd, the 1990s, mp3, $20 million", "July 5th, 3rd, the 1990s, mp3, $20 million"),
        ("at 5:15 for 3.5 percent, 20% of 1,000,000", "at 5:15 for 3.5 percent, 20% of 1,000,000"),
    ],
)
def test_numbers_in_words(text: str, spelled: str) -> None:
    assert spell_numbers(text) == spelled
