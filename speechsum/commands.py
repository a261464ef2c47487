"""What each command does, from its parsed options to its exit code. Everything heavy is imported by who needs it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from speechsum.errors import INTERRUPTED, STOPPED, UserError

if TYPE_CHECKING:
    from cluster.job_client import JobClient
    from speechsum.config import RunConfig
    from speechsum.corpora.output import Say, Split
    from speechsum.data import PromptCheck


def doctor(options: argparse.Namespace) -> int:
    """`speechsum doctor`."""
    from speechsum import doctor

    return doctor.run()


def data_synth(options: argparse.Namespace) -> int:
    """`speechsum data synth`."""
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


def data_teach(options: argparse.Namespace) -> int:
    """`speechsum data teach`."""
    from speechsum.config import load_recipe

    config = load_recipe(options.recipe, options.override)
    _must_be_writable(options.out, "--out")
    stay_on_this_machine()
    from cluster.teach import teach

    teach(config, options.data, options.out, lambda text: print(text, file=sys.stderr, flush=True))
    print(options.out)
    return 0


def data_ask(options: argparse.Namespace) -> int:
    """`speechsum data ask`."""
    from speechsum.config import EndpointConfig, validated

    if not options.endpoint.startswith(("http://", "https://")):
        raise UserError(f"--endpoint {options.endpoint} is no address; write one like http://host:8000/v1")
    _must_be_writable(options.out, "--out")
    asked = {"url": options.endpoint, "model": options.model, "api_key_env": options.api_key_env}
    endpoint = validated(EndpointConfig, asked | {"concurrency": options.concurrency}, "speechsum data ask")
    cache = options.cache or options.out.with_suffix(".asked.sqlite")
    from cluster.ask import AskOptions, ask

    chosen = AskOptions(options.per_clip, options.least, options.seed, tuple(options.languages), options.root)
    tally = ask(options.data, options.out, endpoint, cache, chosen, lambda text: print(text, file=sys.stderr))
    print("\n".join(tally.lines()), file=sys.stderr)
    print(options.out)
    return 0


def data_build_ami_qmsum(options: argparse.Namespace) -> int:
    """`speechsum data build ami-qmsum`."""
    from speechsum.corpora.ami_qmsum import build

    return _built(options, lambda say: build(options.ami, options.qmsum, options.out, options.max_audio_s, say))


def data_build_floras(options: argparse.Namespace) -> int:
    """`speechsum data build floras`."""
    from speechsum.corpora.floras import build

    return _built(options, lambda say: build(options.floras, options.out, options.max_audio_s, options.languages, say))


def _built(options: argparse.Namespace, build: Callable[[Say], list[Split]]) -> int:
    try:
        splits = build(lambda text: print(text, file=sys.stderr, flush=True))
    except OSError as error:
        raise UserError(f"{error.filename or options.out}: {error.strerror}; mend that, and start again") from error
    print("\n".join(split.line() for split in splits), file=sys.stderr)
    print(options.out)
    return 0


def data_check(options: argparse.Namespace) -> int:
    """`speechsum data check`."""
    from speechsum.audio import AudioLimits
    from speechsum.config import ModelConfig, load_recipe
    from speechsum.data import ManifestError, read_manifest

    recipe = load_recipe(options.recipe) if options.recipe else None
    root = options.root or (recipe.data.root if recipe else None)
    model = recipe.model if recipe else ModelConfig()
    limits = AudioLimits(max_s=options.max_audio_s or model.max_audio_s)
    check = _prompt_check(recipe, options.manifest) if recipe else None
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


def _prompt_check(recipe: RunConfig, manifest: Path) -> PromptCheck:
    """What `train` would ask of each row: of held-out data, if the manifest is the recipe's, else of training data."""
    from cluster import assets

    checkpoint = assets.student_checkpoint(recipe.model.path, lambda text: print(text, file=sys.stderr))
    held_out = Path(recipe.data.eval).absolute() == manifest.absolute()
    needs = assets.EVAL_NEEDS if held_out else assets.training_needs(recipe)
    return assets.prompt_check(recipe, checkpoint, needs)


