"""A run as a Ray job: what is sent, and under which name, so that sending it twice does not start it twice.

The submission id is the idempotency key. An id that is taken by the same config means that the job is there already;
by another config, that somebody is mistaken. `--resume` makes a new job of the same run, `<run>-2` and so on, in which
the keys that `cluster.run_folder` lets change may be others.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.endpoint import Endpoint
from cluster import assets
from cluster.code_package import CodePackage, code_package, mib
from cluster.job_client import JobClient, find, told
from cluster.run_folder import MAY_CHANGE, as_read_now, differences
from speechsum.config import STARTER, RunConfig
from speechsum.errors import UserError

RUN, CONFIG, RUN_DIR, REVISION, DIRTY, GRACE = (
    f"speechsum_{name}" for name in ("run", "config", "run_dir", "git_revision", "git_dirty", "grace_s")
)
"""Keys of a job's metadata; every value is a string."""

WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""What `speechsum train` sets for processes it starts itself; on a cluster Ray starts them."""

SHOWN = 3
Entrypoint = Callable[[Sequence[str]], str]
"""From the arguments of `speechsum` to the shell command that runs it in the job."""


@dataclass(frozen=True, slots=True)
class Job:
    """One submission, complete before anything is sent. `plan_job` -> `send`, `describe`.

    `arguments` are those of `speechsum train`, `metadata` goes with the job and is shown to whoever may see it.
    """

    id: str
    arguments: tuple[str, ...]
    metadata: dict[str, str]
    code: CodePackage
    entrypoint: Entrypoint

    @property
    def command(self) -> str:
        """What the job's shell is given."""
        return self.entrypoint(self.arguments)

    def runtime_env(self, archive: Path) -> dict[str, Any]:
        """Ray's part; it reads how long a stop may take where the driver's supervisor runs, which is in here."""
        return {
            "working_dir": str(archive),
            "env_vars": WORKER_ENVIRONMENT | {"RAY_JOB_STOP_WAIT_TIME_S": self.metadata[GRACE]},
        }


def train_entrypoint(arguments: Sequence[str]) -> str:
    """The command of a training job. `exec`, so that a signal to the job reaches Python and no shell in between."""
    return shlex.join(["exec", "python", "-m", "cluster.job_entry", *arguments])


def plan_job(
    recipe: Path, config: RunConfig, overrides: Sequence[str], *, run: str | None, run_dir: Path | None, resume: bool,
    grace_s: int, code: CodePackage | None = None, entrypoint: Entrypoint = train_entrypoint,
) -> Job:  # fmt: skip
    """Everything there is to submit. Raises `UserError` for what could not work on the cluster."""
    if resume and run is None:
        raise UserError("--resume needs --id, the job to go on with; `speechsum status` lists them")
    _refuse_what_cannot_travel(config)
    code = code or code_package()
    code, shipped = _with_recipe(code, recipe)
    run = _checked(run) if run else _default_id(config, code)
    folder = _run_folder(run, run_dir)
    arguments = ["train", shipped, "--address", "auto", "--run-dir", folder]
    arguments += [part for override in overrides for part in ("-o", override)]
    metadata = {
        RUN: run, CONFIG: config.model_dump_json(), RUN_DIR: folder, REVISION: code.revision,
        DIRTY: json.dumps(code.dirty), GRACE: str(grace_s),
    }  # fmt: skip
    return Job(run, (*arguments, *(["--resume"] if resume else [])), metadata, code, entrypoint)


def send(client: JobClient, job: Job) -> tuple[str, str | None]:
    """Submit, or find it submitted: the job's id and, where it was there already, the revision of its code.

    Raises `UserError` where the id is taken by another config, or by a job that has ended.
    """
    while True:
        attempt = _next_attempt(client, job)
        known = find(client, attempt.id)
        if known is not None:
            _refuse_other(job, known)
            return attempt.id, known.metadata[REVISION]
        with _archive(job) as archive, told(attempt.id):
            try:
                client.submit_job(
                    entrypoint=attempt.command, runtime_env=attempt.runtime_env(archive), metadata=attempt.metadata,
                    submission_id=attempt.id,
                )  # fmt: skip
            except RuntimeError as error:
                if "already exists" in str(error):
                    continue  # somebody else was quicker: look at what is there now
                raise
        return attempt.id, None


