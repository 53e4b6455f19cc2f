"""Within/between scatter against loops and scikit-learn's Calinski-Harabasz score, and its null."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import calinski_harabasz_score

from moescope.metrics import Measurement, measure
from moescope.trace.schema import Trace
from routed import routed_trace

FAST = {"permutations": 60, "bootstrap": 60}


def clustered(
    n: int = 300, num: int = 4, apart: float = 1.0, d: int = 6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.choice(num, n, p=rng.dirichlet(np.full(num, 4.0)))
    return (rng.normal(size=(num, d))[label] * apart + rng.normal(size=(n, d))).astype(np.float32), label


def one(trace: Trace, **options: int) -> Measurement:
    (found,) = measure(trace, ["within_between"], **{**FAST, **options})
    return found


def loops(vectors: np.ndarray, label: np.ndarray) -> float:
    whole, within, between = vectors.mean(axis=0), 0.0, 0.0
    for expert in np.unique(label):
        mine = vectors[label == expert]
        within += sum(float(((row - mine.mean(axis=0)) ** 2).sum()) for row in mine)
        between += len(mine) * float(((mine.mean(axis=0) - whole) ** 2).sum())
    return within / between


@pytest.mark.parametrize("shift", [0.0, 300.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_value_is_the_loops_and_calinski_and_harabaszs(seed: int, shift: float) -> None:
    vectors, label = clustered(seed=seed)
    vectors = vectors + np.float32(shift)
    wide, num = vectors.astype(np.float64), np.unique(label).size
    found = one(routed_trace(label, 4, hidden_nd=vectors))
    assert found.value == pytest.approx(loops(wide, label), rel=1e-6)
    assert found.value == pytest.approx((300 - num) / (num - 1) / calinski_harabasz_score(wide, label), rel=1e-6)
    for expert, spread in zip(found.detail["experts"], found.detail["per_expert"], strict=True):
        mine = wide[label == expert]
        assert spread == pytest.approx(((mine - mine.mean(axis=0)) ** 2).sum(axis=1).mean(), rel=1e-6)


def test_the_null_is_the_ratio_of_shuffled_labels_and_lower_is_the_extreme_side() -> None:
    vectors, label = clustered()
    found = one(routed_trace(label, 4, hidden_nd=vectors), permutations=200)
    rng = np.random.default_rng(5)
    shuffled = [loops(vectors.astype(np.float64), rng.permutation(label)) for _ in range(80)]
    assert found.null == pytest.approx(np.mean(shuffled), abs=4 * np.std(shuffled) / np.sqrt(80))
    assert found.value < found.null and found.p == pytest.approx(1 / 201) and found.z < -2
    ignorant = np.random.default_rng(1).integers(0, 4, 300)
    assert one(routed_trace(ignorant, 4, hidden_nd=vectors)).p > 0.05


def test_the_interval_is_the_bootstrap_of_documents() -> None:
    vectors, label = clustered(n=600)
    doc = np.arange(600) // 20
    found = one(routed_trace(label, 4, hidden_nd=vectors, doc=doc), bootstrap=400)
    rng = np.random.default_rng(3)
    wide, drawn = vectors.astype(np.float64), []
    for _ in range(200):
        rows = np.concatenate([np.flatnonzero(doc == i) for i in rng.integers(0, 30, 30)])
        drawn.append(loops(wide[rows], label[rows]))
    width = np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)
    assert found.interval[1] - found.interval[0] == pytest.approx(width, rel=0.3)
    assert found.interval[0] < found.value < found.interval[1]


def test_a_split_of_a_mixed_expert_lowers_the_ratio_below_what_more_experts_do_by_chance() -> None:
    vectors, label = clustered(apart=4.0)
    merged = np.where(label == 3, 0, label)
    before, after = (one(routed_trace(by, 4, hidden_nd=vectors)) for by in (merged, label))
    assert after.value < before.value and after.value / after.null < 0.8 * before.value / before.null


def test_nothing_to_measure_is_said() -> None:
    assert "no hidden vectors" in one(routed_trace(np.arange(10) % 2, 2)).note
    single = one(routed_trace(np.zeros(10), 2, hidden_nd=np.ones((10, 3), np.float32)))
    assert single.value is None and "fewer than two" in single.note
    same = one(routed_trace(np.arange(10) % 2, 2, hidden_nd=np.ones((10, 3), np.float32)))
    assert same.value is None and "coincide" in same.note
    assert one(routed_trace([0, 1], 2, hidden_nd=np.eye(2, dtype=np.float32))).value == 0.0


def test_only_the_best_expert_of_finite_vectors_counts() -> None:
    vectors, label = clustered(100)
    vectors[4, 2] = np.nan
    experts = np.stack([label, (label + 1) % 4], axis=1)
    experts[10:20] = -1
    found = one(routed_trace(experts, 4, hidden_nd=vectors))
    keep = np.setdiff1d(np.arange(100), [4, *range(10, 20)])
    assert found.n == 89 and found.value == pytest.approx(
        loops(vectors[keep].astype(np.float64), label[keep]), rel=1e-6
    )
