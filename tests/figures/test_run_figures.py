"""A run's figures show its events, forget what a resume did again, and say how they grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from figure_cases import browser, run_events
from moescope.errors import InputError
from moescope.events import Event
from moescope.figures import load_over_time, loss, objectives
from moescope.figures.loss import current, smooth


def follow(event: Event, path: str) -> Any:
    value: Any = event.payload
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def test_curves_are_the_logged_losses() -> None:
    log = run_events()
    raw, mean, held = browser(loss(log))["data"]
    train = [event for event in log if event.kind == "train"]
    assert list(raw["x"]) == [event.step for event in train]
    assert raw["y"] == pytest.approx([event.payload["loss"] for event in train])
    state = None
    for shown, event in zip(mean["y"], train, strict=True):
        state = event.payload["loss"] if state is None else 0.9 * state + 0.1 * event.payload["loss"]
        assert shown == pytest.approx(state)
    assert list(held["x"]) == [20, 40, 60]


def test_growing_by_events_gives_the_figure_of_the_whole_log() -> None:
    """What a live page does with `grow` ends where the server's figure would be."""
    log = run_events()
    for make in (loss, load_over_time, objectives):
        early, late = browser(make(log[:40])), browser(make(log))
        curves = {i: (list(d["x"]), list(d["y"])) for i, d in enumerate(early["data"])}
        for event in log[40:]:
            for entry in early["layout"]["meta"]["grow"]:
                if entry["kind"] == event.kind:
                    x, y = curves[entry["trace"]]
                    value = follow(event, entry["y"])
                    keep = entry["smooth"] ** (event.step - x[-1]) if "smooth" in entry else None
                    x.append(event.step)
                    y.append(value if keep is None else keep * y[-1] + (1 - keep) * value)
        for i, data in enumerate(late["data"]):
            assert curves[i][0] == list(data["x"])
            assert curves[i][1] == pytest.approx(list(data["y"]))


def test_a_resume_replaces_what_came_after_its_step() -> None:
    log = [Event(run="r", step=s, kind="train", payload={"loss": 10.0 + s}) for s in range(1, 7)]
    log.append(Event(run="r", step=3, kind="run_resumed", payload={"from_step": 3}))
    log += [Event(run="r", step=s, kind="train", payload={"loss": 20.0 + s}) for s in (4, 5)]
    assert [(e.step, e.payload["loss"]) for e in current(log, "train")] == [(1, 11), (2, 12), (3, 13), (4, 24), (5, 25)]


def test_many_steps_are_thinned_and_that_is_said() -> None:
    log = run_events(500)
    figure = browser(loss(log, max_points=100))
    raw, mean, _ = figure["data"]
    assert len(raw["x"]) == 100 == len(mean["x"]) and (raw["x"][0], raw["x"][-1]) == (1, 500)
    assert figure["layout"]["meta"]["note"] == "100 of 500 steps, evenly spaced"
    assert mean["y"][-1] == pytest.approx(browser(loss(log))["data"][1]["y"][-1])


def test_a_loss_that_is_not_finite_leaves_a_gap_and_not_a_ruin() -> None:
    assert smooth(np.array([np.nan, 2.0, np.inf, 1.0]), 0.5)[1:].tolist() == [2.0, 2.0, 1.5]
    assert smooth(np.array([2.0, 1.0]), 0.5, np.array([10, 12])).tolist() == [2.0, 1.25]
    log = [*run_events(5), Event(run="r", step=6, kind="train", payload={"loss": None})]
    log.append(Event(run="r", step=7, kind="train", payload={"loss": float("inf")}))
    raw = browser(loss(log))["data"][0]
    assert list(raw["x"]) == [1, 2, 3, 4, 5, 7]


@pytest.mark.parametrize("experts", [4, 20])
def test_areas_are_the_loads_of_one_layer(experts: int) -> None:
    log = run_events(experts=experts)
    figure = browser(load_over_time(log, 3))
    events = [event for event in log if event.kind == "load"]
    assert len(figure["data"]) == experts and figure["layout"]["meta"]["layer"] == 3
    for expert, data in enumerate(figure["data"]):
        assert data["name"] == f"E{expert}" and data["stackgroup"] == "load"
        assert data["meta"]["group"] == {"expert": expert}
        assert list(data["x"]) == [event.step for event in events]
        assert data["y"] == pytest.approx([event.payload["layers"][1]["load"][expert] for event in events])


def test_many_experts_are_a_heat_map_of_log2_ratio() -> None:
    log = run_events(experts=32)
    figure = browser(load_over_time(log, 1))
    heat = figure["data"][0]
    events = [event for event in log if event.kind == "load"]
    assert "grow" not in figure["layout"]["meta"] and np.asarray(heat["z"]).shape == (32, len(events))
    for column, event in enumerate(events):
        ratio = np.log2(np.array(event.payload["layers"][0]["load"]) * 32).clip(-3, 3)
        assert np.asarray(heat["z"])[:, column] == pytest.approx(ratio)


