"""A run that predicts values is told in squared error, its floor with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from figure_cases import run_events
from moescope.figures import FIGURES


def events(head: str, floor: dict[str, Any] | None) -> list[Any]:
    log = run_events()
    started = next(event for event in log if event.kind == "run_started")
    config = {**started.payload.get("config", {}), "model": {"head": head}}
    payload = {**started.payload, "config": config, "data": {"floor": floor}}
    return [replace(event, payload=payload) if event is started else event for event in log]


@pytest.mark.parametrize(
    ("head", "unit", "floor"),
    [
        ("values", "squared error", {"squared_error": 0.25, "std_error": 0.0}),
        ("next_token", "nats", {"nats": 0.25, "std_error": 0.0}),
    ],
)
def test_the_loss_figure_speaks_of_the_loss_that_the_run_has(head: str, unit: str, floor: dict[str, Any]) -> None:
    figure = FIGURES["loss"](events(head, floor))
    assert figure.layout.yaxis.title.text == f"loss ({unit})"
    assert all(unit in trace.hovertemplate for trace in figure.data if trace.hovertemplate)
    caption = figure.layout.meta["caption"]
    assert f"0.250 ± 0.000 {unit}" in caption and ("nats" in caption) == (unit == "nats")
    assert figure.layout.shapes[0].y0 == 0.25
