"""The options of the command line, and which function of `speechsum.commands` each command runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from speechsum import __version__, commands

DEFAULT_INSTRUCTION = "Summarize what is said in one sentence."


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options; `options.command` is the function of `speechsum.commands` that runs it."""
    parser = argparse.ArgumentParser(
        prog="speechsum", description="Teach audio LLMs to summarise speech with reinforcement learning."
    )
    parser.add_argument("--version", action="version", version=f"speechsum {__version__}")
    parser.set_defaults(asks=False)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    doctor = subparsers.add_parser("doctor", help="check that this machine has what a run needs")
    doctor.set_defaults(command=commands.doctor)
    _add_data(subparsers)
    _add_train(subparsers)
    _add_jobs(subparsers)
    _add_eval(subparsers)
    _add_judge(subparsers)
    _add_summarize(subparsers)
    _add_k8s(subparsers)
    _add_dashboard(subparsers)
    _add_timeline(subparsers)
    bench = subparsers.add_parser("bench", help="measure the parts: rollout speed, weight sync, prompt-once")
    bench.add_argument("--run-dir", type=Path, metavar="D", help="a run whose summary.json gets the figures")
    bench.add_argument("--only", metavar="NAME", help="run one benchmark")
    bench.set_defaults(command=commands.bench)
    return parser


