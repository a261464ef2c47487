"""Writes a starter set to disk: audio files and the manifest that names them.

A finished manifest is a promise: it appears in one step, after every file it names is written, and it carries the
arguments it was made with, so a second run with the same arguments returns at once and one with others starts anew.
"""

import json
import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from speechsum.audio import SAMPLE_RATE
from speechsum.files import whole_file
from speechsum.starter.grammar import (
    GRAMMAR_VERSION,
    REQUEST_KINDS,
    SUMMARY_REQUESTS,
    Request,
    Talk,
    sample_request,
    sample_talk,
    sample_words,
)
from speechsum.starter.voice import Delivery, Speaker, sample_delivery

LICENCE = "CC0-1.0"
"""The sentences come from this project's grammar and the voices from a program: nobody else has a right in them."""

MANIFEST = "manifest.parquet"

CLIPS_PER_BLOCK = 200
"""Clips spoken by one process before it ends. Fixed, not derived from the number of workers: espeak-ng's state drifts
from clip to clip, so the blocks decide the bytes (see `voice`)."""

_METADATA_KEY = b"speechsum.starter"

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("instruction", pa.string()),
        ("transcript", pa.string()),
        ("reference", pa.string()),
        ("facts", pa.list_(pa.string())),
        ("clip_facts", pa.list_(pa.string())),
        ("licence", pa.string()),
        ("kind", pa.string()),
        ("request", pa.string()),
        ("voice", pa.string()),
        ("duration_s", pa.float64()),
    ]
)
"""`audio.path` is relative to the manifest's folder, `audio.bytes` always null. `facts` are those the instruction asks
for, `clip_facts` all of the clip; `kind` is the kind of talk, `request` the kind of instruction."""


@dataclass(frozen=True)
class _Order:
    """What a set is made from: `synthesize`'s arguments that decide its content. Kept in the manifest."""

    clips: int
    seed: int
    held_out: bool
    kinds: tuple[str, ...]
    terse: float
    version: int = GRAMMAR_VERSION


@dataclass(frozen=True)
class _Clip:
    """One clip before it is spoken."""

    name: str
    talk: Talk
    request: Request
    delivery: Delivery


def set_folder(cache: Path, *, clips: int, seed: int, held_out: bool, kinds: Sequence[str], terse: float = 0.0) -> Path:
    """Where below `cache` a run keeps the set of these arguments, `MANIFEST` and recordings in it."""
    name = f"{'held-out' if held_out else 'train'}-{seed}-{clips}-{'-'.join(kinds)}"
    return cache / "speech" / (f"{name}-terse-{terse:g}" if terse else name)


