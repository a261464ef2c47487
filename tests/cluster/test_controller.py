"""The learn loop against ports that finish their calls in any order: staleness, slots, accounts, and how it ends."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.buffer import Slots
from cluster.controller import DROPS_PER_STEP_LIMIT, Controller, StepReport
from speechsum.data import PromptStream
from speechsum.errors import RunError
from speechsum.ledger import Ledger, read_ledger
from speechsum.metrics import METRICS, describe
from speechsum.objectives import DpoLoss, GrpoLoss, Loss, OpdLoss, PairRules, SftLoss
from speechsum.types import FailureKind, JudgeFailure, Judgement, Reward, trajectory_id
from tests.cluster.fake_ports import (
    AUDIO,
    END,
    PROMPTS,
    FakeDataPorts,
    FakePorts,
    Judge,
    ascending,
    check_accounts,
    controller_on,
    rewards,
    run_config,
)

# --- any order ---------------------------------------------------------------------------------------------------


def random_judge(rng: Random, size: int, fails: int, equal: int) -> Judge:
    """Of ten groups `equal` get the same reward throughout, of ten other judgements `fails` do not happen."""

    def one() -> Judgement:
        if rng.randrange(10) < fails:
            return JudgeFailure(FailureKind.TIMEOUT)
        value = float(rng.randrange(3))
        return Reward(value, gate="" if value else "echo")

    return lambda _: rewards(*[1.0] * size) if rng.randrange(10) < equal else [one() for _ in range(size)]


def any_order(rng: Random, newest_first: bool) -> Callable[[dict[int, str]], list[int]]:
    """Some calls, in some order; `newest_first` mostly the newest, so that what was begun first grows old."""

    def finish(pending: dict[int, str]) -> list[int]:
        if newest_first and rng.randrange(8):
            return [max(pending)]
        return rng.sample(sorted(pending), rng.randint(1, len(pending)))

    return finish


@settings(max_examples=100, deadline=None)
@given(
    rng=st.randoms(use_true_random=False),
    staleness=st.integers(0, 3),
    groups=st.integers(1, 4),
    size=st.integers(2, 3),
    steps=st.integers(1, 5),
    per_request=st.integers(1, 5),
    rolls_failing=st.integers(0, 5),
    judgements_failing=st.integers(0, 5),
    equal=st.integers(0, 5),
    newest_first=st.booleans(),
)
def test_staleness_is_bounded_and_every_group_is_accounted_for_in_any_order(
    rng: Random, staleness: int, groups: int, size: int, steps: int, per_request: int, rolls_failing: int,
    judgements_failing: int, equal: int, newest_first: bool,
) -> None:  # fmt: skip
    config = run_config(steps=steps, groups=groups, size=size, staleness=staleness, per_request=per_request)
    ports = FakePorts(
        config, random_judge(rng, size, judgements_failing, equal),
        roll_fails=lambda: rng.randrange(10) < rolls_failing, finish=any_order(rng, newest_first), age=rng.randint,
    )  # fmt: skip
    controller = controller_on(ports)
    reports: list[StepReport] = []
    stopped = ""
    try:
        reports.extend(controller.run())
    except RunError as error:
        stopped = str(error)
    check_accounts(ports, reports, controller.window.ledger)
    assert all(report.metrics["buffer/staleness_max"] <= staleness for report in reports)
    if stopped:
        assert "no progress is possible" in stopped
        assert ports.drops_since_step > DROPS_PER_STEP_LIMIT * groups
    else:
        assert [report.step for report in reports] == list(range(1, steps + 1))
        assert len(ports.trained) == steps * groups
        assert controller.version == ports.live == steps
        assert not ports.open
        assert not ports.pending


@settings(max_examples=30, deadline=None)
@given(staleness=st.integers(0, 3), groups=st.integers(1, 3), steps=st.integers(1, 5))
def test_nothing_is_generated_that_no_step_is_left_for(staleness: int, groups: int, steps: int) -> None:
    ports = FakePorts(run_config(steps=steps, groups=groups, staleness=staleness), ascending(2))
    assert len(list(controller_on(ports).run())) == steps
    assert len(ports.dispatched) == steps * groups


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 1000), staleness=st.integers(0, 3), groups=st.integers(1, 3),
    per_request=st.integers(1, 4), stop=st.integers(1, 5),
)  # fmt: skip
def test_a_run_that_goes_on_after_any_step_uses_every_draw_once(
    seed: int, staleness: int, groups: int, per_request: int, stop: int
) -> None:
    """What was in flight or in the buffer at the checkpoint is neither lost nor counted twice."""
    config = run_config(steps=6, groups=groups, staleness=staleness, per_request=per_request)
    rng = Random(seed)
    judge = random_judge(rng, 2, fails=0, equal=2)
    first = FakePorts(config, judge, finish=any_order(rng, newest_first=False))
    controller = controller_on(first)
    reports: list[StepReport] = []
    for report in controller.run():
        reports.append(report)
        if report.step == stop:
            break
    assert len(controller.outstanding()) == controller.slots.held
    second = FakePorts(config, judge, finish=any_order(rng, newest_first=False))
    second.live = controller.version
    resumed = controller_on(second, start=stop, version=controller.version)
    resumed.stream.restore(controller.stream.state(controller.outstanding()))
    reports += resumed.run()
    used = Counter((row.epoch, row.prompt_id) for report in reports for row in report.ledger if row.sample == 0)
    whole = PromptStream(resumed.stream._prompts, resumed.stream._seed).take(len(used))
    assert used == Counter((draw.epoch, draw.prompt.id) for draw in whole)


def test_a_stopped_stage_accounts_for_what_was_judged() -> None:
    config = run_config(steps=2, groups=2, size=2, per_request=1, failures_allowed=0.3)
    ports = FakePorts(config, lambda _: [Reward(1.0), FAILED])
    controller = controller_on(ports)
    with pytest.raises(RunError, match="50% of the last 8 judgements failed"):
        list(controller.run())
    rows = controller.abandon()
    assert len(rows) == 8
    assert {row.judge_failure for row in rows} == {"", "timeout: 60 s without an answer"}
    assert {row.drop_reason for row in rows} == {"judge_failed"}
    assert all(row.group_step is None for row in rows)


# --- synchronous and not -------------------------------------------------------------------------------------------


def test_zero_staleness_is_synchronous() -> None:
    ports = FakePorts(run_config(steps=2, per_request=1), ascending(2))
    for _ in controller_on(ports).run():
        pass
    one_step = ["generate@0", "generate@0", "score", "score", "step@0", "push@1"]
    assert ports.calls == one_step + [call.replace("@1", "@2").replace("@0", "@1") for call in one_step]
    assert ports.overlaps == 0


def learner_last(pending: dict[int, str]) -> list[int]:
    """The slowest is the learner; all else is done in the order of asking."""
    return [min(pending, key=lambda handle: (pending[handle] == "step", handle))]


@pytest.mark.parametrize("staleness", [1, 2, 3])
def test_with_staleness_generation_goes_on_while_the_learner_trains(staleness: int) -> None:
    ports = FakePorts(run_config(steps=8, staleness=staleness, per_request=2), ascending(2), finish=learner_last)
    reports = list(controller_on(ports).run())
    assert ports.overlaps >= 3
    assert max(report.metrics["buffer/staleness_max"] for report in reports) == staleness
    assert not ports.dropped


def test_slots_of_dropped_groups_are_filled_while_the_learner_trains() -> None:
    """The second request holds equal rewards only: its slots are free at once, not after the step."""
    ports = FakePorts(
        run_config(steps=2, staleness=1, per_request=2), lambda n: rewards(1, 1) if n in (2, 3) else rewards(0, 1),
        finish=learner_last,
    )  # fmt: skip
    list(controller_on(ports).run())
    first_step, first_push = ports.calls.index("step@0"), ports.calls.index("push@1")
    assert "generate@0" in ports.calls[first_step:first_push]


@pytest.mark.parametrize("staleness", [1, 2, 3])
@pytest.mark.parametrize("late", [0, 1])
def test_a_group_is_trained_up_to_the_bound_and_dropped_beyond_it(staleness: int, late: int) -> None:
    """The very first group comes back when its weights are as old as is allowed, or one version older."""
    order = ["step", "score", "generate"]

    def finish(pending: dict[int, str]) -> list[int]:
        held_back = 0 if ports.live < staleness + late else None
        return [min(pending, key=lambda handle: (handle == held_back, order.index(pending[handle]), handle))]

    ports = FakePorts(
        run_config(steps=6, groups=1, staleness=staleness, per_request=1), ascending(2), finish=finish
    )  # fmt: skip
    controller = controller_on(ports)
    reports = list(controller.run())
    assert list(ports.dropped.values()) == ["stale"] * late
    oldest = max(report.metrics["buffer/staleness_max"] for report in reports)
    assert oldest <= staleness if late else oldest == staleness
    assert sum(report.metrics.get("buffer/dropped_stale", 0) for report in reports) == late
    check_accounts(ports, reports, controller.window.ledger)


def test_a_resumed_stage_does_the_steps_that_are_left_on_the_version_it_had() -> None:
    ports = FakePorts(run_config(steps=5), ascending(2), live=7)
    reports = list(controller_on(ports, start=3, version=7).run())
    assert [report.step for report in reports] == [4, 5]
    assert ports.calls[0] == "generate@7"
    assert [report.metrics["sync/version"] for report in reports] == [8, 9]


def test_slots_are_taken_within_the_budget_and_given_back_once() -> None:
    slots = Slots(max_staleness=1, groups_per_step=1)
    first, second = slots.take(), slots.take()
    assert (first, second, slots.held, slots.free) == (0, 1, 2, 0)
    with pytest.raises(AssertionError, match="beyond the slot budget"):
        slots.take()
    slots.release(first)
    assert slots.free == 1
    with pytest.raises(KeyError):
        slots.release(first)
    assert slots.take() == 2


# --- judge failures, equal rewards ---------------------------------------------------------------------------------

FAILED = JudgeFailure(FailureKind.TIMEOUT, "60 s without an answer")


def test_a_judge_failure_is_left_out_and_never_a_reward_of_zero() -> None:
    """Rewards 3 and 1 around a failure: mean 2, deviation 1, so +1 and -1; a failure counted as 0 would give +1.34."""
    ports = FakePorts(run_config(steps=1, groups=1, size=3), lambda _: [Reward(3.0), FAILED, Reward(1.0)])
    (report,) = controller_on(ports).run()
    (sample,) = [s for shard in ports.batches[0].shards for s in shard]
    assert [c.advantage for c in sample.completions] == pytest.approx([1.0, -1.0], abs=1e-5)
    assert ports.batches[0].sequences == 2
    assert ports.batches[0].loss_tokens == 4
    kept, masked, other = report.ledger
    assert (masked.reward, masked.advantage, masked.group_step) == (None, None, None)
    assert (masked.drop_reason, masked.judge_failure) == ("judge_failed", "timeout: 60 s without an answer")
    assert (kept.group_step, kept.drop_reason, kept.reward, kept.judge_failure) == (1, "", 3.0, "")
    assert other.advantage == pytest.approx(-1.0, abs=1e-5)
    assert report.metrics["judge/reward_mean"] == 2.0
    assert report.metrics["judge/failure_share"] == pytest.approx(1 / 3)
    assert report.metrics["judge/failed_timeout"] == 1


@pytest.mark.parametrize(("baseline", "size"), [("mean", 2.0), ("leave_one_out", 4.0)])
def test_without_scaling_the_advantage_keeps_the_size_of_the_reward(baseline: Any, size: float) -> None:
    loss = GrpoLoss(baseline=baseline, scale_by_std=False)
    ports = FakePorts(run_config(steps=1, groups=1, loss=loss), lambda _: rewards(5, 1))
    list(controller_on(ports).run())
    (sample,) = [s for shard in ports.batches[0].shards for s in shard]
    assert [c.advantage for c in sample.completions] == [size, -size]


def test_too_many_judge_failures_stop_the_run_with_the_kinds() -> None:
    refused = JudgeFailure(FailureKind.HTTP_ERROR)
    ports = FakePorts(
        run_config(steps=50, groups=1, size=4, failures_allowed=0.4),
        lambda n: [Reward(0.0), Reward(1.0), FAILED, FAILED] if n < 3 else [Reward(0.0), Reward(1.0), FAILED, refused],
    )  # fmt: skip
    reports = []
    with pytest.raises(RunError, match=r"50% of the last 16 judgements failed \(7 timeout, 1 http_error\).*is 40%"):
        reports += controller_on(ports).run()
    assert ports.scored == 4  # a verdict on the judge needs four groups
    assert len(ports.trained) == 3


def test_a_share_of_judge_failures_within_the_limit_goes_on() -> None:
    judge = lambda _: [Reward(0.0), Reward(1.0), FAILED, FAILED]  # noqa: E731
    ports = FakePorts(run_config(steps=8, groups=1, size=4, failures_allowed=0.5), judge)
    assert len(list(controller_on(ports).run())) == 8


def test_judge_failures_long_ago_are_forgotten() -> None:
    """Half of the first six groups' judgements fail; over a window of four groups that never is above the limit."""
    ports = FakePorts(
        run_config(steps=20, groups=1, size=2, failures_allowed=0.5, window=8),
        lambda n: [Reward(0.0), FAILED] if n < 6 else rewards(0, 1),
    )  # fmt: skip
    assert len(list(controller_on(ports).run())) == 20


