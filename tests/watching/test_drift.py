"""Drift of a watched run: what the detector says of gradients computed apart from the watcher, step by step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import moescope
from moescope.expansion import DETECTORS
from moescope.expansion.base import View
from watch_cases import MOE_BLOCKS, Read, batches, build

Reader = Callable[[], Read]


def looked(model: Any, layers: list[int], detectors: dict[int, Any], step: int) -> dict[int, Any]:
    """Findings from the gradients as they are, one expert at a time, in float64."""
    found = {}
    for layer in layers:
        weight = model.model.layers[layer].mlp.experts.gate_up_proj
        pairs = [
            (w.double().flatten(), g.double().flatten()) for w, g in zip(weight.detach(), weight.grad, strict=True)
        ]
        norm = torch.stack([g.norm() for _, g in pairs])
        cos = torch.stack([(w @ g) / (w.norm() * g.norm()) if g.norm() > 0 else g.new_zeros(()) for w, g in pairs])
        view = View(
            layer=layer, step=step - 1, alive_E=torch.ones(len(norm), dtype=torch.bool), norm_E=norm, cos_E=cos,
            size=weight[0].numel(), sent_E=(norm > 0).long(), tokens=0, unreached=0, loss=math.nan,
        )  # fmt: skip
        found[layer] = detectors[layer].look(view)
    return found


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_drift_is_what_the_detector_says_of_every_step(family: str, home: Path, read: Reader) -> None:
    model = build(family)
    layers, kind = MOE_BLOCKS[family], DETECTORS["mass"]
    num_experts = len(model.model.layers[layers[0]].mlp.gate.weight)
    detectors = {layer: kind(kind.Config(), num_experts) for layer in layers}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    due = {}
    with moescope.watch(model, run="m", home=home, drift_every=5) as watcher:
        for step, batch in enumerate(batches(56, rows=2, length=4), 1):
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            due[step] = looked(model, layers, detectors, step)
            optimizer.step()
            optimizer.zero_grad()
            watcher.step()
    events = {event.step: event.payload for event in read().events("drift")}
    fired = {step for step, found in due.items() if any(bool(item.fired_E.any()) for item in found.values())}
    assert sorted(events) == sorted({1, *range(5, 57, 5)} | fired)
    for step, payload in events.items():
        assert payload["detector"] == "mass"
        for told in payload["layers"]:
            want = due[step][told["layer"]]
            assert told["experts"] == list(range(num_experts)) and told["chosen"] is None
            assert told["fired"] == want.fired_E.tolist()
            assert told["thresholds"]["p_value"] == {"at": 0.01, "fires": "below"}
            assert told["signals"].keys() - want.signals.keys() == {"router_grad_norm"}
            for name, value_E in want.signals.items():
                have = [math.nan if value is None else value for value in told["signals"][name]]
                assert have == pytest.approx(value_E.tolist(), rel=1e-3, abs=1e-5, nan_ok=True), (step, name)
    last = events[55]["layers"][0]["signals"]
    assert any(value is not None for value in last["p_value"]), "the test is long enough for p-values"


def test_the_gradient_of_the_routers_rows_is_told(home: Path, read: Reader) -> None:
    model = build("mixtral")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with moescope.watch(model, run="m", home=home) as watcher:
        model(**batches(1)[0]).loss.backward()
        rows = [layer.mlp.gate.weight.grad.norm(dim=1).tolist() for layer in model.model.layers]
        optimizer.step()
        optimizer.zero_grad()
        watcher.step()
    (event,) = read().events("drift")
    assert [told["signals"]["router_grad_norm"] for told in event.payload["layers"]] == [
        pytest.approx(row, rel=1e-5) for row in rows
    ]


def test_drift_can_be_off(home: Path, read: Reader) -> None:
    model = build("mixtral")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with moescope.watch(model, run="m", home=home, drift=False, log_every=1) as watcher:
        for batch in batches(4):
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watcher.step()
    assert not read().events("drift") and read().events("train")[0].payload["lr"] == 0.1


def steps(model: Any, home: Path, order: str, optimizer: Any) -> None:
    with moescope.watch(model, run="m", home=home) as watcher:
        for batch in batches(4):
            if "F" in order:
                model(**batch).loss.backward()
            for act in order:
                if act == "O":
                    optimizer.step()
                    optimizer.zero_grad()
                elif act == "W":
                    watcher.step()


def test_faults_of_use_are_told_once(home: Path) -> None:
    model = build("mixtral")
    every = torch.optim.SGD(model.parameters(), lr=0.1)
    head = torch.optim.SGD(model.lm_head.parameters(), lr=0.1)
    late = "step() is called before optimizer.step()"
    blind = "no torch optimizer was seen to change the experts' weights"
    unseen = "no forward pass in training mode was seen"
    for order, optimizer, said in (
        ("FOW", every, []),
        ("FWO", every, [late]),
        ("FOW", head, [blind]),
        ("OW", head, [unseen, blind]),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            steps(model, home, order, optimizer)
        told = [str(item.message) for item in caught]
        assert len(told) == len(said) and all(part in text for part, text in zip(said, told, strict=True)), told
