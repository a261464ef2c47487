"""Following and stopping a job, and what goes wrong with a cluster, as sentences. The job server is a fake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from cluster import job_client
from cluster.job_client import connect, find, told
from cluster.job_entry import LAST_LINE, main, told_exit_code
from cluster.jobs import Follower, overview, status, stop
from cluster.submit import GRACE, REVISION, RUN_DIR
from speechsum import commands
from speechsum.errors import RunError, StopAsked, UserError
from tests.cluster.fake_jobs import FakeClient, FakeJob

Stream = Callable[[FakeJob], AsyncIterator[str]]


def stream(*texts: str, then: BaseException | None = None, ends: JobStatus | None = None) -> Stream:
    """Yield `texts`, then raise or end the job."""

    async def run(job: FakeJob) -> AsyncIterator[str]:
        for text in texts:
            job.log += text
            yield text
        if ends is not None:
            job.status = ends
        if then is not None:
            raise then

    return run


class FollowedJob:
    """A follower of the fake job `j`, and what it printed."""

    def __init__(self, *streams: Stream, exit_code: int | None = None, asks_to_stop: bool = False) -> None:
        self.client = FakeClient(FakeJob("j", driver_exit_code=exit_code))
        self.client.streams = list(streams)
        self.printed: list[str] = []
        self.waits: list[float] = []
        self.follower = Follower(
            self.client, "j", self.printed.append, lambda: asks_to_stop, wait=self.waits.append
        )  # fmt: skip

    def run(self) -> int:
        return self.follower.run()


@pytest.mark.parametrize(
    ("status", "code", "result"), [(JobStatus.SUCCEEDED, 0, 0), (JobStatus.FAILED, 7, 7), (JobStatus.FAILED, -9, 137)]
)
def test_following_ends_with_the_drivers_exit_code(status: JobStatus, code: int, result: int) -> None:
    job = FollowedJob(stream("one\n", "two\n", ends=status), exit_code=code)
    assert job.run() == result
    assert job.printed == ["one\n", "two\n"]


def test_a_stopped_driver_tells_its_exit_code_in_its_last_line() -> None:
    told_late = FollowedJob(stream("saving\n", LAST_LINE, "75\n", ends=JobStatus.STOPPED))
    assert told_late.run() == 75
    killed = FollowedJob(stream("saving\n", ends=JobStatus.STOPPED))
    assert killed.run() == 137


def test_a_dropped_stream_goes_on_where_it_was() -> None:
    again = stream("one\ntw", "o\nthree\n", ends=JobStatus.SUCCEEDED)
    job = FollowedJob(stream("one\nt", then=RuntimeError("code 1006")), again, exit_code=0)
    assert job.run() == 0
    assert "".join(job.printed) == "one\ntwo\nthree\n"
    assert len(job.waits) == 1


def test_a_log_that_cannot_be_read_does_not_keep_the_result_back() -> None:
    job = FollowedJob(stream(then=RuntimeError("code 1011"), ends=JobStatus.FAILED), exit_code=3)
    assert job.run() == 3


def test_ctrl_c_detaches() -> None:
    job = FollowedJob(stream("one\n", then=KeyboardInterrupt()))
    assert job.run() == 130
    assert job.client.stopped == []


def test_ctrl_c_stops_and_follows_to_the_end() -> None:
    rest = stream("one\n", "saving\n", f"{LAST_LINE}75\n", ends=JobStatus.STOPPED)
    job = FollowedJob(stream("one\n", then=KeyboardInterrupt()), rest, asks_to_stop=True)
    assert job.run() == 75
    assert job.client.stopped == ["j"]
    assert "".join(job.printed) == f"one\nsaving\n{LAST_LINE}75\n"


def test_a_job_without_a_driver_is_told_by_its_reason() -> None:
    job = FollowedJob(stream(ends=JobStatus.FAILED))
    job.client.jobs["j"].message = "runtime_env setup failed:\nno space left"
    with pytest.raises(RunError, match="job j failed outside its driver: no space left"):
        job.run()


def ends_with(status: JobStatus, code: int | None) -> Callable[[FakeJob], None]:
    def end(job: FakeJob) -> None:
        job.status = status
        job.log = "" if code is None else f"a line\n{LAST_LINE}{code}\n"

    return end


def stoppable(on_stop: Callable[[FakeJob], None]) -> FakeClient:
    client = FakeClient(FakeJob("j", metadata={GRACE: "60"}))
    client.on_stop = on_stop
    return client


def test_stop_gives_the_drivers_exit_code() -> None:
    client = stoppable(ends_with(JobStatus.STOPPED, 75))
    assert stop(client, "j", None) == 75
    assert client.stopped == ["j"]


def test_stop_tells_a_driver_that_was_killed() -> None:
    with pytest.raises(RunError, match="killed before it had saved"):
        stop(stoppable(ends_with(JobStatus.STOPPED, None)), "j", None)


def test_stop_waits_for_the_grace_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("cluster.jobs.time.monotonic", lambda: clock[0])

    def wait(seconds: float) -> None:
        clock[0] += seconds

    with pytest.raises(RunError, match="still saving after 20 s; Ray kills it 60 s after the stop"):
        stop(stoppable(lambda job: None), "j", 20, wait)
    assert clock[0] == 120.5  # the first look after the grace


def test_stop_refuses_what_ray_would_not_grant() -> None:
    client = stoppable(lambda job: None)
    with pytest.raises(UserError, match="--grace 61: Ray kills j 60 s after a stop"):
        stop(client, "j", 61)
    client.jobs["j"].status = JobStatus.SUCCEEDED
    with pytest.raises(UserError, match=r"job j has ended already \(SUCCEEDED\)"):
        stop(client, "j", None)
    assert client.stopped == []


def test_states_for_people() -> None:
    late = FakeJob("late", start_time=86_400_000)
    early = FakeJob(
        "early", metadata={RUN_DIR: "/runs/e", REVISION: "abc"}, status=JobStatus.STOPPED, start_time=1000,
        end_time=61_000, log=f"{LAST_LINE}75\n",
    )  # fmt: skip
    client = FakeClient(late, early)
    assert overview(client).splitlines() == [
        "job    status   began                    run folder",
        "early  STOPPED  1970-01-01 00:00:01 UTC  /runs/e",
        "late   RUNNING  1970-01-02 00:00:00 UTC",
    ]
    lines = [line.split() for line in status(client, "early").splitlines()]
    assert ["exit", "code", "75"] in lines
    assert ["revision", "abc"] in lines


def test_a_job_that_never_had_a_driver_is_shown_with_its_reason() -> None:
    failed = FakeJob("j", status=JobStatus.FAILED, message="no space left\nTraceback")
    assert status(FakeClient(failed), "j").splitlines()[-1].split() == ["message", "no", "space", "left"]


def test_an_unknown_job() -> None:
    assert find(FakeClient(), "nobody") is None
    with pytest.raises(UserError, match=r"knows no job nobody; `speechsum status` lists"):
        status(FakeClient(), "nobody")


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (AuthenticationError("Authentication required: no"), UserError, "wants a token; set RAY_AUTH_MODE=token"),
        (AuthenticationError("Authentication failed: bad"), UserError, "refuses the token; set RAY_AUTH_MODE=token"),
        (ConnectionError("refused\nmore"), RunError, r"no longer answers \(refused\)"),
        (RuntimeError("status code 500: Trace\n  at x\nValueError: full\n."), RunError, "do it: ValueError: full"),
    ],
)
def test_failures_become_sentences(error: Exception, kind: type[Exception], sentence: str) -> None:
    with pytest.raises(kind, match=sentence) as raised, told("j"):
        raise error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("auto", "no http:// or https:// address"),
        ("head:8265", "no http:// or https:// address"),
        ("ray://head:10001", "jobs go to the dashboard"),
        ("http://me:hunter2@head:8265", "carries a user name or password"),
    ],
)
def test_addresses_that_are_none(address: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        connect(address)
    assert "hunter2" not in str(refused.value)


def test_an_address_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(url: str, timeout: float) -> None:
        raise httpx.ConnectTimeout("timed out")

    monkeypatch.setattr(job_client.httpx, "get", never)
    with pytest.raises(UserError, match=r"nothing answers at http://head:8265 \(timed out\)"):
        connect("http://head:8265")


@pytest.mark.parametrize("answer", [httpx.Response(404), httpx.Response(200, text="<html>Grafana")])
def test_another_server_is_told_from_ray(answer: httpx.Response, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_client.httpx, "get", lambda url, timeout: answer)
    with pytest.raises(UserError, match=rf"is no Ray dashboard \(HTTP {answer.status_code}\)"):
        connect("http://head:3000")


def test_the_address_that_was_given_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray prefers the address in its own variables to its argument."""
    asked: list[str] = []
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
    answer = httpx.Response(200, json={"ray_version": "2.60.0"})
    monkeypatch.setattr(job_client.httpx, "get", lambda url, timeout: answer)
    monkeypatch.setattr(
        job_client.JobSubmissionClient, "_check_connection_and_version", lambda self, **how: asked.append(self._address)
    )
    connect("http://head:8265")
    assert set(asked) == {"http://head:8265"}


@pytest.mark.parametrize(
    ("arguments", "ending", "code"),
    [(["doctor"], None, 0), (["doctor"], StopAsked(), 75), (["nonsense"], None, 2)],
)
def test_a_driver_says_how_it_ended(
    arguments: list[str], ending: BaseException | None, code: int,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def doctor(options: object) -> int:
        if ending is not None:
            raise ending
        return 0

    monkeypatch.setattr(commands, "doctor", doctor)
    monkeypatch.setattr("cluster.job_entry.signal.signal", lambda number, handler: None)
    assert main(arguments) == code
    assert told_exit_code(capsys.readouterr().out) == code
