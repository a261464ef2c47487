"""Every value that crosses a process, in the order in which it travels.

All types are frozen and picklable. Arrays are read-only numpy, never torch, so that a value can live in the Ray
object store and be read without a copy. No field is filled by a later stage: what a later stage knows goes into a
type of its own. Shape suffixes: ``P`` prompt tokens, ``R`` response tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np


def read_only(values: object, dtype: str) -> np.ndarray:
    """A contiguous array of `dtype` that nobody downstream can write to."""
    array = np.ascontiguousarray(values, dtype=dtype)
    array.setflags(write=False)
    return array


@dataclass(frozen=True, slots=True)
class AudioRef:
    """Where a recording is; never its samples. Manifest -> rollout actor and learner, who open it themselves.

    `path` is an absolute path that was checked to lie inside the data root. When the manifest itself carries the
    encoded bytes, `path` is the Parquet manifest and `row` says which of its rows.
    """

    path: str
    row: int | None = None

    @property
    def key(self) -> str:
        """Identity of the recording, for caches."""
        return self.path if self.row is None else f"{self.path}#{self.row}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One item of the data: what the student hears and is asked. Data -> rollout actor and judge.

    `transcript` and `reference` may be empty where the data has none; `facts` are the surface forms that this
    request asks for, `clip_facts` all that are true of the recording; metrics alone read them. `request`
    names the kind of instruction, for breakdowns (see `speechsum.obeying.request_kind` for those without).
    """

    id: str
    audio: AudioRef
    instruction: str
    transcript: str = ""
    reference: str = ""
    facts: tuple[str, ...] = ()
    clip_facts: tuple[str, ...] = ()
    licence: str = ""
    request: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How completions are drawn. Controller -> rollout actor. `temperature` 0 is greedy and then `n` must be 1."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64
    seed: int | None = None


class FinishReason(StrEnum):
    """Why the engine stopped: an end token, or the limit on new tokens."""

    STOP = "stop"
    LENGTH = "length"


