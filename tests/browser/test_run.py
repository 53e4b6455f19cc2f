"""Run: started on the page, watched live, stopped, resumed, seen again after a reload."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from browser.inspecting import ready
from browser.serving import Served

pytestmark = pytest.mark.browser

LOSS = "() => document.querySelector('.area-loss .figure-plot')?.data?.[0]?.x?.length ?? 0"


def start(page: Page, served: Served, settings: str) -> None:
    page.goto(f"{served.base}/#/library")
    preset = page.locator('.preset[data-preset="clusters"]')
    preset.get_by_text("Change settings").click()
    preset.get_by_role("textbox").fill(settings)
    preset.get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("#/run/"))


def test_a_run_is_watched_live_to_its_end(page: Page, served: Served) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    start(page, served, "optim.steps=120\nsnapshot_every=60\neval_every=30")
    expect(page.locator(".jobs-button")).to_contain_text("Jobs: 1")
    sizes = f"() => (window.sizes ??= new Set()).add(({LOSS})()).size >= 4"
    page.wait_for_function(sizes, timeout=120_000)
    expect(page.locator(".run-head .chip")).to_have_text("finished", timeout=120_000)
    page.wait_for_function(f"() => ({LOSS})() === 120")
    steps = page.evaluate("() => [...document.querySelector('.area-loss .figure-plot').data[0].x]")
    assert steps == list(range(1, 121))
    figures = [url for url in requests if "/figures/loss" in url]
    assert len(figures) < 15, f"{len(figures)} requests for 120 steps: the curve should grow by events"
    assert sum("/api/events" in url for url in requests) == 1
    expect(page.locator(".area-snap .scatterlayer .point").first).to_be_attached()
    expect(page.locator(".area-load .scatterlayer .trace").first).to_be_attached()
    expect(page.locator(".run-head")).to_contain_text("step 120 of 120")
    page.reload()
    page.wait_for_function(f"() => ({LOSS})() === 120")
    expect(page.locator(".run-numbers")).to_contain_text("Held-out loss")
    slider = page.get_by_label("Snapshot")
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile("step=60"))
    expect(page.locator(".snapshot-tools output")).to_contain_text("60")
    page.get_by_role("link", name="Inspect this snapshot").click()
    ready(page)


def test_a_run_is_stopped_and_resumed(page: Page, served: Served) -> None:
    start(page, served, "optim.steps=2000\ncheckpoint_every=50\nsnapshot_every=1000\neval_every=1000")
    page.wait_for_function(f"() => ({LOSS})() >= 3", timeout=120_000)
    page.reload()
    expect(page.locator(".jobs-button")).to_contain_text("Jobs: 1")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".run-head .chip")).to_have_text("stopped", timeout=120_000)
    stopped = page.evaluate(LOSS)
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".run-head .chip")).to_have_text("running", timeout=120_000)
    page.wait_for_function(f"(stopped) => ({LOSS})() > stopped", arg=stopped, timeout=120_000)
    page.locator(".jobs-button").click()
    page.locator(".jobs-panel .job.running").get_by_role("button", name="Cancel").click()
    expect(page.locator(".run-head .chip")).to_have_text("stopped", timeout=120_000)
    steps = page.evaluate("() => [...document.querySelector('.area-loss .figure-plot').data[0].x]")
    assert steps == list(range(1, len(steps) + 1))


def test_a_wrong_setting_is_refused_before_anything_starts(page: Page, served: Served, expected: list[str]) -> None:
    expected.append("400")
    page.goto(f"{served.base}/#/library")
    preset = page.locator('.preset[data-preset="clusters"]')
    preset.get_by_text("Change settings").click()
    preset.get_by_role("textbox").fill("optim.steps=many")
    preset.get_by_role("button", name="Start").click()
    expect(page.locator(".toast.error")).to_contain_text("steps")
    assert "#/library" in page.url
