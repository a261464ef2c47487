"""A pool whose actors load, die, are told to leave and lose their nodes: every request is answered once."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.elastic import (
    AHEAD,
    ATTEMPTS_LIMIT,
    FAILED_STARTS_LIMIT,
    START_TIMEOUT_S,
    TEND_S,
    WORK_IN_TIME,
    ActorDied,
    ElasticPool,
    State,
    Ticket,
)
from cluster.ports import RayPorts
from speechsum.config import PoolConfig
from speechsum.errors import RunError
from speechsum.metrics import describe
from speechsum.types import Leaving, PushMode, WeightsVersion

TIMEOUT_S = 1000.0


@dataclass(eq=False)
class FakeActor:
    """An actor as the other side sees it. `queue` holds refs of calls in order; `asked` is set by SIGTERM."""

    index: int
    node: str
    version: int = -1
    alive: bool = True
    asked: bool = False
    hangs: bool = False
    queue: list[int] = field(default_factory=list)


class FakeActors:
    """The pool's side in one thread. A call is done when `run` says so; a dead actor's calls fail."""

    def __init__(self) -> None:
        self.now = 0.0
        self.actors: list[FakeActor] = []
        self.number = itertools.count()
        self.calls: dict[int, tuple[FakeActor, str, Any]] = {}
        self.results: dict[int, Any] = {}
        self.leaving: set[str] = set()
        self.killed: list[int] = []
        self.said: list[str] = []
        self.pushed: int | None = None
        self.advance = lambda: None

    # --- what the pool calls ------------------------------------------------------------------------------------

    def start(self, index: int) -> FakeActor:
        assert index == len(self.actors)
        self.actors.append(FakeActor(index, node=f"node-{index}"))
        return self.actors[-1]

    def join(self, actor: FakeActor) -> int:
        return self._call(actor, "join")

    def receive(self, actor: FakeActor, payload: str, stamp: WeightsVersion) -> int:
        assert payload == f"weights {stamp.version}"
        return self._call(actor, "receive", stamp.version)

    def wait(self, refs: list[int], timeout_s: float) -> list[int]:
        if timeout_s > TEND_S:
            self._wait_long(refs[0], timeout_s)
        elif timeout_s:
            self.now += 0.1
            self.advance()
        return [ref for ref in refs if ref in self.results]

    def _wait_long(self, ref: int, timeout_s: float) -> None:
        """The actor gets to it; or it hangs, and the others have all the time."""
        asked = self.calls[ref][0]
        for actor in self.living() if asked.hangs else [asked]:
            while actor.queue and not actor.hangs and ref not in self.results:
                self.run(actor)
        self.now += timeout_s if asked.hangs else 0.0

    def take(self, ref: int) -> Any:
        result = self.results.pop(ref)
        if isinstance(result, ActorDied):
            raise result
        return result

    def kill(self, actor: FakeActor) -> None:
        self.killed.append(actor.index)
        self.die(actor)

    def leaving_nodes(self) -> set[str]:
        return self.leaving

    # --- what the world does ------------------------------------------------------------------------------------

    def generate(self, actor: FakeActor, name: str, min_version: int) -> int:
        assert actor.version >= min_version, "work went to an actor that does not serve the weights in force"
        assert self.pushed in (None, actor.version), "work went to an actor before the weights under way"
        return self._call(actor, "generate", name)

    def measure(self, actor: FakeActor) -> int:
        assert not actor.queue, "what follows a push waits for work that was handed out meanwhile"
        return self._call(actor, "measure")

    def run(self, actor: FakeActor) -> None:
        """The actor ends its oldest call."""
        ref = actor.queue.pop(0)
        _, what, argument = self.calls[ref]
        if what == "join":
            self.results[ref] = actor.node
        elif what == "receive":
            actor.version = argument
            self.results[ref] = argument
        else:
            self.results[ref] = Leaving() if actor.asked else (argument, actor.index)

    def die(self, actor: FakeActor) -> None:
        actor.alive = False
        for ref in actor.queue:
            self.results[ref] = ActorDied(f"actor {actor.index} died")
        actor.queue.clear()

    def _call(self, actor: FakeActor, what: str, argument: Any = None) -> int:
        ref = next(self.number)
        self.calls[ref] = actor, what, argument
        if actor.alive:
            actor.queue.append(ref)
        else:
            self.results[ref] = ActorDied(f"actor {actor.index} is dead")
        return ref

    def living(self) -> list[FakeActor]:
        return [actor for actor in self.actors if actor.alive]


class MeasuredPool(ElasticPool):
    """One of rollout actors, as far as the ports' push goes."""

    def receive_s(self) -> dict[str, float]:
        self.everywhere(self.side.measure)
        return {}


