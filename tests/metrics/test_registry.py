"""Laws that every registered measure keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from moescope.errors import InputError
from moescope.metrics import METRICS, Measurement, measure
from moescope.trace.io import read_trace, write_trace
from moescope.trace.schema import Trace
from routed import labelled, routed_trace
from synthetic import make_trace

FAST = {"permutations": 40, "bootstrap": 40}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make_trace(tokens=1200, layers=2, sample=300)


def relabelled(trace: Trace, order: np.ndarray) -> Trace:
    """The same routing with expert e called order[e]."""
    back = np.argsort(order)
    layers = {
        layer: replace(
            data,
            expert_TK=order[data.expert_TK].astype(np.int32),
            mean_probs_E=data.mean_probs_E[back],
            logits_TE=data.logits_TE[:, back],
        )
        for layer, data in ((layer, trace.layers[layer]) for layer in trace.layer_ids)
    }
    return replace(trace, layers=layers)


@pytest.mark.parametrize("name", METRICS)
def test_a_measure_says_in_words_what_it_is(name: str, trace: Trace) -> None:
    metric = METRICS[name]
    assert metric.name == name
    for words in (metric.title, metric.definition, metric.null, metric.caveat, metric.unit, metric.source):
        assert len(words) > 3 and "\n" not in words
    for found in measure(trace, [name], **FAST):
        assert set(found.detail) == set(metric.details)


@pytest.mark.parametrize("name", METRICS)
def test_every_layer_has_value_null_n_and_an_interval_around_the_value(name: str, trace: Trace) -> None:
    found = measure(trace, [name], **FAST)
    assert {item.layer for item in found} == {0, 1}
    for item in found:
        assert item.metric == name and item.n > 0 and item.null_kind and item.unit
        assert item.tensor.startswith(f"layer.{item.layer}.")
        assert item.value is not None and item.null is not None and item.interval is not None
        low, high = item.interval
        assert low <= item.value <= high
        assert (item.z is None) or (item.p is not None and 0 < item.p <= 1)


@pytest.mark.parametrize("name", METRICS)
def test_the_seed_decides_whatever_else_is_asked_for(name: str, trace: Trace) -> None:
    alone = measure(trace, [name], layers=[1], seed=5, **FAST)
    among = [item for item in measure(trace, seed=5, **FAST) if item.metric == name and item.layer == 1]
    assert alone == among


@pytest.mark.parametrize("name", METRICS)
def test_calling_experts_otherwise_changes_nothing(name: str, trace: Trace) -> None:
    order = np.random.default_rng(3).permutation(8)
    before, after = measure(trace, [name], **FAST), measure(relabelled(trace, order), [name], **FAST)
    for old, new in zip(before, after, strict=True):
        assert new.value == pytest.approx(old.value, abs=1e-6)
        assert new.n == old.n
        assert new.interval == pytest.approx(old.interval, abs=1e-6)
        assert new.null == pytest.approx(old.null, abs=1e-6 if old.null_std is None else 6 * old.null_std + 1e-6)


def test_measurements_are_plain_json(trace: Trace) -> None:
    text = json.dumps([asdict(item) for item in measure(trace, **FAST)], allow_nan=False)
    assert json.loads(text)[0]["metric"] == "load_ratio"


def test_a_written_trace_measures_like_the_one_in_memory(trace: Trace, tmp_path) -> None:
    write_trace(trace, tmp_path / "t.safetensors")
    read = measure(read_trace(tmp_path / "t.safetensors"), **FAST)
    for kept, new in zip(measure(trace, **FAST), read, strict=True):
        assert new.metric == kept.metric and new.label == kept.label
        assert new.value == pytest.approx(kept.value, abs=2e-3)


@pytest.mark.parametrize("name", METRICS)
def test_nothing_to_measure_is_answered_with_a_reason(name: str) -> None:
    labels = {"kind": labelled(np.full(5, -1))}
    empty = routed_trace(np.full((5, 2), -1), 4, labels=labels, mean_probs_E=np.zeros(4))
    for item in measure(empty, [name], **FAST):
        assert (item.value, item.null, item.z, item.p, item.interval) == (None,) * 5
        assert item.note.startswith("not enough data: ")


@pytest.mark.parametrize("tokens", [1, 2, 70])
@pytest.mark.parametrize(("experts", "k"), [(1, 1), (2, 2), (5, 3)])
def test_tiny_traces_are_measured_without_a_fault(tokens: int, experts: int, k: int) -> None:
    trace = make_trace(tokens=tokens, layers=1, experts=experts, k=k, docs=1, sample=tokens)
    for item in measure(trace, **FAST):
        assert item.value is None or np.isfinite(item.value)
        assert item.value is not None or item.note


def test_dead_slots_are_no_experts() -> None:
    """Slots 1 and 4 of six were never allocated: everything is as with four experts."""
    full = make_trace(tokens=600, layers=1, experts=4, sample=200, docs=8)
    old = full.layers[0]
    place = np.array([0, 2, 3, 5])
    logits = np.full((600, 6), -np.inf, np.float32)
    logits[:, place] = old.logits_TE
    probs = np.zeros(6)
    probs[place] = old.mean_probs_E
    wide = replace(old, expert_TK=place[old.expert_TK].astype(np.int32), logits_TE=logits, mean_probs_E=probs)
    found = measure(replace(full, layers={0: wide}), **FAST)
    for kept, new in zip(measure(full, **FAST), found, strict=True):
        assert new.value == pytest.approx(kept.value, abs=1e-6)
        assert new.null == pytest.approx(kept.null, abs=1e-6)
    assert found[0].detail["experts"] == (0, 2, 3, 5)


def test_dropped_assignments_count_as_chosen_and_are_told() -> None:
    trace = routed_trace(np.arange(100) % 4, 4, sent_TK=np.arange(100)[:, None] >= 10)
    item = measure(trace, ["load_ratio"], **FAST)[0]
    assert item.value == 1.0
    assert "10.0% of the assignments were dropped" in item.note


def test_unknown_names_and_layers_are_refused(trace: Trace) -> None:
    with pytest.raises(InputError, match=r"no measure 'loudness'; the measures are load_ratio, "):
        measure(trace, ["loudness"])
    with pytest.raises(InputError, match=r"no MoE layer 7; its layers are 0, 1"):
        measure(trace, layers=[7])


def test_importing_the_measures_imports_nothing_heavy() -> None:
    code = "import sys, moescope.metrics; print([m for m in ('torch', 'sklearn', 'scipy', 'umap') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_measurement_is_frozen(trace: Trace) -> None:
    item: Measurement = measure(trace, ["maxvio"], **FAST)[0]
    with pytest.raises(AttributeError):
        item.value = 0.0  # type: ignore[misc]
