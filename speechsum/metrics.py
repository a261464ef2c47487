"""Every number the system reports, with its unit and what it means.

One table, because a metric whose name is all that is known of it gets misread. Names are `role/what/stat`; a test of
each emitter asks `describe` for what it emits, so a number without a line here does not get in.
"""

from __future__ import annotations

from dataclasses import dataclass

from speechsum.types import FailureKind


@dataclass(frozen=True, slots=True)
class Metric:
    """What one metric says. `adds_up` marks amounts per step, of which a total over the run makes sense."""

    unit: str
    meaning: str
    adds_up: bool = False

    @property
    def text(self) -> str:
        """The meaning with its unit, as dashboards show it."""
        return f"{self.meaning} [{self.unit}]" if self.unit else self.meaning


METRICS: dict[str, Metric] = {
    "rollout/tokens_per_s": Metric("tokens/s", "response tokens sampled per second of rollout time, over all actors"),
    "rollout/tokens": Metric("tokens", "response tokens sampled for this step", adds_up=True),
    "rollout/audio_s": Metric("s", "seconds of speech the rollout actors listened to for this step", adds_up=True),
    "rollout/response_tokens_mean": Metric("tokens", "mean length of a completion, end token included"),
    "rollout/truncated_share": Metric("", "share of completions cut off at rollout.max_tokens"),
    "rollout/generate_s": Metric("s", "time an actor's engine spent on sampling since the actor started"),
    "rollout/groups": Metric("groups", "groups an actor sampled since it started"),
    "rollout/failures": Metric("prompts", "prompts an actor could not answer since it started"),
    "rollout/pushes": Metric("", "pushes of weights an actor took in since it started"),
    "rollout/refused_pushes": Metric("", "pushes an actor refused since it started: wrong checksum or older version"),
    "rollout/receive_s": Metric("s", "time an actor took to load its latest push"),
    "rollout/policy_version": Metric("", "number of the weights an actor serves"),
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
    "judge/requests": Metric("", "requests a judge actor sent to its endpoint since it started, retries included"),
    "judge/tokens": Metric("tokens", "tokens of prompts and answers, as the endpoint counts them, since the start"),
    "judge/retries": Metric("", "retries among them"),
    "judge/retries_refused": Metric("", "retries not sent because judge.endpoint.retry_share was spent"),
    "judge/circuit_openings": Metric("", "times an actor stopped calling its endpoint, as nothing got through"),
    "judge/circuit_state": Metric("", "whether an actor calls its endpoint: 0 yes, 0.5 one call to see, 1 no"),
    "judge/pairs": Metric("pairs", "pairs of summaries a judge actor showed in both orders since it started"),
    "judge/position_flips": Metric("pairs", "those of them whose winner changed with the order"),
    "judge/cache_hits": Metric(
        "judgements", "judgements an actor found in judge.cache, or had just made, since it started"
    ),
    "judge/cache_misses": Metric("judgements", "judgements it had to ask for"),
    "judge/cache_hit_share": Metric("", "share of judgements that needed no asking"),
    "judge/cache_errors": Metric("", "reads and writes of judge.cache that failed since the actor started"),
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
    "sync/publish_s": Metric("s", "time from the learner's weights to the last rollout actor that serves them"),
    "sync/receive_s": Metric("s", "time the slowest rollout actor took to load the push"),
    "sync/bytes": Metric("bytes", "size of one push of weights", adds_up=True),
    "sync/version": Metric("", "number of the weights that the rollout actors serve"),
    "buffer/staleness_max": Metric("versions", "age of the oldest completion when it was trained on"),
    "buffer/dropped": Metric("groups", "groups thrown away for this step: too old, or too few judged", adds_up=True),
    "buffer/trained_groups": Metric("groups", "groups this step was trained on", adds_up=True),
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
        ("actors_lost", "actors", "actors that died since the run was started or resumed"),
        ("requests_returned", "requests", "requests taken back from actors that died or leave, and given to others"),
    )
}


def describe(name: str) -> Metric:
    """What `name` means. Raises KeyError for a name that has no line in the table."""
    try:
        return METRICS[name]
    except KeyError:
        raise KeyError(f"metric {name!r} is not described; add it to speechsum/metrics.py") from None
