"""What is alarmed about: whatever costs money unseen.

Limits that a run tells of itself (the bound of staleness, the steps between checkpoints) are read from its metrics;
those that only its recipe knows are the recipe's own.
"""

from __future__ import annotations

from cluster.kuberay.operators import Alert, RuleGroup
from cluster.monitoring.queries import SESSION, Queries
from speechsum.config import JudgeConfig, PreflightConfig, RunConfig

REWARD_KEPT = 0.6
"""Of its best half hour's reward, the share below which the reward has collapsed."""
CHECKPOINTS_MISSED = 3
CHECKPOINT_AGE_S = 900
"""No checkpoint younger than this is old, however short the steps."""


def rules_of_recipe(config: RunConfig, name: str, only: str) -> RuleGroup:
    """The alerts on one run."""
    return _group(name, Queries(only), config.judge, config.preflight)


def default_rules() -> RuleGroup:
    """The alerts on every run that Prometheus sees, with the limits of a recipe that sets none."""
    return _group("speechsum", Queries(), JudgeConfig(), PreflightConfig())


def _group(name: str, q: Queries, judge: JudgeConfig, preflight: PreflightConfig) -> RuleGroup:
    rows = [
        ("RolloutStalled", _rollout_stalled(q), "5m", "critical",
         "prompts wait at the rollout actors, and for a quarter of an hour none has sampled a token"),
        ("NoStep", f"{q.grown('learner/tokens', over='30m')} == 0", "5m", "critical",
         "no step was finished in half an hour, and the learner's pods are paid for"),
        ("StalenessAtBound", _staleness_at_bound(q), "10m", "warning",
         "completions are trained on as old as they may be, and others were dropped for being older: "
         "rollouts or judges are slower than max_staleness allows for"),
        ("JudgeFailing", _judge_failing(q, judge.max_failure_share / 2), "5m", "warning",
         f"judgements fail; at a share of {judge.max_failure_share:g} the run ends"),
        ("RewardCollapsing", _reward_collapsing(q), "15m", "warning",
         f"the reward of the last half hour is below {REWARD_KEPT:.0%} of the best half hour's since six hours ago"),
        ("CheckpointOld", _checkpoint_old(q), "0m", "warning",
         f"{CHECKPOINTS_MISSED} checkpoints should have been saved since the newest one was"),
        ("EnginesApart", f"{q.latest('learner/logprob_gap')} > {preflight.max_logprob_gap:g}", "15m", "warning",
         "rollout and learner disagree on the same tokens by more than preflight allows"),
        ("StepsSkipped", f"{q.happened('learner/skipped', over='30m')} > 0", "0m", "warning",
         "a step's loss or gradient was not finite, and it changed nothing"),
        ("GroupsWasted", _groups_wasted(q), "15m", "warning", "more groups are thrown away than trained on"),
    ]  # fmt: skip
    return RuleGroup(
        name=name,
        rules=tuple(
            Alert(
                alert=f"Speechsum{title}", expr=expr, for_=since, labels={"severity": severity},
                annotations={"summary": f"{name}: {summary}"},
            )
            for title, expr, since, severity, summary in rows
        ),
    )  # fmt: skip


def _rollout_stalled(q: Queries) -> str:
    """Asked for and not answered. Without prompts to answer, as in SFT or while the learner works, nothing stalls."""
    asked = f"({q.latest('prompts/running')} + {q.latest('prompts/waiting')} > 0)"
    return f"{asked} unless on ({SESSION}) ({q.grown('rollout_actor/tokens')} > 0)"


def _staleness_at_bound(q: Queries) -> str:
    """To be at the bound is how a run ahead works; that groups are lost to it is the trouble."""
    bound = q.latest("buffer/staleness_bound")
    at = f"{q.latest('buffer/staleness_max')} >= on ({SESSION}) ({bound} > 0)"
    return f"{at} and on ({SESSION}) ({q.happened('buffer/dropped_stale', over='30m')} > 0)"


def _judge_failing(q: Queries, share: float) -> str:
    return f"{q.grown('judge/failures')} / on ({SESSION}) {q.grown('judge/scored')} > {share:g}"


def _reward_collapsing(q: Queries) -> str:
    """Means of half an hour, because one step's reward says little, against the best such mean."""
    recent = q.mean("judge/reward_mean", over="30m")
    return f"{recent} < {REWARD_KEPT:g} * max_over_time(({recent})[6h:5m])"


def _checkpoint_old(q: Queries) -> str:
    """Measured in the run's own steps: the longest of the last hour for each of those between two checkpoints."""
    age = f"(time() - {q.latest('checkpoint/saved_s')})"
    step_s = q.worst("wall/step_s", over="1h")
    due = f"{CHECKPOINTS_MISSED} * {q.latest('checkpoint/every_steps')} * on ({SESSION}) {step_s}"
    return f"{age} > on ({SESSION}) ({due}) and {age} > {CHECKPOINT_AGE_S}"


def _groups_wasted(q: Queries) -> str:
    return f"{q.grown('buffer/dropped', over='30m')} > on ({SESSION}) {q.grown('buffer/trained_groups', over='30m')}"
