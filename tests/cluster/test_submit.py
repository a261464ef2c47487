"""What is submitted, and that the same twice is one job. The job server is a fake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobStatus

from cluster.code_package import CodePackage
from cluster.submit import CONFIG, DIRTY, GRACE, REVISION, RUN, RUN_DIR, Job, describe, plan_job, send
from speechsum.config import load_recipe
from speechsum.errors import UserError
from tests.cluster.fake_jobs import FakeClient, FakeJob

RECIPE = 'name = "my run"\n[[stage]]\nname = "align"\nsteps = 2\nloss = { kind = "sft" }\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def code(tmp_path: Path) -> CodePackage:
    (tmp_path / "a.py").write_text("x = 1\n")
    return CodePackage({"a.py": tmp_path / "a.py"}, "f" * 40, True, ("n1", "n2", "n3", "n4"), 0)


def plan(recipe: Path, code: CodePackage, *overrides: str, run: str | None = "r", **changed: Any) -> Job:
    settings = {"run_dir": Path("/shared/r"), "resume": False, "grace_s": 60} | changed
    return plan_job(recipe, load_recipe(recipe, list(overrides)), overrides, run=run, code=code, **settings)


def test_everything_that_is_sent(recipe: Path, code: CodePackage) -> None:
    client, job = FakeClient(), plan(recipe, code, "seed=3", "data.train=/d/my talks.parquet")
    assert send(client, job) == ("r", None)
    sent = client.jobs["r"]
    assert sent.entrypoint == (
        "exec python -m cluster.job_entry train submitted/tiny.toml --address auto --run-dir /shared/r "
        "-o seed=3 -o 'data.train=/d/my talks.parquet'"
    )
    assert client.uploaded == [{"a.py", "submitted/tiny.toml"}]
    assert json.loads(sent.metadata[CONFIG]) == load_recipe(
        recipe, ["seed=3", "data.train=/d/my talks.parquet"]
    ).model_dump(mode="json")
    del sent.metadata[CONFIG]
    assert sent.metadata == {RUN: "r", RUN_DIR: "/shared/r", REVISION: "f" * 40, DIRTY: "true", GRACE: "60"}
    assert sent.runtime_env["env_vars"] == {
        "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "RAY_JOB_STOP_WAIT_TIME_S": "60",
    }  # fmt: skip


def test_a_tracked_recipe_keeps_its_place(recipe: Path, code: CodePackage) -> None:
    code.files["recipes/tiny.toml"] = recipe
    job = plan(recipe, code)
    assert "train recipes/tiny.toml " in job.command
    assert set(job.code.files) == {"a.py", "recipes/tiny.toml"}


def test_the_same_again_attaches(recipe: Path, code: CodePackage) -> None:
    client = FakeClient()
    assert send(client, plan(recipe, code)) == ("r", None)
    assert send(client, plan(recipe, code)) == ("r", "f" * 40)
    assert len(client.uploaded) == 1


def test_somebody_quicker_is_attached_to(recipe: Path, code: CodePackage) -> None:
    client, job = FakeClient(), plan(recipe, code)
    client.before_submit = lambda: client.jobs.setdefault("r", FakeJob("r", metadata=job.metadata)) and None
    assert send(client, job) == ("r", "f" * 40)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed=9": None}, "seed (was 0, now 9)"),
        ({"run_dir": Path("/other")}, '--run-dir (was "/shared/r", now "/other")'),
    ],
)
def test_another_config_under_the_same_id_is_refused(
    changes: dict[str, Any], told: str, recipe: Path, code: CodePackage
) -> None:
    client = FakeClient()
    send(client, plan(recipe, code))
    overrides = [key for key, value in changes.items() if value is None]
    with pytest.raises(UserError, match=re.escape(f"job r has another config: {told}; restore these, or give")):
        send(client, plan(recipe, code, *overrides, **{k: v for k, v in changes.items() if v is not None}))
    assert list(client.jobs) == ["r"]


def test_a_job_that_ended_is_not_started_again_by_accident(recipe: Path, code: CodePackage) -> None:
    client = FakeClient()
    send(client, plan(recipe, code))
    client.jobs["r"].status = JobStatus.FAILED
    with pytest.raises(UserError, match=r"job r has ended \(FAILED\); give --resume to go on with it, or another --id"):
        send(client, plan(recipe, code))


def test_a_job_of_somebody_else_is_left_alone(recipe: Path, code: CodePackage) -> None:
    with pytest.raises(UserError, match="job r was not submitted by speechsum; give another --id"):
        send(FakeClient(FakeJob("r")), plan(recipe, code))


def test_resume_is_a_new_job_of_the_same_run(recipe: Path, code: CodePackage) -> None:
    client = FakeClient(FakeJob("r-3"))  # a name that is taken
    resume = plan(recipe, code, resume=True)
    send(client, plan(recipe, code))
    assert send(client, resume) == ("r", "f" * 40)  # it still runs: attached
    client.jobs["r"].status = JobStatus.STOPPED
    assert send(client, resume) == ("r-2", None)
    assert client.jobs["r-2"].entrypoint.endswith("--run-dir /shared/r --resume")
    assert send(client, resume) == ("r-2", "f" * 40)
    client.jobs["r-2"].status = JobStatus.FAILED
    with pytest.raises(UserError, match="has another config"):
        send(client, plan(recipe, code, "seed=9", resume=True))
    assert send(client, resume) == ("r-4", None)


def test_a_key_that_has_come_since_does_not_keep_a_job_from_its_run(recipe: Path, code: CodePackage) -> None:
    client = FakeClient()
    send(client, plan(recipe, code))
    then = json.loads(client.jobs["r"].metadata[CONFIG])
    del then["rollout"]["prompts_per_request"]
    client.jobs["r"].metadata[CONFIG] = json.dumps(then)
    assert send(client, plan(recipe, code))[0] == "r"
    client.jobs["r"].status = JobStatus.FAILED
    assert send(client, plan(recipe, code, resume=True))[0] == "r-2"


def test_a_resumed_job_may_have_what_its_run_may(recipe: Path, code: CodePackage) -> None:
    client, resume = FakeClient(), plan(recipe, code, "watch.samples=1", resume=True)
    send(client, plan(recipe, code))
    with pytest.raises(UserError, match=r"job r has another config: watch\.samples \(was 8, now 1\)"):
        send(client, resume)  # the one that runs has it still
    client.jobs["r"].status = JobStatus.STOPPED
    assert send(client, resume) == ("r-2", None)


def test_resume_on_a_new_cluster_takes_the_run_folder(recipe: Path, code: CodePackage) -> None:
    client = FakeClient()
    assert send(client, plan(recipe, code, resume=True)) == ("r", None)
    assert client.jobs["r"].entrypoint.endswith("--resume")


def test_the_id_is_of_config_and_code(recipe: Path, code: CodePackage) -> None:
    first = plan(recipe, code, run=None)
    assert re.fullmatch(r"my-run-[0-9a-f]{8}", first.id)
    assert plan(recipe, code, run=None).id == first.id
    assert plan(recipe, code, "seed=1", run=None).id != first.id
    code.files["a.py"].write_text("x = 2\n")
    assert plan(recipe, code, run=None).id != first.id
    assert plan(recipe, code, run_dir=None).metadata[RUN_DIR] == "~/speechsum-runs/r"


@pytest.mark.parametrize(
    ("overrides", "changed", "told"),
    [
        (["data.train=my.parquet"], {}, "data.train = 'my.parquet' starts from a folder on this machine"),
        (["model.path=runs/model"], {}, "model.path = 'runs/model' starts from"),
        (["eval.rows=['cascade']", "eval.recogniser=whisper"], {}, "eval.recogniser = 'whisper' starts from"),
        (["eval.second_judge={ path = 'runs/judge' }"], {}, "eval.second_judge.path = 'runs/judge' starts from"),
        ([], {"run_dir": Path("runs/x")}, "--run-dir runs/x is relative"),
        ([], {"run": "a/b"}, "--id 'a/b' has characters"),
        ([], {"run": None, "resume": True}, "--resume needs --id"),
        (
            ["judge.kind=rubric", "judge.endpoint.model=m", "judge.endpoint.url=http://me:hunter2@host/v1"],
            {},
            "the endpoint's url carries a user name or password",
        ),
    ],
)
def test_what_could_not_work_there_is_told_here(
    overrides: list[str], changed: dict[str, Any], told: str, recipe: Path, code: CodePackage
) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as refused:
        plan(recipe, code, *overrides, **changed)
    assert "hunter2" not in str(refused.value)


def test_a_description_says_what_stays_behind(recipe: Path, code: CodePackage) -> None:
    told = describe(plan(recipe, code), "http://head:8265")
    assert told.startswith("r to http://head:8265\n")
    assert "2 files, 0.0 MiB, of revision ffffffffffff with changes" in told
    assert "n1, n2, n3 and 1 more, until `git add`" in told
    assert f"{GRACE} = 60" in told
