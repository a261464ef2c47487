"""The rubric and the pairwise judge against a real vLLM server, which enforces the answer's JSON schema."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from actors.pairwise_judge import PairwiseJudge
from actors.rubric_judge import RubricJudge
from cluster.assets import starter_text
from speechsum.config import EndpointConfig
from speechsum.pairwise import PROBABILITY
from speechsum.rubric import WEIGHTS
from speechsum.types import FailureKind, JudgeFailure, JudgeTask, PairTask, Reward

pytestmark = pytest.mark.slow
DEADLINE_S = 240
TRANSCRIPT = "We moved the budget meeting to Friday. Anna will send the report by noon."


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` with the starter's language model, up and healthy."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    server = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
         "--model", str(starter_text(print)), "--served-model-name", "judge", "--max-model-len", "2048",
         "--enforce-eager", "--kv-cache-memory-bytes", "200000000"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                          "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"},
        stdout=log.open("w"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        _wait_until_healthy(server, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(60)


def _wait_until_healthy(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(health, timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            threading.Event().wait(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")


def test_every_answer_of_a_real_server_is_a_whole_rubric(url: str) -> None:
    judge = RubricJudge(EndpointConfig(url=url, model="judge", timeout_s=120, concurrency=2))
    summaries = ["The budget meeting moved to Friday.", "Anna will not send any report at all.", ""]
    try:
        judged = judge.score([JudgeTask(TRANSCRIPT, "Summarize this in one sentence.", s) for s in summaries])
    finally:
        judge.close()
    for reward in judged[:2]:
        assert isinstance(reward, Reward), reward
        assert 0.0 <= reward.value <= 1.0
        assert set(WEIGHTS) <= set(reward.breakdown)
    assert isinstance(judged[2], Reward)
    assert judged[2].gate == "empty"  # never sent


def test_a_real_server_answers_for_both_orders(url: str) -> None:
    judge = PairwiseJudge(EndpointConfig(url=url, model="judge", timeout_s=120, concurrency=2))
    try:
        (judged,) = judge.score([
            PairTask(
                TRANSCRIPT, "Summarize this in one sentence.",
                "The budget meeting moved to Friday.", "Anna will not send any report at all.",
            )
        ])  # fmt: skip
        counts = judge.counts()
    finally:
        judge.close()
    assert isinstance(judged, Reward), judged
    assert {judged.breakdown["shown_first"], judged.breakdown["shown_second"]} <= {
        round(p, 6) for p in PROBABILITY.values()
    }
    assert (counts["judge/pairs"], counts["judge/requests"]) == (1, 2)
    assert counts["judge/tokens"] > 1000  # two prompts and what was said to them


def test_a_name_that_the_server_does_not_know_is_a_typed_failure(url: str) -> None:
    judge = RubricJudge(EndpointConfig(url=url, model="another", timeout_s=60))
    try:
        (judgement,) = judge.score([JudgeTask(TRANSCRIPT, "Sum up.", "The budget meeting moved to Friday.")])
    finally:
        judge.close()
    assert isinstance(judgement, JudgeFailure)
    assert judgement.kind is FailureKind.HTTP_ERROR
