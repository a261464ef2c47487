"""The Grafana dashboard: what an operator asks of a run, from how it does down to what holds it up."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase

from cluster.monitoring.grafana import (
    Dashboard,
    DatasourceVariable,
    Defaults,
    Drawing,
    FieldConfig,
    Place,
    QueryVariable,
    Row,
    Stacking,
    Target,
    Templating,
    TimeRange,
    TimeSeries,
    Unit,
    VariableQuery,
)
from cluster.monitoring.queries import SESSION, Queries
from speechsum.metrics import METRICS, series

WIDTH, HEIGHT, PER_ROW = 8, 8, 3
Q = Queries(f'{{{SESSION}=~"$session"}}')


@dataclass(frozen=True)
class Chart:
    """A panel to be: its lines are queries by legend."""

    title: str
    says: str
    unit: Unit
    lines: dict[str, str]
    stacked: bool = False
    below_zero: bool = False


def dashboard() -> Dashboard:
    """All of it."""
    panels: list[Row | TimeSeries] = []
    y = 0
    for heading, charts in SECTIONS.items():
        panels.append(Row(id=len(panels) + 1, title=heading, grid_pos=Place(x=0, y=y, w=24, h=1)))
        for i, chart in enumerate(charts):
            place = Place(x=i % PER_ROW * WIDTH, y=y + 1 + i // PER_ROW * HEIGHT, w=WIDTH, h=HEIGHT)
            panels.append(_panel(len(panels) + 1, chart, place))
        y += 1 + -(-len(charts) // PER_ROW) * HEIGHT
    always_there = series("checkpoint/every_steps")
    sessions = VariableQuery(query=f"label_values({always_there}, {SESSION})", ref_id="session")
    return Dashboard(
        uid="speechsum", title="speechsum", tags=("speechsum", "ray"), refresh="30s", time=TimeRange(from_="now-3h"),
        templating=Templating(
            list=(DatasourceVariable(), QueryVariable(name="session", label="Ray session", query=sessions))
        ),
        panels=tuple(panels),
    )  # fmt: skip


def _panel(number: int, chart: Chart, place: Place) -> TimeSeries:
    drawing = Drawing(fill_opacity=40, stacking=Stacking(mode="normal")) if chart.stacked else Drawing()
    defaults = Defaults(unit=chart.unit, min=None if chart.below_zero else 0, custom=drawing)
    return TimeSeries(
        id=number, title=chart.title, description=chart.says, grid_pos=place,
        field_config=FieldConfig(defaults=defaults),
        targets=tuple(
            Target(ref_id=ref, expr=expr, legend_format=legend)
            for ref, (legend, expr) in zip(ascii_uppercase, chart.lines.items(), strict=False)
        ),
    )  # fmt: skip


def _share(name: str) -> str:
    """Of the step's wall time."""
    return f"{Q.latest(name)} / on ({SESSION}) {Q.latest('wall/step_s')}"


