"""A judge that is asked by likelihood: any small causal language model, no rubric, no generation.

A 135M model cannot answer "rate this from 1 to 5" (rank correlation with known errors 0.2), but what it finds likely
is informative (0.8). Three views of a summary s of transcript t under request i, in nats:

    support   mean log p(s | t, i): does every token follow from the source?
    gain      mean [log p(s | t, i) - log p(s | i)]: because of the source, or would any text of the kind do?
    coverage  [log p(t | s) - log p(t)] per token of t: how much of the source can be told from the summary?

Each has a loophole that another closes: support likes repetition and short safe answers, gain likes a single fact,
coverage likes everything that was said. Rules close the rest: gates before, length and copying after.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from speechsum.config import EngineConfig
from speechsum.families import hears
from speechsum.prompting import plain, user_turn, with_transcript
from speechsum.rewards import echo_share, length_penalty, without_asking
from speechsum.types import FailureKind, JudgeFailure, Judgement, JudgeTask, Reward
from speechsum.wording import folded, words


class Scorer(Protocol):
    """What the judge needs of an engine."""

    @property
    def tokenizer(self) -> Any:
        """With a chat template."""

    @property
    def max_model_len(self) -> int:
        """Most tokens of one sequence."""

    @property
    def dtype(self) -> str:
        """What it computes in: `bfloat16` or `float32`."""

    def prompt_logprobs(self, token_ids: Sequence[Sequence[int]], first: Sequence[int]) -> list[np.ndarray]:
        """Log-probability of each sequence's own tokens from `first[i]` on."""

    def close(self) -> None:
        """Shut down."""


@dataclass(frozen=True, slots=True)
class Query:
    """How likely is `target` after `context`? Both are token ids; equal queries of a batch run once."""

    context: tuple[int, ...]
    target: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.context) + len(self.target)


@dataclass(frozen=True, slots=True)
class Plan:
    """The four questions about one summary."""

    given_source: Query
    given_request: Query
    source_given_summary: Query
    source: Query

    @property
    def queries(self) -> tuple[Query, ...]:
        """All of them."""
        return self.given_source, self.given_request, self.source_given_summary, self.source


@dataclass(frozen=True, slots=True)
class Weights:
    """What each view counts, and the logistic that maps their sum into (0, 1): 1 / (1 + exp((middle - x) / width))."""

    support: float
    gain: float
    coverage: float
    middle: float
    width: float


WHOLE = Weights(support=0.25, gain=1.0, coverage=2.5, middle=3.73, width=2.47)
"""For a request about all that was said.

Chosen on 52 synthetic and hand-written talks with SmolLM2-135M, against summaries with facts left out or changed,
padded, doubled, cut, or of another talk. `middle` and `width` put the median reference at 0.75 and the median summary
of another talk at 0.12.
"""

NARROW = Weights(support=1.0, gain=0.5, coverage=1.0, middle=-1.82, width=1.84)
"""For a request about one part, such as a person's task: most of the source is rightly left out."""

_NARROW = re.compile(
    r"\b(?:must|have to|has to|asked to|should|what to do|tasks?|homework|who|when|where|how (?:much|many|long))\b"
)
_VERBATIM = re.compile(
    r"\b(?:transcribe|verbatim|word (?:for|by) word|exact words|quotes?|write (?:down|out) (?:all |everything )?"
    r"(?:that|what) (?:is|was) said|(?:give|write)(?: me)? (?:a|the)(?: \w+)? transcript)\b"
)
_OWN_WORDS = re.compile(r"\b(?:summar\w+|sum(?:s|med|ming)? up|recap|own words|not|never|without|don't|avoid)\b")
_NAME = re.compile(r"(?<=[^.!?:\s] )[A-Z][a-z]+\b")  # capitalised inside a sentence
SUBJECT_KEEPS = 0.5
COPY_FREE = 0.6
COPY_KEEPS = 0.2
LONG_RUN = 12
PLACE = 4096  # bytes read at each place of a file that tells checkpoints apart


