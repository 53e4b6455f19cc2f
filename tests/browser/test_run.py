"""Run: started on the page, watched live, stopped, resumed, seen again after a reload."""

from __future__ import annotations

import os
import re
import signal

import pytest
from playwright.sync_api import Page, expect

from browser.inspecting import ready
from browser.serving import Served
from moescope.store import Store

pytestmark = pytest.mark.browser

LOSS = "() => document.querySelector('.area-loss .figure-plot')?.data?.[0]?.x?.length ?? 0"
SETTINGS = ".setting[data-key='{}']"


def start(page: Page, served: Served, settings: dict[str, object], preset: str = "clusters") -> str:
    """Start a preset with changed settings and watch it; its id."""
    answer = page.request.post(f"{served.base}/api/runs", data={"preset": preset, "set": settings})
    assert answer.ok, answer.text()
    run: str = answer.json()["run"]
    page.goto(f"{served.base}/#/run/{run}")
    return run


def test_a_run_is_watched_live_to_its_end(page: Page, served: Served) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    start(page, served, {"optim.steps": 120, "snapshot_every": 60, "eval_every": 30})
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
    slider = page.get_by_label("Step", exact=True)
    slider.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile("step=60"))
    expect(page.locator(".snapshot-tools output")).to_contain_text("step 60")
    page.get_by_role("link", name="Inspect this snapshot").click()
    ready(page)


def test_a_run_is_stopped_and_resumed(page: Page, served: Served) -> None:
    start(page, served, {"optim.steps": 2000, "checkpoint_every": 50, "snapshot_every": 1000, "eval_every": 1000})
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


def test_the_form_says_what_is_wrong_and_starts_what_is_right(page: Page, served: Served) -> None:
    page.goto(f"{served.base}/#/new?preset=clusters")
    expect(page.locator(".preset-card.chosen")).to_have_attribute("data-preset", "clusters")
    expect(page.locator(".verdict-line")).to_have_text("Ready to start.")
    page.keyboard.press("/")
    page.keyboard.type("optimizer steps")
    steps = page.locator(SETTINGS.format("optim.steps"))
    expect(page.locator(".setting:visible")).to_have_count(1)
    field = steps.get_by_role("textbox")
    field.fill("-3")
    expect(steps.locator(".objection")).to_contain_text("at least 1")
    expect(steps.locator(".objection")).to_contain_text("optim.steps = -3")
    expect(page.locator(".verdict-line")).to_contain_text("optim.steps = -3")
    page.get_by_label("Search a setting").fill("d_input")
    width = page.locator(SETTINGS.format("model.d_input")).get_by_role("textbox")
    expect(width).to_have_value("from the data")
    expect(width).to_be_disabled()
    page.reload()
    expect(steps).to_be_in_viewport()
    page.get_by_label("Search a setting").fill("optimizer steps")
    expect(page.get_by_role("button", name="Start the run")).to_be_disabled()
    field.fill("30")
    expect(steps.locator(".objection")).to_have_text("")
    expect(page.locator(".differ")).to_contain_text("optim.steps = 30")
    page.reload()
    expect(steps.get_by_role("textbox")).to_have_value("30")
    posted: list[object] = []
    page.on(
        "request",
        lambda request: (
            posted.append(request.post_data_json)
            if request.url.endswith("/api/runs") and request.method == "POST"
            else None
        ),
    )
    page.get_by_label("Name of the run").fill("By the form")
    page.get_by_label("Name of the run").press("Enter")
    page.wait_for_url(re.compile("#/run/"))
    assert posted == [{"set": {"optim.steps": 30}, "preset": "clusters", "name": "By the form"}], "only what differs"
    expect(page.locator(".run-head .chip")).to_have_text("finished", timeout=120_000)
    expect(page.locator(".run-head")).to_contain_text("step 30 of 30")


def test_a_checkpoint_that_is_not_there_is_said_and_is_no_error_of_the_page(page: Page, served: Served) -> None:
    page.goto(f"{served.base}/#/new?fork=nope")
    expect(page.locator(".lead")).to_have_text("There is no checkpoint and no run 'nope' to go on from.")
    expect(page.get_by_role("button", name="Start the run")).to_be_hidden()


