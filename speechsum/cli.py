"""The command line. Imports nothing but the standard library until a command is chosen, so `--help` is instant.

Four kinds of end: a mistake of the user is one sentence and exit code 2, a run that cannot go on one sentence and 1,
a run that was asked to stop (SIGTERM) 75 once it has saved, anything else one sentence and 1 with the traceback in a
file that the sentence names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from speechsum import __version__
from speechsum.errors import RunError, StopAsked, UserError

if TYPE_CHECKING:
    from cluster.job_client import JobClient
    from speechsum.config import RunConfig
    from speechsum.data import PromptCheck

DEFAULT_INSTRUCTION = "Summarize what is said in one sentence."
INTERRUPTED = 130
STOPPED = os.EX_TEMPFAIL  # 75: what schedulers know as "try again", here "go on with --resume"
INTERRUPT_GRACE_S = 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. argparse itself exits with 2 on options it does not know."""
    options = _parser().parse_args(argv)
    try:
        with contextlib.nullcontext() if options.asks else _bounded_interrupt(lambda: _say_stopped(options)):
            return int(options.command(options))
    except UserError as error:
        return _complain(str(error), 2)
    except RunError as error:
        cause = f" (the whole story in {_write_traceback(options)})" if error.__cause__ else ""
        return _complain(f"{error}{cause}", 1)
    except (KeyboardInterrupt, StopAsked) as ending:
        _say_stopped(options)
        return STOPPED if isinstance(ending, StopAsked) else INTERRUPTED
    except BrokenPipeError:  # whoever read our output has seen enough; python would complain again on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the task's boundary
        log = _write_traceback(options)
        first = (str(error).strip() or "no message").splitlines()[0]
        hint = "; `speechsum doctor` shows what is missing" if isinstance(error, ImportError) else ""
        return _complain(f"{type(error).__name__}: {first}{hint} (traceback in {log})", 1)


def _complain(sentence: str, code: int) -> int:
    print(f"speechsum: error: {sentence}", file=sys.stderr)
    return code


