"""Pictures of every page, light and dark, wide and narrow: `python tests/browser/screenshots.py [FOLDER]`."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from playwright.sync_api import Browser, Page, expect, sync_playwright

from browser.chromium import ARGUMENTS, find_chromium
from browser.inspecting import ready
from browser.serving import Served, made_up, serving
from browser.sweeping import trained

GROWN = "grow-installed"
SIZES = ((1440, 900), (1024, 768))
SAMPLES = Path(__file__).resolve().parents[2] / "sample_checkpoints"


def main(folder: Path) -> int:
    path = find_chromium()
    if path is None:
        print("There is no Chromium here; `python tests/browser/install.py` installs it.", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    samples = any(SAMPLES.glob("*/trace.safetensors")) or any(SAMPLES.glob("*/*.safetensors"))
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        home = Path(temporary) / "home"
        home.mkdir()
        sweep = trained(home)
        traces = {} if samples else {"plain": made_up()["plain"]}
        with serving(home, traces) as served:
            browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
            run = train(browser, served)
            grown = tell(browser, served, folder)
            for theme in ("light", "dark"):
                for width, height in SIZES:
                    shoot(browser, served, (run, grown), sweep, folder, theme, width, height)
            browser.close()
    return 0


def sign_in(browser: Browser, served: Served, theme: str, width: int, height: int) -> Page:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(served.address)
    return page


def train(browser: Browser, served: Served) -> str:
    """Run a preset of a few seconds to its end, so that Run has something to show; returns its address."""
    page = sign_in(browser, served, "light", 1440, 900)
    page.goto(f"{served.base}/#/library")
    page.locator('.preset[data-preset="clusters"]').get_by_role("button", name="Start").click()
    page.wait_for_url(re.compile("#/run/"))
    expect(page.locator(".run-head .chip")).to_have_text("finished", timeout=300_000)
    address = page.url
    page.context.close()
    return address


def tell(browser: Browser, served: Served, folder: Path) -> str:
    """Six pictures of `grow-installed` while it trains: load, drift, split, who it was, lineage, map; its address."""
    page = sign_in(browser, served, "light", 1440, 900)
    answer = page.request.post(f"{served.base}/api/runs", data={"preset": GROWN, "set": {}})
    run = answer.json()["run"]
    address = f"{served.base}/#/run/{run}"
    page.goto(address)

    def keep(name: str) -> None:
        page.wait_for_timeout(1500)
        page.screenshot(path=folder / f"story-{name}.png")
        print(folder / f"story-{name}.png")

    def splits() -> list[dict[str, Any]]:
        changes = page.request.get(f"{served.base}/api/runs/{run}/growth").json()["changes"]
        return [event for event in changes if event["kind"] == "expansion"]

    def until(count: int) -> list[dict[str, Any]]:
        """The splits, when there are so many, or the run has ended."""
        while len(splits()) < count and page.locator(".run-head .chip.finished").count() == 0:
            page.wait_for_timeout(300)
        return splits()

    expect(page.locator(".area-load .scatterlayer .trace").first).to_be_attached(timeout=300_000)
    keep("1-load")
    expect(page.locator("[data-track=drift] .heatmaplayer image")).to_be_attached(timeout=300_000)
    keep("2-drift")
    first = until(1)[0]["payload"]
    page.goto(f"{address}?layer={first['layer']}")
    expect(page.locator(f".expert-chip[data-expert='{first['child']}']")).to_be_visible()
    keep("3-split")
    page.goto(f"{address}?layer={first['layer']}&expert={first['parent']}")
    keep("4-parent")
    until(4)
    page.goto(f"{address}?layer={first['layer']}")
    keep("5-lineage")
    expect(page.locator(".run-head .chip")).to_have_text("finished", timeout=1_200_000)
    page.wait_for_timeout(3000)
    keep("6-map")
    page.context.close()
    return address


def shoot(
    browser: Browser,
    served: Served,
    runs: tuple[str, str],
    sweep: str,
    folder: Path,
    theme: str,
    width: int,
    height: int,
) -> None:
    page = sign_in(browser, served, theme, width, height)

    def keep(name: str, whole: bool = False) -> None:
        page.wait_for_timeout(700)
        file = folder / f"{name}-{theme}-{width}.png"
        page.screenshot(path=file, full_page=whole)
        print(file)

    ready(page)
    expect(page.locator(".measures tbody tr").first).to_be_attached(timeout=120_000)
    keep("inspect")
    keep("inspect-whole", whole=True)
    page.locator("button.finding").first.click()
    expect(page.locator(".expert-head h3")).to_be_visible()
    keep("inspect-expert")
    page.goto(f"{served.base}/#/library")
    expect(page.locator(".preset").first).to_be_visible()
    keep("library")
    for name, run in zip(("run", "growth"), runs, strict=True):
        page.goto(run)
        expect(page.locator(".area-snap .scatterlayer .point").first).to_be_attached(timeout=60_000)
        expect(page.locator("moe-live.busy")).to_have_count(0, timeout=60_000)
        keep(name)
        keep(f"{name}-whole", whole=True)
    page.goto(f"{served.base}/#/new?preset=grow-installed")
    expect(page.locator(".verdict-line.good")).to_be_visible(timeout=60_000)
    keep("new")
    page.goto(f"{served.base}/#/compare")
    expect(page.locator(".card.sweep").first).to_be_visible()
    expect(page.locator(".sweep-preset").first).to_be_visible()
    keep("compare")
    page.goto(f"{served.base}/#/sweep/{sweep}")
    expect(page.locator(".area-race .scatterlayer .trace").first).to_be_attached()
    keep("sweep")
    keep("sweep-whole", whole=True)
    page.context.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots")))