def test_options_follow_what_is_chosen(page: Page, served: Served) -> None:
    page.goto(f"{served.base}/#/new?preset=lm-small")
    router = page.locator(SETTINGS.format("model.router"))
    router.get_by_role("combobox").first.select_option("top_p")
    router.get_by_label("P", exact=True).fill("0.7")
    expect(page.locator(".differ")).to_contain_text('model.router_config = {"p":0.7}')
    source = page.locator(SETTINGS.format("data.spec"))
    source.get_by_role("combobox").first.select_option("ginc")
    source.get_by_label("Entities").fill("7")
    expect(page.locator(".differ")).to_contain_text('data.spec = {"corpus":"ginc","entities":7}')
    objectives = page.locator(SETTINGS.format("objectives"))
    objectives.get_by_label("Add an objective").select_option("router_z")
    expect(objectives.get_by_label("router_z", exact=True)).to_be_focused()
    objectives.get_by_role("button", name="Take load_balance away").click()
    expect(page.locator(".differ")).to_contain_text('objectives = {"router_z":0.01}')
    page.get_by_label("Let experts grow").check()
    page.locator(SETTINGS.format("model.max_experts")).get_by_role("textbox").fill("12")
    page.locator(SETTINGS.format("expansion.detector")).get_by_role("combobox").first.select_option("random")
    expect(page.locator(".differ")).to_contain_text('expansion = {"detector":"random"}')
    expect(page.locator(".verdict-line")).to_have_text("Ready to start.")


def test_a_run_is_paused_and_split_by_hand_and_forked(page: Page, served: Served) -> None:
    start(
        page,
        served,
        {"optim.steps": 4000, "checkpoint_every": 0, "snapshot_every": 0, "eval_every": 0, "model.max_experts": 10},
    )
    page.wait_for_function(f"() => ({LOSS})() >= 3", timeout=120_000)
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.locator(".run-head .chip")).to_have_text("paused")
    page.reload()
    expect(page.locator(".run-head .chip")).to_have_text("paused")
    page.locator(".expert-chip[data-expert='2']").click()
    page.get_by_role("button", name="Split E2…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("2 free slots")
    dialog.get_by_role("button", name="Split E2").click()
    expect(page.locator(".toast").filter(has_text="E2 split, E8 is its child")).to_be_visible()
    expect(page.locator(".expert-chip[data-expert='8']")).to_be_visible()
    page.locator(".expert-chip[data-expert='5']").click()
    page.get_by_role("button", name="Retire E5…").click()
    page.get_by_role("dialog").get_by_role("button", name="Retire E5").click()
    expect(page.locator(".toast").filter(has_text="E5 of layer 0 was retired")).to_be_visible()
    expect(page.locator(".expert-chip[data-expert='5']")).to_have_count(0)
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".run-head .chip")).to_have_text("running")
    page.get_by_role("button", name="Checkpoint", exact=True).click()
    expect(page.locator(".toast").filter(has_text="A checkpoint was written")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".run-head .chip")).to_have_text("stopped", timeout=120_000)
    page.get_by_role("button", name="Fork…").click()
    page.get_by_role("button", name="Choose settings").click()
    page.wait_for_url(re.compile(r"#/new\?fork="))
    expect(page.locator(".lead")).to_contain_text("from step")
    step = int(page.locator(".lead").inner_text().split("from step ")[1].split(":")[0].replace(",", ""))
    page.locator(SETTINGS.format("optim.steps")).get_by_role("textbox").fill(str(step + 20))
    page.get_by_role("button", name="Start the run").click()
    page.wait_for_url(re.compile("#/run/"))
    expect(page.locator(".run-head .chip")).to_have_text("finished", timeout=120_000)
    expect(page.locator(".forked")).to_contain_text(f"at step {step:,}")
    expect(page.locator(".expert-chips")).to_contain_text("E8")  # the fork has the child


def test_the_second_run_waits_for_the_first(page: Page, served: Served) -> None:
    first = start(page, served, {"optim.steps": 4000, "snapshot_every": 0, "eval_every": 0})
    second = start(page, served, {"optim.steps": 30})
    expect(page.locator(".run-head .chip")).to_have_text("queued")
    expect(page.locator(".run-head .banner")).to_contain_text("It waits for 1 run")
    page.request.post(f"{served.base}/api/runs/{first}/stop")
    expect(page.locator(".run-head .chip")).to_have_text("finished", timeout=120_000)
    assert second in page.url


def test_a_run_whose_process_died_is_found_and_resumed(page: Page, served: Served) -> None:
    run = start(page, served, {"optim.steps": 3000, "checkpoint_every": 20, "snapshot_every": 0, "eval_every": 0})
    page.wait_for_function(f"() => ({LOSS})() >= 45", timeout=120_000)
    store = Store(served.home)
    pid = next(job.pid for job in store.jobs(status="running") if job.id == store.run(run).job)
    store.close()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    expect(page.locator(".run-head .chip")).to_have_text("process died", timeout=60_000)
    expect(page.locator(".run-head .banner")).to_contain_text("Its process died without a word")
    page.get_by_role("button", name=re.compile("Resume from step")).click()
    expect(page.locator(".run-head .chip")).to_have_text("running", timeout=60_000)
    page.wait_for_function(f"() => ({LOSS})() >= 100", timeout=120_000)
    steps = page.evaluate("() => [...document.querySelector('[data-track=loss] moe-live').figure.data[0].x]")
    assert steps == list(range(1, len(steps) + 1)), "nothing is missed, nothing doubled"
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".run-head .chip")).to_have_text("stopped", timeout=120_000)
