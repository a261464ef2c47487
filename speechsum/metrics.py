"""Every number the system reports, with its unit and what it means.

One table, because a metric whose name is all that is known of it gets misread. Names are `role/what_stat`; a test of
each emitter asks `describe` for what it emits, so a number without a line here does not get in. `docs/metrics.md` is
made from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from speechsum.types import FailureKind

Form = Literal["gauge", "counter", "histogram"]
DRIVER = ("run",)
ROLLOUT_ACTOR = ("actor",)
TEACHER_ACTOR = ("actor",)
JUDGE_ACTOR = ("actor", "judge", "version")


@dataclass(frozen=True, slots=True)
class Metric:
    """What one metric says. `adds_up` marks amounts, of which a total over the run makes sense.

    `labels` are those of its series in Prometheus, besides Ray's own. `live` marks what the driver tells at all times
    and not once a step, so that it is in Prometheus alone. `spread` marks durations of which quantiles are kept.
    """

    unit: str
    meaning: str
    adds_up: bool = False
    labels: tuple[str, ...] = DRIVER
    live: bool = False
    spread: bool = False

    @property
    def text(self) -> str:
        """The meaning with its unit, as dashboards show it."""
        return f"{self.meaning} [{self.unit}]" if self.unit else self.meaning

    @property
    def form(self) -> Form:
        """Its type in Prometheus."""
        return "histogram" if self.spread else "counter" if self.adds_up else "gauge"

    @property
    def steps(self) -> bool:
        """Whether a line of `metrics.jsonl` may hold it."""
        return self.labels == DRIVER and not self.live


METRICS: dict[str, Metric] = {
    "rollout/tokens_per_s": Metric("tokens/s", "response tokens sampled per second of rollout time, over all actors"),
    "rollout/tokens": Metric("tokens", "response tokens sampled for this step", adds_up=True),
    "rollout/response_tokens_mean": Metric("tokens", "mean length of a completion, end token included"),
    "rollout/truncated_share": Metric("", "share of completions cut off at rollout.max_tokens"),
    "rollout/busy_s": Metric("s", "time of the step in which at least one rollout actor was at work"),
    "rollout_actor/tokens": Metric("tokens", "tokens an actor sampled", adds_up=True, labels=ROLLOUT_ACTOR),
    "rollout_actor/tokens_per_s": Metric("tokens/s", "tokens per second of its latest call", labels=ROLLOUT_ACTOR),
    "rollout_actor/audio_s": Metric("s", "seconds of speech it listened to", adds_up=True, labels=ROLLOUT_ACTOR),
    "rollout_actor/generate_s": Metric("s", "time it spent on its calls", adds_up=True, labels=ROLLOUT_ACTOR),
    "rollout_actor/groups": Metric("groups", "groups it sampled", adds_up=True, labels=ROLLOUT_ACTOR),
    "rollout_actor/failures": Metric("prompts", "prompts it could not answer", adds_up=True, labels=ROLLOUT_ACTOR),
    "rollout_actor/pushes": Metric("", "pushes of weights it took in", adds_up=True, labels=ROLLOUT_ACTOR),
    "rollout_actor/refused_pushes": Metric(
        "", "pushes it refused: wrong checksum or older version", adds_up=True, labels=ROLLOUT_ACTOR
    ),
    "rollout_actor/receive_s": Metric("s", "time it took to load its latest push", labels=ROLLOUT_ACTOR),
    "rollout_actor/policy_version": Metric("", "number of the weights it serves", labels=ROLLOUT_ACTOR),
    "prompts/waiting": Metric(
        "prompts", "prompts that wait for a rollout actor, which is busy with earlier ones", live=True
    ),
    "prompts/running": Metric("prompts", "prompts that rollout actors are at", live=True),
    "prompts/judging": Metric("prompts", "prompts whose completions the judges have", live=True),
    "prompts/teaching": Metric("prompts", "prompts whose completions the teachers have", live=True),
    "prompts/scored": Metric("prompts", "prompts that all have scored, and that wait for their step", live=True),
    "prompts/training": Metric("prompts", "prompts of the step under way", live=True),
    "judge/reward_mean": Metric("", "mean reward of the step's judged completions"),
    "judge/reward_std": Metric("", "standard deviation of the rewards over all of the step's judged completions"),
    "judge/failure_share": Metric("", "share of judgements that failed and were masked"),
    "judge/score_s": Metric("s", "time the judges took for this step"),
    "judge/gated_share": Metric("", "share of completions a gate turned down before the judge saw them"),
    "judge/flip_share": Metric("", "share of compared pairs whose winner changed with the order they were shown in"),
    "judge/abstained_share": Metric("", "share of pairs between which a pairwise judge saw no winner, flips included"),
    "judge/audit_spearman": Metric("", "rank correlation of the judge's rewards with correctness, within a clip"),
    "judge/audit_win_rate": Metric("", "share of canaries the true summary beat, of the kind it beat least often"),
    "teacher/teach_s": Metric("s", "time the teachers took for this step"),
    "teacher/exposed_s": Metric("s", "time in which teachers were all that worked, and everybody waited for them"),
    "teacher/failure_share": Metric("", "share of completions that the teacher could not read, and that were masked"),
    "judge/scored": Metric("judgements", "judgements made, failed ones included", adds_up=True, labels=JUDGE_ACTOR),
    "judge/failures": Metric("judgements", "those that failed", adds_up=True, labels=(*JUDGE_ACTOR, "kind")),
    "judge/gated": Metric(
        "judgements", "those that a gate decided before the judge", adds_up=True, labels=(*JUDGE_ACTOR, "gate")
    ),
    "judge/call_s": Metric("s", "time of a call, which judges some groups at once", labels=JUDGE_ACTOR, spread=True),
    "teacher_actor/tokens": Metric("tokens", "response tokens a teacher scored", adds_up=True, labels=TEACHER_ACTOR),
    "teacher_actor/failures": Metric(
        "completions", "those it could not read, by kind", adds_up=True, labels=(*TEACHER_ACTOR, "kind")
    ),
    "teacher_actor/call_s": Metric("s", "time of a call, which reads some groups", labels=TEACHER_ACTOR, spread=True),
    "judge/requests": Metric("", "requests to the endpoint, retries included", adds_up=True, labels=JUDGE_ACTOR),
    "judge/tokens": Metric(
        "tokens", "tokens of prompts and answers, as the endpoint counts them", adds_up=True, labels=JUDGE_ACTOR
    ),
    "judge/retries": Metric("", "retries among the requests", adds_up=True, labels=JUDGE_ACTOR),
    "judge/retries_refused": Metric(
        "", "retries not sent because judge.endpoint.retry_share was spent", adds_up=True, labels=JUDGE_ACTOR
    ),
    "judge/circuit_openings": Metric(
        "", "times an actor stopped calling its endpoint, as nothing got through", adds_up=True, labels=JUDGE_ACTOR
    ),
    "judge/circuit_state": Metric(
        "", "whether an actor calls its endpoint: 0 yes, 0.5 one call to see, 1 no", labels=JUDGE_ACTOR
    ),
    "judge/pairs": Metric("pairs", "pairs of summaries shown in both orders", adds_up=True, labels=JUDGE_ACTOR),
    "judge/position_flips": Metric(
        "pairs", "those of them whose winner changed with the order", adds_up=True, labels=JUDGE_ACTOR
    ),
    "judge/cache_hits": Metric(
        "judgements", "judgements found in judge.cache, or just made", adds_up=True, labels=JUDGE_ACTOR
    ),
    "judge/cache_misses": Metric("judgements", "judgements that had to be asked for", adds_up=True, labels=JUDGE_ACTOR),
    "judge/cache_hit_share": Metric("", "share of judgements that needed no asking", labels=JUDGE_ACTOR),
    "judge/cache_errors": Metric("", "reads and writes of judge.cache that failed", adds_up=True, labels=JUDGE_ACTOR),
    "learner/loss": Metric("nats", "loss of the step, over the whole batch"),
    "learner/grad_norm": Metric("", "norm of the gradient before clipping, over all ranks"),
    "learner/lr": Metric("", "learning rate of the adapter"),
    "learner/entropy": Metric("nats/token", "mean entropy of the learner's distribution at response tokens"),
    "learner/clip_share": Metric("", "share of response tokens whose importance ratio was clipped"),
    "learner/is_weight_mean": Metric("", "mean truncated importance weight between rollout and learner"),
    "learner/logprob_gap": Metric("nats/token", "mean |rollout log-prob - learner log-prob| of the trained tokens"),
    "learner/masked_tokens": Metric("tokens", "response tokens left out for want of a finite log-prob", adds_up=True),
    "learner/reference_kl": Metric("nats/token", "k3 estimate of the KL from the stage's first weights"),
    "learner/teacher_divergence": Metric("nats/token", "mean divergence of the student from the teacher"),
    "learner/teacher_top": Metric("", "mean probability that the teacher gives to the tokens it names"),
    "learner/teacher_advantage": Metric("nats/token", "mean log-prob of the teacher less that of the rollout"),
    "learner/dpo_accuracy": Metric("", "share of pairs whose preferred side the policy has come to favour"),
    "learner/dpo_margin": Metric("", "mean implicit reward of the preferred side less that of the other"),
    "learner/dpo_preferred": Metric("nats", "mean log-ratio of the preferred side to the stage's first weights"),
    "learner/skipped": Metric("", "1 where loss or gradient was not finite and the step changed nothing", adds_up=True),
    "learner/tokens": Metric("tokens", "tokens the learner ran, prompts once per group, padding counted", adds_up=True),
    "learner/tokens_per_s": Metric("tokens/s", "tokens the learner ran per second of its step, padding counted"),
    "learner/step_s": Metric("s", "time of the optimizer step, forward and backward included"),
    "learner/reference_s": Metric("s", "part of it: what the stage's first weights say of the step's completions"),
    "learner/forward_backward_s": Metric("s", "part of it: forward and backward; a GPU may finish in the next part"),
    "learner/optimizer_s": Metric("s", "part of it: gradients over all ranks, clipping, and the weights' change"),
    "learner/wait_s": Metric("s", "time of the step in which the learner had nothing to train on"),
    "sync/publish_s": Metric("s", "time from the learner's weights to the last rollout actor that serves them"),
    "sync/receive_s": Metric("s", "time the slowest rollout actor took to load the push"),
    "sync/bytes": Metric("bytes", "size of one push of weights", adds_up=True),
    "sync/version": Metric("", "number of the weights that the rollout actors serve"),
    "buffer/staleness_max": Metric("versions", "age of the oldest completion when it was trained on"),
    "buffer/staleness_now": Metric("versions", "age of the oldest completion that waits for its step", live=True),
    "buffer/staleness_bound": Metric("versions", "stage.max_staleness: what is older is dropped", live=True),
    "buffer/dropped": Metric("groups", "groups thrown away for this step, for whatever reason", adds_up=True),
    "buffer/trained_groups": Metric("groups", "groups this step was trained on", adds_up=True),
    "checkpoint/saved_s": Metric(
        "s", "when the newest checkpoint was saved, or the run began without one: seconds since 1970", live=True
    ),
    "checkpoint/every_steps": Metric("steps", "stage.checkpoint_every: steps between two checkpoints", live=True),
    "wall/step_s": Metric("s", "wall time of the step, from the first rollout to the live weights"),
    "wall/rss_gb": Metric("GB", "memory of the driver and of every process below it"),
}
METRICS |= {
    f"judge/failed_{kind.value}": Metric("judgements", f"failed judgements of kind {kind.value!r}", adds_up=True)
    for kind in FailureKind
}
METRICS |= {
    f"buffer/dropped_{reason}": Metric("groups", f"groups dropped because {why}", adds_up=True)
    for reason, why in {
        "rollout": "no rollout actor could answer the prompt",
        "judge_failed": "fewer than two of their completions were judged",
        "teacher_failed": "the teacher could read none of their completions",
        "no_pair": "no two of their completions made a pair",
        "equal_rewards": "all their rewards were equal, so that there is nothing to learn",
        "stale": "they had become older than max_staleness",
    }.items()
}
METRICS |= {
    f"{role}/{what}": Metric(unit, f"{role} {meaning}")
    for role in ("rollout", "judge")
    for what, unit, meaning in (
        ("actors_wanted", "actors", "actors that the work at hand asks for, within the pool's bounds"),
        ("actors_starting", "actors", "actors that wait for a node, load, or receive the weights in force"),
        ("actors_serving", "actors", "actors that take new requests"),
        ("actors_draining", "actors", "actors that end what they are at and go"),
        ("actors_lost", "actors", "actors that died after they had served, since the run was started or resumed"),
        ("starts_failed", "actors", "actors that died before they served, since the run was started or resumed"),
        ("requests_returned", "requests", "requests taken back from actors that died or leave, and given to others"),
    )
}


def describe(name: str) -> Metric:
    """What `name` means. Raises KeyError for a name that has no line in the table."""
    try:
        return METRICS[name]
    except KeyError:
        raise KeyError(f"metric {name!r} is not described; add it to speechsum/metrics.py") from None


def ray_name(name: str) -> str:
    """`role/what_stat` in the letters that Prometheus allows, under which Ray is told of it."""
    return "speechsum_" + re.sub(r"[^A-Za-z0-9_]", "_", name)


def series(name: str) -> str:
    """A metric's name in Prometheus: Ray puts its mark before it, and `_total` after a counter. See `describe`."""
    return f"ray_{ray_name(name)}" + ("_total" if describe(name).form == "counter" else "")


def as_markdown() -> str:
    """The table as a page of the documentation."""
    rows = [
        f"| `{name}` | `{series(name)}` | {m.form} | {m.unit} | {', '.join(m.labels)} | {m.meaning} |"
        for name, m in METRICS.items()
    ]
    return PAGE + "\n".join(rows) + "\n"


PAGE = """\
# Metrics

Made by `python -m cluster.monitoring` from `speechsum/metrics.py`; change it there.

Ray offers all of them to Prometheus, on the node that the label `NodeAddress` names; its `SessionName` tells one Ray
cluster from another. The label `run` is the run folder's name, and marks what the driver tells: at the end of each
step, as a line of `metrics.jsonl` too, but for those called `prompts/`, `checkpoint/`, `buffer/staleness_now` and
`buffer/staleness_bound`, which it tells whenever something happens. The label `actor` marks what an actor tells of
itself after each call. A counter has no series before there is something to count; a histogram is three series, with
`_bucket`, `_sum` and `_count` after the name. The dashboard and the alerts that read them are in
[monitoring.md](monitoring.md).

| name | in Prometheus | type | unit | labels | meaning |
| --- | --- | --- | --- | --- | --- |
"""