def stamp(version: int) -> WeightsVersion:
    return WeightsVersion(version, "sum", 1, 1, PushMode.ADAPTER)


def pool_of(least: int, most: int, start: int, **bounds: float) -> tuple[ElasticPool, FakeActors]:
    side = FakeActors()
    pool = MeasuredPool(
        "rollout", side, PoolConfig(min=least, max=most, **bounds), start, call_timeout_s=TIMEOUT_S,
        say=side.said.append, clock=lambda: side.now,
    )  # fmt: skip
    return pool, side


def ask(pool: ElasticPool, side: FakeActors, name: str, min_version: int = -1, work: int = 1) -> Ticket:
    return pool.submit(lambda actor: side.generate(actor, name, min_version), work)


def push(pool: ElasticPool, side: FakeActors, version: int) -> None:
    side.pushed = version
    pool.push(f"weights {version}", stamp(version))
    side.pushed = None


def push_as_a_run_does(pool: ElasticPool, side: FakeActors, version: int) -> None:
    """And ask every actor afterwards how long it took."""
    learner: Any = SimpleNamespace(publish=lambda version, mode: (stamp(version), f"weights {version}"))
    rollout: Any = pool
    builder: Any = None
    side.pushed = version
    RayPorts(builder, learner, rollout, None, None, run_id="run", sync="adapter").push(version)
    side.pushed = None


def go_on(pool: ElasticPool, side: FakeActors, seconds: float = 0.0) -> None:
    """What whoever waits does, once."""
    side.now += seconds
    pool.poll()
    pool.tend()


def loaded(pool: ElasticPool, side: FakeActors) -> None:
    for actor in side.living():
        if actor.version < 0 and actor.queue:
            side.run(actor)
    go_on(pool, side)


def states(pool: ElasticPool) -> dict[str, float]:
    figures = pool.figures()
    return {state: figures[f"rollout/actors_{state}"] for state in State if figures[f"rollout/actors_{state}"]}


# --- one thing at a time -----------------------------------------------------------------------------------------


def test_a_latecomer_receives_the_weights_in_force_before_it_serves() -> None:
    pool, side = pool_of(1, 2, 1, target_s=1)
    loaded(pool, side)
    push(pool, side, 0)
    tickets = [ask(pool, side, f"r{i}", 0) for i in range(4)]
    side.run(side.actors[0])
    go_on(pool, side, 4)  # one in four seconds: the other three need more than one actor
    assert states(pool) == {"starting": 1, "serving": 1}
    push(pool, side, 1)  # while the second one loads
    late = side.actors[1]
    side.run(late)
    go_on(pool, side)
    assert (states(pool), late.version) == ({"starting": 1, "serving": 1}, -1)
    side.run(late)
    push(pool, side, 2)  # it has received version 1, and the pool does not know yet
    go_on(pool, side)
    assert (late.version, late.queue) == (2, [])
    assert states(pool) == {"serving": 2}
    assert [ticket.done for ticket in tickets].count(True) >= 1


def test_a_push_waits_for_no_work_that_was_still_to_be_handed_out() -> None:
    pool, side = pool_of(2, 2, 2)
    side.run(side.actors[0])
    go_on(pool, side)
    for i in range(4):
        ask(pool, side, f"r{i}")
    first, late = side.actors
    side.run(first)  # there is room for another request, and the pool does not know yet
    side.run(late)
    push_as_a_run_does(pool, side, 0)
    assert [side.calls[ref][2] for ref in first.queue] == ["r2"]
    assert [side.calls[ref][2] for ref in late.queue] == ["r3"]  # that it has loaded was seen meanwhile


def test_weights_that_changed_while_they_travelled_are_sent_again() -> None:
    pool, side = pool_of(1, 2, 1, target_s=1)
    loaded(pool, side)
    push(pool, side, 0)
    for i in range(4):
        ask(pool, side, f"r{i}", 0)
    side.run(side.actors[0])
    go_on(pool, side, 4)
    late = side.actors[1]
    side.run(late)
    go_on(pool, side)  # version 0 is on its way
    push(pool, side, 1)
    side.run(late)
    go_on(pool, side)
    assert (late.version, states(pool)) == (0, {"starting": 1, "serving": 1})
    side.run(late)
    go_on(pool, side)
    assert (late.version, states(pool)) == (1, {"serving": 2})


