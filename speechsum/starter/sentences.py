"""What the synthetic clips are made of: the words that carry facts, and the sentences and requests around them.

The words come from short lists that sound apart. Training and held-out speech share them, and no sentence pattern,
filler or correction. Any change here changes what a seed yields: raise `grammar.GRAMMAR_VERSION` with it.
"""

from dataclasses import dataclass


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
