"""The dashboard as a person has it: our server, and Chromium, which draws, filters, plays and follows a run."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Page, expect

from cluster.dashboard.library import RunLibrary
from cluster.dashboard.server import build_app
from tests.browser import browsed, heard, needs_chromium
from tests.cluster.fake_runs import INJECTED, SIZE, append, figures, make_run, write_data

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs on the same recordings, of which `made` is the later one."""
    data = write_data(tmp_path / "data")
    make_run(tmp_path / "runs/before", data)
    make_run(tmp_path / "runs/made", data)
    return tmp_path / "runs"


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(build_app(RunLibrary([runs])), log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as door:  # open before anybody serves, so that nobody need wait
        thread = threading.Thread(target=lambda: server.run(sockets=[door]))
        thread.start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}/"
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def page(address: str) -> Iterator[Page]:
    with browsed(f"{address}#run=made", address) as page:
        page.wait_for_selector("#curves h2")
        yield page


def charts(page: Page) -> list[str]:
    """Titles of the charts that are to be seen, each with a curve in it."""
    page.wait_for_selector("#curves .panel .js-line")
    drawn = page.locator("#curves .panel:visible").filter(has=page.locator(".js-line"))
    return [title.split("\n")[0] for title in drawn.locator("figcaption").all_inner_texts()]


def test_curves_are_drawn_and_follow_a_run(page: Page, runs: Path) -> None:
    drawn = charts(page)
    assert {"Reward", "Reward by criterion", "Throughput, tokens/s", "Staleness, versions"} <= set(drawn)
    assert "Actors" not in drawn  # nobody told of them
    expect(page.locator("#status")).to_contain_text("reward · 12 of 12 steps")
    actors_now = page.locator("#curves table tr").filter(has_text="rollout").locator("td").nth(1)
    expect(actors_now).to_have_text("3")
    pool = {"rollout/actors_serving": 7.0, "rollout/actors_wanted": 8.0}
    append(runs / "made/metrics.jsonl", [figures("reward", 4, **pool)])
    expect(page.locator("#status")).to_contain_text("13 of 12 steps")
    expect(actors_now).to_have_text("7")
    actors = page.locator("#curves .panel", has=page.get_by_role("heading", name="Actors"))
    expect(actors.locator(".latest")).to_have_text("rollout/actors_serving 7")


def test_two_runs_are_laid_over_each_other(page: Page) -> None:
    page.select_option("#other", "before")
    expect(page.locator("#curves")).to_contain_text("Solid: made. Dotted: before.")
    page.wait_for_selector('#curves .panel .js-line[style*="stroke-dasharray: 3px"]')
    assert "with=before" in page.url


def test_groups_are_filtered_opened_and_heard(page: Page) -> None:
    page.click("#to-summaries")
    rows = page.locator("#summaries tbody tr")
    expect(page.locator("#summaries")).to_contain_text(re.compile(r"1\d groups"))
    page.locator("#summaries label", has_text="Gate").locator("select").select_option("echo")
    expect(rows).to_have_count(1)
    rows.get_by_role("link").click()
    cards = page.locator("#summaries article")
    expect(cards).to_have_count(SIZE)
    expect(cards.first).to_contain_text(INJECTED)  # as words: nothing of it was run
    expect(cards.first.locator(".reward")).to_have_text("0.9")
    expect(cards.last).to_contain_text("the judgement failed: timeout")
    assert page.title() == "made · speechsum"
    assert heard(page.locator("#summaries audio")) == pytest.approx(1.0, abs=0.05)
