"""How much a request asks for, by hand."""

import math

import pytest

from speechsum.asking import asked_keywords, asked_words


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Summarize this in one sentence.", None),
        ("Give the exact words of the recording.", None),
        ("Summarize in 20 words.", (16, 24)),
        ("Write a 50-word summary.", (40, 60)),
        ("Use at most twenty words.", (0, 20)),
        ("No more than 30 words, please.", (0, 30)),
        ("Between 20 to 30 words.", (20, 30)),
        ("A summary of 30-20 words.", (20, 30)),
        ("Between 20 and 30 words.", (20, 30)),
        ("Two or three words.", (2, 3)),
        ("Write a twenty-five to thirty-word summary.", (25, 30)),
        ("In twenty-five words.", (20, 30)),
        ("In sixty words.", (48, 72)),
        ("In two hundred words.", (160, 240)),
        ("In a hundred and twenty words.", (96, 144)),
        ("In 1,000 words.", (800, 1200)),
        ("In 20 words or less.", (0, 20)),
        ("Limit it to 30 words.", (0, 30)),
        ("At least 50 words.", (50, math.inf)),
        ("Fifty words or more.", (50, math.inf)),
        ("Explain the two words they argue about.", None),
        ("Max. 30 words.", (0, 30)),
        ("With a limit of 30 words.", (0, 30)),
        ("Mind the 30-word limit.", (0, 30)),
        ("Shorter than 30 words.", (0, 30)),
        ("Three bullets of at most ten words each.", None),
        ("Key words, at most ten words.", None),
    ],
)
def test_asked_words(instruction: str, expected: tuple[float, float] | None) -> None:
    assert asked_words(instruction) == expected


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("List the key words.", None),
        ("Three to five key terms.", (3, 5)),
        ("At most four important keywords.", (0, 4)),
        ("Two tags or more.", (2, math.inf)),
        ("Give me a good keyword for this.", (1, 1)),
        ("Make a keyword list.", None),
        ("In three words.", None),
    ],
)
def test_asked_keywords(instruction: str, expected: tuple[float, float] | None) -> None:
    assert asked_keywords(instruction) == expected
