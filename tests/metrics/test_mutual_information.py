"""Mutual information: scikit-learn's value, laws of information, and nulls that permute what was labelled."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy, kstest
from sklearn.metrics import mutual_info_score

from moescope.data.base import Labels
from moescope.metrics import Measurement, measure
from moescope.metrics.mutual_information import information
from routed import labelled, routed_trace
from synthetic import make_trace


def information_of(
    experts: np.ndarray, num: int, labels: Labels, doc: np.ndarray | None = None, **options
) -> Measurement:
    (found,) = measure(routed_trace(experts, num, doc=doc, labels={"kind": labels}), ["mutual_information"], **options)
    assert found.label == "kind"
    return found


def prefer(rng: np.random.Generator, label: np.ndarray, num: int, strength: float) -> np.ndarray:
    """An expert per token, that of its label with probability `strength`, else any."""
    return np.where(rng.random(label.size) < strength, label % num, rng.integers(0, num, label.size))


def test_one_expert_per_token_gives_scikit_learns_value() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 700)
    experts = prefer(rng, label, 8, 0.3)
    found = information_of(experts, 8, labelled(label))
    assert found.value == pytest.approx(mutual_info_score(label, experts), abs=1e-12)
    assert found.detail["label_entropy"] == pytest.approx(entropy(np.bincount(label)))
    assert found.detail["normalised"] == pytest.approx(found.value / entropy(np.bincount(label)))
    assert sum(found.detail["information"]) == pytest.approx(found.value)
    assert sum(found.detail["information_null"]) == pytest.approx(found.null)


def test_every_assignment_weighs_one_over_k() -> None:
    """Against the same joint table written out: a token with k experts is k tokens of weight 1/k."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, 400)
    experts = np.argsort(rng.random((400, 6)), axis=1)[:, :3]
    experts[label == 1, 2] = -1
    experts[:5] = -1
    table = np.zeros((3, 6))
    for token in range(5, 400):
        chosen = experts[token][experts[token] >= 0]
        table[label[token], chosen] += 1 / len(chosen)
    joint = table / table.sum()
    expected = entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint.ravel())
    found = information_of(experts, 6, labelled(label))
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.n == 395


@pytest.mark.parametrize("k", [1, 2])
def test_experts_that_tell_the_label_carry_its_whole_entropy(k: int) -> None:
    label = np.random.default_rng(0).integers(0, 4, 800)
    experts = label[:, None] * k + np.arange(k)
    found = information_of(experts, 4 * k, labelled(label))
    assert found.value == pytest.approx(found.detail["label_entropy"])
    assert (found.detail["normalised"], found.detail["adjusted"]) == pytest.approx((1, 1))
    assert found.z > 50 and found.interval[1] <= found.detail["label_entropy"] + 1e-12


def test_independent_labels_carry_nothing_beyond_the_bias() -> None:
    rng = np.random.default_rng(0)
    corrected, nulls = [], []
    for seed in range(30):
        found = information_of(rng.integers(0, 8, 1000), 8, labelled(rng.integers(0, 5, 1000)), seed=seed, bootstrap=0)
        corrected.append(found.detail["corrected"])
        nulls.append(found.null)
    assert np.mean(nulls) == pytest.approx(7 * 4 / (2 * 1000), rel=0.1)  # (E-1)(|Y|-1)/(2T)
    assert abs(np.mean(corrected)) < 3 * np.std(corrected) / np.sqrt(30)


@pytest.mark.parametrize("scope", ["token", "document"])
def test_p_values_are_uniform_where_the_label_means_nothing(scope: str) -> None:
    """Documents that differ in what they prefer, with labels that have nothing to do with it."""
    rng = np.random.default_rng(5)
    p = []
    for seed in range(120):
        doc = np.repeat(np.arange(24), 30)
        if scope == "document":
            experts = np.array([rng.choice(5, p=row) for row in rng.dirichlet(np.ones(5), 24)[doc]])
            label = rng.integers(0, 3, 24)[doc]
        else:
            experts, label = rng.integers(0, 5, 720), rng.integers(0, 3, 720)
        p.append(information_of(experts, 5, labelled(label, scope), doc, seed=seed, permutations=60, bootstrap=0).p)
    assert kstest(p, "uniform").pvalue > 0.005


def test_permuting_tokens_would_find_a_document_label_where_there_is_none() -> None:
    """The trap: documents prefer experts, labels are random, and tokens of a document are no independent witnesses."""
    rng = np.random.default_rng(2)
    false_alarms = {"token": 0, "document": 0}
    for seed in range(30):
        doc = np.repeat(np.arange(20), 50)
        experts = np.array([rng.choice(6, p=row) for row in rng.dirichlet(np.full(6, 0.7), 20)[doc]])
        label = rng.permutation(np.arange(20) % 4)[doc]
        found = {}
        for scope in false_alarms:
            found[scope] = information_of(
                experts, 6, labelled(label, scope), doc, seed=seed, permutations=60, bootstrap=0
            )
            false_alarms[scope] += found[scope].p <= 0.05
        assert found["document"].value == pytest.approx(found["token"].value)
        assert found["document"].null > 5 * found["token"].null
        assert found["document"].null_std > 3 * found["token"].null_std
    assert false_alarms["token"] == 30
    assert false_alarms["document"] <= 5