def _say_stopped(options: argparse.Namespace) -> None:
    print(f"\nspeechsum: stopped; {_how_to_go_on(options)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _bounded_interrupt(last_words: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C ends the process within `INTERRUPT_GRACE_S`, even where native code never gives the main thread back.

    Ray waits for its own start in C++, where a KeyboardInterrupt cannot be raised. Python's C handler still writes the
    signal's number to the wake-up pipe, and a thread reads it. What Ray had started dies with this process.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    left = threading.Event()

    def insist() -> None:
        while number := os.read(read, 1):
            if number[0] == signal.SIGINT and not left.wait(INTERRUPT_GRACE_S):
                last_words()
                os._exit(INTERRUPTED)
        os.close(read)

    before = signal.set_wakeup_fd(write)
    threading.Thread(target=insist, name="interrupt", daemon=True).start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(write)


def _how_to_go_on(options: argparse.Namespace) -> str:
    run_dir: Path | None = getattr(options, "run_dir", None)
    recipe = getattr(options, "recipe", None)
    if options.command is not _train or run_dir is None or not (run_dir / "config.json").exists():
        return "run the same command to start again"
    command = ["speechsum", "train", str(recipe), "--run-dir", str(run_dir)]
    command += [part for override in options.override for part in ("-o", override)]
    command += ["--address", options.address] if options.address else []
    return f"go on from the last checkpoint with: {shlex.join([*command, '--resume'])}"


def _write_traceback(options: argparse.Namespace) -> Path:
    """Into the run's logs where there is a run, else into a temporary file."""
    run_dir: Path | None = getattr(options, "run_dir", None)
    logs = run_dir / "logs" if run_dir is not None else None
    folder = logs if logs is not None and logs.is_dir() and os.access(logs, os.W_OK) else None
    handle, name = tempfile.mkstemp(prefix="speechsum-error-", suffix=".log", dir=folder)
    with open(handle, "w", encoding="utf-8") as file:
        traceback.print_exc(file=file)
    return Path(name)


# --- options -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speechsum", description="Teach audio LLMs to summarise speech with reinforcement learning."
    )
    parser.add_argument("--version", action="version", version=f"speechsum {__version__}")
    parser.set_defaults(asks=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    doctor = commands.add_parser("doctor", help="check that this machine has what a run needs")
    doctor.set_defaults(command=_doctor)
    _add_data(commands)
    _add_train(commands)
    _add_jobs(commands)
    _add_eval(commands)
    _add_judge(commands)
    _add_summarize(commands)
    _add_k8s(commands)
    bench = commands.add_parser("bench", help="measure the parts: rollout speed, weight sync, prompt-once")
    bench.add_argument("--run-dir", type=Path, metavar="D", help="a run whose summary.json gets the figures")
    bench.add_argument("--only", metavar="NAME", help="run one benchmark")
    bench.set_defaults(command=_bench)
    return parser


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = commands.add_parser("data", help="make starter speech, or check a manifest")
    kinds = data.add_subparsers(metavar="COMMAND", required=True)
    synth = kinds.add_parser("synth", help="write a set of synthetic talks with requests and references")
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for audio and manifest")
    synth.add_argument("--clips", type=_positive, default=256, metavar="N", help="how many (default: %(default)s)")
    synth.add_argument("--seed", type=int, default=0, metavar="S", help="which set (default: %(default)s)")
    synth.add_argument("--held-out", action="store_true", help="patterns and voices that training never uses")
    synth.add_argument("--requests", type=_names, metavar="A,B", help="kinds of request (default: every summary kind)")
    synth.add_argument("--workers", type=_positive, default=2, metavar="N", help="processes (default: %(default)s)")
    synth.set_defaults(command=_data_synth)
    check = kinds.add_parser("check", help="list everything wrong with a manifest in one pass")
    check.add_argument("manifest", type=Path, metavar="MANIFEST", help=".parquet or .jsonl")
    check.add_argument("--root", type=Path, metavar="R", help="folder that no audio path may leave")
    check.add_argument("--recipe", type=Path, metavar="RECIPE", help="take root and audio limit from this recipe")
    check.add_argument("--max-audio-s", type=_positive_float, metavar="S", help="longest recording (default: 30)")
    check.set_defaults(command=_data_check)
    teach = kinds.add_parser("teach", help="let a text teacher write the references, from the transcripts")
    teach.add_argument("--recipe", type=Path, required=True, metavar="RECIPE", help="whose teacher it is")
    teach.add_argument("--data", type=Path, required=True, metavar="M", help="manifest with transcripts")
    teach.add_argument("--out", type=Path, required=True, metavar="M2", help="the manifest to write, beside the other")
    _add_override(teach)
    teach.set_defaults(command=_data_teach)


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = commands.add_parser("train", help="train by a recipe")
    train.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file such as recipes/demo.toml")
    _add_override(train)
    train.add_argument("--run-dir", type=Path, metavar="D", help="run folder (default: runs/<recipe name>-<time>)")
    train.add_argument("--address", metavar="A", help="a Ray cluster to join (default: start one here)")
    again = train.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the run folder's last checkpoint")
    again.add_argument("--overwrite", action="store_true", help="move an existing run aside and start anew")
    train.set_defaults(command=_train)


def _add_jobs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    submit = commands.add_parser("submit", help="train on a Ray cluster, as a job")
    submit.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file such as recipes/demo.toml")
    _add_override(submit)
    submit.add_argument(
        "--run-dir", type=Path, metavar="D", help="which the nodes share (default: ~/speechsum-runs/ID)"
    )
    submit.add_argument("--id", metavar="ID", help="the same again attaches (default: from recipe and code)")
    submit.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the run --id")
    submit.add_argument("--grace", type=_positive, default=300, metavar="S", help="to save when stopped (default: 300)")
    submit.add_argument("--follow", action="store_true", help="print the log, end with the driver's exit code")
    submit.add_argument("--dry-run", action="store_true", help="print what would be submitted, and do nothing")
    submit.set_defaults(command=_submit)
    status = commands.add_parser("status", help="list the jobs of a cluster, or describe one")
    status.add_argument("id", nargs="?", metavar="ID", help="one job")
    status.set_defaults(command=_status)
    logs = commands.add_parser("logs", help="print the log of a job")
    logs.add_argument("id", metavar="ID", help="the job")
    logs.add_argument("-f", "--follow", action="store_true", help="until it ends, with the driver's exit code")
    logs.set_defaults(command=_logs)
    stop = commands.add_parser("stop", help="let a job save a checkpoint and end")
    stop.add_argument("id", metavar="ID", help="the job")
    stop.add_argument("--grace", type=_positive, metavar="S", help="wait so long (default: what it was submitted with)")
    stop.set_defaults(command=_stop)
    for parser in (submit, status, logs, stop):
        parser.add_argument("--address", required=True, metavar="URL", help="the dashboard's, e.g. http://HEAD:8265")
        parser.set_defaults(asks=True)  # Ctrl-C may lead to a question, and nothing native runs that would ignore it


def _add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser("eval", help="measure checkpoints on held-out speech, with controls, side by side")
    evaluate.add_argument(
        "--checkpoint", action="append", required=True, metavar="[NAME=]P",
        help="exported checkpoint folder; again for another, each compared with the first",
    )  # fmt: skip
    evaluate.add_argument("--data", type=Path, required=True, metavar="M", help="manifest of held-out speech")
    evaluate.add_argument(
        "--out", type=Path, required=True, metavar="F.json", help="figures; F.md and F.html beside it"
    )
    evaluate.add_argument("--judge-path", metavar="P", help="causal LM of the likelihood judge (default: starter)")
    evaluate.add_argument(
        "--judge-recipe", type=Path, metavar="R", help="the judge of this recipe gives a second score"
    )
    evaluate.add_argument("--clips", type=_positive, metavar="N", help="at most so many items")
    evaluate.add_argument(
        "--players", type=_count, default=12, metavar="N", help="recordings to put into the page (default: %(default)s)"
    )
    _add_override(evaluate)
    evaluate.set_defaults(command=_eval)


def _add_judge(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    judge = commands.add_parser("judge", help="use a judge without training")
    kinds = judge.add_subparsers(metavar="COMMAND", required=True)
    score = kinds.add_parser("score", help="a row in, a row out: reward and breakdown, or null and why")
    score.add_argument("--input", type=Path, required=True, metavar="X.jsonl", help="transcript, instruction, summary")
    score.add_argument("--output", type=Path, required=True, metavar="Y.jsonl", help="where the judgements go")
    score.add_argument("--recipe", type=Path, metavar="RECIPE", help="take the judge from this recipe")
    _add_override(score)
    score.set_defaults(command=_judge_score)
    audit = kinds.add_parser("audit", help="can the judge tell true summaries from texts made wrong on purpose?")
    audit.add_argument("--data", type=Path, required=True, metavar="M", help="manifest with transcripts and references")
    audit.add_argument("--out", type=Path, required=True, metavar="F.json", help="figures; the picture is F.svg")
    audit.add_argument("--recipe", type=Path, metavar="RECIPE", help="take the judge from this recipe")
    audit.add_argument("--clips", type=_positive, metavar="N", help="at most so many items")
    audit.add_argument("--seed", type=int, default=0, metavar="S", help="which swaps (default: %(default)s)")
    _add_override(audit)
    audit.set_defaults(command=_judge_audit)


def _add_summarize(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summarize = commands.add_parser("summarize", help="summarise recordings")
    summarize.add_argument("audio", type=Path, nargs="+", metavar="AUDIO", help="recordings (WAV, FLAC, OGG, MP3)")
    summarize.add_argument("--checkpoint", type=Path, metavar="P", help="exported checkpoint (default: the starter)")
    summarize.add_argument("--instruction", default=DEFAULT_INSTRUCTION, metavar="T", help="default: %(default)s")
    summarize.add_argument("--json", action="store_true", help="a line of JSON for each recording")
    summarize.add_argument("--max-tokens", type=_positive, default=64, metavar="N", help="default: %(default)s")
    summarize.set_defaults(command=_summarize)


def _add_k8s(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    k8s = commands.add_parser("k8s", help="run on Kubernetes, by KubeRay")
    kinds = k8s.add_subparsers(metavar="COMMAND", required=True)
    render = kinds.add_parser("render", help="write the manifests of a run")
    render.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file such as recipes/demo.toml")
    render.add_argument(
        "--profile", type=Path, required=True, metavar="P", help="the cluster, such as recipes/profiles/kind.toml"
    )
    _add_override(render)
    render.add_argument("--out", default="-", metavar="DIR", help="folder for a file each (default: all to stdout)")
    render.set_defaults(command=_k8s_render)


def _add_override(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--override", action="append", default=[], metavar="K=V", help="set a key, e.g. stage.grpo.steps=20"
    )


def _positive(text: str) -> int:
    value = int(text) if text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _count(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


# --- commands ------------------------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace) -> int:
    from speechsum import doctor

    return doctor.run()


def _data_synth(options: argparse.Namespace) -> int:
    from speechsum.starter.speech import synthesize

    try:
        manifest = synthesize(
            options.out,
            clips=options.clips,
            seed=options.seed,
            held_out=options.held_out,
            kinds=options.requests,
            workers=options.workers,
            progress=lambda done, clips: print(f"spoken: {done} of {clips} clips", file=sys.stderr, flush=True),
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"cannot write to {options.out}: {error.strerror}; choose another --out") from error
    print(manifest)
    return 0


def _data_teach(options: argparse.Namespace) -> int:
    from cluster.teach import teach
    from speechsum.config import load_recipe

    teach(load_recipe(options.recipe, options.override), options.data, options.out)
    print(options.out)
    return 0


def _data_check(options: argparse.Namespace) -> int:
    from speechsum.audio import AudioLimits
    from speechsum.config import ModelConfig, load_recipe
    from speechsum.data import ManifestError, read_manifest

    recipe = load_recipe(options.recipe) if options.recipe else None
    root = options.root or (recipe.data.root if recipe else None)
    model = recipe.model if recipe else ModelConfig()
    limits = AudioLimits(max_s=options.max_audio_s or model.max_audio_s)
    check = _prompt_check(recipe) if recipe else None
    try:
        prompts = read_manifest(options.manifest, root=root, limits=limits, check_prompt=check)
    except ManifestError as error:
        raise UserError(error.text(shown=None)) from None
    recordings = len({prompt.audio.key for prompt in prompts})
    known = ", ".join(
        f"{sum(bool(getattr(prompt, name)) for prompt in prompts)} with {name}"
        for name in ("transcript", "reference", "facts")
    )
    print(f"{options.manifest}: {len(prompts)} rows are fine ({recordings} recordings; {known})")
    return 0


def _prompt_check(recipe: RunConfig) -> PromptCheck:
    """What `train` would ask of each row of the recipe's training data."""
    from cluster import assets

    checkpoint = assets.student_checkpoint(recipe.model.path, lambda text: print(text, file=sys.stderr))
    return assets.prompt_check(recipe, checkpoint, assets.training_needs(recipe))


def _train(options: argparse.Namespace) -> int:
    from speechsum.config import load_recipe
    from speechsum.report import print_summary

    config = load_recipe(options.recipe, options.override)
    if options.resume and options.run_dir is None:
        raise UserError("--resume needs --run-dir, the folder of the run to go on with")
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    options.run_dir = (options.run_dir or Path("runs") / f"{config.name}-{time}").expanduser().absolute()
    _refuse_early(config, options)
    _calm_threads()
    from cluster.train import run

    summary = run(config, options.run_dir, address=options.address, resume=options.resume, overwrite=options.overwrite)
    print_summary(summary)
    print(f"run folder: {options.run_dir}")
    return 0


def _refuse_early(config: RunConfig, options: argparse.Namespace) -> None:
    """A folder that cannot be used is told before the seconds that the heavy imports take."""
    from cluster.run_folder import RunFolder

    RunFolder(options.run_dir).check(config, resume=options.resume, overwrite=options.overwrite)


def _submit(options: argparse.Namespace) -> int:
    from cluster.job_client import check_address, connect
    from cluster.submit import describe, plan_job, send
    from speechsum.config import load_recipe

    check_address(options.address)
    job = plan_job(
        options.recipe, load_recipe(options.recipe, options.override), options.override,
        run=options.id, run_dir=options.run_dir, resume=options.resume, grace_s=options.grace,
    )  # fmt: skip
    if options.dry_run:
        print(f"would submit {describe(job, options.address)}")
        return 0
    client = connect(options.address)
    options.id, revision = send(client, job)
    print(f"submitted {options.id}" if revision is None else f"{options.id} is there already, of revision {revision}")
    if options.follow:
        return _follow(client, options)
    print(f"follow it with: {_job_command('logs', options)} -f", file=sys.stderr)
    return 0


def _status(options: argparse.Namespace) -> int:
    from cluster.job_client import connect
    from cluster.jobs import overview, status

    client = connect(options.address)
    print(status(client, options.id) if options.id else overview(client))
    return 0


def _logs(options: argparse.Namespace) -> int:
    from cluster.job_client import connect
    from cluster.jobs import logs

    client = connect(options.address)
    if options.follow:
        return _follow(client, options)
    print(logs(client, options.id), end="")
    return 0


def _stop(options: argparse.Namespace) -> int:
    from cluster.job_client import connect
    from cluster.jobs import stop

    code = stop(connect(options.address), options.id, options.grace)
    print(f"{options.id} ended with exit code {code}" + ("; go on with --resume" if code == STOPPED else ""))
    return 0 if code in (0, STOPPED) else 1


def _follow(client: JobClient, options: argparse.Namespace) -> int:
    """Print the job's log to its end. Ctrl-C asks on a terminal; without one it leaves the job alone."""
    from cluster.jobs import Follower

    def asks_to_stop() -> bool:
        print(file=sys.stderr)
        with contextlib.suppress(EOFError, KeyboardInterrupt):
            if sys.stdin.isatty() and input("[d]etach from the job, or [s]top it? ").strip().lower().startswith("s"):
                print("stopping: the step under way ends and a checkpoint is saved", file=sys.stderr)
                return True
        print(f"detached; {options.id} goes on. To end it: {_job_command('stop', options)}", file=sys.stderr)
        return False

    code = Follower(client, options.id, _write_now, asks_to_stop).run()
    if code != INTERRUPTED:
        print(f"{options.id} ended with exit code {code}", file=sys.stderr)
    return code


def _write_now(text: str) -> None:
    print(text, end="", flush=True)


def _job_command(name: str, options: argparse.Namespace) -> str:
    return shlex.join(["speechsum", name, options.id, "--address", options.address])


def _eval(options: argparse.Namespace) -> int:
    from speechsum.config import STANDALONE, load_recipe

    overrides = list(options.override)
    overrides += [] if options.judge_path is None else [f"judge.path={json.dumps(options.judge_path)}"]
    config = load_recipe(STANDALONE, overrides)
    if options.judge_recipe is not None:
        second = load_recipe(options.judge_recipe).judge
        config = config.model_copy(update={"eval": config.eval.model_copy(update={"second_judge": second})})
    checkpoints = _named_checkpoints(options.checkpoint)
    _must_exist(options.data, "--data")
    files = _report_files(options.out)
    _calm_threads()
    from cluster.evaluate import evaluate_checkpoints

    evaluate_checkpoints(checkpoints, options.data, options.out, config, options.clips, options.players)
    print(f"wrote {', '.join(map(str, files))}")
    return 0


def _named_checkpoints(texts: Sequence[str]) -> dict[str, Path]:
    """`NAME=PATH`, or a path that names itself by its folder; for a run's `model` that is the run."""
    named: dict[str, Path] = {}
    for text in texts:
        name, separator, rest = text.partition("=")
        plain = not separator or os.path.exists(text)
        path = Path(text if plain else rest)
        _must_exist(path, "--checkpoint")
        whole = path.absolute()
        name = (whole.parent.name if whole.name == "model" else whole.name) if plain else name.strip()
        if not name or name in named:
            what = f"two are called {name!r}" if name else f"{text!r} has no name"
            raise UserError(f"--checkpoint: {what}; write NAME=PATH with a name of its own for each")
        named[name] = path
    return named


def _report_files(out: Path) -> list[Path]:
    """The figures, the table and the page, none of which may take the place of another."""
    if out.suffix in (".md", ".html"):
        raise UserError(f"--out: {out} is where the table or the page goes; name the JSON file, such as F.json")
    files = [out, out.with_suffix(".md"), out.with_suffix(".html")]
    for file in files:
        _must_be_writable(file, "--out")
    return files


def _judge_score(options: argparse.Namespace) -> int:
    from speechsum.config import STANDALONE, load_recipe

    config = load_recipe(options.recipe or STANDALONE, options.override)
    _must_exist(options.input, "--input")
    _must_be_writable(options.output, "--output")
    _calm_threads()
    from cluster.score import score_file

    score_file(options.input, options.output, config)
    print(f"wrote {options.output}")
    return 0


def _judge_audit(options: argparse.Namespace) -> int:
    from speechsum.config import STANDALONE, load_recipe

    config = load_recipe(options.recipe or STANDALONE, options.override)
    if options.out.suffix != ".json":
        raise UserError(f"--out: {options.out} does not end in .json; the picture goes beside it as .svg")
    picture = options.out.with_suffix(".svg")
    _must_exist(options.data, "--data")
    _must_be_writable(options.out, "--out")
    _must_be_writable(picture, "--out")
    _calm_threads()
    from cluster.audit import audit_file

    audit_file(
        options.data, options.out, config, options.clips, options.seed,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(f"wrote {options.out} and {picture}")
    return 0


def _summarize(options: argparse.Namespace) -> int:
    _check_recordings(options.audio)
    if options.checkpoint is not None:
        _must_exist(options.checkpoint, "--checkpoint")
    _calm_threads()
    from cluster.summarize import summarize

    for row in summarize(options.audio, options.checkpoint, options.instruction, options.max_tokens):
        if options.json:
            print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            print(f"{row['audio']}: {row['summary']}" if len(options.audio) > 1 else row["summary"], flush=True)
    return 0


def _k8s_render(options: argparse.Namespace) -> int:
    from cluster.kuberay import profile, render
    from speechsum.config import load_recipe

    found = render.manifests(load_recipe(options.recipe, options.override), profile.load_profile(options.profile))
    if options.out == "-":
        print("---\n".join(map(render.as_yaml, found)), end="")
        return 0
    for path in render.write(found, Path(options.out)):
        print(path)
    return 0


def _bench(options: argparse.Namespace) -> int:
    if options.run_dir is not None:
        from cluster.run_folder import RunFolder

        options.run_dir = RunFolder.open(options.run_dir).path
    _calm_threads()
    from cluster.bench import run

    run(options.run_dir, options.only)
    return 0


def _check_recordings(paths: Sequence[Path]) -> None:
    """All recordings that are no good are told at once, before a model loads."""
    from speechsum.audio import AudioError, AudioLimits, inspect_audio
    from speechsum.config import ModelConfig
    from speechsum.types import AudioRef

    problems: list[str] = []
    for path in paths:
        try:
            inspect_audio(AudioRef(str(path.absolute())), AudioLimits(max_s=ModelConfig().max_audio_s))
        except AudioError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))


def _must_exist(path: Path, option: str) -> None:
    if not os.path.exists(path):  # unlike pathlib's, it takes a name that is too long for a missing one
        raise UserError(f"{option}: there is nothing at {path}; correct the path")


def _must_be_writable(path: Path, option: str) -> None:
    """Told before the work whose result would be lost."""
    folder = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if os.path.isdir(path) or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option}: {path} cannot be written; name a file in a folder that can")


def _calm_threads() -> None:
    """Idle OpenMP threads must sleep: processes that spin on shared cores run at a tenth of their speed.

    Read by the libraries when they load, and inherited by every process that is started from here.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


if __name__ == "__main__":
    sys.exit(main())
