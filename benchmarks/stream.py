"""From an event in the trainer to the picture: how long, at 50 events a second with 20 browsers connected.

What is real: `moescope serve` in a process of its own; a process that writes events into the log as a trainer does,
each with the time at which it was made, no model behind it (so that the rate is exact); Chromium with a browsing
context of its own for every browser (own cookies, own connections, own tab), all on this machine, which they share with
the server and the writer. `--drawing` of them show the run and draw it; the others show the Library: they hear and
parse every event, and draw no curve. An event is drawn when the animation frame after the one that put it into the loss
curve begins: that frame is on the screen by then. Clocks are one machine's.

    python benchmarks/stream.py [--browsers 20] [--drawing 1] [--rate 50] [--seconds 20]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from playwright.sync_api import Browser, Page, sync_playwright

from browser.chromium import ARGUMENTS, find_chromium
from moescope.events import Event
from moescope.store import Store

TARGET = 0.3
PAST = 200
"""Steps that the run has done before anyone looks."""
EXPERTS = 8

HEAR = """async () => {
  const { stream } = await import("/lib/stream.js");
  window.told = [];
  const now = () => performance.timeOrigin + performance.now();
  stream.listen((event) => {
    if (event.kind === "train") told.push({ step: event.step, made: event.time * 1000, heard: now() });
  });
}"""

DRAW = """() => {
  const live = [...document.querySelectorAll("moe-live")].find((one) => one.figure?.layout.meta.name === "loss");
  if (!live?.plot) return false;
  const mark = live.mark;
  live.mark = function () {
    mark.call(this);
    if (this.drawing) return;
    const last = Math.max(...this.figure.data.map((trace) => Number(trace.x.at(-1) ?? 0)));
    requestAnimationFrame(() => {
      const now = performance.timeOrigin + performance.now();
      for (const event of told) if (event.drawn === undefined && event.step <= last) event.drawn = now;
    });
  };
  return true;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--browsers", type=int, default=20)
    parser.add_argument("--drawing", type=int, default=1, help="how many of them show the run")
    parser.add_argument("--rate", type=float, default=50, help="events a second, half `train` and half `load`")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--write", nargs=2, metavar=("HOME", "RUN"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(Path(options.write[0]), options.write[1], options.rate, options.seconds)
        return
    path = find_chromium()
    if path is None:
        raise SystemExit("There is no Chromium on this machine; `python tests/browser/install.py` installs it.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder) / "home"
        run = begin(home, options.rate * options.seconds)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        with serving(home) as address:
            pages = [open_page(browser, address, run, index < options.drawing) for index in range(options.browsers)]
            time.sleep(3)  # pages and server come to rest
            again = [sys.executable, __file__, "--write", str(home), run]
            subprocess.run([*again, "--rate", str(options.rate), "--seconds", str(options.seconds)], check=True)
            time.sleep(2)
            told = [page.evaluate("told") for page in pages]
        browser.close()
    tell(told, options)


def begin(home: Path, events: float) -> str:
    """A home with a run that is under way; its id."""
    store = Store(home, samples=home.parent)
    steps = PAST + int(events / 2)
    layer = {
        "layer": 0,
        "path": "blocks.0.moe",
        "router": "topk_softmax",
        "num_experts": EXPERTS,
        "k": 2,
        "causal": True,
    }
    run = store.add_run(
        "Watched by many", "made-up", {"optim": {"steps": steps}, "model": {"num_layers": 1}}, steps=steps
    )
    store.append(Event(run=run.id, step=0, kind="run_started", payload={"config": {}, "layers": [layer], "params": 0}))
    store.append_many([event for step in range(1, PAST + 1) for event in step_events(run.id, step)])
    store.close()
    return run.id


def step_events(run: str, step: int) -> list[Event]:
    """What one step says: a loss that falls, and a load that wanders."""
    train = {"loss": 2 + 3 * 0.99**step, "objectives": {"load_balance": 0.01}, "lr": 1e-3, "grad_norm": 1.0}
    share = [(1 + (step * (expert + 1)) % 7) for expert in range(EXPERTS)]
    load = {"layer": 0, "load": [part / sum(share) for part in share], "maxvio": 0.5, "dropped": 0.0, "tokens": 512}
    load |= {"experts": list(range(EXPERTS)), "experts_per_token": 2.0, "effective_experts": 4.0}
    return [
        Event(run=run, step=step, kind="train", payload=train | {"tokens": 512 * step, "seconds": 0.02 * step}),
        Event(run=run, step=step, kind="load", payload={"layers": [load]}),
    ]


def write(home: Path, run: str, rate: float, seconds: float) -> None:
    """Append events one by one, evenly in time, as `moescope_server.training` does."""
    store = Store(home, samples=home.parent)
    began, count = time.monotonic(), int(rate * seconds)
    events = (event for step in range(PAST + 1, PAST + count) for event in step_events(run, step))
    for index, event in zip(range(count), events, strict=False):
        time.sleep(max(0.0, began + index / rate - time.monotonic()))
        store.append(Event(run=run, step=event.step, kind=event.kind, payload=event.payload, time=time.time()))
    store.close()


@contextmanager
def serving(home: Path) -> Iterator[str]:
    """`moescope serve`; its address with the token."""
    command = [sys.executable, "-m", "moescope_server", "serve", "--home", str(home), "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found is not None
    try:
        yield found[0]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def open_page(browser: Browser, address: str, run: str, draws: bool) -> Page:
    """A browser of its own, signed in, on its page, and listening."""
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.set_default_timeout(120_000)
    base = address.partition("/?")[0]
    page.goto(f"{base}/favicon.svg?token={address.partition('token=')[2]}")
    page.goto(f"{base}/#/run/{run}" if draws else f"{base}/#/library")
    page.wait_for_function("""import("/lib/stream.js").then(({ stream }) => stream.status === "live")""")
    page.evaluate(HEAR)
    if draws:
        page.wait_for_function(DRAW)
    return page


def tell(told: list[list[dict[str, Any]]], options: argparse.Namespace) -> None:
    drawing, others = told[: options.drawing], told[options.drawing :]
    expected = int(options.rate * options.seconds) // 2
    steps = list(range(PAST + 1, PAST + 1 + expected))
    complete = sum([event["step"] for event in page] == steps for page in told)
    print(f"{options.browsers} browsers, {options.drawing} of them drawing")
    print(f"{options.rate:g} events a second for {options.seconds:g} s")
    print(f"  every event once and in order: {complete} of {len(told)} browsers")
    result: dict[str, Any] = {"browsers": options.browsers, "drawing": options.drawing, "complete": complete}
    for name, pages, end in (
        ("heard", others, "heard"),
        ("heard, drawing", drawing, "heard"),
        ("drawn", drawing, "drawn"),
    ):
        events = [event for page in pages for event in page]
        delays = sorted((event[end] - event["made"]) / 1000 for event in events if event.get(end))
        if delays:
            median, high = statistics.median(delays), delays[int(0.95 * (len(delays) - 1))]
            result[name] = {"median": median, "p95": high, "n": len(delays), "missing": len(events) - len(delays)}
            words = f"median {1000 * median:5.0f} ms   95th percentile {1000 * high:5.0f} ms   n = {len(delays)}"
            print(f"  {name:15s} {words}")
    print(f"  target: drawn under {1000 * TARGET:.0f} ms")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
