"""Judgements that outlive the process: what a judge has said once, it is not asked again.

An answer is found by content: by all that it depends on, hashed. That is the judge's name and version (its model's
revision and the prompt's), how it decodes or in which precision it computes, the rules in code, and the texts. So
nothing has to be thrown away when a judge changes: its old answers are not met any more. What failed is never kept, and
is asked again the next time.

The file is SQLite's, with a write-ahead log, which several actors of one machine may share; over a network file system
it may not be. A cache that stops working costs time and a metric (`judge/cache_errors`), never a judgement.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from actors.judge import JudgeOf, Observed
from speechsum import asking, forms, languages, numerals, rewards, wording
from speechsum.errors import UserError
from speechsum.types import Judgement, Reward

Q = TypeVar("Q")
A = TypeVar("A")

APPLICATION_ID = 0x53504A43
FORMAT = 1
BUSY_S = 5.0
KEYS_AT_ONCE = 500
ASKED_AT_ONCE = 256
"""Questions between two writes: what a crash can lose."""

RULES = (rewards, asking, forms, wording, numerals, languages)
"""The modules that gates and rules are made of."""


class JudgementCache:
    """The file: answers as JSON values by key. Of use to several threads. Raises `UserError` where it cannot be opened,
    which calls it `named`.

    `hits` are questions that needed no asking (those asked twice in one call too), `misses` those that were asked.
    """

    def __init__(self, path: str, named: str = "judge.cache") -> None:
        self._db = _opened(Path(path).expanduser(), named)
        self._lock = threading.Lock()
        self.hits = self.misses = self.errors = 0

    def get(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        """What is known of `keys`; nothing where the file cannot be read."""
        known: dict[bytes, Any] = {}
        with self._guarded():
            for start in range(0, len(keys), KEYS_AT_ONCE):
                some = keys[start : start + KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                known |= self._db.execute(f"SELECT key, answer FROM judgements WHERE key IN ({marks})", some)
        return {key: json.loads(answer) for key, answer in known.items()}

    def put(self, judge: str, answers: Mapping[bytes, Any]) -> None:
        """Keep `answers` for good. `judge` is for whoever looks into the file, or clears one judge out of it."""
        rows = [(key, judge, json.dumps(answer)) for key, answer in answers.items()]
        if not rows:
            return
        with self._guarded(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO judgements VALUES (?, ?, ?)", rows)

    def count(self, hits: int, misses: int) -> None:
        """Add to the totals."""
        with self._lock:
            self.hits += hits
            self.misses += misses

    def counts(self) -> dict[str, float]:
        """Totals since the start, by metric name."""
        return {
            "judge/cache_hits": self.hits,
            "judge/cache_misses": self.misses,
            "judge/cache_hit_share": self.hits / max(1, self.hits + self.misses),
            "judge/cache_errors": self.errors,
        }

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """One thread at a time; a full disk or a file that stays locked is counted and otherwise let pass."""
        with self._lock:
            try:
                yield
            except sqlite3.Error:
                self.errors += 1


@dataclass(frozen=True)
class Memory(Generic[Q, A]):
    """Answers of one judge under one `scope`, which is all that they depend on besides the question.

    `pack` makes an answer a JSON value, or None where it is not worth keeping; `unpack` is its inverse.
    """

    cache: JudgementCache
    judge: str
    scope: Mapping[str, Any]
    pack: Callable[[A], Any]
    unpack: Callable[[Any], A]

    def answers(self, questions: Sequence[Q], ask: Callable[[Sequence[Q]], Sequence[A]]) -> list[A]:
        """One answer per question, in order: `ask` is called with those that are new, each once."""
        keys = [self._key(question) for question in questions]
        answers = {key: self.unpack(value) for key, value in self.cache.get(keys).items()}
        new = {key: question for key, question in zip(keys, questions, strict=True) if key not in answers}
        left = iter(new.items())
        while some := list(islice(left, ASKED_AT_ONCE)):
            given = dict(zip((key for key, _ in some), ask([question for _, question in some]), strict=True))
            packed = {key: self.pack(answer) for key, answer in given.items()}
            self.cache.put(self.judge, {key: value for key, value in packed.items() if value is not None})
            answers |= given
        self.cache.count(hits=len(keys) - len(new), misses=len(new))
        return [answers[key] for key in keys]

    def _key(self, question: Q) -> bytes:
        asked = asdict(question)  # type: ignore[call-overload]
        content = {"judge": self.judge, "scope": self.scope, "asked": asked}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).digest()


class CachedJudge(Generic[Q]):
    """A judge whose rewards are kept. `settings` is what they depend on besides the judge's name and version.

    Only for judges that look at one task at a time: a reward that depends on what else is asked has no key.
    """

    def __init__(self, judge: JudgeOf[Q], cache: JudgementCache, settings: Mapping[str, Any]) -> None:
        self._judge, self._cache = judge, cache
        self.name, self.version = judge.name, judge.version
        # Gates and the length rule are part of a reward, and of no judge's version.
        scope = {**settings, "rules": [_digest(Path(str(module.__file__))) for module in RULES]}
        self._memory: Memory[Q, Judgement] = Memory(
            cache, f"{judge.name}/{judge.version}", scope, _packed_reward, lambda value: Reward(**value)
        )

    @property
    def served_models(self) -> tuple[str, ...]:
        """See `Observed`."""
        return self._judge.served_models if isinstance(self._judge, Observed) else ()

    def counts(self) -> dict[str, float]:
        """See `Observed`."""
        own = self._judge.counts() if isinstance(self._judge, Observed) else {}
        return own | self._cache.counts()

    def score(self, tasks: Sequence[Q]) -> list[Judgement]:
        """See `JudgeOf.score`; equal tasks are asked once."""
        return self._memory.answers(tasks, self._judge.score)

    def score_afresh(self, tasks: Sequence[Q]) -> list[Judgement]:
        """See `Remembering`."""
        return self._judge.score(tasks)

    def close(self) -> None:
        """Close the judge and the cache. Safe to call twice."""
        self._judge.close()
        self._cache.close()


def checkpoint_digest(folder: Path) -> str:
    """What a checkpoint folder holds, for a judge that is told by its folder's name alone. Reads all of it."""
    files = {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.is_file()}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _packed_reward(judgement: Judgement) -> dict[str, Any] | None:
    return asdict(judgement) if isinstance(judgement, Reward) else None


def _digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _opened(path: Path, named: str) -> sqlite3.Connection:
    """The file, made if there is none. Several actors may come here at the same moment."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        _make_or_check(db, path, named)
        with contextlib.suppress(sqlite3.OperationalError):  # another actor is at it; the old mode is as correct
            db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
    except (sqlite3.Error, OSError) as error:
        raise UserError(f'{named} = {str(path)!r} cannot be used ({error}); name another file, or ""') from None
    return db


def _make_or_check(db: sqlite3.Connection, path: Path, named: str) -> None:
    """In one transaction, so that nobody meets half a file."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.execute("CREATE TABLE judgements (key BLOB PRIMARY KEY, judge TEXT NOT NULL, answer TEXT NOT NULL)")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {FORMAT}")
        found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    if found != [APPLICATION_ID, FORMAT]:
        raise UserError(f"{named} = {str(path)!r} is no judgement cache of this version; name another file")