def synthesize(
    out_dir: Path,
    *,
    clips: int,
    seed: int,
    held_out: bool,
    kinds: Sequence[str] | None = None,
    terse: float = 0.0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `clips` spoken clips with one request each under `out_dir`; returns the path of the manifest.

    `kinds` are the kinds of request (`grammar.REQUEST_KINDS`; None: `SUMMARY_REQUESTS`), `terse` is the share of
    references that tell one fact only (`grammar.sample_request`). `held_out` takes patterns,
    wordings and voices that a training set never holds. The same arguments yield the same files whatever `workers` (a
    number of processes) is, and the first clips of a longer set are those of a shorter one. `progress` is called with
    the number of clips done and of all clips. Raises ValueError on an unknown kind or a count below one.
    """
    order = _Order(clips, seed, held_out, SUMMARY_REQUESTS if kinds is None else tuple(kinds), terse)
    _check(order, workers)
    manifest = out_dir / MANIFEST
    if _is_finished(manifest, order):
        return manifest
    manifest.unlink(missing_ok=True)
    (out_dir / "audio").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for block in _spoken_blocks(out_dir, order, workers):
        rows.extend(block)
        if progress is not None:
            progress(len(rows), clips)
    _write_manifest(manifest, order, rows)
    return manifest


def _check(order: _Order, workers: int) -> None:
    if unknown := set(order.kinds) - set(REQUEST_KINDS):
        raise ValueError(f"unknown request kinds {sorted(unknown)}: choose from {', '.join(REQUEST_KINDS)}")
    for name, value in (("clips", order.clips), ("workers", workers), ("kinds", len(order.kinds))):
        if value < 1:
            raise ValueError(f"{name} must be at least one, not {value}")
    if not 0 <= order.terse <= 1:
        raise ValueError(f"terse must be a share from 0 to 1, not {order.terse}")


def _metadata(order: _Order) -> bytes:
    return json.dumps(asdict(order), sort_keys=True).encode()


def _is_finished(manifest: Path, order: _Order) -> bool:
    if not manifest.is_file():
        return False
    return (pq.read_schema(manifest).metadata or {}).get(_METADATA_KEY) == _metadata(order)


def _write_manifest(manifest: Path, order: _Order, rows: list[dict[str, object]]) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA.with_metadata({_METADATA_KEY: _metadata(order)}))
    with whole_file(manifest) as sink:
        pq.write_table(table, sink)


def _spoken_blocks(out_dir: Path, order: _Order, workers: int) -> Iterator[list[dict[str, object]]]:
    """The manifest's rows, block by block in order, `workers` blocks at a time."""
    threads = ThreadPoolExecutor(workers, thread_name_prefix="speech")
    try:
        starts = range(0, order.clips, CLIPS_PER_BLOCK)
        blocks = [range(start, min(start + CLIPS_PER_BLOCK, order.clips)) for start in starts]
        for block in [threads.submit(_in_fresh_process, out_dir, order, indices) for indices in blocks]:
            yield block.result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _in_fresh_process(out_dir: Path, order: _Order, indices: range) -> list[dict[str, object]]:
    """One block by a process of its own.

    A pool per block rather than one pool with `max_tasks_per_child=1`: that one can wait for ever for a worker that has
    just left (python/cpython#115634).
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_speak_block, out_dir, order, indices).result()


def _speak_block(out_dir: Path, order: _Order, indices: range) -> list[dict[str, object]]:
    """Speak the clips at `indices` into audio files; runs in a fresh process."""
    import soundfile

    speaker = Speaker()
    rows: list[dict[str, object]] = []
    for index in indices:
        clip = _clip(order, index)
        samples = speaker.say(clip.talk.transcript, *clip.delivery)
        path = f"audio/{clip.name}.wav"
        soundfile.write(out_dir / path, samples, SAMPLE_RATE, subtype="PCM_16")
        rows.append(_row(clip, path, samples.size / SAMPLE_RATE))
    return rows


def _clip(order: _Order, index: int) -> _Clip:
    """The clip at `index`: a function of the seed and the index alone, never of the clips around it."""
    side = "held-out" if order.held_out else "train"
    rng = random.Random(f"{side}/{order.seed}/{index}")
    request = None
    words = "words" in order.kinds and rng.random() * len(order.kinds) < order.kinds.count("words")
    while request is None:
        talk = sample_words(rng) if words else sample_talk(rng, order.held_out)
        request = sample_request(rng, talk, order.held_out, order.kinds, order.terse)
    return _Clip(f"{side}-{order.seed}-{index:06d}", talk, request, sample_delivery(rng, order.held_out))


def _row(clip: _Clip, path: str, duration_s: float) -> dict[str, object]:
    return {
        "id": clip.name,
        "audio": {"bytes": None, "path": path},
        "instruction": clip.request.instruction,
        "transcript": clip.talk.transcript,
        "reference": clip.request.reference,
        "facts": list(clip.request.facts),
        "clip_facts": list(clip.talk.facts),
        "licence": LICENCE,
        "kind": clip.talk.kind,
        "request": clip.request.kind,
        "voice": clip.delivery.voice,
        "duration_s": duration_s,
    }