def _add_data(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    data = subparsers.add_parser("data", help="make starter speech, or check, build and rewrite manifests")
    kinds = data.add_subparsers(metavar="COMMAND", required=True)
    synth = kinds.add_parser("synth", help="write a set of synthetic talks with requests and references")
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for audio and manifest")
    synth.add_argument("--clips", type=_positive, default=256, metavar="N", help="how many (default: %(default)s)")
    synth.add_argument("--seed", type=int, default=0, metavar="S", help="which set (default: %(default)s)")
    synth.add_argument("--held-out", action="store_true", help="patterns and voices that training never uses")
    synth.add_argument("--requests", type=_names, metavar="A,B", help="kinds of request (default: every summary kind)")
    synth.add_argument("--workers", type=_positive, default=2, metavar="N", help="processes (default: %(default)s)")
    synth.set_defaults(command=commands.data_synth)
    check = kinds.add_parser("check", help="list everything wrong with a manifest in one pass")
    check.add_argument("manifest", type=Path, metavar="MANIFEST", help=".parquet or .jsonl")
    check.add_argument("--root", type=Path, metavar="R", help="folder that no audio path may leave")
    check.add_argument("--recipe", type=Path, metavar="RECIPE", help="take root and audio limit from this recipe")
    check.add_argument("--max-audio-s", type=_positive_float, metavar="S", help="longest recording (default: 30)")
    check.set_defaults(command=commands.data_check)
    teach = kinds.add_parser("teach", help="let a text teacher write the references, from the transcripts")
    teach.add_argument("--recipe", type=Path, required=True, metavar="RECIPE", help="whose teacher it is")
    teach.add_argument("--data", type=Path, required=True, metavar="M", help="manifest with transcripts")
    teach.add_argument("--out", type=Path, required=True, metavar="M2", help="the manifest to write, beside the other")
    _add_override(teach)
    teach.set_defaults(command=commands.data_teach)
    _add_ask(kinds)
    _add_build(kinds)


def _add_build(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = kinds.add_parser("build", help="write manifests of a published corpus, from a local copy of it")
    corpora = build.add_subparsers(metavar="CORPUS", required=True)
    ami = corpora.add_parser("ami-qmsum", help="QMSum's queries about stretches of AMI's meetings")
    ami.add_argument("--ami", type=Path, required=True, metavar="DIR", help="headset mixes and manual annotations")
    ami.add_argument("--qmsum", type=Path, required=True, metavar="DIR", help="clone of github.com/Yale-LILY/QMSum")
    ami.set_defaults(command=commands.data_build_ami_qmsum)
    floras = corpora.add_parser("floras", help="FLORAS, summaries of recordings in many languages")
    floras.add_argument("--floras", type=Path, required=True, metavar="DIR", help="copy of espnet/floras")
    floras.add_argument("--languages", type=_names, default=(), metavar="A,B", help="as FLORAS has them (default: all)")
    floras.set_defaults(command=commands.data_build_floras)
    for corpus in (ami, floras):
        corpus.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for audio and manifests")
        corpus.add_argument(
            "--max-audio-s", type=_positive_float, default=300.0, metavar="S",
            help="longest recording; longer ones are left out, not cut (default: %(default)g)",
        )  # fmt: skip


def _add_ask(kinds: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ask = kinds.add_parser("ask", help="many requests about each recording, by a language model that reads transcripts")
    ask.add_argument("--data", type=Path, required=True, metavar="M", help="manifest with transcripts")
    ask.add_argument("--out", type=Path, required=True, metavar="M2", help="the manifest to write, beside the other")
    ask.add_argument("--endpoint", required=True, metavar="URL", help="OpenAI-compatible, such as http://host:8000/v1")
    ask.add_argument("--model", required=True, metavar="NAME", help="as the endpoint lists it")
    ask.add_argument("--per-clip", type=_positive, default=4, metavar="N", help="requests (default: %(default)s)")
    ask.add_argument(
        "--least", type=int, choices=range(1, 6), default=4, metavar="N",
        help="of importance and of answered, from 1 to 5, to be kept (default: %(default)s)",
    )  # fmt: skip
    ask.add_argument("--languages", type=_names, default=(), metavar="A,B", help="to ask for answers in, in turn")
    ask.add_argument("--seed", type=int, default=0, metavar="S", help="which styles (default: %(default)s)")
    ask.add_argument("--root", type=Path, metavar="R", help="folder that no audio path may leave")
    ask.add_argument("--cache", type=Path, metavar="F", help="what was answered (default: beside M2, .asked.sqlite)")
    ask.add_argument("--concurrency", type=_positive, default=16, metavar="N", help="calls (default: %(default)s)")
    ask.add_argument(
        "--api-key-env", default="SPEECHSUM_ASK_API_KEY", metavar="V", help="variable with the key (%(default)s)"
    )
    ask.set_defaults(command=commands.data_ask)


def _add_train(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = subparsers.add_parser("train", help="train by a recipe")
    train.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file such as recipes/demo.toml")
    _add_override(train)
    train.add_argument("--run-dir", type=Path, metavar="D", help="run folder (default: runs/<recipe name>-<time>)")
    train.add_argument("--address", metavar="A", help="a Ray cluster to join (default: start one here)")
    again = train.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the run folder's last checkpoint")
    again.add_argument("--overwrite", action="store_true", help="move an existing run aside and start anew")
    train.set_defaults(command=commands.train)


def _add_jobs(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    submit = subparsers.add_parser("submit", help="train on a Ray cluster, as a job")
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
    submit.set_defaults(command=commands.submit)
    status = subparsers.add_parser("status", help="list the jobs of a cluster, or describe one")
    status.add_argument("id", nargs="?", metavar="ID", help="one job")
    status.set_defaults(command=commands.status)
    logs = subparsers.add_parser("logs", help="print the log of a job")
    logs.add_argument("id", metavar="ID", help="the job")
    logs.add_argument("-f", "--follow", action="store_true", help="until it ends, with the driver's exit code")
    logs.set_defaults(command=commands.logs)
    stop = subparsers.add_parser("stop", help="let a job save a checkpoint and end")
    stop.add_argument("id", metavar="ID", help="the job")
    stop.add_argument("--grace", type=_positive, metavar="S", help="wait so long (default: what it was submitted with)")
    stop.set_defaults(command=commands.stop)
    for parser in (submit, status, logs, stop):
        parser.add_argument("--address", required=True, metavar="URL", help="the dashboard's, e.g. http://HEAD:8265")
        parser.set_defaults(asks=True)  # Ctrl-C may lead to a question, and nothing native runs that would ignore it


def _add_eval(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = subparsers.add_parser("eval", help="measure checkpoints on held-out speech, with controls, side by side")
    evaluate.add_argument(
        "--checkpoint", action="append", default=[], metavar="[NAME=]P",
        help="exported checkpoint folder; again for another, each compared with the first",
    )  # fmt: skip
    evaluate.add_argument("--data", type=Path, required=True, metavar="M", help="manifest of held-out speech")
    evaluate.add_argument(
        "--out", type=Path, required=True, metavar="F.json", help="figures; F.md and F.html beside it"
    )
    evaluate.add_argument(
        "--rows",
        type=_names,
        metavar="A,B",
        help="beside them: text-mode, cascade, teacher, base (the recipe's student)",
    )
    evaluate.add_argument(
        "--recipe", type=Path, metavar="RECIPE", help="take judge, teacher, student and evaluation from this recipe"
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
    evaluate.set_defaults(command=commands.evaluate)


def _add_judge(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    judge = subparsers.add_parser("judge", help="use a judge without training")
    kinds = judge.add_subparsers(metavar="COMMAND", required=True)
    score = kinds.add_parser("score", help="a row in, a row out: reward and breakdown, or null and why")
    score.add_argument(
        "--input", type=Path, required=True, metavar="X.jsonl",
        help="transcript, instruction, summary; and other, to compare with",
    )  # fmt: skip
    score.add_argument("--output", type=Path, required=True, metavar="Y.jsonl", help="where the judgements go")
    score.add_argument("--recipe", type=Path, metavar="RECIPE", help="take the judge from this recipe")
    _add_override(score)
    score.set_defaults(command=commands.judge_score)
    audit = kinds.add_parser("audit", help="can the judge tell true summaries from texts made wrong on purpose?")
    audit.add_argument("--data", type=Path, required=True, metavar="M", help="manifest with transcripts and references")
    audit.add_argument("--out", type=Path, required=True, metavar="F.json", help="figures; the picture is F.svg")
    audit.add_argument("--recipe", type=Path, metavar="RECIPE", help="take the judge from this recipe")
    audit.add_argument("--clips", type=_positive, metavar="N", help="at most so many items")
    audit.add_argument("--seed", type=int, default=0, metavar="S", help="which swaps (default: %(default)s)")
    _add_override(audit)
    audit.set_defaults(command=commands.judge_audit)


def _add_summarize(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summarize = subparsers.add_parser("summarize", help="summarise recordings")
    summarize.add_argument("audio", type=Path, nargs="+", metavar="AUDIO", help="recordings (WAV, FLAC, OGG, MP3)")
    summarize.add_argument("--checkpoint", type=Path, metavar="P", help="exported checkpoint (default: the starter)")
    summarize.add_argument("--instruction", default=DEFAULT_INSTRUCTION, metavar="T", help="default: %(default)s")
    summarize.add_argument("--json", action="store_true", help="a line of JSON for each recording")
    summarize.add_argument("--max-tokens", type=_positive, default=64, metavar="N", help="default: %(default)s")
    summarize.set_defaults(command=commands.summarize)


def _add_k8s(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    k8s = subparsers.add_parser("k8s", help="run on Kubernetes, by KubeRay")
    kinds = k8s.add_subparsers(metavar="COMMAND", required=True)
    render = kinds.add_parser("render", help="write the manifests of a run")
    render.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file such as recipes/demo.toml")
    render.add_argument(
        "--profile", type=Path, required=True, metavar="P", help="the cluster, such as recipes/profiles/kind.toml"
    )
    _add_override(render)
    render.add_argument("--out", default="-", metavar="DIR", help="folder for a file each (default: all to stdout)")
    render.set_defaults(command=commands.k8s_render)


def _add_dashboard(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dashboard = subparsers.add_parser("dashboard", help="a page of runs, live: curves, summaries side by side, audio")
    dashboard.add_argument(
        "runs", type=Path, nargs="*", default=[Path("runs")], metavar="RUN",
        help="run folders, or folders of them (default: runs)",
    )  # fmt: skip
    dashboard.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to listen on (default: this machine's own)"
    )
    dashboard.add_argument(
        "--port", type=_count, default=8280, metavar="P", help="0: any free one (default: %(default)s)"
    )
    dashboard.add_argument("--token", metavar="T", help="to be asked for (default: $SPEECHSUM_DASHBOARD_TOKEN)")
    dashboard.set_defaults(command=commands.dashboard)
    dashboard.set_defaults(asks=True)  # the server answers Ctrl-C itself, and nothing native runs that would not


def _add_timeline(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    timeline = subparsers.add_parser("timeline", help="who was at work when, as a Chrome trace of some steps")
    timeline.add_argument("run", type=Path, metavar="RUN", help="run folder, of a run that goes on or has ended")
    timeline.add_argument("--out", type=Path, metavar="F", help="the trace (default: RUN/timeline.json)")
    timeline.add_argument("--stage", metavar="NAME", help="stage of the recipe (default: the latest)")
    timeline.add_argument("--first", type=_positive, metavar="STEP", help="first step (default: the last ones)")
    timeline.add_argument("--steps", type=_positive, default=10, metavar="N", help="how many (default: %(default)s)")
    timeline.set_defaults(command=commands.timeline)


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
