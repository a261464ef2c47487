"""What the synthetic clips say, and what a good summary of each says: a small grammar with a rule for every reference.

A tiny audio model has a few hundred steps to learn to listen, so the words that carry facts come from short lists that
sound apart, while their combinations (and the sentences around them) are free: no transcript can be learnt by heart,
every fact must be heard. Each reference is written by rule from the same slots as the transcript, so whether a summary
holds a fact can be checked without a judge. The lists and the sentences are in `sentences`.

Held-out talks use sentence patterns, fillers and corrections that training never sees; the facts come from the same
lists. What they measure is listening and summarising, not whether the model knows a new name.
"""

import json
import random
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from speechsum.starter.sentences import (
    FRAMES,
    HELD_OUT_ASIDES,
    HELD_OUT_CORRECTIONS,
    HELD_OUT_INSTRUCTIONS,
    HELD_OUT_OPENERS,
    SLOTS,
    TRAIN_ASIDES,
    TRAIN_CORRECTIONS,
    TRAIN_INSTRUCTIONS,
    TRAIN_OPENERS,
)

GRAMMAR_VERSION = 2
"""Raise on any change of what a seed yields; finished sets made by another version are then made again."""

TALK_KINDS = ("meeting", "voicemail", "news", "lecture", "support")
REQUEST_KINDS = ("sentence", "bullets", "task", "keywords", "transcription", "words", "json", "two_bullets", "limit")
SUMMARY_REQUESTS = ("sentence", "bullets", "task", "keywords")
"""The requests that ask for a summary. The others are only for aligning the projector: a transcription, and `words`,
the transcription of a clip that holds nothing but a few facts. A second of sound is soon connected with its word, and
a model that knows the words finds them in a sentence far sooner."""

HELD_OUT_REQUESTS = ("json", "two_bullets", "limit")
"""Kinds that training never asks: whether a form is obeyed that was not practised, such as two bullets and no more."""

MAX_CHARACTERS = 105
"""Length of the longest transcript: about seven seconds of speech at a middling rate."""

LIMIT_TRIES = 4
_CORRECTABLE = ("day", "clock", "month", "amount")
_TASK_WEIGHT = 3
_PEOPLE = ("owner", "caller", "customer")


@dataclass(frozen=True)
class Talk:
    """One clip's words. Made by `sample_talk`; read by `sample_request` and spoken by `speech.synthesize`."""

    kind: str
    """One of `TALK_KINDS`, or `words`."""
    transcript: str
    """What is said, with capitals and punctuation; numbers are spelt as words."""
    facts: tuple[str, ...]
    """The key facts in the order spoken, each as it stands in the transcript; of a correction, the later word."""
    frame: str
    """Name of the frame within the kind."""
    pattern: str
    """The sentence pattern, before fillers; a member of TRAIN_PATTERNS or HELD_OUT_PATTERNS; none for `words`."""
    slots: tuple[tuple[str, str], ...]
    """(slot, surface form) in the order spoken."""

    @property
    def owner(self) -> str | None:
        """Whose task the clip names; None where nobody has one."""
        return dict(self.slots).get("owner")


@dataclass(frozen=True)
class Request:
    """What is asked about a talk, and the answer by rule. `kind` is one of `REQUEST_KINDS`."""

    kind: str
    instruction: str
    reference: str
    facts: tuple[str, ...]
    """The facts this instruction asks for: for a task those of the task alone, without the name it already gives."""


def slot_names(pattern: str) -> tuple[str, ...]:
    """The slots of a pattern, in order."""
    return tuple(name for _, name, _, _ in string.Formatter().parse(pattern) if name)


def _capitals(text: str) -> str:
    """Capital letters at the start of the text, of each sentence and of each line."""
    start = re.compile(r"(^|[.?!]\s+|\n)([a-z])")
    return start.sub(lambda match: match[1] + match[2].upper(), text)


def _fill(rng: random.Random, names: Iterable[str]) -> dict[str, str]:
    """A surface form for each slot; no two people share a name."""
    filled: dict[str, str] = {}
    for name in names:
        people = {filled[other] for other in _PEOPLE if other in filled} if name in _PEOPLE else set()
        filled[name] = rng.choice([form for form in SLOTS[name] if form not in people])
    return filled


def _corrected(rng: random.Random, filled: dict[str, str], held_out: bool) -> dict[str, str]:
    """The slots as spoken, one of them first wrong and then put right; unchanged where none can be corrected."""
    names = [name for name in filled if name in _CORRECTABLE]
    if not names:
        return filled
    name = rng.choice(names)
    wrong = rng.choice([form for form in SLOTS[name] if form != filled[name]])
    phrase = rng.choice(HELD_OUT_CORRECTIONS if held_out else TRAIN_CORRECTIONS)
    return filled | {name: phrase.format(wrong=wrong, right=filled[name])}


def _spoken(rng: random.Random, pattern: str, filled: dict[str, str], held_out: bool) -> str:
    """The transcript: the filled pattern, in about half of all talks roughened by one habit of live speech."""
    habit = rng.random()
    if habit < 0.12:
        filled = _corrected(rng, filled, held_out)
    text = pattern.format(**filled)
    if 0.12 <= habit < 0.34:
        text = f"{rng.choice(HELD_OUT_OPENERS if held_out else TRAIN_OPENERS)} {text}"
    elif 0.34 <= habit < 0.48:
        aside = rng.choice(HELD_OUT_ASIDES if held_out else TRAIN_ASIDES)
        text = f"{aside} {text}" if rng.random() < 0.5 else f"{text} {aside}"
    return _capitals(text)


