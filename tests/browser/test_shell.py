"""The shell: the first minute, themes, keys, the address, and what a page without its key says."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect

from browser.inspecting import open_trace, ready
from browser.serving import Served
from moescope.events import EVENT_KINDS

pytestmark = pytest.mark.browser


def test_the_first_page_is_a_trace_without_a_click(page: Page, served: Served) -> None:
    page.goto(f"{served.base}/")
    ready(page)
    traces = page.evaluate("async () => (await fetch('/api/traces')).json()")
    bundled = [row for row in traces if row["origin"] == "sample" and row["run"] is None]
    samples = sorted(row["id"] for row in bundled if row["kind"] == "text")
    first = samples[0] if samples else traces[0]["id"]
    assert f"#/inspect/{first}" in page.url
    expect(page.locator(".finding").first).to_be_visible()
    expect(page.locator(".stream-light.live")).to_be_visible()
    expect(page.get_by_role("link", name="Inspect", exact=True)).to_have_attribute("aria-current", "page")


def test_the_bundled_model_shows_its_preference_for_domains_without_a_click(page: Page, served: Served) -> None:
    page.goto(f"{served.base}/")
    ready(page)
    assert "#/inspect/sample-lm-installed" in page.url
    expect(page.locator(".area-labels h2")).to_contain_text("domain")
    expect(page.locator(".prefers").first).to_contain_text("×")
    row = page.locator(".measures tbody tr", has_text="Mutual information").filter(has_text="domain")
    value, null, z = (row.locator("td").nth(i).inner_text() for i in (0, 2, 3))
    assert float(value) > 3 * float(null.split(" ")[0])
    assert float(z) > 5
    names = [part.strip() for part in page.locator(".finding").all_inner_texts()]
    assert any("domain" in words for words in names), names


def test_the_theme_is_kept_and_figures_follow(page: Page, served: Served) -> None:
    open_trace(page, served)
    light = page.evaluate("() => getComputedStyle(document.body).color")
    ink = "() => document.querySelector('.area-heat .figure-plot').layout.font.color"
    before = page.evaluate(ink)
    page.get_by_label("Theme").select_option("dark")
    page.wait_for_function(f"(before) => ({ink})() !== before", arg=before)
    dark = page.evaluate("() => getComputedStyle(document.body).color")
    assert dark != light
    page.reload()
    ready(page)
    assert page.evaluate("() => getComputedStyle(document.body).color") == dark
    page.get_by_label("Theme").select_option("system")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("() => getComputedStyle(document.body).color") == dark
    page.emulate_media(color_scheme="light")
    page.wait_for_function(f"(before) => ({ink})() === before", arg=before)


def test_help_lists_the_keys(page: Page, served: Served) -> None:
    open_trace(page, served)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys and words")).to_be_visible()
    page.keyboard.press("]")
    assert "layer" not in page.url
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys and words")).not_to_be_visible()


def test_everything_can_be_done_with_the_keyboard_alone(page: Page, served: Served) -> None:
    open_trace(page, served)
    reached: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => { const it = document.activeElement; return `${it.tagName} ${it.className} ${it.textContent}`; }"
            )
        )
        if "expert-row" in reached[-1]:
            break
    told = "\n".join(reached)
    for wanted in ("Skip to the content", "Library", "trace-picker", "finding", "search", "MOE-TEXT", "expert-row"):
        assert wanted.lower() in told.lower(), f"{wanted} was not reached:\n{told}"
    ring = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("moe-selection")).to_contain_text("Expert 0")


def test_an_unknown_trace_is_told_in_a_sentence(page: Page, served: Served, expected: list[str]) -> None:
    expected.append("404")
    page.goto(f"{served.base}/#/inspect/no-such-trace")
    expect(page.locator("[role=alert]")).to_contain_text("no-such-trace")
    page.get_by_role("link", name="To the library").click()
    expect(page.get_by_role("heading", name="Library")).to_be_visible()


def test_a_page_without_its_key_says_what_to_do(browser: Browser, served: Served) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{served.base}/#/library")
    expect(page.locator(".toast.error")).to_contain_text("open the address that moescope printed")
    context.close()


@pytest.mark.parametrize("width", [1440, 1024, 800])
@pytest.mark.parametrize("where", ["library", "inspect", "run"])
def test_nothing_sticks_out_at_the_side(page: Page, served: Served, width: int, where: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(served.inspect("plain") if where == "inspect" else f"{served.base}/#/{where}")
    page.wait_for_timeout(1200)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_the_stream_hears_every_kind_of_event(page: Page, served: Served) -> None:
    page.goto(f"{served.base}/")
    heard = page.evaluate("async () => (await import('/lib/stream.js')).KINDS")
    assert sorted(heard) == sorted(EVENT_KINDS)


def test_the_address_packs_and_unpacks_tokens(page: Page, served: Served) -> None:
    page.goto(f"{served.base}/")
    good = page.evaluate(
        """async () => {
            const { packTokens, unpackTokens, parse, format } = await import('/lib/state.js');
            for (const set of [[], [0], [0, 1, 127, 128, 129], [5, 300000, 16500], [2 ** 31]]) {
                const back = unpackTokens(packTokens(set));
                const sorted = [...set].sort((a, b) => a - b);
                if (JSON.stringify(back) !== JSON.stringify(sorted)) return `${set} became ${back}`;
            }
            if (unpackTokens('%%%').length) return 'nonsense became tokens';
            const hash = '#/inspect/a%20b?layer=2&expert=3&q=x+%26+y';
            return format(parse(hash)) === hash ? 'same' : format(parse(hash));
        }"""
    )
    assert good == "same"
