"""The grammar's promises: every reference holds what was asked, nothing false, and held-out means held out."""

import random

import pytest

from speechsum.starter import grammar, sentences
from speechsum.starter.grammar import TALK_KINDS, sample_request, sample_talk, sample_words, slot_names
from speechsum.starter.sentences import FACT_VOCABULARY, FRAMES, HELD_OUT_PATTERNS, TRAIN_PATTERNS, Frame
from speechsum.textscores import fact_precision, fact_recall, words

VOCABULARY = frozenset(FACT_VOCABULARY)


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{frame.kind}-{frame.name}")
def test_all_patterns_of_a_frame_fill_the_same_slots(frame: Frame) -> None:
    slots = set(slot_names(frame.train[0]))
    assert 3 <= len(slots) <= 4
    assert slots <= set(sentences.SLOTS)
    for pattern in (*frame.train, *frame.held_out, *frame.sentences, *frame.bullets):
        assert set(slot_names(pattern)) == slots, pattern
    assert bool(frame.task) == ("owner" in slots)


@pytest.mark.parametrize("kind", TALK_KINDS)
def test_each_kind_has_enough_patterns(kind: str) -> None:
    frames = [frame for frame in FRAMES if frame.kind == kind]
    assert sum(len(frame.train) for frame in frames) >= 8
    assert sum(len(frame.held_out) for frame in frames) >= 3


def _carrier(pattern: str) -> tuple[str, ...]:
    return words(pattern.format_map({name: f"slot {name}" for name in slot_names(pattern)}))


def test_held_out_patterns_share_no_sentence_with_training() -> None:
    assert len(TRAIN_PATTERNS) == sum(len(frame.train) for frame in FRAMES)
    assert not {_carrier(pattern) for pattern in TRAIN_PATTERNS} & {_carrier(pattern) for pattern in HELD_OUT_PATTERNS}
    trained = {_carrier(sentence) for pattern in TRAIN_PATTERNS for sentence in pattern.split(". ")}
    for pattern in HELD_OUT_PATTERNS:
        for sentence in pattern.split(". "):
            assert _carrier(sentence) not in trained, sentence


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: f"{frame.kind}-{frame.name}")
def test_held_out_patterns_put_the_facts_in_another_order_or_other_words(frame: Frame) -> None:
    for pattern in frame.held_out:
        for trained in frame.train:
            assert not (slot_names(pattern) == slot_names(trained) and _overlap(pattern, trained) > 0.6), pattern


def _overlap(left: str, right: str) -> float:
    return len(set(words(left)) & set(words(right))) / len(set(words(left)) | set(words(right)))


@pytest.mark.parametrize(("train", "held_out"), [
    (sentences.TRAIN_OPENERS, sentences.HELD_OUT_OPENERS),
    (sentences.TRAIN_ASIDES, sentences.HELD_OUT_ASIDES),
    (sentences.TRAIN_CORRECTIONS, sentences.HELD_OUT_CORRECTIONS),
    *((trained, sentences.HELD_OUT_INSTRUCTIONS[kind]) for kind, trained in sentences.TRAIN_INSTRUCTIONS.items()),
])  # fmt: skip
def test_held_out_habits_and_wordings_are_disjoint(train: tuple[str, ...], held_out: tuple[str, ...]) -> None:
    assert train
    assert held_out
    assert not set(train) & set(held_out)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", sentences.TRAIN_INSTRUCTIONS)
def test_references_hold_the_asked_facts_and_no_false_one(kind: str, held_out: bool) -> None:
    rng = random.Random(11)
    asked = 0
    for _ in range(700):
        talk = sample_talk(rng, held_out)
        assert fact_recall(talk.transcript, talk.facts) == 1.0
        assert set(talk.facts) <= FACT_VOCABULARY
        request = sample_request(rng, talk, held_out, [kind])
        if request is None:
            assert kind == "task"
            assert talk.owner is None
            continue
        asked += 1
        assert request.facts
        assert set(request.facts) <= set(talk.facts)
        assert fact_recall(request.reference, request.facts) == 1.0, request
        assert 5 <= len(request.reference.split()) <= 25, request
        assert "{" not in request.instruction + request.reference + talk.transcript
        if kind != "transcription":
            assert fact_precision(request.reference, talk.facts, VOCABULARY) == 1.0, request
    assert asked > 150


