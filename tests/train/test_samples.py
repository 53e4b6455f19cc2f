"""The bundled samples are what their cards say. `python sample_checkpoints/make.py` makes them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from moescope.adapters import open_checkpoint
from moescope.data.load import load_tokens
from moescope.metrics import measure
from moescope.trace.io import read_trace
from moescope.trace.recorder import record_trace

SAMPLES = Path(__file__).parents[2] / "sample_checkpoints"
NAMES = ("lm-installed", "olmoe-installed", "vit-digits")
TEXT = NAMES[:2]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_small_and_says_what_it_is(name: str) -> None:
    folder = SAMPLES / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6_000_000
    card = json.loads((folder / "card.json").read_text("utf-8"))
    assert card["title"] and len(card["description"]) > 100 and "{" not in card["description"]
    assert card["made"]["steps"] >= 300 and name in card["made"]["command"]


@pytest.mark.parametrize("name", NAMES)
def test_a_ready_trace_checked_itself_and_names_no_path_of_a_machine(name: str) -> None:
    trace = read_trace(SAMPLES / name / "trace.safetensors")
    assert trace.meta.self_check and all(check["passed"] for check in trace.meta.self_check)
    told = json.dumps([dict(trace.meta.model), dict(trace.meta.data)], default=str)
    assert str(SAMPLES.parent) not in told and "/home/" not in told and "/root/" not in told


@pytest.mark.parametrize("name", TEXT)
def test_a_ready_trace_is_of_the_probe_text_under_this_checkpoint(name: str) -> None:
    """Selections are compared up to one in a thousand: another processor rounds the last bit otherwise."""
    trace = read_trace(SAMPLES / name / "trace.safetensors")
    opened = open_checkpoint(SAMPLES / name)
    tokens = load_tokens(str(SAMPLES / "probe"), opened.tokenizer, 20_000)
    assert tokens.text == trace.text and np.array_equal(tokens.inputs, trace.token_id)
    again = record_trace(opened, tokens, sample=0)
    for layer in trace.layer_ids:
        assert (again.layers[layer].expert_TK == trace.layers[layer].expert_TK).mean() > 0.999


def test_the_trace_of_digits_is_of_digits_that_were_held_out() -> None:
    trace = read_trace(SAMPLES / "vit-digits" / "trace.safetensors")
    assert trace.meta.kind == "patches"
    assert trace.images is not None and len(trace.images) == trace.doc[-1] + 1 < 300
    assert set(np.unique(trace.labels["class"].codes)) == set(range(10))


@pytest.mark.parametrize("name", TEXT)
def test_some_experts_prefer_a_domain(name: str) -> None:
    trace = read_trace(SAMPLES / name / "trace.safetensors")
    found = [item for item in measure(trace, ["mutual_information"]) if item.label == "domain"]
    best = max(found, key=lambda item: item.z or 0)
    assert best.null is not None and best.p is not None
    assert best.value > 3 * best.null and best.z is not None and best.z > 5 and best.p < 0.01
