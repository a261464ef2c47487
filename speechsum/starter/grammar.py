"""What the synthetic clips say, and what a good summary of each says: a small grammar with a rule for every reference.

A tiny audio model has a few hundred steps to learn to listen, so the words that carry facts come from short lists that
sound apart, while their combinations (and the sentences around them) are free: no transcript can be learnt by heart,
every fact must be heard. Each reference is written by rule from the same slots as the transcript, so whether a summary
holds a fact can be checked without a judge.

Held-out talks use sentence patterns, fillers and corrections that training never sees; the facts come from the same
lists. What they measure is listening and summarising, not whether the model knows a new name.
"""

import json
import random
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

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


def _paired(verbs: str, things: str) -> tuple[str, ...]:
    return tuple(f"{verb} the {thing}" for verb in verbs.split(", ") for thing in things.split(", "))


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split(", "))


_SMALL = _list("two, three, four, five, six, seven, eight, nine")
_TENS = _list("twenty, thirty, forty, fifty, sixty, seventy, eighty, ninety")
_HOURS = _list("one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve")
_LARGE = tuple(f"{digit} {size}" for digit in _SMALL for size in ("hundred", "thousand"))
_NAMES = _list(
    "Anna, Marcus, Priya, Tom, Elena, Oscar, Ruth, Victor, Grace, Hugo, Nadia, Peter, Chloe, Samuel, Yuki, Boris, "
    "Linda, Felix, Amber, Dylan, Sofia, Kevin, Martha, Jacob, Ingrid, Carlos, Judy, Walter, Naomi, Frank, Bella, George"
)