def trajectory_id(run_id: str, epoch: int, prompt_id: str, sample: int) -> str:
    """The same sample of the same prompt has the same id however often it is attempted."""
    return hashlib.blake2b(f"{run_id}\0{epoch}\0{prompt_id}\0{sample}".encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One completion as the engine sampled it. Rollout actor -> judge, learner.

    `token_ids` [R] int32 and `logprobs` [R] float32 are the engine's own (end token included), never recomputed
    from `text`. `logprobs` are of the distribution that was sampled from.
    """

    id: str
    token_ids: np.ndarray
    logprobs: np.ndarray
    text: str
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """The G completions of one prompt. Rollout actor -> (object store) -> judge and learner.

    `prompt_ids` [P] int32 is the prompt once, as the engine saw it, with every audio placeholder expanded.
    """

    prompt: Prompt
    prompt_ids: np.ndarray
    trajectories: tuple[Trajectory, ...]


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """What a chat model answered. Endpoint -> the rules that read it.

    `tokens` has every token of the text and the log-probs of the likeliest in its place, itself among them; it is empty
    where the server was not asked for them or does not tell.
    """

    text: str
    tokens: tuple[tuple[str, Mapping[str, float]], ...] = ()


class FailureKind(StrEnum):
    """Why a judge or a teacher has no answer. Each kind is a metric; none is ever turned into a number."""

    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"
    HTTP_ERROR = "http_error"
    RATE_LIMITED = "rate_limited"
    CIRCUIT_OPEN = "circuit_open"
    INVALID_JSON = "invalid_json"
    MISSING_FIELD = "missing_field"
    OUT_OF_RANGE = "out_of_range"
    REFUSED = "refused"
    TOO_LARGE = "too_large"
    TOO_LONG = "too_long"
    NON_FINITE = "non_finite"
    BAD_ROW = "bad_row"


@dataclass(frozen=True, slots=True)
class Reward:
    """What a judge says of one completion. Judge actor -> controller. `value` is finite; higher is better."""

    value: float
    breakdown: dict[str, float] = field(default_factory=dict)
    gate: str = ""
    notes: str = ""


@dataclass(frozen=True, slots=True)
class JudgeFailure:
    """A judgement that did not happen. Judge actor -> controller, which masks the sample and counts `kind`."""

    kind: FailureKind
    detail: str = ""


Judgement = Reward | JudgeFailure


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """One summary to be judged against its source. Controller, `judge score` -> judge."""

    transcript: str
    instruction: str
    summary: str


@dataclass(frozen=True, slots=True)
class PairTask:
    """Two summaries of one source, to be compared. Judge actor, `judge score`, audit -> pairwise judge."""

    transcript: str
    instruction: str
    summary: str
    other: str

    @property
    def sides(self) -> tuple[JudgeTask, JudgeTask]:
        """Each summary as a task of its own."""
        return (
            JudgeTask(self.transcript, self.instruction, self.summary),
            JudgeTask(self.transcript, self.instruction, self.other),
        )


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions of a group, by their places in it, compared. Judge actor -> controller.

    A reward's `value` is the probability that `first` is the better one; 0.5 where the judge abstains.
    """

    first: int
    second: int
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with a judgement for each trajectory, in the same order. Judge actor -> controller.

    `preferences` are a pairwise judge's, of every two trajectories; the judgements are then how each fared in its
    group. Other judges have none. `judge` is its name and version, of model and prompt; scores compare only within one.
    """

    group: TrajectoryGroup
    judgements: tuple[Judgement, ...]
    preferences: tuple[Preference, ...] = ()
    judge: str = ""

    @property
    def answers(self) -> tuple[Judgement, ...]:
        """What the judge was asked and said: one judgement of each text, or of each pair."""
        return tuple(p.judgement for p in self.preferences) or self.judgements


@dataclass(frozen=True, slots=True)
class TeacherLogprobs:
    """What a text teacher, who reads the transcript, makes of every token of a completion. Teacher actor -> learner.

    `sampled` [R] float32 is its log-prob of the student's own tokens; `top_ids` [R, K] int32 and `top` [R, K] float32
    are the K tokens it finds likeliest there, best first, and their log-probs.
    """

    sampled: np.ndarray
    top_ids: np.ndarray
    top: np.ndarray


@dataclass(frozen=True, slots=True)
class TeacherFailure:
    """A completion that the teacher could not read. Teacher actor -> controller, which masks it and counts `kind`."""

    kind: FailureKind
    detail: str = ""


Lesson = TeacherLogprobs | TeacherFailure


@dataclass(frozen=True, slots=True)
class Completion:
    """One sequence to train on. `logprobs` [R] is the engine's (empty for data), `advantage` a scalar for all R.

    `teacher` is there in stages that distil, and only there.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    advantage: float
    policy_version: int
    teacher: TeacherLogprobs | None = None


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """A prompt with the completions that are trained on, kept together so the prompt runs once. Buffer -> learner.

    Where the loss compares two completions, they come in pairs, the preferred one first.
    """

    prompt_id: str
    audio: AudioRef
    prompt_ids: np.ndarray
    completions: tuple[Completion, ...]

    @property
    def response_tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(len(c.token_ids) for c in self.completions)

    @property
    def tokens(self) -> int:
        """Tokens the learner runs: the prompt once, every completion."""
        return len(self.prompt_ids) + self.response_tokens


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step, cut into a shard for each learner rank. Buffer -> learner workers.

    `loss_tokens` and `sequences` are global counts over all shards: a loss is never divided by a rank's own count.
    """

    shards: tuple[tuple[TrainingSample, ...], ...]
    loss_tokens: int
    sequences: int


class PushMode(StrEnum):
    """What a push carries: the adapter and projector, merged where they arrive, or every merged tensor."""

    ADAPTER = "adapter"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class WeightsVersion:
    """A stamp for one state of the policy. Learner -> controller -> rollout actors; the payload travels beside it."""

    version: int
    checksum: str
    tensors: int
    bytes: int
    mode: PushMode


@dataclass(frozen=True, slots=True)
class Leaving:
    """The answer of an actor whose process was asked to end: it did nothing, ask another. Actor -> its pool."""