def test_what_a_dead_actor_held_goes_to_another_in_its_old_order() -> None:
    pool, side = pool_of(2, 2, 2)
    loaded(pool, side)
    tickets = [ask(pool, side, f"r{i}") for i in range(6)]
    first, second = side.actors
    assert [side.calls[ref][2] for ref in first.queue] == ["r0", "r2"]
    assert [ticket.actor for ticket in tickets] == ["rollout 0", "rollout 1", "rollout 0", "rollout 1", "", ""]
    side.die(first)
    go_on(pool, side)
    assert side.said == ["lost rollout 0 (serving, requests in hand: 2): actor 0 died"]
    assert pool.figures()["rollout/actors_lost"] == 1
    assert pool.figures()["rollout/requests_returned"] == 2
    assert [ticket.deaths for ticket in tickets] == [1, 0, 0, 0, 0, 0]
    assert [ticket.actor for ticket in tickets] == ["", "rollout 1", "", "rollout 1", "", ""]
    for _ in range(6):
        side.run(second)
        go_on(pool, side)
    assert [ticket.answer[0] for ticket in tickets] == [f"r{i}" for i in range(6)]
    assert {ticket.actor for ticket in tickets} == {"rollout 1"}
    assert tickets[0].given > tickets[1].given  # the second time counts
    assert states(pool) == {"starting": 1, "serving": 1}


def test_an_actor_that_hangs_is_killed_and_what_it_held_goes_to_another() -> None:
    pool, side = pool_of(2, 2, 2)
    loaded(pool, side)
    tickets = [ask(pool, side, f"r{i}") for i in range(3)]
    second = side.actors[1]
    side.run(second)
    go_on(pool, side, TIMEOUT_S)
    assert side.killed == []  # a call may take as long as that
    ask(pool, side, "later")
    go_on(pool, side, 1)
    assert side.killed == [0]  # the second began its call later
    assert side.said == ["lost rollout 0 (serving, requests in hand: 2): no answer within 1000 s"]
    held = [(ticket.done, ticket.actor, ticket.deaths) for ticket in tickets]
    assert held == [(False, "rollout 1", 1), (True, "rollout 1", 0), (False, "", 0)]
    assert (pool.lost, pool.returned, states(pool)) == (1, 2, {"serving": 1, "starting": 1})


def test_an_answer_that_nobody_looked_at_in_time_counts() -> None:
    pool, side = pool_of(1, 1, 1)
    loaded(pool, side)
    answered, behind = ask(pool, side, "answered"), ask(pool, side, "behind")
    side.run(side.actors[0])
    side.now += 2 * TIMEOUT_S  # the driver was busy
    pool.tend()
    assert side.killed == []
    go_on(pool, side)
    assert (answered.answer, behind.done) == (("answered", 0), False)
    go_on(pool, side, TIMEOUT_S)
    assert side.killed == []
    go_on(pool, side, 1)
    assert side.killed == [0]  # the second call counts from when the first answer was seen


def test_an_actor_that_hangs_at_a_push_keeps_the_others_from_nothing() -> None:
    pool, side = pool_of(2, 2, 2)
    loaded(pool, side)
    side.actors[0].hangs = True
    push(pool, side, 3)
    assert (side.killed, [actor.version for actor in side.living()], pool.lost) == ([0], [3], 1)
    assert side.said == ["lost rollout 0 (serving, requests in hand: 0): no answer within 2000 s"]


def test_a_large_call_has_more_time_in_proportion() -> None:
    pool, side = pool_of(1, 1, 1)
    loaded(pool, side)
    ask(pool, side, "evaluation", work=3 * WORK_IN_TIME)
    go_on(pool, side, 3 * TIMEOUT_S)
    assert side.killed == []
    go_on(pool, side, 1)
    assert side.killed == [0]