class LikelihoodJudge:
    """Gates first, then four likelihoods per summary in one engine call for the whole batch, then rules."""

    name = "likelihood"

    def __init__(self, scorer: Scorer, version: str) -> None:
        self._scorer = scorer
        self.version = f"{version}/likelihood-1"

    @classmethod
    def load(cls, path: str | Path, config: EngineConfig) -> LikelihoodJudge:
        """On an engine of its own, with the language model in the folder `path` or an audio LLM's text mode."""
        from actors.engine import Engine

        return cls(Engine(path, config, audio=hears(Path(path))), revision(Path(path)))

    @property
    def dtype(self) -> str:
        """What the engine computes in; rewards of two precisions are not quite the same."""
        return self._scorer.dtype

    def score(self, tasks: Sequence[JudgeTask]) -> list[Judgement]:
        """One judgement per task, in order. Equal questions (the source's own likelihood, say) are asked once."""
        planned = [self._prepare(task) for task in tasks]
        queries = list(dict.fromkeys(q for plan in planned if isinstance(plan, Plan) for q in plan.queries))
        answers = dict(zip(queries, self._ask(queries), strict=True))
        return [
            _judge(task, plan, answers) if isinstance(plan, Plan) else plan
            for task, plan in zip(tasks, planned, strict=True)
        ]

    def close(self) -> None:
        """Shut the engine down."""
        self._scorer.close()

    def _prepare(self, task: JudgeTask) -> Plan | Judgement:
        if (decided := without_asking(task)) is not None:
            return decided
        plan = self._plan(task)
        longest = max(map(len, plan.queries))
        if longest >= self._scorer.max_model_len:
            limit = self._scorer.max_model_len
            return JudgeFailure(FailureKind.TOO_LONG, f"{longest} tokens, judge.engine.max_model_len is {limit}")
        return plan

    def _plan(self, task: JudgeTask) -> Plan:
        source, request, summary = (plain(text) for text in (task.transcript, task.instruction, task.summary))
        said, written = self._answer(source), self._answer(summary)
        return Plan(
            given_source=Query(self._turn(with_transcript(request, source)), written),
            given_request=Query(self._turn(request), written),
            source_given_summary=Query(
                self._turn(f"Summary: {summary}\n\nWrite the transcript of the recording."), said
            ),
            source=Query(self._turn("Write the transcript of a recording."), said),
        )

    def _turn(self, user: str) -> tuple[int, ...]:
        return tuple(user_turn(self._scorer.tokenizer, user))

    def _answer(self, text: str) -> tuple[int, ...]:
        """An answer with its end, so that stopping too early or too late has a price."""
        tokenizer = self._scorer.tokenizer
        return (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)

    def _ask(self, queries: Sequence[Query]) -> list[np.ndarray]:
        if not queries:
            return []
        return self._scorer.prompt_logprobs([q.context + q.target for q in queries], [len(q.context) for q in queries])


def revision(checkpoint: Path) -> str:
    """The folder's name and eight digits of what it holds, as two checkpoints may lie in folders of one name.

    Of every file its name, its size and 64 places all over it: enough to tell weights apart without reading them all.
    """
    told = hashlib.blake2b(digest_size=4)
    for path in sorted(p for p in checkpoint.iterdir() if p.is_file()):
        size = path.stat().st_size
        told.update(f"{path.name}\0{size}\n".encode())
        with path.open("rb") as file:
            for place in range(0, size, max(PLACE, size // 64)):
                file.seek(place)
                told.update(file.read(PLACE))
    return f"{checkpoint.name}@{told.hexdigest()}"


def _judge(task: JudgeTask, plan: Plan, answers: dict[Query, np.ndarray]) -> Judgement:
    """The three views, their sum on a scale from 0 to 1, and what the rules take off."""
    given, alone, told, source = (answers[q].astype(np.float64) for q in plan.queries)
    views = {
        "support": float(given.mean()),
        "gain": float((given - alone).mean()),
        "coverage": float((told - source).mean()),
    }
    if not all(math.isfinite(v) for v in views.values()):
        return JudgeFailure(FailureKind.NON_FINITE, f"likelihoods are not finite: {views}")
    rules = {
        "length": length_penalty(task),
        "copy": copy_factor(task),
        "echo": 1.0 - echo_share(task.summary, task.instruction),
        "subject": subject_factor(task),
    }
    return Reward(combine(views, weights_for(task.instruction)) * math.prod(rules.values()), views | rules)


def weights_for(instruction: str) -> Weights:
    """`NARROW` where the request names a part of what was said, `WHOLE` otherwise."""
    return NARROW if _NARROW.search(folded(instruction)) else WHOLE


def combine(views: dict[str, float], weights: Weights) -> float:
    """The weighted sum of the views, in nats a token, through the logistic: increasing in every view, in (0, 1)."""
    total = weights.support * views["support"] + weights.gain * views["gain"] + weights.coverage * views["coverage"]
    return 1.0 / (1.0 + math.exp(min(700.0, (weights.middle - total) / weights.width)))


def copy_factor(task: JudgeTask) -> float:
    """1 for a text in its own words, falling to 0.2 for the transcript itself, which every likelihood loves.

    1 also where the request is for a transcript or a quotation, and not for a summary.

    What counts is the longest run of words taken over, as a share of the transcript or (a run of twelve words and
    more) of the summary; up to 0.6 is free, as short answers are rightly near the words that were spoken.
    """
    request = folded(task.instruction)
    if _VERBATIM.search(request) and not _OWN_WORDS.search(request):
        return 1.0
    own, source = words(task.summary), words(task.transcript)
    match = SequenceMatcher(None, own, source, autojunk=False).find_longest_match()
    share = max(match.size / max(1, len(source)), match.size / max(1, len(own)) if match.size >= LONG_RUN else 0.0)
    return 1.0 - (1.0 - COPY_KEEPS) * max(0.0, share - COPY_FREE) / (1.0 - COPY_FREE)


def subject_factor(task: JudgeTask) -> float:
    """1, or 0.5 where the request names somebody the talk names too and the answer does not.

    To a small model another person's task is as good an answer: it is just as well founded in the source.
    """
    source, answer = set(words(task.transcript)), set(words(task.summary))
    asked = {word.casefold() for word in _NAME.findall(task.instruction)} & source
    return SUBJECT_KEEPS if asked and not asked & answer else 1.0
