"""Routing divergence against a double loop with scipy's Jensen-Shannon distance, and its null."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax

from moescope.metrics import Measurement, measure
from moescope.metrics.routing_jsd import FEWEST_TOKENS, MOST_VALUES, divergences
from moescope.trace.schema import Trace
from routed import labelled, routed_trace
from synthetic import make_trace

FAST = {"permutations": 60, "bootstrap": 60}


def one(trace: Trace, name: str = "routing_jsd", label: str = "kind", **options: int) -> Measurement:
    return next(item for item in measure(trace, [name], **{**FAST, **options}) if item.label == label)


def made_up(
    n: int = 400, num: int = 5, k: int = 2, seed: int = 0, scope: str = "token", strength: float = 1.5
) -> Trace:
    """Tokens of three kinds with different tastes, a variable number of experts each, some without any."""
    rng = np.random.default_rng(seed)
    doc = np.sort(rng.integers(0, 30, n))
    kind = (rng.integers(0, 3, 30)[doc] if scope == "document" else rng.integers(-1, 3, n)).astype(int)
    logits = rng.normal(size=(n, num)) + strength * rng.normal(size=(4, num))[kind]
    experts = np.argsort(-logits, axis=1)[:, :k]
    experts[rng.random(n) < 0.2, 1:] = -1
    experts[:5] = -1
    p = softmax(logits, axis=1)
    return routed_trace(
        experts, num, doc=doc, labels={"kind": labelled(kind, scope)}, logits_TE=logits.astype(np.float32),
        entropy_T=-(p * np.log(p)).sum(1).astype(np.float32), mean_probs_E=p.mean(0),
    )  # fmt: skip


def oracle(trace: Trace, name: str) -> float:
    """Mean over pairs of values, token by token; scipy gives the square root of the divergence."""
    layer, codes = trace.layers[3], trace.labels["kind"].codes
    num = layer.meta.num_experts
    share: dict[int, np.ndarray] = {}
    count: dict[int, int] = {}
    for token in range(trace.num_tokens):
        chosen = [int(e) for e in layer.expert_TK[token] if e >= 0]
        value = int(codes[token])
        if value < 0 or not chosen:
            continue
        row = np.zeros(num)
        if name == "routing_jsd":
            for expert in chosen:
                row[expert] += 1 / len(chosen)
        else:
            row = softmax(layer.logits_TE[token].astype(np.float64))
        share[value] = share.get(value, np.zeros(num)) + row
        count[value] = count.get(value, 0) + 1
    kept = [value for value in sorted(share) if count[value] >= FEWEST_TOKENS]
    pairs = [jensenshannon(share[a] / count[a], share[b] / count[b], base=2) ** 2 for a, b in combinations(kept, 2)]
    return float(np.mean(pairs))


@pytest.mark.parametrize("name", ["routing_jsd", "routing_jsd_full"])
@pytest.mark.parametrize("scope", ["token", "document"])
@pytest.mark.parametrize("seed", range(3))
def test_the_value_is_the_loops_and_scipys(name: str, scope: str, seed: int) -> None:
    trace = made_up(seed=seed, scope=scope)
    found = one(trace, name)
    assert found.value == pytest.approx(oracle(trace, name), abs=1e-6)
    per_value, mine = found.detail["per_value"], found.detail["tokens"]
    assert np.mean(per_value) == pytest.approx(found.value) and sum(mine) == found.n
    assert found.detail["pairs"] == 3 and found.interval[0] <= found.value <= found.interval[1]


def test_divergences_are_those_of_scipy() -> None:
    sums = np.random.default_rng(0).random((3, 6, 9)) * 7
    sums[:, 2, :4] = 0
    found = divergences(sums)
    for draw in range(3):
        for value, (a, b) in zip(found[draw], combinations(range(6), 2), strict=True):
            assert value == pytest.approx(jensenshannon(sums[draw, a], sums[draw, b], base=2) ** 2, abs=1e-9)
    assert np.isnan(divergences(np.array([[[0.0, 0.0], [1.0, 0.0]]]))).all()


def test_groups_on_experts_of_their_own_are_one_bit_apart_and_equal_groups_none() -> None:
    kind = np.arange(200) % 2
    apart = routed_trace(kind, 2, labels={"kind": labelled(kind)})
    assert one(apart).value == pytest.approx(1.0)
    same = routed_trace((np.arange(200) // 2) % 2, 2, labels={"kind": labelled(kind)})
    assert one(same).value == pytest.approx(0.0, abs=1e-12)


def test_sharpening_the_choice_does_not_lower_what_selection_keeps_apart() -> None:
    trace = made_up(n=3000, k=1, seed=5)
    assert one(trace, "routing_jsd").value > one(trace, "routing_jsd_full").value > 0.01


def test_the_null_is_a_shuffle_of_tokens_for_labels_of_tokens() -> None:
    trace = made_up(seed=1)
    found = one(trace, permutations=200)
    labels, codes = trace.labels["kind"], trace.labels["kind"].codes
    use = np.flatnonzero((codes >= 0) & (trace.layers[3].expert_TK[:, 0] >= 0))
    rng = np.random.default_rng(9)
    shuffled = []
    for _ in range(60):
        moved = codes.copy()
        moved[use] = rng.permutation(codes[use])
        shuffled.append(oracle(replace(trace, labels={"kind": replace(labels, codes=moved)}), "routing_jsd"))
    assert found.null == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / np.sqrt(60))
    assert found.null_std == pytest.approx(np.std(shuffled), rel=0.5)
    assert found.p == pytest.approx(1 / 201) and "tokens" in found.null_kind


def test_documents_are_shuffled_whole_so_that_topics_of_documents_are_no_discovery() -> None:
    """Each document has its own taste and the label means nothing: tokens shuffled one by one would cry wolf."""
    hits = {"document": 0, "token": 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        doc = np.repeat(np.arange(24), 40)
        kind = rng.permutation(np.arange(24) % 3)[doc]
        expert = np.array([rng.choice(6, p=p) for p in rng.dirichlet(np.full(6, 0.5), 24)[doc]])
        for scope in hits:
            found = one(routed_trace(expert, 6, doc=doc, labels={"kind": labelled(kind, scope)}), permutations=99)
            hits[scope] += found.p <= 0.05
    assert hits["document"] <= 3 and hits["token"] >= 18


def test_small_groups_and_rare_values_are_left_out_and_told() -> None:
    kind = np.r_[np.zeros(50), np.ones(50), np.full(FEWEST_TOKENS - 1, 2)].astype(int)
    found = one(routed_trace(np.arange(kind.size) % 4, 4, labels={"kind": labelled(kind)}))
    assert found.detail["values"] == (0, 1) and found.detail["left_out"] == 1 and "left out" in found.note
    many = np.repeat(np.arange(MOST_VALUES + 3), 12)
    told = one(routed_trace(np.arange(many.size) % 4, 4, labels={"kind": labelled(many)}))
    assert len(told.detail["values"]) == MOST_VALUES and told.detail["left_out"] == 3
    alone = routed_trace(np.arange(50) % 4, 4, labels={"kind": labelled(np.zeros(50))})
    assert "fewer than two values" in one(alone).note


def test_without_the_routers_distribution_there_is_nothing_before_selection() -> None:
    kind = np.arange(100) % 2
    bare = routed_trace(kind, 2, labels={"kind": labelled(kind)})
    found = one(bare, "routing_jsd_full")
    assert found.value is None and "cannot be rebuilt" in found.note
    assert one(make_trace(tokens=800, layers=1), "routing_jsd_full", "domain").value > 0.01