def train(options: argparse.Namespace) -> int:
    """`speechsum train`."""
    from speechsum.config import load_recipe
    from speechsum.report import print_summary

    config = load_recipe(options.recipe, options.override)
    if options.resume and options.run_dir is None:
        raise UserError("--resume needs --run-dir, the folder of the run to go on with")
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    options.run_dir = (options.run_dir or Path("runs") / f"{config.name}-{time}").expanduser().absolute()
    _refuse_early(config, options)
    calm_threads()
    if options.address is None:
        stay_on_this_machine()
    from cluster.train import run

    summary = run(config, options.run_dir, address=options.address, resume=options.resume, overwrite=options.overwrite)
    print_summary(summary)
    print(f"run folder: {options.run_dir}")
    return 0


def _refuse_early(config: RunConfig, options: argparse.Namespace) -> None:
    """A folder that cannot be used is told before the seconds that the heavy imports take."""
    from cluster.run_folder import RunFolder

    RunFolder(options.run_dir).check(config, resume=options.resume, overwrite=options.overwrite)


def submit(options: argparse.Namespace) -> int:
    """`speechsum submit`."""
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


def status(options: argparse.Namespace) -> int:
    """`speechsum status`."""
    from cluster.job_client import connect
    from cluster.jobs import overview, status

    client = connect(options.address)
    print(status(client, options.id) if options.id else overview(client))
    return 0


def logs(options: argparse.Namespace) -> int:
    """`speechsum logs`."""
    from cluster.job_client import connect
    from cluster.jobs import logs

    client = connect(options.address)
    if options.follow:
        return _follow(client, options)
    print(logs(client, options.id), end="")
    return 0


def stop(options: argparse.Namespace) -> int:
    """`speechsum stop`."""
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


def evaluate(options: argparse.Namespace) -> int:
    """`speechsum eval`."""
    from speechsum.config import BASE, STANDALONE, load_recipe

    overrides = list(options.override)
    overrides += [] if options.judge_path is None else [f"judge.path={json.dumps(options.judge_path)}"]
    overrides += [] if options.rows is None else [f"eval.rows={json.dumps(options.rows)}"]
    config = load_recipe(options.recipe or STANDALONE, overrides)
    if options.judge_recipe is not None:
        config = _with_second_judge(config, options.judge_recipe)
    if config.judge.kind == "pairwise":
        raise UserError("judge.kind = 'pairwise' gives no summary a score, which eval needs; set it to 'rubric'")
    checkpoints = _named_checkpoints(options.checkpoint)
    if not checkpoints and BASE not in config.eval.rows:
        raise UserError(
            "there is nothing to evaluate; name a --checkpoint, or ask for the recipe's own with --rows base"
        )
    _must_exist(options.data, "--data")
    files = _report_files(options.out)
    calm_threads()
    stay_on_this_machine()
    from cluster.assets import trained_kinds
    from cluster.evaluate import evaluate_checkpoints

    trained = trained_kinds(config) if options.recipe else None
    evaluate_checkpoints(checkpoints, options.data, options.out, config, options.clips, options.players, trained)
    print(f"wrote {', '.join(map(str, files))}")
    return 0


def _with_second_judge(config: RunConfig, recipe: Path) -> RunConfig:
    """`config` with the judge of another `recipe` beside its own; a teacher does not come along."""
    from speechsum.config import TEACHER, load_recipe, parse

    judge = load_recipe(recipe).judge
    if judge.kind == "likelihood" and judge.path == TEACHER:
        raise UserError(f"--judge-recipe: judge.path = 'teacher' in {recipe}; name the folder of that judge there")
    tree = config.model_dump()
    tree["eval"]["second_judge"] = judge.model_dump()
    return parse(tree, source=f"--judge-recipe {recipe}")


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
    _must_be_writable(out, "--out")
    beside = [out.with_suffix(".md"), out.with_suffix(".html")]
    for file in beside:
        _must_be_writable(file, "--out")
    return [out, *beside]


