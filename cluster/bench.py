"""`speechsum bench`: the figures this project claims, each a ratio or a sum measured within one run.

Prints a table and, given a run folder, adds the figures to its `summary.json`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich import box
from rich.console import Console
from rich.table import Table

from actors.baseline import BareEngine
from actors.rollout import BASE_VERSION
from cluster import assets
from cluster.calls import environment, fetch, wait_until_loaded
from cluster.elastic import START_TIMEOUT_S
from cluster.memory import MemoryWatch
from cluster.pools import RolloutPool
from cluster.ranks import LearnerGroup
from cluster.run_folder import RunFolder
from cluster.runtime import ray_session
from cluster.screen import Screen, screen_for
from speechsum.audio import SAMPLE_RATE, AudioLimits, load_audio
from speechsum.batching import make_batch
from speechsum.config import STANDALONE, OptimizerConfig, RunConfig, load_recipe, parse
from speechsum.data import Draw
from speechsum.errors import UserError
from speechsum.families import FAMILIES
from speechsum.objectives import SftLoss
from speechsum.prompting import PromptBuilder
from speechsum.types import AudioRef, Completion, PushMode, SamplingParams, TrainingSample, TrajectoryGroup, read_only

REPEATS = 3
PUSH_WARM_UPS = 2  # a pool keeps the last payload for who joins, so pushes take turns at two places in the store
PUSH_PAUSE_S = 2.0
ROLLOUT_PROMPTS = 8
ROLLOUT_TOKENS = 24  # a summary of the starter is that long
WARM_UP_TOKENS = 4
PROMPT_ONCE_GROUP = 8
PROMPT_ONCE_AUDIO_S = 30
PROMPT_ONCE_TOKENS = 48
PROMPT_ONCE_REPEATS = 3


def run(run_dir: Path | None, only: str | None) -> dict[str, Any]:
    """Run the benchmarks (or the one named `only`), print them, and add them to the run's summary."""
    benches = {"rollout": bench_rollout, "sync": bench_sync, "prompt_once": bench_prompt_once}
    if only is not None and only not in benches:
        raise UserError(f"--only {only!r} is no benchmark; choose from {', '.join(benches)}")
    folder = RunFolder.open(run_dir) if run_dir else None
    summary = folder.read_summary() if folder else {}
    config = parse(json.loads(folder.config.read_text()), str(folder.config)) if folder else load_recipe(STANDALONE)
    figures: dict[str, Any] = {}
    console = Console()
    with (
        closing(screen_for(console)) as screen, MemoryWatch() as memory, ray_session(None, memory, screen.status)
    ):  # fmt: skip
        for name in [only] if only else list(benches):
            figures[name] = benches[name](config, partial(_say, screen, name))
            console.print(_table(name, figures[name]))
    if folder:
        folder.write_summary(_merged(summary, figures))
    return figures


def _merged(summary: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    """The summary with `rollout_vs_vllm` and `sync` filled in and the rest under `bench`."""
    if "rollout" in figures:
        summary["rollout_vs_vllm"] = figures["rollout"]["ratio"]
    if "sync" in figures:
        summary["sync"] = (summary.get("sync") or {}) | figures["sync"]
    return summary | {"bench": (summary.get("bench") or {}) | figures}


def bench_rollout(config: RunConfig, say: assets.Say) -> dict[str, float]:
    """Tokens/s of a RolloutActor, audio opened and results returned through Ray, against `vllm.LLM.generate` alone.

    Same prompts, samples, engine settings and weights; both engines loaded and warm; they take turns, caches dropped
    before every turn, and the ratio is that of the medians.
    """
    checkpoint = assets.student_checkpoint(config.model.path, say)
    prompts = assets.train_prompts(config, checkpoint, say)[:ROLLOUT_PROMPTS]
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"actors": 1, "pool": None})})
    group = max(s.group_size for s in config.stage)
    sampling = SamplingParams(n=group, temperature=1.0, max_tokens=ROLLOUT_TOKENS, seed=1)
    warm_up = replace(sampling, max_tokens=WARM_UP_TOKENS)
    say("starting the rollout actor and a bare vLLM")
    pool = RolloutPool(config, checkpoint)
    options = {"num_cpus": 0, "num_gpus": config.rollout.gpus_per_actor,
               "runtime_env": environment(config.rollout.engine.threads)}  # fmt: skip
    actor: Any = BareEngine
    bare = actor.options(**options).remote(str(checkpoint), config.model, config.rollout.engine, prompts)
    try:
        wait_until_loaded([pool])
        fetch(bare.ready.remote(), START_TIMEOUT_S)
        say("they take turns")
        draws = [Draw(0, p) for p in prompts]
        ours: list[float] = []
        theirs: list[float] = []
        for turn in [warm_up, *[sampling] * REPEATS]:
            pool.reset_caches()
            started = time.perf_counter()
            rolled = pool.generate_all(draws, turn, "bench", BASE_VERSION)
            seconds = time.perf_counter() - started
            tokens = sum(len(t.token_ids) for g in rolled if isinstance(g, TrajectoryGroup) for t in g.trajectories)
            rate = fetch(bare.tokens_per_s.remote(turn))
            if turn is not warm_up:
                ours.append(tokens / seconds)
                theirs.append(rate)
    finally:
        pool.close()
        ray.kill(bare)
    medians = statistics.median(ours), statistics.median(theirs)
    return {"rollout_tokens_per_s": medians[0], "vllm_tokens_per_s": medians[1], "ratio": medians[0] / medians[1]}


