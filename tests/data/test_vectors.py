"""Digits: the patches are the images. Clusters: each is tight where it says and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from moescope.config import parse
from moescope.data.base import TokenSet
from moescope.data.clusters import ClustersCorpus
from moescope.data.digits import DigitsCorpus, patchify
from moescope.errors import InputError


def digits(**config: Any) -> TokenSet:
    return DigitsCorpus(parse(DigitsCorpus.Config, config)).token_set()


def clusters(**config: Any) -> TokenSet:
    return ClustersCorpus(parse(ClustersCorpus.Config, config)).token_set()


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_patches_laid_at_their_positions_are_the_images(patch: int) -> None:
    tokens = digits(patch=patch)
    position = tokens.labels["position"]
    laid = np.full((tokens.num_docs, 8, 8), np.nan, np.float32)
    for token in range(tokens.num_tokens):
        row, column = map(int, position.names[position.codes[token]].split(","))
        at = np.s_[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        laid[tokens.doc[token]][at] = tokens.inputs[token].reshape(patch, patch)
    expected = load_digits()
    assert np.array_equal(laid * 16, expected.images)
    assert tokens.images is not None and tokens.target is not None
    assert np.array_equal(np.rint(tokens.images / 255 * 16), expected.images)
    assert np.array_equal(tokens.target, expected.target)


def test_digits_carry_class_and_ink() -> None:
    tokens = digits()
    assert (tokens.num_docs, tokens.num_tokens, tokens.inputs.shape[1]) == (1797, 1797 * 16, 4)
    assert tokens.inputs.min() == 0 and tokens.inputs.max() == 1 and tokens.inputs.dtype == np.float32
    assert tokens.target is not None
    assert np.array_equal(tokens.labels["class"].codes, tokens.target[tokens.doc])
    assert tokens.labels["class"].scope == "document"
    ink, mean = tokens.labels["ink"], tokens.inputs.mean(axis=1)
    for code, (low, high) in enumerate([(0, 0), (1e-9, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1)]):
        of = mean[ink.codes == code]
        assert len(of) > 1000 and of.min() >= low - 1e-6 and of.max() <= high + 1e-6
    assert tokens.source["synthetic"] is False


def test_patchify_keeps_every_pixel_of_images_that_are_not_square() -> None:
    images = np.arange(2 * 4 * 6).reshape(2, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 4)
    assert patches[1, 4].tolist() == images[1, 2:4, 2:4].ravel().tolist()
    with pytest.raises(InputError, match="must divide 8"):
        digits(patch=3)


def test_clusters_are_tight_along_their_own_features_and_loose_along_the_others() -> None:
    tokens = clusters(tokens=16_000, clusters=6, dims=12, tight=0.25, tight_std=0.1, loose_std=1.0)
    label = tokens.labels["cluster"]
    assert tokens.source["synthetic"] is True
    features = tokens.source["tight_features"]
    assert len({tuple(row) for row in features}) == 6 and all(len(row) == 3 for row in features)
    for cluster, tight in enumerate(features):
        std = tokens.inputs[label.codes == cluster].std(axis=0)
        mask = np.isin(np.arange(12), tight)
        assert np.allclose(std[mask], 0.1, rtol=0.08) and np.allclose(std[~mask], 1.0, rtol=0.08)


def test_all_features_are_used_about_equally_often() -> None:
    features = clusters(tokens=100, clusters=8, dims=16, tight=0.25).source["tight_features"]
    assert np.bincount(np.concatenate(features), minlength=16).tolist() == [2] * 16


def test_documents_of_clusters_are_groups_of_one_cluster_evenly_spread() -> None:
    tokens = clusters(tokens=1000, clusters=4, dims=5, group=3)
    label = tokens.labels["cluster"]
    assert tokens.target is not None and tokens.num_docs == 333 and tokens.num_tokens == 999
    assert np.array_equal(label.codes, tokens.target[tokens.doc]) and label.scope == "document"
    assert np.bincount(tokens.doc).tolist() == [3] * 333
    assert np.ptp(np.bincount(tokens.target)) <= 1


def test_clusters_follow_the_seed() -> None:
    assert np.array_equal(clusters(tokens=50, seed=3).inputs, clusters(tokens=50, seed=3).inputs)
    assert not np.array_equal(clusters(tokens=50, seed=3).inputs, clusters(tokens=50, seed=4).inputs)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"clusters": 1}, "clusters"),
        ({"tokens": 4}, "tokens"),
        ({"tight": 0}, "tight"),
        ({"tight_std": 2.0}, "tight_std"),
        ({"group": 0}, "group"),
        ({"tokens": 10**9}, "tokens"),
        ({"seed": -1}, "seed"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_options_are_refused_by_name(config: dict[str, Any], field: str) -> None:
    with pytest.raises(InputError, match=rf"ClustersConfig\.{field}"):
        clusters(**config)