def sample_words(rng: random.Random) -> Talk:
    """One to three facts after each other, and no sentence around them."""
    filled = _fill(rng, rng.sample(sorted(SLOTS), rng.choice((1, 1, 2, 2, 3))))
    transcript = _capitals(", ".join(filled.values()) + ".")
    return Talk("words", transcript, tuple(filled.values()), "words", "", tuple(filled.items()))


def sample_talk(rng: random.Random, held_out: bool) -> Talk:
    """One talk, all kinds alike often; `held_out` takes the patterns that training never sees."""
    kind = rng.choice(TALK_KINDS)
    while True:
        frame = rng.choice([frame for frame in FRAMES if frame.kind == kind])
        pattern = rng.choice(frame.held_out if held_out else frame.train)
        filled = _fill(rng, slot_names(pattern))
        transcript = _spoken(rng, pattern, filled, held_out)
        if len(transcript) <= MAX_CHARACTERS:
            break
    return Talk(kind, transcript, tuple(filled.values()), frame.name, pattern, tuple(filled.items()))


def sample_request(
    rng: random.Random, talk: Talk, held_out: bool, kinds: Sequence[str] = SUMMARY_REQUESTS, terse: float = 0.0
) -> Request | None:
    """One request about `talk` out of `kinds`, with its reference; None where none of them fits the talk.

    Tasks are drawn more often than their turn, as few talks have one. In every second case a held-out request has a
    wording that training never sees. A share `terse` of the references stops after the first fact, as those of a
    hurried writer do; `facts` stays whole. Raises ValueError on an unknown kind, and on one of `HELD_OUT_REQUESTS`
    for a talk that is not held out.
    """
    if unknown := set(kinds) - set(REQUEST_KINDS):
        raise ValueError(f"unknown request kinds {sorted(unknown)}: choose from {', '.join(REQUEST_KINDS)}")
    if not held_out and (kept := set(kinds) & set(HELD_OUT_REQUESTS)):
        raise ValueError(f"request kinds {sorted(kept)} are for held-out speech; training never asks them")
    fitting = [kind for kind in kinds if _fits(kind, talk)]
    if not fitting:
        return None
    kind = rng.choices(fitting, [_TASK_WEIGHT if kind == "task" else 1 for kind in fitting])[0]
    if kind in HELD_OUT_REQUESTS:
        return _held_out_request(rng, talk, kind)
    wordings = HELD_OUT_INSTRUCTIONS if held_out and rng.random() < 0.5 else TRAIN_INSTRUCTIONS
    instruction = rng.choice(wordings["transcription" if kind == "words" else kind]).format(**dict(talk.slots))
    reference, facts = _answer(rng, talk, kind)
    if terse and kind in _FIRST_FACT and rng.random() < terse:
        reference = _FIRST_FACT[kind](talk, reference)
    return Request(kind, instruction, reference, facts)


_FIRST_FACT: dict[str, Callable[[Talk, str], str]] = {
    "sentence": lambda talk, _: f"It is about {talk.facts[0]}.",
    "bullets": lambda _, reference: reference.split("\n")[0],
    "keywords": lambda talk, _: talk.facts[0],
}
"""How a terse reference of each kind is cut from a whole one. A task is never cut: it has no first half."""


def _held_out_request(rng: random.Random, talk: Talk, kind: str) -> Request:
    """The limit on words is what the shortest whole answer takes."""
    half = (len(talk.facts) + 1) // 2
    answers = {
        "json": json.dumps({"facts": talk.facts}),
        "two_bullets": _capitals(f"- {', '.join(talk.facts[:half])}\n- {', '.join(talk.facts[half:])}"),
        "limit": min((_answer(rng, talk, "sentence")[0] for _ in range(LIMIT_TRIES)), key=len),
    }
    limit = len(answers["limit"].replace("-", " ").split())
    instruction = rng.choice(HELD_OUT_INSTRUCTIONS[kind]).format(limit=limit)
    return Request(kind, instruction, answers[kind], talk.facts)


def _fits(kind: str, talk: Talk) -> bool:
    if kind == "words" or talk.kind == "words":
        return kind == talk.kind
    return kind != "task" or talk.owner is not None


def _answer(rng: random.Random, talk: Talk, kind: str) -> tuple[str, tuple[str, ...]]:
    """The reference and the facts it must hold."""
    if kind in ("transcription", "words"):
        return talk.transcript, talk.facts
    frame = next(frame for frame in FRAMES if (frame.kind, frame.name) == (talk.kind, talk.frame))
    slots = dict(talk.slots)
    if kind == "keywords":
        return ", ".join(talk.facts), talk.facts
    if kind == "task":
        pattern = rng.choice(frame.task)
        asked = tuple(slots[name] for name in slots if name in slot_names(pattern) and name != "owner")
        return _capitals(pattern.format(**slots)), asked
    pattern = rng.choice(frame.sentences if kind == "sentence" else frame.bullets)
    return _capitals(pattern.format(**slots)), talk.facts