PROGRESS = [
    Chart("Reward", "Of the judged completions of each step.", "short",
          {"mean": Q.latest("judge/reward_mean"), "standard deviation": Q.latest("judge/reward_std")}, below_zero=True),
    Chart("Step", "From the first rollout to the live weights.", "s", {"step": Q.latest("wall/step_s")}),
    Chart("Checkpoint age", "The work that an end at this moment would lose.", "s",
          {"age": f"time() - {Q.latest('checkpoint/saved_s')}"}),
]  # fmt: skip
THROUGHPUT = [
    Chart("Tokens sampled", "By each rollout actor, and by all of them.", "suffix: tokens/s",
          {"actor {{actor}}": Q.rate("rollout_actor/tokens", "actor"), "all": Q.rate("rollout_actor/tokens")}),
    Chart("Speech listened to", "Seconds of audio a second, by each rollout actor, and by all of them.", "suffix: s/s",
          {"actor {{actor}}": Q.rate("rollout_actor/audio_s", "actor"), "all": Q.rate("rollout_actor/audio_s")}),
    Chart("Tokens trained on", "Prompts once per group, padding counted, while the learner works.", "suffix: tokens/s",
          {"learner": Q.latest("learner/tokens_per_s")}),
]  # fmt: skip
PROMPTS = [
    Chart("Where the prompts are", "Those that hold a slot.", "short",
          {state: Q.latest(f"prompts/{state}")
           for state in ("waiting", "running", "judging", "teaching", "scored", "training")}, stacked=True),
    Chart("Groups trained on and dropped", "In the last 15 minutes.", "short",
          {"trained on": Q.grown("buffer/trained_groups"), "dropped": Q.grown("buffer/dropped")}),
    Chart("Groups dropped, by reason", "In the last 15 minutes; a reason shows after its second time.", "short",
          {name.removeprefix("buffer/dropped_"): Q.grown(name) for name in METRICS
           if name.startswith("buffer/dropped_")}, stacked=True),
]  # fmt: skip
WAITING = [
    Chart("Who is at work", "Share of the step; the shares overlap in a run that works ahead.", "percentunit",
          {"rollout": _share("rollout/busy_s"), "judge": _share("judge/score_s"), "learner": _share("learner/step_s"),
           "push of weights": _share("sync/publish_s")}),
    Chart("Who waits for whom", "Share of the step.", "percentunit",
          {"learner, for groups": _share("learner/wait_s"),
           "rollout, for slots": f"1 - {_share('rollout/busy_s')}",
           "all, for teachers": _share("teacher/exposed_s")}),
    Chart("The learner's time", "Of each step, by phase.", "s",
          {"waiting": Q.latest("learner/wait_s"), "reference": Q.latest("learner/reference_s"),
           "forward and backward": Q.latest("learner/forward_backward_s"), "optimizer": Q.latest("learner/optimizer_s"),
           "push of weights": Q.latest("sync/publish_s")}, stacked=True),
]  # fmt: skip
WEIGHTS = [
    Chart("Staleness", "Optimizer steps between the weights that wrote a completion and those it trains.", "short",
          {"waiting for its step": Q.latest("buffer/staleness_now"), "trained on": Q.latest("buffer/staleness_max"),
           "worst of an hour": Q.worst("buffer/staleness_max", over="1h"),
           "bound": Q.latest("buffer/staleness_bound")}),
    Chart("Versions served", "By each rollout actor.", "short",
          {"actor {{actor}}": Q.latest("rollout_actor/policy_version", "actor"), "pushed": Q.latest("sync/version")}),
    Chart("Push of weights", "Until the last actor serves them, and the slowest actor's part.", "s",
          {"push": Q.latest("sync/publish_s"), "slowest actor": Q.latest("sync/receive_s")}),
    Chart("Bytes pushed", "In the last 15 minutes.", "bytes", {"pushed": Q.grown("sync/bytes")}),
    Chart("Rollouts and pushes refused", "In the last 15 minutes, by actor.", "short",
          {"prompts, actor {{actor}}": Q.grown("rollout_actor/failures", "actor"),
           "pushes, actor {{actor}}": Q.grown("rollout_actor/refused_pushes", "actor")}),
    Chart("Memory", "Of the driver's machine: the driver and every process below it.", "decgbytes",
          {"resident": Q.latest("wall/rss_gb")}),
]  # fmt: skip
POOLS = [
    *(Chart(f"{role.capitalize()} actors", "Those there are, and those that the work at hand asks for.", "short",
            {state: Q.latest(f"{role}/actors_{state}") for state in ("serving", "starting", "draining", "wanted")})
      for role in ("rollout", "judge")),
    Chart("Lost and given to others", "Since the run was started or resumed.", "short",
          {f"{role}: {what}": Q.latest(f"{role}/{name}") for role in ("rollout", "judge")
           for what, name in (("actors lost", "actors_lost"), ("starts failed", "starts_failed"),
                              ("requests returned", "requests_returned"))}),
]  # fmt: skip
JUDGE = [
    Chart("Time of a judge's call", "A call judges some groups at once.", "s",
          {"median": Q.quantile(0.5, "judge/call_s"), "95 of 100": Q.quantile(0.95, "judge/call_s")}),
    Chart("Judgements that failed", "In the last 15 minutes, by kind.", "short",
          {"{{kind}}": Q.grown("judge/failures", "kind")}, stacked=True),
    Chart("Failures, gates, cache", "Share of judgements.", "percentunit",
          {"failed": Q.latest("judge/failure_share"), "turned down by a gate": Q.latest("judge/gated_share"),
           "from the cache": f"{Q.grown('judge/cache_hits')} / on ({SESSION}) "
                             f"({Q.grown('judge/cache_hits')} + {Q.grown('judge/cache_misses')})"}),
    Chart("Requests to the endpoint", "In the last 15 minutes.", "short",
          {"requests": Q.grown("judge/requests"), "retries": Q.grown("judge/retries"),
           "retries not sent": Q.grown("judge/retries_refused")}),
    Chart("Circuit", "0: the endpoint is called; 1: it is left alone.", "short",
          {"actor {{actor}}": Q.latest("judge/circuit_state", "actor")}),
]  # fmt: skip
LEARNING = [
    Chart("Agreement", "Between rollout and learner, on the trained tokens.", "suffix: nats",
          {"gap": Q.latest("learner/logprob_gap")}),
    Chart("Loss and gradient", "Of each step.", "short",
          {"loss": Q.latest("learner/loss"), "gradient norm": Q.latest("learner/grad_norm")}, below_zero=True),
    Chart("Entropy and length", "Of the completions.", "short",
          {"entropy": Q.latest("learner/entropy"), "tokens": Q.latest("rollout/response_tokens_mean"),
           "cut off": Q.latest("rollout/truncated_share")}),
]  # fmt: skip
SECTIONS = {
    "How it does": PROGRESS, "Throughput": THROUGHPUT, "Prompts": PROMPTS, "Who waits": WAITING,
    "Weights and memory": WEIGHTS, "Pools": POOLS, "Judge": JUDGE, "Learning": LEARNING,
}  # fmt: skip