def test_equal_rewards_for_ever_are_no_progress() -> None:
    ports = FakePorts(run_config(steps=3, groups=2), lambda _: rewards(1, 1))
    controller = controller_on(ports)
    with pytest.raises(RunError, match=r"\d+ groups were dropped without a step \(\d+ equal_rewards\); no progress"):
        list(controller.run())
    assert ports.drops_since_step > DROPS_PER_STEP_LIMIT * 2
    check_accounts(ports, [], controller.window.ledger)


def test_rollouts_that_all_fail_are_no_progress_and_the_reason_is_told() -> None:
    ports = FakePorts(run_config(steps=1, groups=1), ascending(2), roll_fails=lambda: True)
    with pytest.raises(RunError, match=r"21 rollout.*the last rollout to fail: p\d: audio unreadable: no such file"):
        list(controller_on(ports).run())
    assert "score" not in ports.calls


# --- a teacher -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [OpdLoss(), GrpoLoss(distill=0.1)])
@given(st.integers(0, 2**32), st.integers(0, 2), st.integers(0, 4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_teacher_s_groups_are_accounted_for_in_any_order(
    loss: Loss, seed: int, staleness: int, fails: int, newest_first: bool
) -> None:
    rng = Random(seed)
    ports = FakePorts(
        run_config(steps=4, groups=2, size=3, staleness=staleness, per_request=2, loss=loss),
        random_judge(rng, 3, fails=2, equal=2), teacher_fails=lambda: rng.randrange(10) < fails,
        finish=any_order(rng, newest_first), age=rng.randint,
    )  # fmt: skip
    controller = controller_on(ports)
    reports = list(controller.run())
    assert len(reports) == 4
    fates = Counter([*ports.trained, *ports.dropped, *ports.open])
    assert fates == Counter(dict.fromkeys(ports.dispatched, 1))
    rows = [row for report in reports for row in report.ledger]
    assert len({row.trajectory_id for row in rows}) == len(rows)
    assert {r.prompt_id for r in rows if r.group_step} == {prompt for _, prompt in ports.trained}
    assert ("score" in ports.calls) == (loss.kind == "grpo")


def test_what_the_judge_rules_out_costs_no_teacher() -> None:
    verdicts = [rewards(2, 2), rewards(0, 4)]
    ports = FakePorts(run_config(steps=1, groups=1, loss=GrpoLoss(distill=0.1)), lambda n: verdicts[n])
    (report,) = controller_on(ports).run()
    assert ports.calls.count("score") == 2
    assert ports.calls.count("teach") == 1
    assert report.metrics["teacher/failure_share"] == 0
    assert 0 < report.metrics["teacher/exposed_s"] <= report.metrics["teacher/teach_s"]  # nothing else could go on
    assert set(report.metrics) <= set(METRICS)


def test_teachers_that_all_fail_are_no_progress() -> None:
    ports = FakePorts(run_config(steps=1, groups=1, loss=OpdLoss()), ascending(2), teacher_fails=lambda: True)
    with pytest.raises(RunError, match="teacher_failed"):
        list(controller_on(ports).run())


# --- pairs ---------------------------------------------------------------------------------------------------------


def test_pairs_are_trained_on_with_the_preferred_first_and_told_in_the_ledger() -> None:
    loss = DpoLoss(rules=PairRules(margin=0.5))
    ports = FakePorts(run_config(steps=1, groups=2, size=3, loss=loss), lambda n: rewards(1, 5, 0))
    (report,) = controller_on(ports).run()
    samples = [sample for shard in ports.batches[0].shards for sample in shard]
    assert ports.batches[0].sequences == 4
    for sample in samples:
        values = [ports.judgements[int(c.token_ids[0])].value for c in sample.completions]  # type: ignore[union-attr]
        assert values == [5, 0]
    told = sorted(
        (row.prompt_id, row.pair, row.preferred, row.drop_reason, row.reward)
        for row in report.ledger
        if row.pair is not None
    )
    assert [row[1:] for row in told] == [(0, False, "", 0.0), (0, True, "", 5.0)] * 2
    assert [(row.drop_reason, row.reward) for row in report.ledger if row.pair is None] == [("no_pair", 1.0)] * 2


def test_pairs_made_before_are_drawn_by_prompt_and_another_each_epoch() -> None:
    one, two, three, four, five, six = (np.array([number]) for number in range(1, 7))
    pairs = {"p1": [(one, two), (three, four)], "p3": [(five, six)]}
    ports = FakeDataPorts(run_config(steps=4, groups=1, size=1, loss=DpoLoss(pairs="elsewhere")))
    stream = PromptStream(PROMPTS, seed=3)
    list(Controller(ports.config, ports.stage, ports, stream, run_id="run", pairs=pairs).run())
    seen = Counter()
    for batch in ports.batches:
        (sample,) = [sample for shard in batch.shards for sample in shard]
        seen[sample.prompt_id, *(int(c.token_ids[0]) for c in sample.completions)] += 1
    assert seen == {("p1", 1, 2): 1, ("p1", 3, 4): 1, ("p3", 5, 6): 2}


def test_a_teacher_to_be_is_raised_on_transcripts() -> None:
    config = run_config(steps=1, groups=1, size=1, loss=SftLoss())
    ports = FakeDataPorts(config)
    ports.stage = ports.stage.model_copy(update={"reads": "transcript"})
    list(controller_on(ports).run())
    (sample,) = [sample for shard in ports.batches[0].shards for sample in shard]
    assert AUDIO not in sample.prompt_ids


# --- data as completions -------------------------------------------------------------------------------------------


def test_on_data_the_request_carries_one_placeholder_and_the_reference_is_the_completion() -> None:
    ports = FakeDataPorts(run_config(steps=2, groups=3, size=1, loss=SftLoss()))
    controller = controller_on(ports)
    reports = list(controller.run())
    assert ports.versions == [0, 1]
    assert [report.step for report in reports] == [1, 2]
    assert controller.version == 2
    prompts = {p.id: p for p in PROMPTS}
    drawn = []
    for batch in ports.batches:
        samples = [sample for shard in batch.shards for sample in shard]
        assert len(batch.shards) == 2
        assert (batch.sequences, batch.loss_tokens) == (3, 6)
        for sample in samples:
            prompt = prompts[sample.prompt_id]
            drawn.append(prompt.id)
            assert sample.audio == prompt.audio
            assert sample.prompt_ids.tolist() == [1, AUDIO, len(prompt.instruction)]
            assert not sample.prompt_ids.flags.writeable
            (completion,) = sample.completions
            assert completion.token_ids.tolist() == [len(prompt.reference), END]
            assert len(completion.logprobs) == 0
    assert set(Counter(drawn[:5]).values()) == {1}  # an epoch sees every prompt once
    assert reports[0].groups == reports[0].ledger == ()
    for report in reports:
        assert report.metrics["buffer/trained_groups"] == 3
        assert all(describe(name) for name in report.metrics)


def test_a_resumed_stage_on_data_does_the_steps_that_are_left() -> None:
    ports = FakeDataPorts(run_config(steps=4, groups=1, size=1, loss=SftLoss()))
    reports = list(controller_on(ports, start=3, version=3).run())
    assert [report.step for report in reports] == [4]
    assert ports.versions == [3]


# --- what is told --------------------------------------------------------------------------------------------------


def test_the_figures_of_a_step_by_hand() -> None:
    """Three groups, of which the second has equal rewards and the third a summary that a gate turned down."""
    verdicts = [rewards(0, 4), rewards(2, 2), [Reward(1.0), Reward(3.0, gate="empty")]]
    ports = FakePorts(run_config(steps=1, groups=2, per_request=3), lambda n: verdicts[n])
    (report,) = controller_on(ports).run()
    told = report.metrics
    assert told["judge/reward_mean"] == pytest.approx((0 + 4 + 2 + 2 + 1 + 3) / 6)
    assert told["judge/reward_std"] == pytest.approx(math.sqrt((4 + 4 + 0 + 0 + 1 + 1) / 6))
    assert told["judge/gated_share"] == pytest.approx(1 / 6)
    assert told["judge/failure_share"] == 0
    assert (told["rollout/tokens"], told["rollout/response_tokens_mean"], told["rollout/truncated_share"]) == (12, 2, 0)
    assert (told["buffer/dropped"], told["buffer/dropped_equal_rewards"], told["buffer/trained_groups"]) == (1, 1, 2)
    assert (told["buffer/staleness_max"], told["sync/version"], told["learner/loss"]) == (0, 1, 0.5)
    assert told["rollout/tokens_per_s"] > 0
    assert len(report.groups) == 2


def test_a_span_for_every_call_from_when_its_actor_got_it() -> None:
    class LatePorts(FakePorts):
        def given(self, handle: int) -> float:
            return math.inf if self.pending[handle][0] == "generate" else 0.0

    (report,) = controller_on(LatePorts(run_config(steps=1), ascending(2))).run()
    assert {span.name for span in report.spans} == {"generate", "score", "train", "push", "step"}
    assert all(span.step == 1 and span.stage == "speak" for span in report.spans)
    assert all(span.start == span.end for span in report.spans if span.name == "generate")
    assert all(span.start < span.end for span in report.spans if span.name == "step")
    assert sum(span.groups for span in report.spans if span.name == "train") == 2


def test_every_figure_has_a_description() -> None:
    fates: list[Any] = [[Reward(0.0), FAILED], rewards(1, 1), rewards(0, 1)]
    failing = iter([True])
    ports = FakePorts(
        run_config(steps=3, groups=1, staleness=1), lambda n: fates[n % 3], roll_fails=lambda: next(failing, False)
    )
    names = {name for report in controller_on(ports).run() for name in report.metrics}
    assert {"buffer/dropped_rollout", "buffer/dropped_judge_failed", "buffer/dropped_equal_rewards"} <= names
    assert names <= set(METRICS)


def test_the_ledger_of_a_whole_run_holds_every_trajectory_once(tmp_path: Path) -> None:
    rng = Random(5)
    config = run_config(steps=6, groups=3, size=3, staleness=2, per_request=2)
    ports = FakePorts(
        config, random_judge(rng, 3, fails=2, equal=2), roll_fails=lambda: rng.random() < 0.2,
        finish=lambda pending: [rng.choice(sorted(pending))], age=rng.randint,
    )  # fmt: skip
    ledger = Ledger(tmp_path, rows_per_part=20)
    for report in controller_on(ports).run():
        ledger.record(report.ledger)
    ledger.flush()
    rows = read_ledger(tmp_path).to_pylist()
    assert Counter(row["token_ids"][0] for row in rows) == Counter(dict.fromkeys(ports.made, 1))
    assert len({row["trajectory_id"] for row in rows}) == len(rows)
    reasons = Counter(row["drop_reason"] for row in rows)
    assert {"", "judge_failed", "equal_rewards"} <= set(reasons)
    for row in rows:
        assert (row["group_step"] is None) == bool(row["drop_reason"])
        assert (row["run_id"], row["stage"], row["prompt_tokens"], row["response_tokens"]) == ("run", "speak", 4, 2)
        assert row["logprobs"] == [-0.5, -0.25]
        assert row["trajectory_id"] == trajectory_id("run", row["epoch"], row["prompt_id"], row["sample"])
        judgement = ports.judgements[row["token_ids"][0]]
        assert row["reward"] == (judgement.value if isinstance(judgement, Reward) else None)
        assert row["judge_failure"] == ("timeout" if isinstance(judgement, JudgeFailure) else "")
        assert row["judge"] == "fake/1"
        assert row["gate"] == (judgement.gate if isinstance(judgement, Reward) else "")
    trained = {(row["epoch"], row["prompt_id"]): row["group_step"] for row in rows if row["group_step"]}
    assert set(trained) == set(ports.trained)
    assert Counter(trained.values()) == dict.fromkeys(range(1, 7), 3)