def describe(job: Job, address: str) -> str:
    """What would be sent, for people."""
    code = job.code
    lines = [
        f"{job.id} to {address}",
        f"  entrypoint  {job.command}",
        f"  code        {len(code.files)} files, {mib(code.size)}, of revision {code.revision[:12]}"
        + (" with changes" if code.dirty else ""),
    ]
    if code.data:
        lines.append(f"  left out    {code.data} tracked files of data")
    if code.untracked:
        more = f" and {len(code.untracked) - SHOWN} more" if len(code.untracked) > SHOWN else ""
        lines.append(f"  left out    {', '.join(code.untracked[:SHOWN])}{more}, until `git add`")
    lines += [f"  metadata    {key} = {value}" for key, value in job.metadata.items()]
    return "\n".join(lines)


def _next_attempt(client: JobClient, job: Job) -> Job:
    """`job` itself or, to resume, the running attempt of its run, and where none runs the one after the last."""
    if "--resume" not in job.arguments:
        return job
    with told(job.id):
        jobs = client.list_jobs()
    earlier = [info for info in jobs if (info.metadata or {}).get(RUN) == job.metadata[RUN] and info.submission_id]
    if not earlier:
        return job  # the cluster is new, and the run folder all that there is to go on with
    for info in earlier:
        ended = info.status.is_terminal()
        _refuse_other_config(job, info, free=MAY_CHANGE if ended else ())
        if not ended:
            return replace(job, id=info.submission_id)
    taken = {info.submission_id for info in jobs}
    return replace(job, id=next(free for n in itertools.count(2) if (free := f"{job.id}-{n}") not in taken))


def _refuse_other(job: Job, known: Any) -> None:
    """Attach to the same run while it runs, to nothing else."""
    _refuse_other_config(job, known)
    if known.status.is_terminal():
        raise UserError(
            f"job {known.submission_id} has ended ({known.status}); give --resume to go on with it, or another --id"
        )


def _refuse_other_config(job: Job, known: Any, *, free: Sequence[str] = ()) -> None:
    has = known.metadata or {}
    if CONFIG not in has:
        raise UserError(f"job {known.submission_id} was not submitted by speechsum; give another --id")
    old, new = (as_read_now(json.loads(side[CONFIG])) | {"--run-dir": side[RUN_DIR]} for side in (has, job.metadata))
    if differing := list(differences(old, new, free=free)):
        more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
        raise UserError(
            f"job {known.submission_id} has another config: {', '.join(differing[:SHOWN])}{more}; "
            "restore these, or give another --id"
        )


def _refuse_what_cannot_travel(config: RunConfig) -> None:
    """Data stays where it is, so a path that starts here leads nowhere on the cluster."""
    for endpoint in config.endpoints:
        Endpoint(endpoint)
    for key, value in assets.paths(config).items():
        if value != STARTER and not Path(value).is_absolute():
            raise UserError(
                f"{key} = {value!r} starts from a folder on this machine, and data is not uploaded; "
                "give the absolute path at which every node of the cluster finds it"
            )


def _with_recipe(code: CodePackage, recipe: Path) -> tuple[CodePackage, str]:
    """The package with the recipe in it, and the recipe's path there; one that git does not track gets a folder."""
    for name, path in code.files.items():
        if path.resolve() == recipe.resolve():
            return code, name
    name = f"submitted/{recipe.name}"
    return replace(code, files=code.files | {name: recipe}), name


def _checked(run: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run):
        raise UserError(f"--id {run!r} has characters that a file name or address may not; use letters, digits and ._-")
    return run


def _default_id(config: RunConfig, code: CodePackage) -> str:
    """The recipe's name, and what would differ if anything did: sent again, the same is recognised."""
    digest = hashlib.sha256(f"{config.model_dump_json()}\0{code.digest()}".encode()).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{config.name}-{digest}").strip("-")


def _run_folder(run: str, run_dir: Path | None) -> str:
    if run_dir is None:
        return f"~/speechsum-runs/{run}"
    if not run_dir.is_absolute():
        raise UserError(
            f"--run-dir {run_dir} is relative, and a job's own folder goes with the job; give an absolute path that "
            "the nodes of the cluster share"
        )
    return str(run_dir)


@contextlib.contextmanager
def _archive(job: Job) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="speechsum-submit-") as folder:
        path = Path(folder) / "code.zip"
        job.code.write(path)
        yield path