def test_an_actor_on_a_leaving_node_ends_what_it_is_at_and_is_replaced() -> None:
    pool, side = pool_of(1, 1, 1)
    loaded(pool, side)
    begun, behind = ask(pool, side, "begun"), ask(pool, side, "behind")
    side.leaving = {"node-0"}
    go_on(pool, side, 1)
    assert states(pool) == {"draining": 1, "starting": 1}
    side.run(side.actors[0])
    go_on(pool, side)
    assert (begun.answer, behind.done, side.killed) == (("begun", 0), False, [0])
    side.run(side.actors[1])
    go_on(pool, side)
    side.run(side.actors[1])
    go_on(pool, side)
    assert behind.answer == ("behind", 1)
    assert pool.figures()["rollout/actors_lost"] == 0


def test_an_actor_told_to_end_answers_that_it_did_nothing() -> None:
    pool, side = pool_of(2, 2, 2)
    loaded(pool, side)
    first, second = side.actors
    first.asked = True
    tickets = [ask(pool, side, f"r{i}") for i in range(4)]
    side.run(first)
    go_on(pool, side)
    assert states(pool)["draining"] == 1
    side.run(first)
    go_on(pool, side)
    assert side.killed == [0]
    for _ in range(4):
        side.run(second)
        go_on(pool, side)
    assert [ticket.answer for ticket in tickets] == [(f"r{i}", 1) for i in range(4)]
    assert {ticket.deaths for ticket in tickets} == {0}


def test_it_grows_under_load_and_shrinks_when_idle() -> None:
    pool, side = pool_of(1, 3, 1, target_s=10, idle_s=30)
    loaded(pool, side)
    tickets = [ask(pool, side, f"r{i}", work=8) for i in range(8)]
    side.now += 4  # 8 completions in 4 s: 2 per second, so that 56 need 28 s of one actor
    side.run(side.actors[0])
    go_on(pool, side)
    assert pool.figures()["rollout/actors_wanted"] == 3
    assert states(pool) == {"serving": 1, "starting": 2}
    loaded(pool, side)
    while not all(ticket.done for ticket in tickets):
        for actor in side.living():
            if actor.queue:
                side.run(actor)
        go_on(pool, side, 1)
    assert {ticket.answer[1] for ticket in tickets} == {0, 1, 2}
    assert states(pool) == {"serving": 3}
    go_on(pool, side, 31)
    assert (states(pool), len(side.killed)) == ({"serving": 1}, 2)
    assert all(describe(name) for name in pool.figures())


def test_one_that_waits_for_a_node_in_vain_goes_before_one_that_serves() -> None:
    pool, side = pool_of(1, 2, 1, target_s=1, idle_s=5)
    loaded(pool, side)
    tickets = [ask(pool, side, f"r{i}") for i in range(3)]
    side.run(side.actors[0])
    go_on(pool, side, 3)
    assert states(pool) == {"serving": 1, "starting": 1}
    for _ in range(2):
        side.run(side.actors[0])
        go_on(pool, side)
    assert all(ticket.done for ticket in tickets)
    go_on(pool, side, 6)
    assert (states(pool), side.killed) == ({"serving": 1}, [1])


# --- what ends a run ---------------------------------------------------------------------------------------------


def test_a_request_at_which_actors_die_stops_the_run() -> None:
    pool, side = pool_of(1, 1, 1)
    ask(pool, side, "poison")
    for attempt in range(ATTEMPTS_LIMIT):
        loaded(pool, side)
        side.die(side.actors[attempt])
        if attempt < ATTEMPTS_LIMIT - 1:
            go_on(pool, side)
    with pytest.raises(RunError, match="3 rollout actors died at the same request"):
        go_on(pool, side)


def test_actors_that_never_come_to_serve_stop_the_run() -> None:
    pool, side = pool_of(1, 1, 1)
    for attempt in range(FAILED_STARTS_LIMIT - 1):
        side.die(side.actors[attempt])
        go_on(pool, side)
    assert (pool.starts_failed, pool.lost) == (FAILED_STARTS_LIMIT - 1, 0)
    side.die(side.actors[-1])
    with pytest.raises(RunError, match="5 rollout actors in a row died before they served"):
        go_on(pool, side)


def test_a_pool_without_a_node_is_not_waited_for_for_ever() -> None:
    pool, side = pool_of(1, 1, 1)
    ask(pool, side, "r")
    go_on(pool, side, START_TIMEOUT_S)
    with pytest.raises(RunError, match=r"no rollout actor has served for 1801 s; .* rollout\.resources"):
        go_on(pool, side, 1)