SLOTS: dict[str, tuple[str, ...]] = {
    "owner": _NAMES,
    "caller": _NAMES,
    "customer": _NAMES,
    "day": _list("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "month": _list("January, February, March, April, June, July, August, September, October, November, December"),
    "clock": tuple(form.format(hour) for hour in _HOURS for form in ("{} o'clock", "half past {}", "{} fifteen")),
    "city": _list(
        "London, Paris, Berlin, Madrid, Chicago, Boston, Toronto, Sydney, Cairo, Mumbai, Dublin, Lisbon, Oslo, Denver"
    ),
    "topic": _list(
        "travel budget, new website, summer party, hiring plan, office move, product launch, safety training, "
        "market study, phone system, annual dinner, school visit, water contract, parking garage, energy bill"
    ),
    "verdict": _list("approved, rejected, postponed, cancelled, extended, simplified, doubled, merged"),
    "room": _list("blue room, main hall, library, basement, corner office, garden, kitchen, theatre, lobby, workshop"),
    "task": _paired(
        "send, check, print, finish, update, review, sign, translate",
        "report, agreement, schedule, invoice, slides, brochure, agenda, survey, manual, price list",
    ),
    "errand": _paired(
        "pick up, bring, order, return, find, wrap, collect",
        "keys, cake, tickets, parcel, medicine, umbrella, guitar, suitcase, camera, flowers, passport, jacket",
    ),
    "place": _list(
        "station, airport, bakery, museum, stadium, market, cinema, hospital, harbour, castle, bus stop, swimming pool"
    ),
    "disaster": _list("storm, flood, fire, cyclone, power failure, heat wave, landslide, gas leak, strike, blizzard"),
    "homes": tuple(f"{number} homes" for number in (*_TENS, *_LARGE)),
    "site": _list(
        "car factory, chocolate factory, data centre, shopping mall, hotel, university, toy shop, film studio, "
        "solar farm, brewery, space museum, railway line"
    ),
    "jobs": tuple(f"{number} jobs" for number in (*_TENS, *_LARGE)),
    "subject": _list(
        "volcanoes, glaciers, magnets, vaccines, black holes, honey bees, coral reefs, old castles, rain forests, "
        "exchange rates, dinosaurs, bridges, folk songs, robots"
    ),
    "concept": _list("pressure, balance, energy, trust, temperature, timing, gravity, friction, language, evolution"),
    "chapter": tuple(f"chapter {number}" for number in (*_HOURS, *_TENS)),
    "invention": _list(
        "telescope, bicycle, printing press, steam engine, piano, microscope, compass, submarine, camera, balloon, "
        "windmill, sewing machine"
    ),
    "inventor": _list("doctor, farmer, sailor, teacher, baker, soldier, priest, student, carpenter, lawyer"),
    "years": tuple(f"{number} years" for number in (*_TENS, *_LARGE[::2])),
    "product": _list(
        "printer, laptop, washing machine, coffee maker, headset, tablet, vacuum cleaner, router, freezer, keyboard, "
        "television, toaster, doorbell, speaker"
    ),
    "fault": _list(
        "will not start, makes a loud noise, keeps freezing, gets too hot, lost the signal, shows an error, "
        "smells of smoke, runs too slowly, is missing a part, arrived damaged"
    ),
    "remedy": _paired(
        "replace, repair, test, inspect, clean, ship",
        "battery, cable, screen, motor, filter, remote control, power supply, lid",
    ),
    "amount": tuple(
        f"{number} dollars"
        for number in (*_TENS, *(f"{ten} five" for ten in _TENS), *(f"{digit} hundred" for digit in _SMALL))
    ),
}
"""Every slot and the surface forms it can take; what stands here is all that a fact can be."""

FACT_VOCABULARY: frozenset[str] = frozenset(form for forms in SLOTS.values() for form in forms)

LIMIT_TRIES = 4
_CORRECTABLE = ("day", "clock", "month", "amount")
_TASK_WEIGHT = 3
_PEOPLE = ("owner", "caller", "customer")


@dataclass(frozen=True)
class Frame:
    """One thing that can happen in a kind of talk: which slots it fills, how it is said, how it is summed up.

    All patterns of a frame fill the same slots, but those of `task`, which fill only what the owner has to do. They
    start in lower case; the sentence gets its capitals once fillers are in place.
    """

    kind: str
    name: str
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    sentences: tuple[str, ...]
    bullets: tuple[str, ...]
    task: tuple[str, ...] = ()


FRAMES: tuple[Frame, ...] = (
    Frame(
        "meeting",
        "action",
        train=(
            "for the {topic}, {owner} will {task} by {day}.",
            "{owner} has to {task} by {day}, so the {topic} can go ahead.",
            "we talked about the {topic}. {owner} agreed to {task} by {day}.",
            "the {topic} comes first. {owner} is going to {task} by {day}.",
            "by {day}, {owner} should {task} for the {topic}.",
            "we need help with the {topic}. {owner}, please {task} by {day}.",
        ),
        held_out=(
            "{day} is the deadline for {owner} to {task}, because the {topic} depends on it.",
            "somebody must {task}. I suggest {owner}, by {day}, as part of the {topic}.",
        ),
        sentences=(
            "{owner} will {task} by {day} for the {topic}.",
            "by {day}, {owner} must {task} for the {topic}.",
            "for the {topic}, {owner} has to {task} by {day}.",
            "the meeting about the {topic} wants {owner} to {task} by {day}.",
        ),
        bullets=(
            "- Topic: {topic}\n- {owner} will {task}\n- Deadline: {day}",
            "- {owner} has to {task}\n- It is due by {day}\n- It is for the {topic}",
        ),
        task=("{owner} must {task} by {day}.", "{owner} has to {task} by {day}.", "by {day}, {owner} must {task}."),
    ),
    Frame(
        "meeting",
        "decision",
        train=(
            "the {topic} was {verdict}. we meet again on {day} in the {room}.",
            "we voted, and the {topic} is {verdict}. the next meeting is in the {room} on {day}.",
            "our next meeting is on {day} in the {room}, since the {topic} was {verdict}.",
            "it is official, the {topic} has been {verdict}. come to the {room} on {day}.",
            "let us note that the {topic} was {verdict}, and that we use the {room} on {day}.",
        ),
        held_out=(
            "see you in the {room} next {day}. and remember, they {verdict} the {topic}.",
            "{verdict}, that is the result for the {topic}. details follow on {day} in the {room}.",
        ),
        sentences=(
            "the {topic} was {verdict}, and the next meeting is on {day} in the {room}.",
            "after the {topic} was {verdict}, the group meets on {day} in the {room}.",
            "the group meets in the {room} on {day}, as the {topic} was {verdict}.",
            "on {day} the group meets in the {room}; the {topic} was {verdict}.",
        ),
        bullets=(
            "- The {topic} was {verdict}\n- Next meeting: {day}\n- Place: {room}",
            "- Decision: {topic} {verdict}\n- They meet on {day} in the {room}",
        ),
    ),
    Frame(
        "voicemail",
        "errand",
        train=(
            "hi {owner}, this is {caller}. please {errand} by {day}.",
            "hello {owner}, {caller} here. could you {errand} by {day}? thanks.",
            "{owner}, it's {caller}. don't forget to {errand} by {day}.",
            "it's {caller}, calling for {owner}. you need to {errand} by {day}.",
            "this is a message for {owner}. by {day}, please {errand}. it's {caller} speaking.",
        ),
        held_out=(
            "{caller} calling. I can't {errand} myself, so {owner}, would you do it by {day}?",
            "good evening. before {day} is over, {owner} has to {errand}. love from {caller}.",
        ),
        sentences=(
            "{caller} asks {owner} to {errand} by {day}.",
            "{owner} should {errand} by {day}, says {caller}.",
            "by {day}, {owner} has to {errand} for {caller}.",
            "in a message, {caller} wants {owner} to {errand} by {day}.",
        ),
        bullets=(
            "- Caller: {caller}\n- {owner} should {errand}\n- Deadline: {day}",
            "- {caller} called {owner}\n- The request is to {errand}\n- It is due by {day}",
        ),
        task=(
            "{owner} must {errand} by {day}.",
            "{owner} has to {errand} by {day}.",
            "by {day}, {owner} must {errand}.",
        ),
    ),
    Frame(
        "voicemail",
        "appointment",
        train=(
            "hi, it's {caller}. let's meet at the {place} on {day} at {clock}.",
            "this is {caller}. I will be at the {place} at {clock} on {day}.",
            "hello, {caller} here. can we meet on {day}, {clock}, at the {place}?",
            "on {day} I'm free at {clock}. come to the {place}. bye, {caller}.",
            "it's {caller} again. the new plan is {day} at {clock}, by the {place}.",
        ),
        held_out=(
            "would {clock} suit you on {day}? I'd wait at the {place}. regards, {caller}.",
            "{caller} speaking. I booked us the {place}, and it's for {day}, {clock}.",
        ),
        sentences=(
            "{caller} wants to meet at the {place} on {day} at {clock}.",
            "on {day} at {clock}, {caller} will be at the {place}.",
            "the meeting with {caller} is at the {place} on {day} at {clock}.",
            "at {clock} on {day}, {caller} expects company at the {place}.",
        ),
        bullets=(
            "- Caller: {caller}\n- Place: {place}\n- Time: {day} at {clock}",
            "- {caller} wants to meet\n- They meet at the {place}\n- It is on {day} at {clock}",
        ),
    ),
    Frame(
        "news",
        "disaster",
        train=(
            "a {disaster} hit {city} on {day}. {homes} have no power.",
            "in {city}, {homes} were damaged by a {disaster} on {day}.",
            "news from {city}. a {disaster} closed off {homes} on {day}.",
            "on {day}, people left {homes} in {city} because of a {disaster}.",
            "{homes} are empty tonight after a {disaster} in {city} on {day}.",
        ),
        held_out=(
            "{city} has asked for help. since {day}, a {disaster} has affected {homes}.",
            "a {disaster}, that is what {homes} faced on {day}, officials in {city} report.",
        ),
        sentences=(
            "a {disaster} in {city} affected {homes} on {day}.",
            "on {day}, a {disaster} hit {homes} in {city}.",
            "in {city}, {homes} were hit by a {disaster} on {day}.",
            "{homes} in {city} were affected by a {disaster} on {day}.",
        ),
        bullets=(
            "- Event: {disaster} in {city}\n- Day: {day}\n- Affected: {homes}",
            "- A {disaster} hit {city}\n- It happened on {day}\n- It affected {homes}",
        ),
    ),
    Frame(
        "news",
        "opening",
        train=(
            "a new {site} will open in {city} in {month}, creating {jobs}.",
            "{city} is getting a {site}. it opens in {month} and brings {jobs}.",
            "in {month}, {city} will open a {site} with {jobs}.",
            "good news for {city}, {jobs} will come with the {site} this {month}.",
            "the mayor of {city} promised {jobs} when the {site} opens in {month}.",
        ),
        held_out=(
            "they are hiring in {city}. there are {jobs} at the {site}, starting in {month}.",
            "from {month} on, the {site} means {jobs} for people living in {city}.",
        ),
        sentences=(
            "a {site} opening in {city} in {month} will bring {jobs}.",
            "in {month}, a {site} will bring {jobs} to {city}.",
            "{city} will get {jobs} from a {site} in {month}.",
            "the {site} in {city} opens in {month} and creates {jobs}.",
        ),
        bullets=(
            "- What: {site} in {city}\n- Opening: {month}\n- New work: {jobs}",
            "- {city} gets a {site}\n- It opens in {month}\n- It brings {jobs}",
        ),
    ),
    Frame(
        "lecture",
        "reading",
        train=(
            "today we look at {subject}. the key is {concept}. read {chapter} by {day}.",
            "to understand {subject}, think of {concept}. please read {chapter} by {day}.",
            "by {day}, read {chapter}. it shows how {subject} depend on {concept}.",
            "{concept} explains a lot about {subject}. the homework is {chapter}, by {day}.",
            "our theme is {subject}, and most of it is {concept}. have {chapter} ready by {day}.",
        ),
        held_out=(
            "{chapter} is due on {day}. it connects {concept} with {subject}.",
            "why does {concept} matter? because of {subject}. study {chapter} before class on {day}.",
        ),
        sentences=(
            "the lecture on {subject} is about {concept}; read {chapter} by {day}.",
            "{concept} is the key to {subject}, and {chapter} is due by {day}.",
            "students should read {chapter} by {day} about {subject} and {concept}.",
            "for {subject}, the key is {concept}; {chapter} must be read by {day}.",
        ),
        bullets=(
            "- Subject: {subject}\n- Key idea: {concept}\n- Read {chapter} by {day}",
            "- The lecture is about {subject}\n- The key is {concept}\n- Homework: {chapter}\n- Deadline: {day}",
        ),
    ),
    Frame(
        "lecture",
        "invention",
        train=(
            "the first {invention} was made by a {inventor} in {city}, {years} ago.",
            "{years} ago, a {inventor} from {city} built a {invention}.",
            "in {city}, a {inventor} invented the {invention}. that was {years} ago.",
            "let me tell you about the {invention}. a {inventor} in {city} designed it {years} ago.",
            "it took a {inventor} from {city} to build the {invention}, {years} ago.",
        ),
        held_out=(
            "think back {years}. {city} was home to a {inventor}, who dreamed of a {invention}.",
            "who gave us the {invention}? it was a {inventor}, {years} ago, in {city}.",
        ),
        sentences=(
            "a {inventor} in {city} built the {invention} {years} ago.",
            "the {invention} was invented {years} ago by a {inventor} in {city}.",
            "in {city}, a {inventor} made a {invention} {years} ago.",
            "{years} ago, a {inventor} from {city} invented the {invention}.",
        ),
        bullets=(
            "- Invention: {invention}\n- Made by a {inventor} in {city}\n- Date: {years} ago",
            "- A {inventor} built the {invention}\n- It was in {city}\n- It was {years} ago",
        ),
    ),
    Frame(
        "support",
        "repair",
        train=(
            "the {product} is broken. {owner} will {remedy} by {day}.",
            "thank you for calling about your {product}. {owner} can {remedy} by {day}.",
            "{owner} has to {remedy} by {day}, because the {product} does not work.",
            "your {product} has a problem. I asked {owner} to {remedy} by {day}.",
            "by {day}, {owner} needs to {remedy} for the broken {product}.",
        ),
        held_out=(
            "don't worry. {owner} looks at your {product} and will then {remedy}. expect it by {day}.",
            "we can {remedy}, that should save the {product}. {owner} is on it until {day}.",
        ),
        sentences=(
            "{owner} will {remedy} for the {product} by {day}.",
            "the {product} is broken, so {owner} must {remedy} by {day}.",
            "by {day}, {owner} will {remedy} because the {product} failed.",
            "to fix the {product}, {owner} has to {remedy} by {day}.",
        ),
        bullets=(
            "- Product: {product}\n- {owner} will {remedy}\n- Deadline: {day}",
            "- The {product} is broken\n- {owner} has to {remedy}\n- It is due by {day}",
        ),
        task=(
            "{owner} must {remedy} by {day}.",
            "{owner} has to {remedy} by {day}.",
            "by {day}, {owner} must {remedy}.",
        ),
    ),
    Frame(
        "support",
        "refund",
        train=(
            "my name is {customer}. the {product} {fault}, and I want {amount} back.",
            "{customer} called. the {product} {fault}. we will refund {amount}.",
            "hello, {customer} here. I paid {amount} for a {product}, and it {fault}.",
            "we owe {customer} {amount}, because the {product} {fault}.",
            "the {product} {fault}. please give {amount} back to {customer}.",
        ),
        held_out=(
            "{amount} is what I paid. now this {product} {fault}. signed, {customer}.",
            "it {fault}, the {product} I mean. a refund of {amount} goes to {customer}.",
        ),
        sentences=(
            "{customer} wants {amount} back because the {product} {fault}.",
            "the {product} {fault}, so {customer} should get {amount} back.",
            "because the {product} {fault}, {customer} asks for {amount}.",
            "a refund of {amount} goes to {customer}, as the {product} {fault}.",
        ),
        bullets=(
            "- Customer: {customer}\n- The {product} {fault}\n- Refund: {amount}",
            "- {customer} has a problem\n- The {product} {fault}\n- {amount} should be paid back",
        ),
    ),
)

TRAIN_PATTERNS: frozenset[str] = frozenset(pattern for frame in FRAMES for pattern in frame.train)
HELD_OUT_PATTERNS: frozenset[str] = frozenset(pattern for frame in FRAMES for pattern in frame.held_out)

TRAIN_OPENERS = ("okay, so,", "um,", "right,", "well,", "so, uh,", "all right,", "listen,")
HELD_OUT_OPENERS = ("now then,", "erm,", "you know,")
TRAIN_CORRECTIONS = ("{wrong}, no, sorry, {right}", "{wrong}, I mean {right}", "{wrong}, wait, no, {right}")
HELD_OUT_CORRECTIONS = ("{wrong}, or rather {right}", "{wrong}, correction, {right}")
TRAIN_ASIDES = (
    "the weather is lovely.",
    "sorry about the noise.",
    "can everybody hear me?",
    "I had too much coffee.",
    "the traffic was awful.",
    "what a busy week.",
)
HELD_OUT_ASIDES = ("my dog is barking.", "it is cold in here.", "I almost missed the bus.")

TRAIN_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "sentence": (
        "Summarize this in one sentence.",
        "Give a one sentence summary.",
        "What is the main point? Answer in one sentence.",
        "Sum up the speech in a single sentence.",
        "Write a short summary of the recording.",
        "Tell me briefly what was said.",
    ),
    "bullets": (
        "List the key points as bullets.",
        "Write the main points as a bullet list.",
        "Give me bullet points.",
        "Summarize the recording in bullets.",
    ),
    "task": (
        "What must {owner} do?",
        "What does {owner} have to do?",
        "Name the task for {owner}.",
        "What is {owner} asked to do, and by when?",
    ),
    "keywords": (
        "Give the keywords, separated by commas.",
        "List the keywords.",
        "Which keywords describe the speech? Separate them by commas.",
    ),
    "transcription": ("Transcribe the speech.", "Write down what is said.", "Give the exact words of the recording."),
}
HELD_OUT_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "sentence": ("Condense the recording into one sentence.", "In one sentence, what is this about?"),
    "bullets": ("Turn the speech into a few bullets.", "Note the essentials as bullet points."),
    "task": ("Which task falls to {owner}?", "Tell {owner} what to do."),
    "keywords": ("Extract the keywords, with commas between them.", "Tag this recording with keywords."),
    "transcription": ("Type out the speech word for word.",),
    "json": (
        'Answer in JSON with the key "facts", a list of what matters.',
        'Give me a JSON object with the key "facts" that lists the essentials.',
    ),
    "two_bullets": ("Give me exactly two bullets.", "What matters here? Write two bullet points, no more."),
    "limit": ("Sum up what is said in at most {limit} words.", "In no more than {limit} words, what was said?"),
}


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