def bench_sync(config: RunConfig, say: assets.Say) -> dict[str, float]:
    """Seconds from the learner's weights to a rollout actor that serves them, gather and checksums included.

    Through the object store, whatever way the recipe's own pushes go. They are some way apart, as in a run: Ray frees
    objects once a second, and a push before that fills memory that has never been touched, which took a second more.
    """
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"sync": "full"})})
    checkpoint = assets.student_checkpoint(config.model.path, say)
    say("starting the learner and the rollout engine")
    learner, pool = LearnerGroup(config, checkpoint), RolloutPool(config, checkpoint)
    figures: dict[str, float] = {}
    try:
        wait_until_loaded([learner, pool])
        say("pushing weights")
        version = 0
        for mode in (PushMode.FULL, PushMode.ADAPTER):
            whole: list[float] = []
            received: list[float] = []
            for turn in range(PUSH_WARM_UPS + REPEATS):
                time.sleep(PUSH_PAUSE_S)
                started = time.perf_counter()
                stamp, payload = learner.publish(version, mode)
                pool.push(payload, stamp)
                version += 1
                if turn >= PUSH_WARM_UPS:
                    whole.append(time.perf_counter() - started)
                    received.append(pool.receive_s()["sync/receive_s"])
            figures |= {f"{mode}_push_s": statistics.median(whole), f"{mode}_receive_s": statistics.median(received),
                        f"{mode}_bytes": stamp.bytes}  # fmt: skip
    finally:
        learner.close()
        pool.close()
    return figures


def bench_prompt_once(config: RunConfig, say: assets.Say) -> dict[str, float]:
    """A learner step on one group whose prompt runs once, against the same step with the prompt repeated.

    `ideal` is G(P + R) / (P + G R), the ratio of tokens run. Loss and gradient norm of both are reported; that the
    gradients agree tensor by tensor is a unit test.
    """
    checkpoint = assets.student_checkpoint(config.model.path, say)
    stage = config.stage[0].model_copy(update={"loss": SftLoss(), "optimizer": OptimizerConfig(lr=1e-12)})
    update = {"ranks": 1, "threads_per_rank": 2, "microbatch_tokens": 2048}  # more rows at once only take memory
    config = config.model_copy(update={"learner": config.learner.model_copy(update=update)})
    say("starting the learner")
    learner = LearnerGroup(config, checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        group, repeated = _one_group(config, checkpoint, Path(scratch), say)
        variants = {"once": [group], "repeated": repeated}
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        last: dict[str, dict[str, float]] = {}
        try:
            wait_until_loaded([learner])
            learner.begin_stage(stage)
            say("the prompt run once, and again for each completion")
            for turn in range(PROMPT_ONCE_REPEATS + 1):
                for name, samples in variants.items():
                    last[name] = learner.step(make_batch(samples, 1), 0).take()[0]
                    if turn:
                        seconds[name].append(last[name]["learner/step_s"])
        finally:
            learner.close()
    once, again = statistics.median(seconds["once"]), statistics.median(seconds["repeated"])
    prompt = PROMPT_ONCE_AUDIO_S * FAMILIES[config.model.family].tokens_per_s + len(group.prompt_ids) - 1
    ideal = PROMPT_ONCE_GROUP * (prompt + PROMPT_ONCE_TOKENS) / (prompt + PROMPT_ONCE_GROUP * PROMPT_ONCE_TOKENS)
    figures = {"once_s": once, "repeated_s": again, "ratio": again / once, "ideal": ideal}
    for name, metrics in last.items():
        figures |= {f"loss_{name}": metrics["learner/loss"], f"grad_norm_{name}": metrics["learner/grad_norm"]}
    return figures


def _one_group(
    config: RunConfig, checkpoint: Path, scratch: Path, say: assets.Say
) -> tuple[TrainingSample, list[TrainingSample]]:
    """A 30-second clip with G completions, as one group and as G groups of one."""
    import soundfile

    builder = PromptBuilder.load(checkpoint, FAMILIES[config.model.family])
    prompts = assets.train_prompts(config, checkpoint, say)
    limits = AudioLimits(max_s=config.model.max_audio_s)
    spoken = np.concatenate([load_audio(p.audio, limits) for p in prompts[: PROMPT_ONCE_AUDIO_S // 2]])
    clip = scratch / "clip.wav"
    soundfile.write(clip, spoken[: PROMPT_ONCE_AUDIO_S * SAMPLE_RATE], SAMPLE_RATE)
    ids = read_only(builder.request_ids(prompts[0].instruction), "int32")
    rng, vocabulary = np.random.default_rng(0), min(10_000, len(builder.tokenizer))
    completions = tuple(
        Completion(
            read_only(rng.integers(100, vocabulary, PROMPT_ONCE_TOKENS), "int32"), read_only([], "float32"), 0.0, 0
        )
        for _ in range(PROMPT_ONCE_GROUP)
    )
    audio = AudioRef(str(clip))
    group = TrainingSample("once", audio, ids, completions)
    return group, [TrainingSample(f"repeated-{i}", audio, ids, (c,)) for i, c in enumerate(completions)]


def _table(name: str, figures: dict[str, float]) -> Table:
    table = Table("figure", "value", title=name, box=box.SIMPLE_HEAD)
    for figure, value in figures.items():
        table.add_row(figure, f"{value:,.4g}" if abs(value) < 1e5 else f"{value:,.0f}")
    return table


def _say(screen: Screen, name: str, text: str) -> None:
    screen.status(f"measuring {name}: {text}")
