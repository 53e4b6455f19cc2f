"""Growth: experts that come and go appear by themselves, are selected everywhere, and can be played again."""

from __future__ import annotations

import re
import threading

import pytest
from playwright.sync_api import Page, expect

from browser.growing import DRAWN, POINTS, chips, finished, growing, lane, open_run, settled, step_of
from browser.serving import Served
from growth_case import SNAPSHOTS, STEPS

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def grown(served: Served) -> str:
    return finished(served.home)


def test_splits_appear_while_the_run_goes_on(page: Page, served: Served) -> None:
    with growing(served.home, "Live") as run:
        run.tell(55)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        open_run(page, served, run.run, "?layer=1")
        assert chips(page) == ["E0", "E1", "E2"]
        expect(page.locator(".last-change")).to_have_text("No expert has split yet.")
        run.tell(150, rate=200)
        expect(page.locator(".expert-chip[data-expert='4']")).to_be_visible()
        assert chips(page) == ["E0", "E1", "E2", "E3", "E4"]
        expect(page.locator(".layer-choice [aria-pressed=true]")).to_have_text("Layer 1 5/8")
        expect(page.locator(".last-change")).to_contain_text("E4")
        page.wait_for_function(f"() => ({DRAWN})('lineage').some((t) => t.meta.group?.expert === 4)")
        marks = f"() => ({DRAWN})('loss').filter((t) => t.meta?.role === 'marks').map((t) => t.name).includes('split')"
        page.wait_for_function(marks)
        page.wait_for_function(f"() => ({POINTS})() === 150")
        expect(page.locator(".area-snap .empty-line, .area-snap .point").first).to_be_attached()
        run.tell(300)
        expect(page.locator(".area-snap .scatterlayer .point").first).to_be_attached()
        expect(page.locator(".area-flow:visible .sankey-node").first).to_be_attached()
        page.wait_for_function(f"() => ({POINTS})() === 300")
        steps = page.evaluate("() => [...document.querySelector('[data-track=loss] moe-live').figure.data[0].x]")
        assert steps == list(range(1, 301)), "nothing is missed, nothing doubled"
        assert sum("/api/events?" in url or url.endswith("/api/events") for url in requests) <= 1
        assert sum("/figures/loss" in url for url in requests) < 15


def test_what_came_while_the_line_was_cut_is_there_afterwards(page: Page, served: Served, expected: list[str]) -> None:
    expected += ["ERR_INTERNET_DISCONNECTED", "ERR_NETWORK"]
    with growing(served.home, "Cut") as run:
        run.tell(40)
        page.goto(f"{served.base}/#/run/{run.run}?layer=1")
        page.wait_for_function(f"() => ({POINTS})() === 40")
        page.context.set_offline(True)
        run.tell(120)
        page.wait_for_timeout(500)
        page.context.set_offline(False)
        run.tell(130, rate=100)
        page.wait_for_function(f"() => ({POINTS})() >= 130")
        steps = page.evaluate("() => [...document.querySelector('[data-track=loss] moe-live').figure.data[0].x]")
        assert steps == list(range(1, 131))


def test_an_expert_is_selected_everywhere_and_the_address_keeps_it(page: Page, served: Served, grown: str) -> None:
    open_run(page, served, grown)
    settled(page)
    page.mouse.click(*lane(page, "lineage", 3))
    page.wait_for_url(re.compile("expert=3"))
    expect(page.locator(".expert-chip[data-expert='3']")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".expert-line")).to_contain_text("child of E1 since step 60")
    expect(page.locator("[data-track=drift_signal]")).to_be_visible()
    page.wait_for_function(f"() => ({DRAWN})('drift_signal').some((t) => t.x?.length > 3)")
    expect(page.locator("[data-track=drift] .outline.selected")).to_have_count(1)
    dim = f"() => ({DRAWN})('lineage').filter((t) => t.opacity < 0.5).length > 3"
    page.wait_for_function(dim)
    dim = "() => document.querySelector('moe-film .figure-plot').data.some((t) => t.selectedpoints?.length === 0)"
    page.wait_for_function(dim)
    page.reload()
    expect(page.locator(".expert-chip[data-expert='3']")).to_have_attribute("aria-pressed", "true")
    page.wait_for_function(f"() => ({DRAWN})('drift_signal').some((t) => t.x?.length > 3)")
    settled(page)
    page.mouse.click(*lane(page, "drift", 0))
    page.wait_for_url(re.compile("expert=0"))
    page.locator("body").press("Escape")
    expect(page.locator(".expert-line")).to_be_hidden()
    expect(page.locator("[data-track=drift_signal]")).to_be_hidden()
    page.locator(".area-flow .sankey-node rect").nth(1).click(position={"x": 8, "y": 4})
    page.wait_for_url(re.compile("expert="))
    page.keyboard.press("Escape")
    page.keyboard.press("]")
    page.wait_for_url(re.compile("layer=3"))
    expect(page.locator(".area-load h2")).to_have_text("Load over time, layer 3")