def test_some_kinds_are_kept_from_training() -> None:
    rng = random.Random(5)
    for kind in grammar.HELD_OUT_REQUESTS:
        assert kind in grammar.REQUEST_KINDS
        assert kind not in (*sentences.TRAIN_INSTRUCTIONS, *grammar.SUMMARY_REQUESTS)
        talk = sample_talk(rng, held_out=True)
        request = sample_request(rng, talk, True, [kind])
        assert request is not None
        assert (request.kind, request.facts) == (kind, talk.facts)
        assert fact_recall(request.reference, request.facts) == 1.0
        with pytest.raises(ValueError, match="are for held-out speech"):
            sample_request(rng, sample_talk(rng, False), False, ["sentence", kind])


def test_words_are_facts_and_nothing_else() -> None:
    rng = random.Random(4)
    for _ in range(300):
        talk = sample_words(rng)
        request = sample_request(rng, talk, False, ["words", "sentence"])
        assert request is not None
        assert request.kind == "words"
        assert request.instruction in sentences.TRAIN_INSTRUCTIONS["transcription"]
        assert request.reference.casefold() == ", ".join(talk.facts).casefold() + "."
        assert 1 <= len(talk.facts) <= 3
        assert set(talk.facts) <= FACT_VOCABULARY
    assert sample_request(rng, sample_talk(rng, False), False, ["words"]) is None


def test_a_task_asks_for_the_task_and_its_day_only() -> None:
    rng = random.Random(2)
    requests = []
    while len(requests) < 100:
        talk = sample_talk(rng, held_out=False)
        if request := sample_request(rng, talk, False, ["task"]):
            requests.append(request)
            assert talk.owner is not None
            assert talk.owner in request.instruction
            assert talk.owner not in request.facts
            assert len(request.facts) == 2


def test_terse_references_tell_one_fact_and_leave_the_rest_as_it_is() -> None:
    seeds = range(200)
    whole = [sample_request(rng, sample_talk(rng, False), False) for rng in map(random.Random, seeds)]
    terse = [sample_request(rng, sample_talk(rng, False), False, terse=1.0) for rng in map(random.Random, seeds)]
    for a, b in zip(whole, terse, strict=True):
        assert a is not None
        assert b is not None
        assert (a.kind, a.instruction, a.facts) == (b.kind, b.instruction, b.facts)
        if a.kind == "task":
            assert a.reference == b.reference
        else:
            assert fact_recall(b.reference, b.facts) <= 2 / 3
            assert len(b.reference) < len(a.reference)


def test_some_references_are_terse() -> None:
    requests = [
        sample_request(rng, sample_talk(rng, False), False, ["keywords"], terse=0.25)
        for rng in map(random.Random, range(400))
    ]
    cut = [r.reference == r.facts[0] for r in requests if r is not None]
    assert 0.2 < sum(cut) / len(cut) < 0.3


def test_after_a_correction_the_later_word_is_the_fact() -> None:
    rng = random.Random(5)
    corrected = [talk for talk in (sample_talk(rng, False) for _ in range(2000)) if "no, sorry," in talk.transcript]
    assert corrected
    for talk in corrected:
        right = talk.transcript.split("no, sorry, ")[1]
        assert any(right.startswith(fact) for fact in talk.facts)


def test_transcripts_hardly_repeat_and_hold_no_digits() -> None:
    rng = random.Random(0)
    transcripts = [sample_talk(rng, False).transcript for _ in range(5000)]
    assert len(set(transcripts)) > 4950
    assert not any(character.isdigit() for transcript in transcripts for character in transcript)
    assert max(len(transcript) for transcript in transcripts) <= grammar.MAX_CHARACTERS


def test_two_people_in_a_clip_have_two_names() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        slots = dict(sample_talk(rng, False).slots)
        assert slots.get("owner", "") != slots.get("caller")


def test_the_same_seed_gives_the_same_talks() -> None:
    first, second = (
        [sample_talk(rng, True) for _ in range(50)] for rng in (random.Random(9), random.Random(9))
    )  # fmt: skip
    assert first == second


def test_an_unknown_request_kind_is_named() -> None:
    rng = random.Random(0)
    with pytest.raises(ValueError, match="haiku"):
        sample_request(rng, sample_talk(rng, False), False, ["haiku"])