def test_where_nobody_can_be_replaced_an_end_is_told_and_a_leaving_node_used_until_it_is_gone() -> None:
    side = FakeActors()
    pool = ElasticPool(
        "rollout", side, PoolConfig(max=1), 1, call_timeout_s=TIMEOUT_S, replaced=False, clock=lambda: side.now
    )
    loaded(pool, side)
    side.leaving = {"node-0"}
    for name in ("a", "b", "c"):
        ask(pool, side, name)
    go_on(pool, side, 2)
    assert states(pool) == {"serving": 1}
    side.actors[0].asked = True
    side.run(side.actors[0])
    with pytest.raises(RunError, match=r"asked to end and cannot be replaced; go on with --resume"):
        go_on(pool, side)
    side.die(side.actors[0])
    told = r"^lost rollout 0, which cannot be replaced: actor 0 died; go on with --resume$"
    with pytest.raises(RunError, match=told):
        go_on(pool, side)


def test_an_actor_that_hangs_where_nobody_can_be_replaced_is_named_and_not_said_to_be_killed() -> None:
    side = FakeActors()
    pool = ElasticPool(
        "rollout", side, PoolConfig(max=1), 1, call_timeout_s=TIMEOUT_S, replaced=False, clock=lambda: side.now
    )
    loaded(pool, side)
    ask(pool, side, "a")
    told = r"^lost rollout 0, which cannot be replaced: no answer within 1000 s; go on with --resume$"
    with pytest.raises(RunError, match=told):
        go_on(pool, side, TIMEOUT_S + 1)
    assert side.killed == []


def test_a_wrong_version_after_a_push_is_told() -> None:
    pool, side = pool_of(1, 1, 1)
    loaded(pool, side)
    side.take = lambda ref: 3
    with pytest.raises(RunError, match=r"serve versions \[3\] after a push of version 4"):
        push(pool, side, 4)


# --- any order ---------------------------------------------------------------------------------------------------


def shake(rng: Random, side: FakeActors, faults: list[int]) -> None:
    """Something happens on the other side; at most as many faults as `faults` allows for, so that it ends."""
    living = side.living()
    if faults[0] and rng.randrange(6) == 0 and living:
        faults[0] -= 1
        actor = rng.choice(living)
        what = rng.randrange(3)
        if what == 0:
            side.die(actor)
        elif what == 1:
            actor.asked = True
        else:
            side.leaving = side.leaving | {actor.node}
    for actor in living:
        if actor.queue and rng.randrange(2):
            side.run(actor)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32), least=st.integers(1, 3), more=st.integers(0, 3),
    requests=st.integers(1, 25), idle_s=st.sampled_from([0.5, 3.0, 100.0]),
)  # fmt: skip
def test_every_request_is_answered_once_whatever_happens(
    seed: int, least: int, more: int, requests: int, idle_s: float
) -> None:
    rng = Random(seed)
    pool, side = pool_of(least, least + more, least, target_s=0.5, idle_s=idle_s)
    faults = [ATTEMPTS_LIMIT - 1]  # fewer than what stops a run
    side.advance = lambda: shake(rng, side, faults)
    answered: list[str] = []
    tickets: list[tuple[str, Ticket]] = []
    version = -1
    while len(answered) < requests:
        if len(tickets) < requests and rng.randrange(2):
            name = f"r{len(tickets)}"
            tickets.append((name, ask(pool, side, name, version)))
        elif rng.randrange(4) == 0:
            version += 1
            rng.choice((push, push_as_a_run_does))(pool, side, version)
        elif tickets:
            name, ticket = rng.choice(tickets)
            assert pool.take(ticket)[0] == name
        answered = [name for name, ticket in tickets if ticket.done]
        check_pool(pool, side, least + more)
    assert Counter(ticket.answer[0] for _, ticket in tickets) == Counter(f"r{i}" for i in range(requests))
    pool.close()
    assert sorted(side.killed) == sorted(set(side.killed)) == list(range(len(side.actors)))


def check_pool(pool: ElasticPool, side: FakeActors, most: int) -> None:
    counts = states(pool)
    assert counts.get("starting", 0) + counts.get("serving", 0) <= most
    for member in pool._members:
        assert len(member.calls) <= (1 if member.state is State.DRAINING else AHEAD)
    held = [id(t) for member in pool._members for t in member.calls.values()] + [id(t) for t in pool._queue]
    assert len(held) == len(set(held)), "a request is in one place"
