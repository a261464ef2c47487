"""A pool of actors that come and go while requests are under way.

Every request is a `Ticket` that the pool holds until somebody has answered it: an actor gets two at a time, and what an
actor leaves unanswered, because it died or its node is taken away, goes to another. The answer of an actor that was
given up is never looked at, so a ticket is answered once.

An actor is *starting* until it has loaded and serves the weights that are in force, then *serving*, and *draining* once
it gets no new work: its node is leaving, its process was asked to end, or the pool has become too large. A draining
actor ends what it is at and is killed, so that its node can go.

The pool knows nothing of Ray: see `Side`. It has no thread either; whoever waits for a ticket tends it.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil
from typing import Any, Protocol

import numpy as np

from cluster.sizing import Sizer
from speechsum.config import PoolConfig
from speechsum.errors import RunError
from speechsum.types import Leaving, WeightsVersion

AHEAD = 2
"""Requests that an actor holds: one under way, and one so that it need not wait for the next."""

TEND_S = 1.0
"""How often a waiting pool looks at its size and at the nodes."""

WORK_IN_TIME = 64
"""Completions that a call may have to be done within the time-out; a larger call has more time in proportion."""

ATTEMPTS_LIMIT = 3
"""A request that was under way in so many actors when they died may be why they did; the run stops."""

FAILED_STARTS_LIMIT = 5
"""So many actors in a row that died before they served are no accident."""

START_TIMEOUT_S = 1800.0


class ActorDied(RunError):
    """An actor, or what it had made, is gone. Who called decides whether that ends the run."""


class Side(Protocol):
    """What a pool asks of the actors' side. Refs are opaque, can be told apart, and have their result taken once."""

    def start(self, index: int) -> Any:
        """Make an actor, without waiting for it; no index is used twice."""

    def join(self, actor: Any) -> Any:
        """A ref to the id of the actor's node, there once it has loaded."""

    def receive(self, actor: Any, payload: Any, stamp: WeightsVersion) -> Any:
        """A ref to the version of the weights that the actor serves after this push."""

    def wait(self, refs: Sequence[Any], timeout_s: float) -> list[Any]:
        """All refs that are done; waits for one of them, but not longer than `timeout_s`."""

    def take(self, ref: Any) -> Any:
        """The result behind a ref; waits for it. Raises `ActorDied`."""

    def kill(self, actor: Any) -> None:
        """End an actor, whatever it is at."""

    def leaving_nodes(self) -> Collection[str]:
        """Ids of the nodes that are about to go."""


class State(StrEnum):
    """What an actor of the pool may be used for."""

    STARTING = "starting"
    SERVING = "serving"
    DRAINING = "draining"


@dataclass(eq=False)
class Ticket:
    """A request: `call` asks it of an actor, `work` says how much it is (see `Sizer`). `answer` is there once `done`.

    `actor` is who has it, or had when it was answered, such as `rollout 0`; empty while it waits for somebody free.
    `given` is when that one got it, in seconds since 1970.
    `deaths` counts the actors that died at it.
    """

    call: Callable[[Any], Any]
    work: int
    actor: str = ""
    given: float = 0.0
    deaths: int = 0
    done: bool = False
    answer: Any = None


@dataclass(eq=False)
class Member:
    """An actor of the pool. `calls` are its requests by ref, the one under way first; that one began at `since`.

    `name` tells it from others, such as `rollout 0`. `joining` is what a starting one is at: loading, or taking the
    weights of version `receiving`.
    """

    name: str
    actor: Any
    joining: Any
    state: State = State.STARTING
    node: str = ""
    receiving: int | None = None
    calls: dict[Any, Ticket] = field(default_factory=dict)
    since: float = 0.0


