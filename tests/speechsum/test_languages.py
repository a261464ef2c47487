"""What the small rule for languages can tell, and what it leaves alone."""

from __future__ import annotations

import pytest

from speechsum.languages import asked_language, has_language

SAID = {
    "english": "Anna has to send the report by Friday, and Tom will check it with her.",
    "german": "Anna muss den Bericht bis Freitag senden und Tom wird ihn mit ihr prüfen.",
    "french": "Anna doit envoyer le rapport avant vendredi et Tom va le vérifier avec elle.",
    "spanish": "Anna tiene que enviar el informe el viernes y Tom lo revisa con ella en la oficina.",
    "italian": "Anna deve inviare il rapporto entro venerdì e Tom lo controlla con lei nella sede.",
    "portuguese": "A Anna tem de enviar o relatório até sexta e o Tom não vai com ela ao escritório.",
    "dutch": "Anna moet het rapport voor vrijdag sturen en Tom is er niet bij.",
    "russian": "Анна должна отправить отчёт до пятницы.",
    "japanese": "アンナは金曜日までに報告書を送ります。",
}


@pytest.mark.parametrize("language", SAID)
def test_each_language_is_told_from_the_others(language: str) -> None:
    assert {name: has_language(text, language) for name, text in SAID.items()} == {
        name: name == language for name in SAID
    }


@pytest.mark.parametrize("text", ["Anna, Friday", "", "de que"])
def test_too_little_to_tell(text: str) -> None:
    assert has_language(text, "spanish") in (None, False)
    assert has_language(text, "spanish") is not True


@pytest.mark.parametrize(
    ("instruction", "language"),
    [
        ("Sum up in German.", "german"),
        ("Translate it into simple French", "french"),
        ("Which German car is it?", None),
        ("What was decided in the German office?", None),
        ("What happened in French class", None),
        ("Sum up the talk (in French), please", "french"),
        ("In German please", "german"),
        ("In two Spanish sentences", "spanish"),
        ("Put it into the Russian language", "russian"),
        ("In Dutch: who does what?", "dutch"),
        ("In English and in Dutch", None),
        ("Sum up.", None),
    ],
)
def test_the_language_that_is_asked_for(instruction: str, language: str | None) -> None:
    assert asked_language(instruction) == language
