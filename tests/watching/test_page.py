"""The page's figures draw a run that was watched, and the docs name every setting."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

import moescope
from moescope.data.base import TokenSet
from moescope.figures import FIGURES
from moescope.watching.config import WatchConfig
from watch_cases import Read, batches, build, train


def test_every_figure_of_a_run_draws_one_that_was_watched(
    home: Path, read: Callable[[], Read], probe: TokenSet
) -> None:
    model = build("qwen2_moe")
    with moescope.watch(
        model, run="m", home=home, probe=probe, log_every=1, load_every=1, drift_every=1, snapshot_every=2
    ) as watcher:
        train(model, batches(4), watcher)
    events = read().events()
    for name in ("loss", "load_over_time", "objectives", "drift", "drift_signal", "lineage"):
        drawn = FIGURES[name](events)
        shown = drawn.layout.meta["shown"]
        assert shown == (6 if name == "lineage" else 4), (name, shown)
        assert drawn.layout.meta["layer"] in (None, 1)


def test_the_page_names_every_setting_with_its_default() -> None:
    page = (Path(__file__).parents[2] / "docs" / "watch-your-own.md").read_text()
    rows = {
        line.split("|")[1].strip(): line.split("|")[2].strip() for line in page.splitlines() if line.startswith("| `")
    }
    for field in dataclasses.fields(WatchConfig):
        default = {"mass": "`True`", None: "none"}.get(field.default, str(field.default))  # type: ignore[arg-type]
        assert rows[f"`{field.name}`"] == default, field.name
    for name in set(inspect.signature(moescope.watch).parameters) - {"model", "settings"}:
        assert f"`{name}`" in rows, name
