"""A page as a person has it: in Chromium, without a window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Locator, Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLOTLY_S_MAPS = "maplibregl"
"""Plotly brings a style for maps, which the dashboard's policy keeps out and no chart there needs."""

WATCH_POLICY = """
window.refused = [];
document.addEventListener("securitypolicyviolation", (event) => window.refused.push(event.target.outerHTML ?? ""));
"""
HEAR = """
async (player) => {
  const end = new Promise((ended) => player.addEventListener("ended", ended));
  await player.play();
  await end;
  return player.currentTime;
}
"""

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not on this machine; `apt install chromium` brings it"
)


@contextmanager
def browsed(url: str, home: str) -> Iterator[Page]:
    """A tab at `url`. Afterwards: no script failed, the page's policy refused nothing, nobody but `home` was asked."""
    errors: list[object] = []
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.add_init_script(WATCH_POLICY)
        page.on("pageerror", lambda error: errors.append(error))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        yield page
        refused = [element for element in page.evaluate("window.refused") if PLOTLY_S_MAPS not in element]
        browser.close()
    assert (errors, refused) == ([], [])
    assert {url for url in asked if not url.startswith((home, "data:"))} == set()


def heard(player: Locator) -> float:
    """Play a recording to its end; gives its seconds."""
    return float(player.evaluate(HEAR))
