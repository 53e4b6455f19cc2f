"""Traces of every kind: images, many experts, long or doubtful ones, without labels, with markup in every text."""

from __future__ import annotations

import statistics

import pytest
from playwright.sync_api import Page, expect

from browser.inspecting import open_trace, points
from browser.serving import HOSTILE, Served

pytestmark = pytest.mark.browser


def test_patches_are_little_images(page: Page, served: Served) -> None:
    open_trace(page, served, "patches")
    grid = page.locator(".patches").first
    expect(grid.locator(".tok")).to_have_count(16)
    assert "/image/0.png" in grid.evaluate("(one) => getComputedStyle(one).backgroundImage")
    page.locator('moe-text .tok[data-t="17"]').click()
    expect(page.locator("moe-selection")).to_contain_text("(17)")
    page.keyboard.press("ArrowDown")
    expect(page.locator("moe-selection")).to_contain_text("(21)")


def test_more_experts_than_colours_are_told_by_highlight(page: Page, served: Served) -> None:
    open_trace(page, served, "wide")
    expect(page.locator(".expert-row")).to_have_count(64)
    page.locator(".expert-row").nth(13).click()
    expect(page.locator(".expert-head h3")).to_contain_text("Expert 13")
    expect(page.locator("moe-text .tok.k13").first).to_be_in_viewport()


def test_a_failed_capture_is_said_loudly(page: Page, served: Served) -> None:
    open_trace(page, served, "doubtful")
    expect(page.locator(".banner.bad")).to_contain_text("gates differ from the model's by 0.3")
    expect(page.locator(".check.bad summary")).to_contain_text("capture check failed")


def test_a_trace_without_labels_is_whole(page: Page, served: Served) -> None:
    open_trace(page, served, "unlabelled")
    expect(page.locator(".area-labels")).to_have_count(0)
    page.locator(".expert-row").first.click()
    expect(page.locator(".expert-head h3")).to_contain_text("Expert 0")


def test_text_of_strangers_is_text(page: Page, served: Served) -> None:
    open_trace(page, served, "hostile")
    expect(page.locator("moe-text .tok").first).to_have_text(HOSTILE)
    expect(page.locator(".doc-name").first).to_have_text(HOSTILE)
    point = points(page, 1)[0]
    page.mouse.move(point.x, point.y)
    page.locator(".expert-row").first.click()
    expect(page.locator(".expert-head h3")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("<img")
    page.keyboard.press("Enter")
    expect(page.locator("moe-selection")).to_contain_text("token")
    page.goto(f"{served.base}/#/library")
    expect(page.get_by_role("link", name=HOSTILE)).to_be_visible()
    assert page.evaluate("() => window.pwned") is None
    assert page.locator("img").count() == 0


def test_a_long_text_is_written_where_it_is_read(page: Page, served: Served) -> None:
    open_trace(page, served, "long", "?token=45678")
    expect(page.locator('moe-text .tok[data-t="45678"]')).to_be_in_viewport()
    assert page.locator("moe-text .tok").count() < 6000
    page.locator("moe-text").evaluate("(text) => { text.scrollTop = 0; }")
    expect(page.locator('moe-text .tok[data-t="0"]')).to_be_in_viewport()
    assert page.locator("moe-text .tok").count() < 6000


def test_how_long_links_take(page: Page, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured and printed, not asserted: another machine is another number. The work itself is checked."""
    open_trace(page, served, "long")
    tokens = [point.token for point in points(page, 20)]
    times = page.evaluate(
        """async (tokens) => {
            const out = [];
            for (const token of tokens) {
                const span = document.querySelector(`.tok[data-t="${token}"]`);
                const start = performance.now();
                span.dispatchEvent(new PointerEvent('pointerover', { bubbles: true }));
                const ring = document.querySelector(`.ring.hover[data-token="${token}"]`);
                if (!ring) throw new Error(`no ring for ${token}`);
                await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
                out.push(performance.now() - start);
            }
            return out;
        }""",
        tokens,
    )
    expert = page.evaluate(
        """async () => {
            const start = performance.now();
            document.querySelectorAll('.expert-row')[3].click();
            const plot = document.querySelector('.area-map .figure-plot');
            while (!plot.data.some((trace) => trace.selectedpoints)) await new Promise((r) => setTimeout(r, 5));
            await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
            return performance.now() - start;
        }"""
    )
    with capsys.disabled():
        shown = page.locator(".area-map .scatterlayer .point").count()
        print(
            f"\n  {shown:,} points: hover to ring on screen {statistics.median(times):.0f} ms (median of {len(times)}, "
            f"largest {max(times):.0f}); expert to dimmed map {expert:.0f} ms"
        )
    assert shown > 5000
