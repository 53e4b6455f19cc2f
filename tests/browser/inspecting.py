"""What several tests of Inspect do: open a trace, and find things on the page as a reader would."""

from __future__ import annotations

from dataclasses import dataclass

from playwright.sync_api import Page, expect

from browser.serving import Served


def open_trace(page: Page, served: Served, name: str = "plain", query: str = "") -> None:
    """Open a trace and wait until text, map and heat-map are there."""
    page.goto(served.inspect(name, query))
    ready(page)


def ready(page: Page) -> None:
    expect(page.locator("moe-text .tok").first).to_be_visible()
    expect(page.locator(".area-map .scatterlayer .point").first).to_be_attached()
    expect(page.locator(".area-heat .heatmaplayer image")).to_be_attached()
    expect(page.locator("moe-figure.busy")).to_have_count(0)
    expect(page.locator(".expert-rows, .expert-head, .bar-button").first).to_be_visible()


@dataclass(frozen=True)
class Point:
    token: int
    x: float
    y: float


def centre(page: Page, token: int) -> tuple[float, float]:
    """Where a token's point is on the screen now, as plotly drew it."""
    found = next(point for point in points(page, 1_000_000) if point.token == token)
    return found.x, found.y


def points(page: Page, count: int = 5, written: bool = True) -> list[Point]:
    """Tokens of the map (and, if `written`, of the text that is written out), with where plotly itself drew them."""
    found = page.evaluate(
        """([count, onlyWritten]) => {
            const plot = document.querySelector('.area-map .figure-plot');
            const written = new Set([...document.querySelectorAll('moe-text .tok')].map((tok) => +tok.dataset.t));
            const out = [];
            for (const node of plot.querySelectorAll('.scatterlayer .point')) {
                const token = Number(node.__data__.data);
                if (onlyWritten && !written.has(token)) continue;
                const box = node.getBoundingClientRect();
                out.push([token, box.x + box.width / 2, box.y + box.height / 2]);
            }
            return out.sort((a, b) => a[0] - b[0]).slice(0, count);
        }""",
        [count, written],
    )
    return [Point(*row) for row in found]


def cell(page: Page, area: str, column: int, columns: int, row: int, rows: int) -> tuple[float, float]:
    """The middle of a heat-map's cell on the screen."""
    box = page.locator(f"{area} .nsewdrag").bounding_box()
    assert box is not None
    return box["x"] + box["width"] * (column + 0.5) / columns, box["y"] + box["height"] * (row + 0.5) / rows


def selection(page: Page) -> str:
    """What the page says is selected, on one line."""
    return " ".join(page.locator("moe-selection .selection-words").inner_text().split())


def colours(page: Page, selector: str) -> set[str]:
    """The different background colours of the elements."""
    script = "(all) => [...new Set(all.map((one) => getComputedStyle(one).backgroundColor))]"
    return set(page.locator(selector).evaluate_all(script))
