"""The command line: what it costs, what it refuses and how it ends. What it starts is replaced by fakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from speechsum import __version__, cli, commands
from speechsum.arguments import DEFAULT_INSTRUCTION
from speechsum.config import load_recipe
from speechsum.errors import STOPPED, RunError, StopAsked

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    "",
    "doctor",
    "data",
    "data synth",
    "data ask",
    "data build",
    "data build ami-qmsum",
    "data build floras",
    "data check",
    "data teach",
    "train",
    "submit",
    "status",
    "logs",
    "stop",
    "eval",
    "judge",
    "judge score",
    "judge audit",
    "summarize",
    "k8s",
    "k8s render",
    "dashboard",
    "timeline",
    "bench",
]
RAY_VARIABLES = ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")
RECIPE = """
name = "tiny"
[[stage]]
name = "align"
steps = 2
loss = { kind = "sft" }
"""


@pytest.fixture(autouse=True)
def _environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, os.environ.get(name, "PASSIVE"))
    for name in RAY_VARIABLES:
        monkeypatch.setenv(name, "")  # remembered, so that what a command sets goes again
        monkeypatch.delenv(name)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def fake_module(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    """Stand in for a module of the running system, which would start engines."""
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def fake_train(monkeypatch: pytest.MonkeyPatch, ending: BaseException | None = None) -> list[dict[str, Any]]:
    """A train.run that makes the run folder, notes its arguments and ends at once, by `ending` where given."""
    calls: list[dict[str, Any]] = []

    def run(config: Any, run_dir: Path, **options: Any) -> dict[str, Any]:
        from cluster.run_folder import RunFolder

        RunFolder.create(run_dir, config, resume=options["resume"], overwrite=options["overwrite"])
        calls.append({"config": config, "run_dir": run_dir, **options})
        if ending is not None:
            raise ending
        return {"steps": 2}

    fake_module(monkeypatch, "cluster.train", run=run)
    return calls


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert f"usage: speechsum {command}".strip() in capsys.readouterr().out


def test_help_is_instant_and_loads_only_the_standard_library() -> None:
    code = (
        "import sys\nfrom speechsum.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "foreign = {name.partition('.')[0] for name, module in sys.modules.items()"
        " if 'site-packages' in (getattr(module, '__file__', None) or '')}\n"
        "print('FOREIGN', sorted(foreign - {'_virtualenv'}), file=sys.stderr)"
    )
    before = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    taken = time.monotonic() - before
    assert result.returncode == 0, result.stderr
    assert {"torch", "ray", "vllm", "transformers", "pyarrow", "wandb", "rich", "pydantic"}.isdisjoint(
        json.loads(result.stderr.split("FOREIGN ")[1].replace("'", '"'))
    )
    assert taken < 1.0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"speechsum {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["train"],
        ["train", "r.toml", "--resume", "--overwrite"],
        ["data", "synth", "--out", "d", "--clips", "0"],
        ["judge", "audit", "--data", "m.jsonl"],
        ["judge", "audit", "--data", "m.jsonl", "--out", "o.json", "--clips", "0"],
        ["data", "check", "m.jsonl", "--max-audio-s", "nan"],
        ["summarize"],
        ["submit", "r.toml"],
        ["stop", "j", "--address", "http://h", "--grace", "0"],
    ],
)
def test_options_that_make_no_sense_end_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def one_sentence(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("speechsum: error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error
    return error


def test_a_wrong_recipe_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(tmp_path / "no.toml")]) == 2
    assert "no recipe at" in one_sentence(capsys)


def test_an_unknown_key_names_the_nearest(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(recipe), "-o", "stage.align.step=3"]) == 2
    assert "did you mean 'steps'" in one_sentence(capsys)


def test_an_existing_folder_is_refused_with_the_ways_out(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = fake_train(monkeypatch)
    arguments = ["train", str(recipe), "--run-dir", str(tmp_path / "run")]
    assert cli.main(arguments) == 0
    capsys.readouterr()
    assert cli.main(arguments) == 2
    message = one_sentence(capsys)
    assert "--resume" in message
    assert "--overwrite" in message
    assert cli.main([*arguments, "--resume"]) == 0
    assert cli.main([*arguments, "--overwrite"]) == 0
    assert [(call["resume"], call["overwrite"]) for call in calls] == [(False, False), (True, False), (False, True)]


def test_train_passes_on_what_it_was_told(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_train(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(recipe), "-o", "seed=7", "--address", "auto"]) == 0
    (call,) = calls
    assert call["config"] == load_recipe(recipe, ["seed=7"])
    assert call["address"] == "auto"
    assert call["run_dir"].parent == tmp_path / "runs"
    assert call["run_dir"].name.startswith("tiny-20")


@pytest.mark.parametrize(
    ("options", "set_by_user", "seen"),
    [
        ([], {}, ["0", "token", "0"]),
        ([], {"RAY_AUTH_MODE": "disabled"}, ["0", "disabled", "0"]),
        (["--address", "auto"], {}, [None, None, None]),
    ],
)
def test_a_ray_of_our_own_is_told_to_keep_to_itself(
    options: list[str], set_by_user: dict[str, str], seen: list[str | None],
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    found: list[str | None] = []

    def run(*_: Any, **__: Any) -> dict[str, Any]:
        found.extend(map(os.environ.get, RAY_VARIABLES))
        return {"steps": 2}

    fake_module(monkeypatch, "cluster.train", run=run)
    for name, value in set_by_user.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", str(recipe), *options]) == 0
    assert found == seen


def test_resume_without_a_folder(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", str(recipe), "--resume"]) == 2
    assert "--run-dir" in one_sentence(capsys)


def test_a_run_that_cannot_go_on_ends_with_1(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_train(monkeypatch, RunError("the judge failed too often"))
    assert cli.main(["train", str(recipe), "--run-dir", str(tmp_path / "run")]) == 1
    assert "the judge failed too often" in one_sentence(capsys)


@pytest.mark.parametrize(
    ("found", "started", "name"),
    [
        ("/usr/bin/speechsum", "/opt/.venv/bin/speechsum", "speechsum"),
        (None, ".venv/bin/speechsum", ".venv/bin/speechsum"),
        (None, "/opt/speechsum/__main__.py", f"{sys.executable} -m speechsum"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    found: str | None, started: str, name: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(shutil, "which", lambda program: found)
    monkeypatch.setattr(sys, "argv", [started])
    fake_train(monkeypatch, KeyboardInterrupt())
    run_dir = tmp_path / "my run"
    assert cli.main(["train", str(recipe), "--run-dir", str(run_dir), "-o", "seed=3"]) == 130
    command = f"{name} train {recipe} --run-dir '{run_dir}' -o seed=3 --resume"
    assert f"no checkpoint was saved yet; start again with: {command}" in capsys.readouterr().err
    (run_dir / "checkpoints/step_000001").mkdir()
    options = ["train", str(recipe), "--run-dir", str(run_dir), "-o", "seed=3", "--resume"]
    assert cli.main(options) == 130
    assert f"go on from the last checkpoint with: {command}" in capsys.readouterr().err


def test_a_stop_that_was_asked_for_has_a_code_of_its_own(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_train(monkeypatch, StopAsked())
    assert cli.main(["train", str(recipe), "--run-dir", str(tmp_path / "run")]) == STOPPED == 75
    assert f" train {recipe} --run-dir {tmp_path / 'run'} --resume" in capsys.readouterr().err


def test_a_dry_run_shows_the_job_and_asks_nobody(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import cluster.job_client

    monkeypatch.setattr(cluster.job_client, "connect", lambda address: pytest.fail("connected"))
    command = ["submit", str(recipe), "--address", "http://head:8265", "--id", "r", "--dry-run"]
    assert cli.main([*command, "-o", "seed=3", "--grace", "90"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("would submit r to http://head:8265\n")
    assert "train submitted/tiny.toml --address auto --run-dir '~/speechsum-runs/r' -o seed=3" in told
    assert "speechsum_grace_s = 90" in told


@pytest.mark.parametrize(("answer", "code"), [("s", 75), ("", 130), (None, 130)])
def test_ctrl_c_while_following_asks_on_a_terminal(
    answer: str | None, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FakeFollower:
        """Is interrupted once."""

        def __init__(self, client: Any, job_id: str, write: Any, asks_to_stop: Any) -> None:
            self.asks_to_stop = asks_to_stop

        def run(self) -> int:
            return 75 if self.asks_to_stop() else 130

    import cluster.job_client
    import cluster.jobs

    monkeypatch.setattr(cluster.job_client, "connect", lambda address: None)
    monkeypatch.setattr(cluster.jobs, "Follower", FakeFollower)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert cli.main(["logs", "j", "-f", "--address", "http://head:8265"]) == code
    stop = "speechsum stop j --address http://head:8265"
    assert (f"detached; j goes on. To end it: {stop}" in capsys.readouterr().err) == (code == 130)


NATIVE_HANG = """
import ctypes
from speechsum import cli, commands

