from __future__ import annotations

import numpy as np
import pytest

from moescope.data.base import Labels, TokenSet
from moescope.data.tokens import split
from moescope.data.windows import source_of
from moescope.errors import InputError


def tokens(files: dict[str, tuple[str, int]], per_window: int = 10) -> TokenSet:
    """`files`: name to (group, windows). Every token's id is unique."""
    names = [f"{name}#{i}" for name, (_, windows) in files.items() for i in range(windows)]
    groups = [group for group, windows in files.values() for _ in range(windows)]
    values = tuple(sorted(set(groups)))
    codes = np.repeat([values.index(group) for group in groups], per_window).astype(np.int16)
    return TokenSet(
        kind="vectors",
        inputs=np.arange(len(names) * per_window, dtype=np.float32)[:, None],
        doc=np.repeat(np.arange(len(names), dtype=np.int32), per_window),
        labels={"domain": Labels(codes, values, "document")},
        source={"documents": names},
    )


def test_the_parts_are_disjoint_cover_everything_and_keep_files_whole() -> None:
    train, held = split(tokens({f"file{i}": ("a", 1 + i % 3) for i in range(30)}), 0.2)
    whole = np.sort(np.concatenate([train.inputs[:, 0], held.inputs[:, 0]]))
    assert np.array_equal(whole, np.arange(whole.size))
    assert not {source_of(name) for name in train.source["documents"]} & {
        source_of(name) for name in held.source["documents"]
    }


@pytest.mark.parametrize("seed", range(5))
def test_every_group_gives_about_the_same_share(seed: int) -> None:
    made = tokens(
        {f"{group}{i}": (group, 1 + i % 3) for group, n in (("a", 200), ("b", 40), ("c", 100)) for i in range(n)}
    )
    _, held = split(made, 0.2, seed)
    before, after = (np.bincount(part.labels["domain"].codes, minlength=3) for part in (made, held))
    assert np.all(np.abs(after / before - 0.2) < 0.06)
    assert abs(held.num_tokens / made.num_tokens - 0.2) < 0.02


def test_a_file_that_is_most_of_its_group_is_divided_by_its_windows() -> None:
    made = tokens({"large": ("data", 60), **{f"small{i}": ("text", 2) for i in range(50)}})
    train, held = split(made, 0.1)
    shares = [np.bincount(part.labels["domain"].codes, minlength=2)[0] / 600 for part in (train, held)]
    assert shares[1] == pytest.approx(0.1, abs=0.05) and sum(shares) == pytest.approx(1)


def test_the_split_depends_on_the_seed_and_names_alone() -> None:
    made = tokens({f"file{i}": ("a", 2) for i in range(20)})
    held = [split(made, 0.2, seed)[1].source["documents"] for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_both_parts_get_a_document_and_a_single_one_is_refused() -> None:
    train, held = split(tokens({"only": ("a", 2)}), 0.001)
    assert train.num_docs == held.num_docs == 1
    with pytest.raises(InputError, match="single document"):
        split(tokens({"only": ("a", 1)}))
