"""What the code really exports: its own emitters, told of runs, on Prometheus' client in place of Ray's metrics."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import prometheus_client
import pytest
import ray
from prometheus_client import CollectorRegistry

import actors.published
from actors.judge import JudgeActor
from actors.notice import Notice
from actors.published import Published
from actors.rollout import Rollout, RolloutActor
from actors.teacher import TeacherActor
from cluster.elastic import ElasticPool
from cluster.trackers import RayTracker
from speechsum.config import PoolConfig
from speechsum.metrics import JUDGE_ACTOR, METRICS
from speechsum.objectives import OpdLoss
from speechsum.types import FailureKind, JudgeFailure, Reward, TeacherFailure, TeacherLogprobs
from tests.cluster.test_controller import FakePorts, ascending, controller_on, random_judge, run_config
from tests.cluster.test_elastic import FakeActors

BAD_DAY = [
    name for name in METRICS if name.startswith(("buffer/dropped_", "judge/failed_")) or name == "learner/skipped"
]
COUNTED_BY_ACTOR = ("judge/call_s", "judge/scored")
COUNTS = {name: 0.5 for name, m in METRICS.items() if m.labels == JUDGE_ACTOR and name not in COUNTED_BY_ACTOR}
OF_OTHER_JUDGES = ("judge/flip_share", "judge/abstained_share", "judge/audit_spearman", "judge/audit_win_rate")


class Ports(FakePorts):
    """With the figures that learner and push give besides."""

    def step(self, batch: Any, version: int) -> int:
        handle = super().step(batch, version)
        what, _ = self.pending[handle]
        figures = {name: 0.5 for name, m in METRICS.items() if name.startswith("learner/") and m.steps}
        self.pending[handle] = what, lambda: figures
        return handle

    def push(self, version: int) -> dict[str, float]:
        return super().push(version) | {"sync/publish_s": 0.5, "sync/receive_s": 0.25, "sync/bytes": 1000.0}


class Exporter:
    """Ray's metrics as far as ours use them. Names gain `ray_` and series `SessionName`, as Ray has it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._known: dict[str, Any] = {}

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own = {form: self._form(form) for form in ("Gauge", "Counter", "Histogram")}
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        for name, form in own.items():
            monkeypatch.setattr(actors.published, name, form)

    def _form(self, form: str) -> type:
        known, registry = self._known, self.registry

        class Form:
            def __init__(
                self, name: str, description: str, tag_keys: tuple[str, ...] = (), boundaries: Sequence[float] = ()
            ) -> None:
                self.defaults: Mapping[str, str] = {}
                buckets = {"buckets": boundaries} if boundaries else {}
                if name not in known:
                    made = getattr(prometheus_client, form)
                    known[name] = made(
                        f"ray_{name}", description, (*tag_keys, "SessionName"), registry=registry, **buckets
                    )
                self.own = known[name]

            def set_default_tags(self, tags: Mapping[str, str]) -> None:
                self.defaults = tags

            def _at(self, tags: Mapping[str, str] | None) -> Any:
                return self.own.labels(**self.defaults, **(tags or {}), SessionName="session_1")

            def set(self, value: float, tags: Mapping[str, str] | None = None) -> None:
                self._at(tags).set(value)

            def inc(self, value: float, tags: Mapping[str, str] | None = None) -> None:
                assert value > 0  # Ray refuses anything else
                self._at(tags).inc(value)

            def observe(self, value: float, tags: Mapping[str, str] | None = None) -> None:
                self._at(tags).observe(value)

        return Form

    def series(self) -> dict[str, set[str]]:
        """The labels of every series on the page, by its name."""
        return {
            sample.name: set(sample.labels) - {"SessionName", "le"}
            for family in self.registry.collect() for sample in family.samples
            if not sample.name.endswith("_created")
        }  # fmt: skip


def plain(actor: Any, tags: Mapping[str, str], **parts: Any) -> Any:
    """An actor in this process, around what stands in for its engine."""
    own = actor.__ray_metadata__.modified_class
    made = own.__new__(own)
    vars(made).update(parts, _published=Published({"actor": "0", **tags}), _notice=Notice())
    return made


class Cluster:
    """A driver, a rollout actor, a judge and a teacher, of which `work` makes all tell something new."""

    def __init__(self) -> None:
        self.tracker = RayTracker("night")
        self.rollout = Rollout(cast(Any, None), cast(Any, None))
        self.rolled = plain(RolloutActor, {}, _rollout=self.rollout)
        judgements = [Reward(0.5), Reward(0.0, gate="echo"), JudgeFailure(FailureKind.TIMEOUT)]
        counts = lambda: {name: value * self.calls for name, value in COUNTS.items()}  # noqa: E731
        self.judge = plain(
            JudgeActor, {"judge": "likelihood", "version": "1"},
            _judge=SimpleNamespace(score=lambda tasks: judgements, counts=counts, served_models=()),
        )  # fmt: skip
        lessons = [
            (TeacherLogprobs(np.zeros(3), np.zeros((3, 1)), np.zeros((3, 1))), TeacherFailure(FailureKind.TOO_LONG))
        ]
        self.teacher = plain(TeacherActor, {}, _teacher=SimpleNamespace(teach=lambda groups: lessons))
        self.calls = 0

    def close(self) -> None:
        for published in (self.tracker, self.rolled._published, self.judge._published, self.teacher._published):
            published.close()

    def work(self) -> None:
        self.calls += 1
        self._train()
        totals = self.rollout.totals
        for name in ("tokens", "groups", "failures", "pushes", "refused_pushes", "audio_s", "generate_s"):
            setattr(totals, name, getattr(totals, name) + 2)
        self.rolled._publish()
        self.judge.score([])
        self.teacher.teach([])

    def _train(self) -> None:
        rng = Random(self.calls)
        for loss, judge in ((None, random_judge(rng, 2, 1, 1)), (OpdLoss(), ascending(2))):
            ports = Ports(run_config(steps=2, staleness=1, loss=loss), judge)
            controller = controller_on(ports)
            controller.observe = self.tracker.live
            for report in controller.run():
                self.tracker.live(report.metrics)
        # what only the driver itself knows, and what this run was spared
        self.tracker.live({"checkpoint/saved_s": 1e9, "checkpoint/every_steps": 5, "wall/rss_gb": 9.5})
        self.tracker.live(dict.fromkeys((*BAD_DAY, *OF_OTHER_JUDGES), 1.0))
        for role in ("rollout", "judge"):
            self.tracker.live(ElasticPool(role, FakeActors(), PoolConfig(max=1), 1, call_timeout_s=60.0).figures())


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    made = Exporter()
    made.patch(monkeypatch)
    return made


@pytest.fixture
def cluster(exporter: Exporter) -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


def program(name: str) -> str:
    """Debian's package `prometheus` has both of those we use."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on this machine; `apt install prometheus` brings it")
    return found


@pytest.fixture
def promtool() -> str:
    return program("promtool")


@pytest.fixture
def prometheus() -> str:
    return program("prometheus")
