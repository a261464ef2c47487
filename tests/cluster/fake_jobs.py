"""A job server that runs nothing: a stand-in for `ray.job_submission.JobSubmissionClient`."""

from __future__ import annotations

import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus


@dataclass
class FakeJob:
    """What the server says of a job."""

    submission_id: str
    entrypoint: str = "exec true"
    metadata: dict[str, str] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    status: JobStatus = JobStatus.RUNNING
    driver_exit_code: int | None = None
    message: str | None = None
    start_time: int | None = 0
    end_time: int | None = None
    log: str = ""


class FakeClient:
    """Jobs in a dict. `streams` are what successive calls of `tail_job_logs` do, each with the job it is of."""

    def __init__(self, *jobs: FakeJob) -> None:
        self.jobs = {job.submission_id: job for job in jobs}
        self.uploaded: list[set[str]] = []
        self.stopped: list[str] = []
        self.on_stop: Callable[[FakeJob], None] = lambda job: None
        self.before_submit: Callable[[], None] = lambda: None
        self.streams: list[Callable[[FakeJob], AsyncIterator[str]]] = []

    def submit_job(
        self, *, entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str], submission_id: str
    ) -> str:
        self.before_submit()
        if submission_id in self.jobs:
            raise RuntimeError(f"Request failed with status code 500: ValueError: {submission_id} already exists.")
        with zipfile.ZipFile(Path(runtime_env["working_dir"])) as archive:
            self.uploaded.append(set(archive.namelist()))
        self.jobs[submission_id] = FakeJob(submission_id, entrypoint, metadata, runtime_env)
        return submission_id

    def get_job_info(self, job_id: str) -> FakeJob:
        if job_id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")
        return self.jobs[job_id]

    def list_jobs(self) -> list[FakeJob]:
        return list(self.jobs.values())

    def get_job_logs(self, job_id: str) -> str:
        return self.get_job_info(job_id).log

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        return self.streams.pop(0)(self.jobs[job_id])

    def stop_job(self, job_id: str) -> bool:
        self.stopped.append(job_id)
        self.on_stop(self.jobs[job_id])
        return True