def hang(options):
    lock = ctypes.create_string_buffer(256)  # a pthread mutex of its own kind, unlocked
    take = ctypes.CDLL(None).pthread_mutex_lock
    take(lock)
    print("hanging", flush=True)
    take(lock)

cli.INTERRUPT_GRACE_S = 0.1
commands.doctor = hang
raise SystemExit(cli.main(["doctor"]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the mutex that hangs is laid out as on Linux")
def test_ctrl_c_ends_even_native_code_that_never_returns() -> None:
    process = subprocess.Popen([sys.executable, "-c", NATIVE_HANG], text=True, stdout=-1, stderr=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == "hanging\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "speechsum: stopped" in error


def test_a_fault_of_ours_leaves_its_traceback_in_the_run(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_train(monkeypatch, ZeroDivisionError("ours"))
    assert cli.main(["train", str(recipe), "--run-dir", str(tmp_path / "run")]) == 1
    message = one_sentence(capsys)
    (log,) = (tmp_path / "run" / "logs").iterdir()
    assert str(log) in message
    assert "ZeroDivisionError: ours" in log.read_text()


def test_a_wrong_audio_path_is_told_before_a_model_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summarize", str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]) == 2
    message = one_sentence(capsys)
    assert "a.wav" in message
    assert "b.wav" in message


def test_summaries_as_json_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake_summarize(
        paths: list[Path], checkpoint: Path | None, instruction: str, max_tokens: int
    ) -> list[dict[str, str]]:
        return [{"audio": str(path), "summary": f"{instruction} {max_tokens} é"} for path in paths]

    fake_module(monkeypatch, "cluster.summarize", summarize=fake_summarize)
    recording = tmp_path / "a.wav"
    soundfile.write(recording, np.sin(np.arange(16_000) / 20) * 0.1, 16_000)
    assert cli.main(["summarize", str(recording), "--json", "--instruction", "Say", "--max-tokens", "5"]) == 0
    assert json.loads(capsys.readouterr().out) == {"audio": str(recording), "summary": "Say 5 é"}
    assert cli.main(["summarize", str(recording)]) == 0
    assert capsys.readouterr().out == f"{DEFAULT_INSTRUCTION} 64 é\n"


def test_eval_turns_its_options_into_configuration(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    fake_module(monkeypatch, "cluster.evaluate", evaluate_checkpoints=lambda *given: seen.append(given))
    data, out, model = tmp_path / "m.parquet", tmp_path / "o.json", tmp_path / "demo" / "model"
    data.touch()
    model.mkdir(parents=True)
    arguments = ["eval", "--checkpoint", str(model), "--data", str(data), "--out", str(out)]
    assert cli.main([*arguments, "--clips", "3", "--judge-path", "7b", "-o", "rollout.actors=2"]) == 0
    assert capsys.readouterr().out == f"wrote {out}, {out.with_suffix('.md')}, {out.with_suffix('.html')}\n"
    more = ["--checkpoint", f"base={tmp_path}", "--judge-recipe", str(recipe), "--players", "0"]
    assert cli.main([*arguments, *more, "-o", 'eval.controls=["no_audio"]']) == 0
    (checkpoints, manifest, written, config, *plain), (both, _, _, other, *options) = seen
    assert (checkpoints, manifest, written, plain) == ({"demo": model}, data, out, [3, 12, None])
    assert (config.judge.path, config.rollout.actors, config.eval.second_judge) == ("7b", 2, None)
    assert config.eval.controls == ("wrong_audio", "no_audio")
    assert (list(both.items()), options) == ([("demo", model), ("base", tmp_path)], [None, 0, None])
    assert other.eval.second_judge == load_recipe(recipe).judge
    assert other.eval.controls == ("no_audio",)


def test_asking_for_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    tally = SimpleNamespace(lines=lambda: ["3 kept"])
    fake_module(
        monkeypatch, "cluster.ask", AskOptions=lambda *given: given, ask=lambda *given: seen.append(given) or tally
    )
    out = tmp_path / "o.jsonl"
    arguments = ["data", "ask", "--data", "m.jsonl", "--out", str(out), "--model", "llm", "--per-clip", "2"]
    assert cli.main([*arguments, "--endpoint", "http://localhost:8000/v1", "--languages", "English,German"]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == (f"{out}\n", "3 kept\n")
    ((data, written, endpoint, cache, chosen, _),) = seen
    assert (data, written, cache) == (Path("m.jsonl"), out, tmp_path / "o.asked.sqlite")
    assert (endpoint.url, endpoint.model) == ("http://localhost:8000/v1", "llm")
    assert endpoint.api_key_env == "SPEECHSUM_ASK_API_KEY"
    assert chosen == (2, 4, 0, ("English", "German"), None)
    assert cli.main([*arguments, "--endpoint", "localhost:8000"]) == 2
    assert "--endpoint localhost:8000 is no address" in one_sentence(capsys)
    assert cli.main([*arguments, "--endpoint", "http://me:hunter2@localhost:8000"]) == 2
    assert "the endpoint's url carries a user name or password" in (told := one_sentence(capsys))
    assert "hunter2" not in told


def test_eval_takes_rows_and_what_they_need_from_a_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    fake_module(monkeypatch, "cluster.evaluate", evaluate_checkpoints=lambda *given: seen.append(given))
    fake_module(monkeypatch, "cluster.assets", trained_kinds=lambda config: frozenset({config.name}))
    data = tmp_path / "m.parquet"
    data.touch()
    arguments = ["eval", "--data", str(data), "--out", str(tmp_path / "o.json"), "--recipe", str(recipe)]
    assert cli.main([*arguments, "--rows", "text-mode, base"]) == 0
    ((checkpoints, _, _, config, *_, trained),) = seen
    assert (checkpoints, config.eval.rows) == ({}, ("text-mode", "base"))
    assert trained == {load_recipe(recipe).name}
    capsys.readouterr()
    assert cli.main(arguments) == 2
    assert "nothing to evaluate" in one_sentence(capsys)
    assert cli.main([*arguments, "--rows", "cascades"]) == 2
    assert "'cascade'" in one_sentence(capsys)


def test_eval_needs_a_judge_that_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairwise = ["-o", "judge.kind=pairwise", "-o", 'judge.endpoint={ url = "http://judge/v1", model = "big" }']
    arguments = ["eval", "--checkpoint", str(tmp_path), "--data", "m.jsonl", "--out", str(tmp_path / "o.json")]
    assert cli.main([*arguments, *pairwise]) == 2
    assert "judge.kind = 'pairwise' gives no summary a score" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("judge", "complaint"),
    [
        ('path = "teacher"', "judge.path = 'teacher' in {recipe}; name the folder of that judge there"),
        ('kind = "pairwise"\nendpoint = { url = "http://judge/v1", model = "big" }', "eval.second_judge.kind"),
    ],
)
def test_a_second_judge_that_could_not_score_is_refused_before_the_work(
    judge: str, complaint: str, recipe: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fake_module(monkeypatch, "cluster.evaluate", evaluate_checkpoints=lambda *given: pytest.fail("worked"))
    others = RECIPE.replace("[[stage]]", f'[eval]\nclips = 0\n[teacher]\npath = "starter"\n[judge]\n{judge}\n[[stage]]')
    recipe.write_text(others)
    paths = ["--checkpoint", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "o.json")]
    assert cli.main(["eval", *paths, "--judge-recipe", str(recipe)]) == 2
    assert complaint.format(recipe=recipe) in one_sentence(capsys)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["sft=a", "a"], {"sft": "a", "a": "a"}),
        (["odd=name"], {"odd=name": "odd=name"}),  # a folder that is there is a path
        (["a", "again=a", "x=odd=name"], {"a": "a", "again": "a", "x": "odd=name"}),
        ([" grpo =a/model", "a/model/"], {"grpo": "a/model", "a": "a/model"}),
    ],
)
def test_checkpoints_have_names(
    given: list[str], named: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a/model", "odd=name"):
        Path(folder).mkdir(parents=True)
    assert commands._named_checkpoints(given) == {name: Path(path) for name, path in named.items()}


@pytest.mark.parametrize(
    ("checkpoints", "out", "complaint"),
    [
        (["a", "b/../a"], "o.json", "two are called 'a'"),
        (["=a"], "o.json", "'=a' has no name"),
        (["x=nope"], "o.json", "nothing at nope"),
        (["a"], "o.html", "name the JSON file"),
        (["a"], "o.md", "name the JSON file"),
        (["a"], "taken.json", "taken.html cannot be written"),
    ],
)
def test_what_eval_refuses(
    checkpoints: list[str], out: str, complaint: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fake_module(monkeypatch, "cluster.evaluate", evaluate_checkpoints=lambda *given: pytest.fail("worked"))
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b", "taken.html"):
        Path(folder).mkdir()
    options = [part for checkpoint in checkpoints for part in ("--checkpoint", checkpoint)]
    assert cli.main(["eval", *options, "--data", ".", "--out", out]) == 2
    assert complaint in one_sentence(capsys)


@pytest.mark.parametrize("out", ["there", "there/file/o.json", ".", "/"])
def test_a_result_that_could_not_be_written_is_refused_before_the_work(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_module(monkeypatch, "cluster.evaluate", evaluate_checkpoints=lambda *given: pytest.fail("worked"))
    fake_module(monkeypatch, "cluster.score", score_file=lambda *given: pytest.fail("worked"))
    fake_module(monkeypatch, "cluster.audit", audit_file=lambda *given, **named: pytest.fail("worked"))
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    monkeypatch.chdir(tmp_path)
    for command in ("eval --checkpoint . --data . --out", "judge score --input . --output"):
        assert cli.main([*command.split(), out]) == 2
        assert "cannot be written" in one_sentence(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "--checkpoint", "nope", "--data", "m", "--out", "o"],
        ["judge", "score", "--input", "nope.jsonl", "--output", "o"],
        ["data", "check", "nope.jsonl"],
        ["bench", "--run-dir", "nope"],
        ["train", "x" * 300],
        ["train", "there.toml/x"],
        ["train", "recipe.toml", "--run-dir", "x" * 300],
        ["train", "recipe.toml", "--run-dir", "there.toml/x"],
        ["bench", "--run-dir", "x" * 300],
        ["data", "check", "x" * 300],
        ["timeline", "x" * 300],
        ["dashboard", "x" * 300],
        ["judge", "score", "--input", "x" * 300, "--output", "o"],
        ["judge", "audit", "--data", "nope.jsonl", "--out", "o.json"],
        ["judge", "audit", "--data", "there.toml", "--out", "o.txt"],
        ["judge", "audit", "--data", "there.toml", "--out", "there.toml/o.json"],
        ["judge", "audit", "--data", "there.toml", "--out", "folder.json"],
        ["judge", "audit", "--data", "there.toml", "--out", "o.json", "--recipe", "nope.toml"],
        ["data", "synth", "--out", "d", "--requests", "poem"],
    ],
)
def test_wrong_paths_and_names_are_the_users_mistakes(
    arguments: list[str], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("there.toml").touch()
    Path("recipe.toml").write_bytes(recipe.read_bytes())
    Path("folder.json").mkdir()
    assert cli.main(arguments) == 2
    one_sentence(capsys)


def test_judge_score_defaults_to_the_likelihood_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    fake_module(monkeypatch, "cluster.score", score_file=lambda *given: seen.append(given))
    (tmp_path / "x.jsonl").touch()
    assert (
        cli.main(["judge", "score", "--input", str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "y.jsonl")]) == 0
    )
    ((given, output, config),) = seen
    assert (given.name, output.name, config.judge.kind, config.judge.path) == (
        "x.jsonl",
        "y.jsonl",
        "likelihood",
        "starter",
    )


def test_judge_audit_passes_on_what_it_was_told(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    fake_module(monkeypatch, "cluster.audit", audit_file=lambda *given, **named: seen.append(given))
    data, out = tmp_path / "m.jsonl", tmp_path / "deep" / "audit.json"
    data.touch()
    arguments = ["judge", "audit", "--data", str(data), "--out", str(out)]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == f"wrote {out} and {out.with_suffix('.svg')}\n"
    more = ["--recipe", str(recipe), "--clips", "5", "--seed", "7", "-o", "judge.kind=lexical"]
    assert cli.main([*arguments, *more]) == 0
    (_, _, standalone, *plain), (given, written, config, clips, seed) = seen
    assert (standalone.name, standalone.judge.kind, plain) == ("standalone", "likelihood", [None, 0])
    assert (given, written, config.name, config.judge.kind, clips, seed) == (data, out, "tiny", "lexical", 5, 7)


def test_data_check_counts_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(32_000) / 20) * 0.1, 16_000)
    manifest = tmp_path / "m.jsonl"
    rows = [{"id": name, "audio": "a.wav", "instruction": "Summarize.", "reference": "A tone."} for name in "xy"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["data", "check", str(manifest)]) == 0
    out = capsys.readouterr().out
    assert "2 rows are fine (1 recordings; 0 with transcript, 2 with reference, 0 with facts)" in out
    assert cli.main(["data", "check", str(manifest), "--max-audio-s", "1.5"]) == 2
