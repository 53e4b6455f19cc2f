"""Inspect: every view follows every other."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from browser.inspecting import cell, centre, colours, open_trace, points, ready, selection
from browser.serving import Served

pytestmark = pytest.mark.browser


def test_the_first_picture_shows_coloured_text_findings_and_experts(page: Page, served: Served) -> None:
    open_trace(page, served)
    assert len(colours(page, "moe-text .tok")) > 3
    expect(page.locator(".finding").first).to_contain_text("expert")
    expect(page.locator(".expert-row")).to_have_count(8)
    expect(page.locator(".check.good summary")).to_contain_text("capture verified")
    expect(page.locator(".area-map .figure-note")).to_contain_text("500 of 3,000 tokens")
    expect(page.locator(".measures tbody tr").first).to_be_visible()
    assert "layer" in page.locator(".area-heat .figure-caption").inner_text().lower()


def test_hovering_a_token_rings_its_own_point(page: Page, served: Served) -> None:
    open_trace(page, served)
    for point in points(page):
        page.locator(f'moe-text .tok[data-t="{point.token}"]').hover()
        ring = page.locator(f'.ring.hover[data-token="{point.token}"]')
        expect(ring).to_have_count(1)
        box = ring.bounding_box()
        assert box is not None
        x, y = centre(page, point.token)
        assert abs(box["x"] + box["width"] / 2 - x) < 1.5
        assert abs(box["y"] + box["height"] / 2 - y) < 1.5
    expect(page.locator(".token-card")).to_contain_text("token")
    page.mouse.move(5, 5)
    expect(page.locator(".ring.hover")).to_have_count(0)


def test_hovering_a_point_marks_its_token_and_brings_it_into_sight(page: Page, served: Served) -> None:
    open_trace(page, served)
    point = points(page, 40)[-1]
    page.mouse.move(point.x, point.y)
    marked = page.locator("moe-text .tok.hover")
    expect(marked).to_be_in_viewport()
    assert int(marked.get_attribute("data-t") or -1) >= 0


def test_clicking_a_cell_shows_that_expert_everywhere(page: Page, served: Served) -> None:
    open_trace(page, served)
    page.mouse.click(*cell(page, ".area-heat", 3, 8, 1, 4))
    expect(page.locator(".expert-head h3")).to_have_text("Layer 1 · Expert 3")
    expect(page.locator("moe-selection")).to_contain_text("Expert 3")
    assert selection(page).startswith("Layer 1")
    expect(page.locator(".area-heat .outline.selected")).to_have_count(1)
    expect(page.locator(".area-labels .outline.column")).to_have_count(1)
    dim = page.locator("moe-text .tok:not(.k3)").first
    assert dim.evaluate("(tok) => getComputedStyle(tok).color") != page.evaluate(
        "() => getComputedStyle(document.body).color"
    )
    page.wait_for_function(
        "() => document.querySelector('.area-map .figure-plot').data.every((one) => one.selectedpoints)"
    )
    bright = page.evaluate(
        """() => document.querySelector('.area-map .figure-plot').data.flatMap((trace) =>
            trace.selectedpoints.map((point) => Number(trace.customdata[point])))"""
    )
    window = page.evaluate(
        "async (id) => (await fetch(`/api/traces/${id}/tokens?layer=1&start=0&count=3000`)).json()",
        served.traces["plain"],
    )
    sent = {t for t, experts in enumerate(window["experts"]) if 3 in experts and window["in_map"][t]}
    assert set(bright) == sent
    assert "layer=1&expert=3" in page.url
    page.keyboard.press("Escape")
    expect(page.locator("moe-selection")).to_contain_text("nothing selected")
    expect(page.locator(".area-heat .outline.selected")).to_have_count(0)


def test_the_outlined_cell_is_the_one_that_was_clicked(page: Page, served: Served) -> None:
    open_trace(page, served)
    for column, row in ((0, 0), (7, 3), (4, 2)):
        x, y = cell(page, ".area-heat", column, 8, row, 4)
        page.mouse.click(x, y)
        expect(page.locator(".expert-head h3")).to_have_text(f"Layer {row} · Expert {column}")
        box = page.locator(".area-heat .outline.selected").bounding_box()
        assert box is not None
        assert box["x"] < x < box["x"] + box["width"]
        assert box["y"] < y < box["y"] + box["height"]


def test_a_lasso_picks_points_and_text_and_heat_map_follow(page: Page, served: Served) -> None:
    open_trace(page, served)
    box = page.locator(".area-map .nsewdrag").bounding_box()
    assert box is not None
    left, top, width, height = box["x"] + 3, box["y"] + 3, box["width"] / 2, box["height"] - 6
    drawn = points(page, 1_000_000, written=False)
    page.mouse.move(left, top)
    page.mouse.down()
    for x, y in ((left + width, top), (left + width, top + height), (left, top + height), (left, top + 8)):
        page.mouse.move(x, y, steps=4)
    page.mouse.up()
    expect(page.locator("moe-selection")).to_contain_text("tokens from the lasso")
    packed = re.search(r"sel=([\w-]+)", page.url)
    assert packed
    unpack = "async (text) => (await import('/lib/state.js')).unpackTokens(text)"
    picked = set(page.evaluate(unpack, packed.group(1)))
    assert picked > {point.token for point in drawn if left + 4 < point.x < left + width - 4}
    assert not picked & {point.token for point in drawn if point.x > left + width + 4}
    expect(page.locator("moe-selection")).to_contain_text(f"{len(picked)} tokens from the lasso")
    expect(page.locator(".area-heat h2")).to_have_text("Load of the lassoed tokens")
    expect(page.get_by_role("tab", name="Lasso")).to_have_attribute("aria-selected", "true")
    expect(page.locator("moe-text .tok.in").first).to_be_in_viewport()
    lit = page.locator("moe-text .tok.in").evaluate_all("(all) => all.map((tok) => +tok.dataset.t)")
    assert lit and set(lit) <= picked
    url = page.url
    page.reload()
    ready(page)
    assert page.url == url
    expect(page.locator("moe-selection")).to_contain_text(f"{len(picked)} tokens from the lasso")
    expect(page.locator(".area-heat h2")).to_have_text("Load of the lassoed tokens")


def test_keys_change_layer_expert_and_token(page: Page, served: Served) -> None:
    open_trace(page, served, query="?layer=1")
    page.keyboard.press("]")
    expect(page.locator(".layer-name strong")).to_have_text("2")
    expect(page.locator(".area-map h2")).to_have_text("Token map, layer 2")
    page.keyboard.press("[")
    page.keyboard.press("[")
    page.keyboard.press("[")
    expect(page.locator(".layer-name strong")).to_have_text("0")
    page.keyboard.press(".")
    expect(page.locator("moe-selection")).to_contain_text("Expert 0")
    page.keyboard.press(".")
    page.keyboard.press(",")
    page.keyboard.press(",")
    expect(page.locator("moe-selection")).to_contain_text("Expert 7")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    first = int(page.locator("moe-text .tok.selected").get_attribute("data-t") or -1)
    page.keyboard.press("ArrowDown")
    page.wait_for_function(f"() => +document.querySelector('moe-text .tok.selected').dataset.t > {first}")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("moe-selection")).to_contain_text("token")


def test_the_selected_token_is_told_with_its_experts(page: Page, served: Served) -> None:
    open_trace(page, served, query="?layer=0&token=7")
    answer = page.evaluate(
        "async (id) => (await fetch(`/api/traces/${id}/tokens?layer=0&start=7&count=1`)).json()", served.traces["plain"]
    )
    chips = page.locator("moe-selection .expert-chip")
    expect(chips).to_have_count(2)
    for slot, expert in enumerate(answer["experts"][0]):
        expect(chips.nth(slot)).to_contain_text(f"E{expert} ")
    expect(page.locator("moe-selection")).to_contain_text("(7)")
    chips.first.click()
    expect(page.locator(".expert-head h3")).to_have_text(f"Layer 0 · Expert {answer['experts'][0][0]}")


def test_a_reload_and_going_back_restore_what_was_seen(page: Page, served: Served) -> None:
    open_trace(page, served, query="?layer=2&expert=5&token=120&color=domain&label=syntax&q=class")
    words, url = selection(page), page.url
    assert "Layer 2" in words and "Expert 5" in words and "(120)" in words and "class" in words
    expect(page.locator(".area-labels h2")).to_contain_text("syntax")
    page.reload()
    ready(page)
    expect(page.locator("moe-selection")).to_contain_text("search")
    page.wait_for_function("() => !document.querySelector('moe-selection').innerText.includes('(0)')")
    assert page.url == url
    assert selection(page) == words
    page.locator("moe-selection").get_by_role("button", name="Drop the expert").click()
    expect(page.locator("moe-selection")).not_to_contain_text("Expert 5")
    page.go_back()
    expect(page.locator("moe-selection")).to_contain_text("Expert 5")
    page.go_forward()
    expect(page.locator("moe-selection")).not_to_contain_text("Expert 5")


def test_search_goes_from_match_to_match(page: Page, served: Served) -> None:
    open_trace(page, served)
    page.keyboard.press("/")
    expect(page.locator(".search")).to_be_focused()
    page.keyboard.type("template")
    expect(page.locator(".found")).not_to_have_text("")
    expect(page.locator("moe-text .tok.hit").first).to_be_attached()
    assert "template" in page.locator("moe-text .tok.hit").first.inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("moe-text .tok.selected")).to_contain_text("template")
    first = page.url
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: url != first)
    expect(page.locator("moe-text .tok.selected")).to_be_in_viewport()
    expect(page.locator(".ring.hit").first).to_be_attached()


def test_a_finding_leads_to_what_it_speaks_of(page: Page, served: Served) -> None:
    open_trace(page, served)
    finding = page.locator("button.finding").first
    words = finding.inner_text()
    layer, expert = re.search(r"layer (\d+), expert (\d+)", words).groups()  # type: ignore[union-attr]
    finding.click()
    expect(page.locator(".expert-head h3")).to_have_text(f"Layer {layer} · Expert {expert}")
    expect(page.locator("moe-text .tok.selected")).to_be_in_viewport()


def test_colours_follow_a_label_and_confidence(page: Page, served: Served) -> None:
    open_trace(page, served)
    by_expert = colours(page, "moe-text .tok")
    page.get_by_label("Colour tokens by").select_option("domain")
    expect(page.locator(".legend-words")).to_contain_text("coloured by domain")
    by_domain = colours(page, "moe-text .tok")
    assert by_domain != by_expert
    expect(page.locator(".area-map .legendtext").first).not_to_contain_text("E")
    page.get_by_label("Colour tokens by").select_option("confidence")
    expect(page.locator("moe-text.by-confidence")).to_be_attached()
    assert colours(page, "moe-text .tok") != by_domain


def test_umap_comes_as_a_job_and_then_stands_in_the_map(page: Page, served: Served) -> None:
    open_trace(page, served, query="?layer=0")
    page.get_by_role("button", name="UMAP").click()
    expect(page.locator(".area-map .figure-caption")).to_contain_text("UMAP", timeout=120_000)
    expect(page.locator(".area-map .figure-message")).to_be_empty()
    expect(page.get_by_role("button", name="UMAP")).to_have_attribute("aria-pressed", "true")
    assert "method=umap" in page.url