def test_experts_that_come_later_have_no_load_before() -> None:
    log = [
        Event(run="r", step=1, kind="load", payload={"layers": [{"layer": 0, "load": [0.5, 0.5]}]}),
        Event(run="r", step=2, kind="load", payload={"layers": [{"layer": 0, "load": [0.4, 0.4, 0.2]}]}),
    ]
    late = browser(load_over_time(log))["data"][2]
    assert np.isnan(late["y"][0]) and late["y"][1] == 0.2


def test_a_layer_that_the_run_has_not_is_refused() -> None:
    with pytest.raises(InputError, match="Layer 2 is not an MoE layer of this run; its MoE layers are 1, 3"):
        load_over_time(run_events(), 2)


def test_objectives_are_one_curve_each() -> None:
    log = run_events()
    figure = browser(objectives(log))
    assert [data["name"] for data in figure["data"]] == ["load_balance", "router_z"]
    train = [event for event in log if event.kind == "train"]
    assert figure["data"][0]["y"] == pytest.approx([e.payload["objectives"]["load_balance"] for e in train])
    assert "No training step" in browser(objectives([]))["layout"]["meta"]["caption"]
    bare = [Event(run="r", step=1, kind="train", payload={"loss": 1.0, "objectives": {}})]
    assert "no auxiliary losses" in browser(objectives(bare))["layout"]["meta"]["caption"]


def test_a_caption_stays_true_while_its_figure_grows() -> None:
    short, long = run_events(5), run_events(50)
    for draw in (loss, objectives, lambda log: load_over_time(log, 1)):
        captions = {browser(draw(log))["layout"]["meta"]["caption"] for log in (short, long)}
        assert len(captions) == 1


def test_further_evaluations_and_the_floor_are_drawn_and_grow() -> None:
    floor = {"nats": 1.5, "std_error": 0.01}
    started = {"config": {"evals": {"corrupted": {"share": 0.1}}}, "data": {"floor": floor}}
    log = [Event(run="r", step=0, kind="run_started", payload=started)]
    figure = browser(loss(log))
    names = [trace["name"] for trace in figure["data"][3:5]]
    assert names == ["same documents, clean", "same documents, corrupted, words kept"]
    assert figure["data"][5]["y"] == [1.5], "the axis reaches down to the floor"
    rule = figure["layout"]["meta"]["grow"][-1]
    assert rule == {"kind": "eval", "trace": 4, "x": "step", "y": "evals.corrupted.kept"}
    assert figure["layout"]["shapes"][0]["y0"] == 1.5 and "1.500 ± 0.010" in figure["layout"]["meta"]["caption"]
    told = {"loss": 2.5, "kept": 2.2, "clean": 2.1}
    log.append(Event(run="r", step=5, kind="eval", payload={"loss": 2.0, "evals": {"corrupted": told}}))
    assert [trace["y"] for trace in browser(loss(log))["data"]][3:] == [[2.1], [2.2], [1.5]]
    images = [Event(run="r", step=0, kind="run_started", payload={"config": {"model": {"head": "class"}}}), log[-1]]
    assert [trace["y"] for trace in browser(loss(images))["data"]][3:] == [[2.5]]
    assert not browser(loss(run_events(5)))["layout"].get("shapes")


def test_calibrated_coefficients_are_told() -> None:
    told = {"coefficient": 0.001, "calibrated": True, "value": 0.2, "scale": 10.0, "effective": 0.01}
    plain = {**told, "calibrated": False, "scale": 1.0}
    log = [
        Event(
            run="r", step=1, kind="calibration", payload={"target": 2.0, "objectives": {"variance": told, "z": plain}}
        ),
        Event(run="r", step=1, kind="train", payload={"loss": 1.0, "objectives": {"variance": 0.1, "z": 0.2}}),
    ]
    caption = browser(objectives(log))["layout"]["meta"]["caption"]
    assert "variance 0.001 × 10" in caption and "z 0.001" not in caption


def test_a_leaky_control_is_named_in_the_caption() -> None:
    def caption(head: str, causal: bool) -> str:
        payload = {"config": {"model": {"head": head}}, "layers": [{"layer": 0, "causal": causal}]}
        log = [Event(run="r", step=0, kind="run_started", payload=payload)]
        return str(browser(loss(log))["layout"]["meta"]["caption"])

    assert caption("next_token", False).startswith("Leaky control")
    assert "eaky" not in caption("next_token", True) + caption("class", False)