def judge_score(options: argparse.Namespace) -> int:
    """`speechsum judge score`."""
    from speechsum.config import STANDALONE, load_recipe

    config = load_recipe(options.recipe or STANDALONE, options.override)
    _must_exist(options.input, "--input")
    _must_be_writable(options.output, "--output")
    calm_threads()
    from cluster.score import score_file

    score_file(options.input, options.output, config)
    print(f"wrote {options.output}")
    return 0


def judge_audit(options: argparse.Namespace) -> int:
    """`speechsum judge audit`."""
    from speechsum.config import STANDALONE, load_recipe

    config = load_recipe(options.recipe or STANDALONE, options.override)
    if options.out.suffix != ".json":
        raise UserError(f"--out: {options.out} does not end in .json; the picture goes beside it as .svg")
    picture = options.out.with_suffix(".svg")
    _must_exist(options.data, "--data")
    _must_be_writable(options.out, "--out")
    _must_be_writable(picture, "--out")
    calm_threads()
    from cluster.audit import audit_file

    audit_file(
        options.data, options.out, config, options.clips, options.seed,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(f"wrote {options.out} and {picture}")
    return 0


def summarize(options: argparse.Namespace) -> int:
    """`speechsum summarize`."""
    if options.checkpoint is not None:
        _must_exist(options.checkpoint, "--checkpoint")
    calm_threads()
    from cluster.summarize import summarize

    for row in summarize(options.audio, options.checkpoint, options.instruction, options.max_tokens):
        if options.json:
            print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            print(f"{row['audio']}: {row['summary']}" if len(options.audio) > 1 else row["summary"], flush=True)
    return 0


def k8s_render(options: argparse.Namespace) -> int:
    """`speechsum k8s render`."""
    from cluster.kuberay import profile, render
    from speechsum.config import load_recipe

    found = render.manifests(load_recipe(options.recipe, options.override), profile.load_profile(options.profile))
    if options.out == "-":
        print("---\n".join(map(render.as_yaml, found)), end="")
        return 0
    for path in render.write(found, Path(options.out)):
        print(path)
    return 0


def dashboard(options: argparse.Namespace) -> int:
    """`speechsum dashboard`."""
    from cluster.dashboard.server import serve

    token = options.token if options.token is not None else os.environ.get("SPEECHSUM_DASHBOARD_TOKEN", "")
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        serve(options.runs, options.host, options.port, token, _write_line)
    return 0


def timeline(options: argparse.Namespace) -> int:
    """`speechsum timeline`."""
    from cluster.timeline import write_timeline

    out = options.out or options.run / "timeline.json"
    _must_be_writable(out, "--out")
    print(write_timeline(options.run, out, stage=options.stage, first=options.first, steps=options.steps))
    return 0


def _write_line(text: str) -> None:
    print(text, flush=True)


def bench(options: argparse.Namespace) -> int:
    """`speechsum bench`."""
    if options.run_dir is not None:
        from cluster.run_folder import RunFolder

        options.run_dir = RunFolder.open(options.run_dir).path
    calm_threads()
    stay_on_this_machine()
    from cluster.bench import run

    run(options.run_dir, options.only)
    return 0


def _must_exist(path: Path, option: str) -> None:
    if not os.path.exists(path):  # unlike pathlib's, it takes a name that is too long for a missing one
        raise UserError(f"{option}: there is nothing at {path}; correct the path")


def _must_be_writable(path: Path, option: str) -> None:
    """Told before the work whose result would be lost."""
    folder = next((parent for parent in path.absolute().parents if os.path.exists(parent)), path)  # "/" has none
    if os.path.isdir(path) or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option}: {path} cannot be written; name a file in a folder that can")


def calm_threads() -> None:
    """Idle OpenMP threads must sleep: processes that spin on shared cores run at a tenth of their speed.

    Read by the libraries when they load, and inherited by every process that is started from here.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KMP_BLOCKTIME", "0")


def stay_on_this_machine() -> None:
    """A Ray that is started from here listens on loopback alone, asks for a token, and reports to nobody.

    Read when Ray is imported; `cluster.runtime` says more.
    """
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
