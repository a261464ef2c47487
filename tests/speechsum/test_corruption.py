"""Texts made wrong on purpose, where capitals are no simple matter."""

import random

from speechsum.corruption import swapped, swapped_word


def test_a_form_is_swapped_in_every_spelling_in_which_it_stands() -> None:
    assert swapped("They met in \u0130stanbul today", {"Istanbul": "Ankara"}) == "They met in Ankara today"
    assert swapped("\u017fix of \u212aelly's", {"six": "nine", "Kelly": "Ann"}) == "nine of Ann's"


def test_a_word_is_of_its_set_in_every_spelling() -> None:
    number = swapped_word("number", "F\u0130VE came", "", random.Random(0))
    assert number in {f"{other} came" for other in ("Two", "Three", "Four", "Six", "Seven", "Eight", "Nine")}
    day = swapped_word("day", "\u017funday came", "", random.Random(0))
    assert day in {f"{other}day came" for other in ("Mon", "Tues", "Wednes", "Thurs", "Fri", "Satur")}