class ElasticPool:
    """See the module. `role` names the actors in messages; `start` of them are made at once.

    Those that die, or need more than `call_timeout_s` seconds for a call of `WORK_IN_TIME` completions, are replaced if
    `replaced`, and otherwise end the run. `say` is told of each, and why.
    """

    def __init__(
        self, role: str, side: Side, bounds: PoolConfig, start: int, *, call_timeout_s: float, replaced: bool = True,
        say: Callable[[str], None] = lambda text: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.role, self.side, self.bounds, self._replaced, self._clock = role, side, bounds, replaced, clock
        self._call_timeout_s, self._say = call_timeout_s, say
        self.sizer = Sizer(bounds, start, clock)
        self.wanted, self.lost, self.starts_failed, self.returned = start, 0, 0, 0
        self._made = self._failed_in_a_row = 0
        self._held = False
        self._queue: deque[Ticket] = deque()
        self._push: tuple[Any, WeightsVersion] | None = None
        self._leaving: Collection[str] = ()
        self._looked = self._served = clock()
        self._members = [self._new() for _ in range(start)]

    # --- what callers do ----------------------------------------------------------------------------------------

    def submit(self, call: Callable[[Any], Any], work: int) -> Ticket:
        """Ask something of whichever actor is free first. `call` is made again if that one is lost."""
        ticket = Ticket(call, work)
        self._queue.append(ticket)
        self._assign()
        return ticket

    def take(self, ticket: Ticket) -> Any:
        """The answer to a request; waits for it."""
        while not ticket.done:
            self.tend()
            self.settle(self.side.wait(self.watched(), TEND_S))
        return ticket.answer

    def spread(self, items: Sequence[Any], per_request: int, ask: Callable[[list[Any]], Ticket]) -> list[Any]:
        """An answer for each item, in order; waits for them.

        Requests are of about `per_request` items, no more of them than there may be actors and no fewer than serve.
        """
        count = max(len(self.serving()), min(self.bounds.max, ceil(len(items) / per_request)), 1)
        parts = [[items[i] for i in part] for part in np.array_split(np.arange(len(items)), count)]
        tickets = [ask(part) for part in parts if part]
        return [answer for ticket in tickets for answer in self.take(ticket)]

    def push(self, payload: Any, stamp: WeightsVersion) -> None:
        """Put weights in force on every serving actor; who serves later receives them first."""
        with self.held():
            self.poll()
            self._push = payload, stamp
            check_versions(self.everywhere(lambda actor: self.side.receive(actor, payload, stamp)), stamp.version)

    def everywhere(self, call: Callable[[Any], Any]) -> list[Any]:
        """The answers of all serving actors but those that die or hang at it."""
        with self.held():
            self.poll()
            refs = [(member, call(member.actor)) for member in self._in(State.SERVING)]
            began, answers = self._clock(), []
            for member, ref in refs:
                patience = self._call_timeout_s + self._patience(*member.calls.values())
                try:
                    if not self.side.wait([ref], max(began + patience - self._clock(), 0.0)):
                        raise _hangs(patience)
                    answers.append(self.side.take(ref))
                except ActorDied as error:
                    self._lose(member, error)
            return answers

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hand nothing out in this block, only at its end: what all actors are asked in it would wait for that."""
        outer, self._held = self._held, True
        try:
            yield
        finally:
            self._held = outer
        self._assign()

    def serving(self) -> list[Any]:
        """The actors that may be asked now."""
        self.poll()
        return [member.actor for member in self._in(State.SERVING)]

    def figures(self) -> dict[str, float]:
        """The pool's metrics."""
        states = Counter(member.state for member in self._members)
        figures: dict[str, float] = {f"{self.role}/actors_{state}": states[state] for state in State}
        return figures | {
            f"{self.role}/actors_wanted": self.wanted,
            f"{self.role}/actors_lost": self.lost,
            f"{self.role}/starts_failed": self.starts_failed,
            f"{self.role}/requests_returned": self.returned,
        }

    def close(self) -> None:
        """End the processes."""
        for member in self._members:
            self.side.kill(member.actor)
        self._members.clear()

    # --- what whoever waits does --------------------------------------------------------------------------------

    def tend(self) -> None:
        """Drain, start and kill actors as nodes and work ask for it, and hand out what is waiting."""
        self._look_at_nodes()
        self._lose_the_hanging()
        self._resize()
        self._assign()
        self._stop_if_nobody_serves()

    def watched(self) -> list[Any]:
        """What to wait for; `settle` takes those of it that are done."""
        joining = [member.joining for member in self._in(State.STARTING)]
        return joining + [ref for member in self._members for ref in member.calls]

    def settle(self, done: Collection[Any]) -> None:
        """Take in what is done. Refs of actors that were given up meanwhile are passed over."""
        for ref in done:
            for member in self._members:
                if member.joining == ref and member.state is State.STARTING:
                    self._joined(member)
                elif ref in member.calls:
                    self._answered(member, ref)
                else:
                    continue
                break

    def poll(self) -> None:
        """Take in what is done already."""
        self.settle(self.side.wait(self.watched(), 0.0))

    # --- how members come ---------------------------------------------------------------------------------------

    def _new(self) -> Member:
        actor, name = self.side.start(self._made), f"{self.role} {self._made}"
        self._made += 1
        return Member(name, actor, self.side.join(actor))

    def _joined(self, member: Member) -> None:
        """It has loaded, or received: it serves if what it holds is in force, and otherwise receives that."""
        try:
            result = self.side.take(member.joining)
        except ActorDied as error:
            self._lose(member, error)
            return
        if member.receiving is None:
            member.node = result
        else:
            check_versions([result], member.receiving)
        if self._push is None or member.receiving == self._push[1].version:
            member.state, self._failed_in_a_row = State.SERVING, 0
            self._drain_if_node_leaves(member)
            self._assign()
        else:
            payload, stamp = self._push
            member.receiving = stamp.version
            member.joining = self.side.receive(member.actor, payload, stamp)

    def _assign(self) -> None:
        """Give each waiting request to the serving actor with the fewest, while one has room and nothing is held."""
        while self._queue and not self._held:
            free = [member for member in self._in(State.SERVING) if len(member.calls) < AHEAD]
            if not free:
                return
            member = min(free, key=lambda m: len(m.calls))
            if not member.calls:
                member.since = self._clock()
            ticket = self._queue.popleft()
            ticket.actor, ticket.given = member.name, time.time()
            member.calls[ticket.call(member.actor)] = ticket

    def _answered(self, member: Member, ref: Any) -> None:
        try:
            answer = self.side.take(ref)
        except ActorDied as error:
            self._lose(member, error)
            return
        ticket, now = member.calls.pop(ref), self._clock()
        if isinstance(answer, Leaving):
            self._give_back([ticket])
            self._drain(member)
        else:
            ticket.answer, ticket.done = answer, True
            self.sizer.finished(ticket.work, now - member.since)
        member.since = now
        if member.state is State.DRAINING and not member.calls:
            self._end(member)
        self._assign()

    # --- how members go -----------------------------------------------------------------------------------------

    def _look_at_nodes(self) -> None:
        """Where nobody can be replaced an actor works until its node is gone."""
        now = self._clock()
        if self._replaced and now - self._looked >= TEND_S:
            self._looked, self._leaving = now, self.side.leaving_nodes()
            for member in self._in(State.SERVING):
                self._drain_if_node_leaves(member)

    def _drain_if_node_leaves(self, member: Member) -> None:
        if member.node in self._leaving:
            self._drain(member)

    def _resize(self) -> None:
        """Start what is lacking. What is too many goes: first those that do not serve yet, then the idle ones."""
        waiting = [*self._queue, *(ticket for member in self._members for ticket in member.calls.values())]
        self.wanted = self.sizer.wanted(sum(ticket.work for ticket in waiting))
        usable = [*self._in(State.STARTING), *self._in(State.SERVING)]
        self._members += [self._new() for _ in range(self.wanted - len(usable))]
        usable.sort(key=lambda member: (member.state is State.SERVING, len(member.calls)))
        for member in usable[: max(len(usable) - self.wanted, 0)]:
            self._drain(member)

    def _drain(self, member: Member) -> None:
        """No new work. What has not begun goes to others; with nothing under way it ends at once."""
        if not self._replaced:
            raise RunError(f"a {self.role} actor was asked to end and cannot be replaced; go on with --resume")
        member.state = State.DRAINING
        behind = list(member.calls)[1:]
        self._give_back([member.calls.pop(ref) for ref in behind])
        if not member.calls:
            self._end(member)

    def _lose(self, member: Member, error: ActorDied) -> None:
        """It is dead: forget it, and give its requests to others. Raises `RunError` if that would go on for ever."""
        if not self._replaced:
            why = str(error).rstrip(".")
            raise RunError(f"lost {member.name}, which cannot be replaced: {why}; go on with --resume") from error
        tickets = list(member.calls.values())
        self._say(f"lost {member.name} ({member.state}, requests in hand: {len(tickets)}): {error}")
        if member.state is State.STARTING:
            self.starts_failed += 1
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= FAILED_STARTS_LIMIT:
                raise RunError(f"{self._failed_in_a_row} {self.role} actors in a row died before they served; {error}")
        else:
            self.lost += 1
        for ticket in tickets[:1]:
            ticket.deaths += 1
            if ticket.deaths >= ATTEMPTS_LIMIT:
                raise RunError(f"{ticket.deaths} {self.role} actors died at the same request; {error}")
        self._give_back(tickets)
        self._end(member)
        self._assign()

    def _lose_the_hanging(self) -> None:
        """A process can stand still without dying; nobody else would ever end it.

        An answer may be there that nobody has looked at yet, as whoever waits was busy with other things.
        """
        now = self._clock()
        for member in [member for member in self._members if member.calls]:
            ref, ticket = next(iter(member.calls.items()))
            patience = self._patience(ticket)
            if now - member.since > patience and not self.side.wait([ref], 0.0):
                self._lose(member, _hangs(patience))

    def _patience(self, *tickets: Ticket) -> float:
        """Seconds that an actor has for these requests."""
        return patience_s(self._call_timeout_s, sum(ticket.work for ticket in tickets))

    def _give_back(self, tickets: Sequence[Ticket]) -> None:
        """To the head of the queue, as they have waited longest."""
        self.returned += len(tickets)
        for ticket in tickets:
            ticket.actor = ""
        self._queue.extendleft(reversed(tickets))

    def _end(self, member: Member) -> None:
        if member in self._members:
            self._members.remove(member)
            member.calls.clear()
            self.side.kill(member.actor)

    def _stop_if_nobody_serves(self) -> None:
        now = self._clock()
        if not self._queue or any(member.calls or member.state is State.SERVING for member in self._members):
            self._served = now
        elif now - self._served > START_TIMEOUT_S:
            raise RunError(
                f"no {self.role} actor has served for {now - self._served:.0f} s; "
                f"do the nodes offer what {self.role}.resources and gpus_per_actor ask for?"
            )

    def _in(self, state: State) -> list[Member]:
        return [member for member in self._members if member.state is state]


def patience_s(call_timeout_s: float, work: int) -> float:
    """Seconds that an actor has for so many completions."""
    return call_timeout_s * max(1.0, work / WORK_IN_TIME)


def _hangs(patience_s: float) -> ActorDied:
    return ActorDied(f"no answer within {patience_s:.0f} s")


def check_versions(versions: Sequence[int], pushed: int) -> None:
    """Raise `RunError` unless all `versions` are the one that was pushed."""
    if any(v != pushed for v in versions):
        raise RunError(f"rollout actors serve versions {versions} after a push of version {pushed}")
