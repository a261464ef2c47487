"""An elastic pool on real Ray processes: one is killed, one is asked to end, and nothing is asked in vain."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
import ray

from actors.notice import Notice
from cluster.calls import fetch
from cluster.elastic import ElasticPool
from cluster.memory import MemoryWatch
from cluster.pools import RayActors
from cluster.runtime import ray_session
from speechsum.config import PoolConfig
from speechsum.types import Leaving, PushMode, WeightsVersion


@ray.remote
class FakeRollout:
    """A rollout actor without an engine: it says who answered, on which weights."""

    def __init__(self, index: int) -> None:
        self.index, self.version, self.notice = index, -1, Notice()

    def process(self) -> int:
        return os.getpid()

    def join(self) -> str:
        return self.notice.listen()

    def receive(self, payload: str, stamp: WeightsVersion) -> int:
        assert payload == "weights"
        self.version = stamp.version
        return self.version

    def generate(self, name: str) -> tuple[str, int, int, int] | Leaving:
        if self.notice.given:
            return Leaving()
        if name == "kills the first" and self.index == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "stops the third" and self.index == 2:
            os.kill(os.getpid(), signal.SIGSTOP)  # it hangs, and lives
        if name == "ends the second" and self.index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return name, self.index, self.version, os.getpid()


@pytest.mark.slow
def test_who_dies_hangs_or_is_asked_to_go_is_replaced_and_every_request_is_answered() -> None:
    names = ["kills the first", "ends the second", "stops the third", "a", "b", "c", "d", "e", "f"]
    said: list[str] = []
    with ray_session(None, MemoryWatch(), lambda text: None):
        side = RayActors("rollout", lambda index: FakeRollout.options(num_cpus=0).remote(index))
        pool = ElasticPool("rollout", side, PoolConfig(min=3, max=3), 3, call_timeout_s=10.0, say=said.append)
        hanging = psutil.Process(fetch(pool._members[2].actor.process.remote()))
        fetch([member.joining for member in pool._members])
        pool.push(ray.put("weights"), WeightsVersion(4, "sum", 1, 1, PushMode.ADAPTER))
        tickets = [pool.submit(lambda actor, name=name: actor.generate.remote(name), 1) for name in names]
        answers = [pool.take(ticket) for ticket in tickets]
        assert [answer[0] for answer in answers] == names
        assert {answer[2] for answer in answers} == {4}
        assert answers[0][1] != 0
        assert answers[1][1] == 1  # what was under way is finished
        assert 1 not in {answer[1] for answer in answers[3:]}
        assert answers[2][1] != 2
        assert sum("no answer within 10 s" in line for line in said) == 1
        assert psutil.wait_procs([hanging], 60)[1] == []  # Ray ends it, though it listens to nobody
        assert (pool.lost, set(side.leaving_nodes())) == (2, set())
        assert pool.returned >= 3
        pool.close()