def test_documents_move_whole_under_the_null() -> None:
    """With two documents a value there are 6 ways to label them, each a table that can be written out."""
    doc = np.repeat([0, 1, 2, 3], [10, 20, 30, 40])
    experts = np.repeat([0, 1, 0, 1], [10, 20, 30, 40])
    label = np.array([0, 0, 1, 1])[doc]
    found = information_of(experts, 2, labelled(label, "document"), doc, permutations=3000)
    ways = [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]]
    assert found.null == pytest.approx(
        np.mean([mutual_info_score(np.array(way)[doc], experts) for way in ways]), abs=0.02
    )
    assert found.null_kind == "Labels permuted among whole documents." and found.detail["groups"] == 4


def test_a_label_of_its_own_for_every_document_cannot_be_told_from_the_document() -> None:
    doc = np.repeat(np.arange(5), 40)
    found = information_of(doc, 5, labelled(doc, "document"), doc)
    assert found.value == pytest.approx(found.null) and found.p == 1.0 and found.z is None
    assert "Permuting changes nothing" in found.note


def test_unlabelled_tokens_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 500)
    experts = prefer(rng, label, 4, 0.5)
    hidden = label.copy()
    hidden[100:] = -1
    found = information_of(experts, 4, labelled(hidden))
    assert found.n == 100 and found.detail["unlabelled"] == 400
    assert found.value == pytest.approx(mutual_info_score(label[:100], experts[:100]))
    assert "400 unlabelled tokens left out." in found.note
    none = information_of(experts, 4, labelled(np.where(label == 1, 1, -1)))
    assert none.value is None and none.note == "not enough data: kind has only one value here (b)"
    assert none.n == int((label == 1).sum())


def test_a_document_label_that_changes_inside_a_document_moves_in_parts() -> None:
    doc = np.repeat([0, 1], 60)
    label = np.tile(np.repeat([0, 1], 30), 2)
    found = information_of(np.random.default_rng(0).integers(0, 3, 120), 3, labelled(label, "document"), doc)
    assert found.detail["groups"] == 4


@pytest.mark.parametrize(("strength", "apart"), [(0.0, 0.0), (0.5, 0.3)])
def test_intervals_less_the_null_cover_the_true_information(strength: float, apart: float) -> None:
    """Documents differ within a label; truth is the information of their labels' mean preferences."""
    rng = np.random.default_rng(4)
    means = (1 - strength) * np.full((3, 6), 1 / 6) + strength * rng.dirichlet(np.ones(6), 3)
    truth = float(np.mean([entropy(row, means.mean(axis=0)) for row in means]))
    assert truth >= apart / 10
    covered = 0
    for seed in range(80):
        of_doc = np.arange(60) % 3
        doc = np.repeat(np.arange(60), rng.integers(20, 60, 60))
        prefers = np.stack([rng.dirichlet(means[y] * 10) for y in of_doc])
        experts = (rng.random(doc.size)[:, None] > np.cumsum(prefers, axis=1)[doc]).sum(axis=1).clip(0, 5)
        found = information_of(
            experts, 6, labelled(of_doc[doc], "document"), doc, seed=seed, permutations=60, bootstrap=99
        )
        low, high = (end - found.null for end in found.interval)
        covered += low <= truth <= high
    assert covered / 80 >= 0.86


def test_made_up_traces_show_their_label_exactly_if_routing_follows_it() -> None:
    nothing: list[Measurement] = []
    for seed in range(3):
        follows = {item.label: item for item in measure(make_trace(seed=seed, layers=1), ["mutual_information"])}
        assert follows["domain"].p < 0.02 and follows["domain"].z > 5
        assert follows["syntax"].p > 0.01
        nothing += measure(make_trace(seed=seed, strength=0.0), ["mutual_information"])
    assert len(nothing) == 18 and max(item.z for item in nothing) < 4
    assert sum(item.p <= 0.05 for item in nothing) <= 3


def test_tokens_that_nobody_took_and_empty_tables_do_no_harm() -> None:
    parts = information(np.stack([np.zeros((2, 3)), np.eye(2, 3)]))
    assert np.isnan(parts[0]).all()
    assert parts[1].sum() == pytest.approx(np.log(2))


def test_large_label_sets_are_worked_through_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    label, doc = rng.integers(0, 200, 900), np.arange(900) // 30
    experts = prefer(rng, label, 4, 0.2)
    for labels in (labelled(label), labelled(doc % 7, "document")):
        whole = information_of(experts, 4, labels, doc, permutations=30, bootstrap=30)
        with monkeypatch.context() as patch:
            patch.setattr("moescope.metrics.mutual_information.CELL_BUDGET", 150)
            pieces = information_of(experts, 4, labels, doc, permutations=30, bootstrap=30)
        assert pieces.detail["permutations"] == 30
        assert pieces.interval == pytest.approx(whole.interval)
        assert pieces.null == pytest.approx(whole.null)
