"""`data ask`: a manifest with many different requests about each recording, written and filtered by a language model.

The references go: they answer other requests. `speechsum data teach` writes new ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.judge_cache import JudgementCache
from actors.query_writer import QueryWriter
from cluster.assets import Say
from cluster.manifest_copy import check_beside, write_copy
from speechsum.config import EndpointConfig
from speechsum.data import ManifestError, read_manifest
from speechsum.errors import RunError, UserError
from speechsum.obeying import request_kind
from speechsum.queries import Query, RateTask, WriteTask, draw_styles, keep
from speechsum.types import JudgeFailure, Prompt

CLIPS_AT_ONCE = 32
"""Between two writes to the cache: what an interruption can lose."""


@dataclass(frozen=True)
class AskOptions:
    """Requests a recording, the least mark that is kept, which draw of styles, languages to be asked for, data root."""

    per_clip: int = 4
    least: int = 4
    seed: int = 0
    languages: tuple[str, ...] = ()
    root: Path | None = None


@dataclass
class Tally:
    """What became of it all. `failures` are counted by what was tried and the kind, `first` says more of one each."""

    clips: int = 0
    written: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def failed(self, what: str, failure: JudgeFailure) -> None:
        """Count a failure."""
        name = f"{what}/{failure.kind.value}"
        self.failures[name] += 1
        self.first.setdefault(name, failure.detail)

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"{self.clips} recordings, {self.written} requests written, {self.kept} kept"
        for reason, count in self.dropped.most_common():
            yield f"  dropped, {reason}: {count}"
        for name, count in self.failures.most_common():
            yield f"  failed, {name}: {count} recordings ({self.first[name]})"
        if self.failures:
            yield "the same command again asks for what failed, and for nothing else"


def ask(data: Path, out: Path, endpoint: EndpointConfig, cache: Path, options: AskOptions, say: Say) -> Tally:
    """The manifest `data` with a row for each recording and request that was kept, at `out` beside it.

    Answers are kept in `cache`, so that an interrupted run goes on. Raises `UserError` before anything is asked for
    what the user can mend, `RunError` where nothing at all came back.
    """
    check_beside(data, out)
    prompts = _read(data, options.root)
    first = {p.audio.key: at for at, p in reversed(list(enumerate(prompts)))}
    clips = [(at, prompts[at]) for at in sorted(first.values())]
    tally = Tally()
    kept: list[tuple[int, Query]] = []
    writer = QueryWriter(endpoint, JudgementCache(str(cache), named="--cache"))
    try:
        for start in range(0, len(clips), CLIPS_AT_ONCE):
            kept += _ask_some(writer, clips[start : start + CLIPS_AT_ONCE], options, tally)
            say(f"asked: {tally.clips} of {len(clips)} recordings, {tally.kept} requests kept")
    finally:
        writer.close()
    if not kept:
        _refuse_nothing(tally, options.least)
    write_copy(data, out, [at for at, _ in kept], _columns([(prompts[at], query) for at, query in kept]))
    return tally


def _read(data: Path, root: Path | None) -> list[Prompt]:
    def check(prompt: Prompt) -> str | None:
        return None if prompt.transcript.strip() else "transcript missing or empty, which is what requests are about"

    try:
        return read_manifest(data, root=root, check_audio=False, check_prompt=check)
    except ManifestError as error:
        raise UserError(error.text(shown=None)) from None


def _ask_some(
    writer: QueryWriter, clips: Sequence[tuple[int, Prompt]], options: AskOptions, tally: Tally
) -> list[tuple[int, Query]]:
    """The requests kept about a few recordings, each with its recording's row."""
    tasks = [
        WriteTask(p.transcript, draw_styles(p.id, options.per_clip, options.seed, options.languages)) for _, p in clips
    ]
    written = dict(zip(clips, writer.write(tasks), strict=True))
    asked = {clip: RateTask(clip[1].transcript, w) for clip, w in written.items() if not isinstance(w, JudgeFailure)}
    rated = dict(zip(asked, writer.rate(list(asked.values())), strict=True))
    kept: list[tuple[int, Query]] = []
    for clip, queries in written.items():
        tally.clips += 1
        if isinstance(queries, JudgeFailure):
            tally.failed("write", queries)
            continue
        tally.written += len(queries)
        ratings = rated[clip]
        if isinstance(ratings, JudgeFailure):
            tally.failed("rate", ratings)
            continue
        good, dropped = keep(queries, ratings, options.least)
        tally.kept += len(good)
        tally.dropped += dropped
        kept += [(clip[0], query) for query in good]
    return kept


def _columns(kept: Sequence[tuple[Prompt, Query]]) -> Mapping[str, list[Any]]:
    """What a row says anew. Facts stay true of the recording, but nobody knows which of them a new request asks for."""
    return {
        "id": [f"{p.id}/q{q.number}" for p, q in kept],
        "instruction": [q.instruction for _, q in kept],
        "request": [request_kind(q.instruction) for _, q in kept],
        "reference": ["" for _ in kept],
        "facts": [[] for _ in kept],
        "clip_facts": [list(dict.fromkeys((*p.clip_facts, *p.facts))) for p, _ in kept],
        "importance": [q.rating.importance for _, q in kept],
        "answered": [q.rating.answered for _, q in kept],
    }


def _refuse_nothing(tally: Tally, least: int) -> None:
    if tally.failures:
        name, count = tally.failures.most_common(1)[0]
        raise RunError(f"no request came of {tally.clips} recordings: {count} times {name} ({tally.first[name]})")
    raise UserError(f"none of {tally.written} requests has both marks from {least} on; lower --least")
