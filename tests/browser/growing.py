"""A made-up growing run in the home of a served page: all at once, or event by event while somebody looks."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Page, expect

from browser.serving import Served
from growth_case import STEPS, growth_events, growth_snapshots
from moescope.events import Event
from moescope.store import Store
from moescope.trace.io import write_trace

DRAWN = """(name) => [...(document.querySelector(`[data-track=${name}] .figure-plot`)?.data ?? [])]"""
POINTS = """() => document.querySelector('[data-track=loss] moe-live')?.figure?.data?.[0]?.x?.length ?? 0"""


class Growing:
    """A run that this process writes into the store, as a training process would."""

    def __init__(self, store: Store, name: str) -> None:
        log = growth_events()
        self.store = store
        self.run = store.add_run(name, "made-up", log[0].payload["config"], steps=STEPS).id
        self.left = [replace(event, run=self.run, id=0) for event in log]
        self.snapshots = dict(growth_snapshots(tokens=600, sample=300))
        self.written: dict[int, float] = {}

    def tell(self, until: int, rate: float | None = None) -> Sequence[Event]:
        """Append the events up to a step; `rate` events a second, or all at once. Returns them."""
        told: list[Event] = []
        began = time.time()
        while self.left and self.left[0].step <= until:
            event = self.left.pop(0)
            if rate is not None:
                time.sleep(max(0.0, began + len(told) / rate - time.time()))
            self.store.append(event)
            told.append(event)
            if event.kind == "train":
                self.written[event.step] = time.time()
            if event.step in self.snapshots and not (self.left and self.left[0].step == event.step):
                self._snapshot(event.step)
        return told

    def _snapshot(self, step: int) -> None:
        folder = self.store.run_folder(self.run) / "snapshots"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:06d}.safetensors"
        write_trace(self.snapshots.pop(step), path)
        row = self.store.add_trace(path, f"step {step}", "run", run=self.run, step=step)
        payload = {"path": f"snapshots/{path.name}", "tokens": row.tokens}
        self.store.append(Event(run=self.run, step=step, kind="snapshot", payload=payload))


@contextmanager
def growing(home: Path, name: str = "A growing run") -> Iterator[Growing]:
    store = Store(home)
    try:
        yield Growing(store, name)
    finally:
        store.close()


def finished(home: Path) -> str:
    """A finished growing run; its id."""
    with growing(home) as run:
        run.tell(STEPS)
        return run.run


def open_run(page: Page, served: Served, run: str, query: str = "") -> None:
    page.goto(f"{served.base}/#/run/{run}{query}")
    expect(page.locator("[data-track=lineage] .scatterlayer .trace").first).to_be_attached()
    expect(page.locator("[data-track=drift] .heatmaplayer image").first).to_be_attached()
    expect(page.locator(".area-load .scatterlayer .trace").first).to_be_attached()


def settled(page: Page) -> None:
    """Nothing is being fetched or moved any more."""
    expect(page.locator("moe-live.busy, moe-film.busy, .filming")).to_have_count(0)
    page.wait_for_timeout(200)


def lane(page: Page, track: str, expert: int) -> tuple[float, float]:
    """The middle of an expert's row in the heat-map or the lineage, on the screen."""
    place = page.evaluate(
        """([track, name]) => {
            const graph = document.querySelector(`[data-track=${track}] .figure-plot`);
            const { xaxis, yaxis } = graph._fullLayout;
            const row = yaxis._categories?.indexOf(name) ?? -1;
            const at = row >= 0 ? row : yaxis.tickvals[yaxis.ticktext.indexOf(name)];
            const box = graph.getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis._length / 2, box.y + yaxis._offset + yaxis.l2p(at)];
        }""",
        [track, f"E{expert}"],
    )
    return place[0], place[1]


def chips(page: Page) -> list[str]:
    return [chip.strip() for chip in page.locator(".expert-chips .expert-chip").all_inner_texts()]


def step_of(page: Page) -> int | None:
    found = re.search(r"step=(\d+)", page.url)
    return int(found.group(1)) if found else None