def test_a_run_is_played_again(page: Page, served: Served, grown: str) -> None:
    open_run(page, served, grown)
    expect(page.locator(".area-snap .scatterlayer .point").first).to_be_attached()
    settled(page)
    tokens = "() => document.querySelector('moe-film').figure.data.flatMap((t) => [...t.customdata]).sort().join()"
    before = page.evaluate(tokens)
    axes = "() => JSON.stringify(document.querySelector('moe-film .figure-plot')._fullLayout.xaxis.range)"
    range_before = page.evaluate(axes)
    page.keyboard.press("Space")
    page.wait_for_function("() => document.querySelector('.filming') !== null")
    expect(page.locator("[data-track=loss] .cursor")).to_be_attached()
    expect(page.locator("[data-track=lineage] .veil")).to_be_attached()
    page.wait_for_function("(last) => location.hash.includes(`step=${last}`)", arg=SNAPSHOTS[-1])
    expect(page.locator("moe-transport")).not_to_have_class(re.compile("playing"))
    settled(page)
    assert page.evaluate(tokens) == before, "the same probe tokens"
    assert page.evaluate(axes) == range_before, "the map stays put"
    page.get_by_label("Step", exact=True).focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile(f"step={SNAPSHOTS[-2]}"))
    page.keyboard.press("ArrowLeft")
    page.wait_for_url(re.compile(f"step={SNAPSHOTS[-3]}"))
    expect(page.locator(".last-change")).to_contain_text("step 280")
    assert chips(page) == ["E0", "E1", "E2", "E3", "E4", "E5"], "those who were alive then"
    page.get_by_label("Step", exact=True).blur()
    page.keyboard.press("Escape")
    page.wait_for_function("() => !location.hash.includes('step=')")


def test_dragging_over_a_track_moves_the_step(page: Page, served: Served, grown: str) -> None:
    open_run(page, served, grown)
    settled(page)
    box = page.locator(".area-load .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    step = step_of(page)
    assert step is not None and abs(step - STEPS / 2) <= 6, step
    expect(page.locator(".area-snap output")).to_contain_text(f"step {max(s for s in SNAPSHOTS if s <= step)}")


def test_a_run_that_does_not_grow_has_no_empty_panels(page: Page, served: Served) -> None:
    from browser.test_run import start

    start(page, served, {"optim.steps": 40, "snapshot_every": 20})
    expect(page.locator(".run-head .chip")).to_have_text("finished", timeout=120_000)
    expect(page.locator(".area-load .scatterlayer .trace").first).to_be_attached()
    for name in ("drift", "drift_signal", "lineage"):
        expect(page.locator(f"[data-track={name}]")).to_have_count(0)


def test_fifty_events_a_second_are_drawn_as_they_come(page: Page, served: Served) -> None:
    with growing(served.home, "Fast") as run:
        run.tell(30)
        open_run(page, served, run.run, "?layer=1")
        settled(page)
        page.evaluate(
            """() => {
                window.seen = [];
                const figure = document.querySelector('[data-track=loss] moe-live');
                const now = () => (performance.timeOrigin + performance.now()) / 1000;
                const note = () => window.seen.push([figure.figure.data[0].x.at(-1), now()]);
                figure.addEventListener('grew', note);
                figure.addEventListener('drawn', note);
            }"""
        )
        feeding = threading.Thread(target=run.tell, args=(250, 50.0))
        feeding.start()
        while feeding.is_alive():
            page.wait_for_timeout(100)
        page.wait_for_function(f"() => ({POINTS})() === 250")
        page.wait_for_timeout(400)
        late: list[float] = []
        last = 30
        for step, at in page.evaluate("() => window.seen"):
            late += [at - run.written[s] for s in range(last + 1, int(step) + 1)]
            last = max(last, int(step))
    late.sort()
    assert len(late) == 220
    assert late[len(late) // 2] < 0.3, f"median {1000 * late[len(late) // 2]:.0f} ms from event to picture"
