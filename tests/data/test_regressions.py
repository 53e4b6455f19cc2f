"""Regressions: a linear map per cluster, found by least squares; the floor is what the best model leaves open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moescope.config import parse
from moescope.data.base import TokenSet
from moescope.data.corruption import CorruptionConfig, corrupted
from moescope.data.load import load_tokens
from moescope.data.regressions import RegressionsCorpus
from moescope.data.tokens import content_hash, select, split, take
from moescope.errors import InputError
from moescope.model import collate, sequences


def regressions(**config: Any) -> TokenSet:
    return RegressionsCorpus(parse(RegressionsCorpus.Config, config)).token_set()


def left_over(x_ND: np.ndarray, y_NM: np.ndarray) -> float:
    """Mean squared error of the best linear map, by least squares, corrected for what it fits of the noise."""
    found_DM = np.linalg.lstsq(x_ND, y_NM, rcond=None)[0]
    return float(((x_ND @ found_DM - y_NM) ** 2).mean() * len(x_ND) / (len(x_ND) - x_ND.shape[1]))


@pytest.mark.parametrize("clusters", [1, 2, 5])
def test_a_linear_map_fits_one_cluster_to_the_noise_and_not_two(clusters: int) -> None:
    tokens = regressions(clusters=clusters, tokens=4000, noise=0.2)
    codes, floor = tokens.labels["cluster"].codes, tokens.source["floor"]
    assert tokens.values is not None and tokens.values.dtype == np.float32
    assert np.bincount(codes).tolist() == [4000 // clusters] * clusters
    for cluster in range(clusters):
        here = codes == cluster
        assert left_over(tokens.inputs[here], tokens.values[here]) == pytest.approx(0.04, rel=0.1)
        if clusters > 1:
            both = here | (codes == (cluster + 1) % clusters)
            assert left_over(tokens.inputs[both], tokens.values[both]) > 0.3
    assert floor["noise"] == pytest.approx(0.04)
    assert floor["squared_error"] == pytest.approx(0.04, abs=5 * floor["std_error"] + 1e-3)


def test_the_floor_of_overlapping_clusters_is_the_error_of_the_best_mixture() -> None:
    """Clusters that lie on one another: nothing says which one it is, so the best guess is their mean map."""
    tokens = regressions(clusters=2, tokens=40_000, dims=3, outputs=2, spread=0.0, noise=0.1)
    assert tokens.values is not None
    codes = tokens.labels["cluster"].codes
    maps = [np.linalg.lstsq(tokens.inputs[codes == c], tokens.values[codes == c], rcond=None)[0] for c in (0, 1)]
    error = float(((tokens.inputs @ (maps[0] + maps[1]) / 2 - tokens.values) ** 2).mean())
    assert tokens.source["floor"]["squared_error"] == pytest.approx(error, rel=0.03)
    assert error > 0.1


def test_the_floor_lies_below_what_any_estimate_reaches_between() -> None:
    """Half overlapping: the exact posterior mean reaches the floor on fresh data, a hard choice does not."""
    config = parse(RegressionsCorpus.Config, {"clusters": 3, "dims": 2, "spread": 0.7, "noise": 0.05, "tokens": 30_000})
    tokens = RegressionsCorpus(config).token_set()
    assert tokens.values is not None
    codes, x_ND = tokens.labels["cluster"].codes, tokens.inputs.astype(np.float64)
    centres = np.stack([x_ND[codes == c].mean(0) for c in range(3)])
    maps = [np.linalg.lstsq(x_ND[codes == c], tokens.values[codes == c], rcond=None)[0] for c in range(3)]
    square_NC = ((x_ND[:, None] - centres) ** 2).sum(-1)
    weight_NC = np.exp(-square_NC / 2) / np.exp(-square_NC / 2).sum(1, keepdims=True)
    guess_CNM = np.stack([x_ND @ found for found in maps])
    soft = float(((np.einsum("nc,cnm->nm", weight_NC, guess_CNM) - tokens.values) ** 2).mean())
    hard = float(((guess_CNM[square_NC.argmin(1), np.arange(30_000)] - tokens.values) ** 2).mean())
    floor = tokens.source["floor"]["squared_error"]
    assert floor == pytest.approx(soft, rel=0.05)
    assert hard > 1.2 * floor


def test_seeds_draw_other_data_and_equal_ones_the_same() -> None:
    one, same, other = (content_hash(regressions(tokens=50, seed=seed)) for seed in (3, 3, 4))
    assert one == same != other


def test_values_stay_with_their_documents() -> None:
    tokens = regressions(tokens=60)
    assert tokens.values is not None
    whole = {tuple(row): tuple(value) for row, value in zip(tokens.inputs, tokens.values, strict=True)}
    train, held = split(tokens, 0.3)
    for part in (train, held, select(tokens, np.array([5, 9])), take(tokens, 10, 12)):
        assert part.values is not None and part.values.shape == (part.num_docs, 4)
        for row, value in zip(part.inputs, part.values, strict=True):
            assert whole[tuple(row)] == tuple(value)
    batch = collate(tokens, [sequences(tokens, 1)[i] for i in (7, 3)])
    assert batch.target is not None and batch.target.numpy() == pytest.approx(tokens.values[[7, 3]])


def test_values_are_part_of_what_the_content_is_named_by() -> None:
    tokens = regressions(tokens=20)
    assert tokens.values is not None
    moved = select(tokens, np.arange(20))
    assert content_hash(moved) == content_hash(tokens)
    moved.values[3, 1] += 1.0  # type: ignore[index]
    assert content_hash(moved) != content_hash(tokens)


def test_corruption_replaces_vectors_and_no_values() -> None:
    tokens = regressions(tokens=40)
    found = corrupted(tokens, CorruptionConfig(share=1.0), None)
    assert found.values is not None and np.array_equal(found.values, tokens.values)
    assert not np.allclose(found.inputs, tokens.inputs) and "floor" not in found.source


def test_it_is_loaded_by_name_and_told_as_synthetic() -> None:
    tokens = load_tokens("regressions?clusters=3&tokens=90", None, 60)
    assert tokens.num_docs == 60 and tokens.values is not None and tokens.values.shape == (60, 4)
    assert tokens.source["synthetic"] and tokens.source["floor"]["squared_error"] > 0
    assert tokens.labels["cluster"].names == ("c0", "c1", "c2")


@pytest.mark.parametrize("bad", [{"clusters": 0}, {"tokens": 2}, {"noise": -1.0}, {"spread": float("inf")}])
def test_bad_options_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        parse(RegressionsCorpus.Config, bad)
