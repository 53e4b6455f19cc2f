from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.data.base import TokenSet
from moescope.errors import InputError
from moescope.model import IGNORED
from moescope.train.sampling import Documents, Held, Windows, draw


def stream(lengths: list[int]) -> TokenSet:
    """Documents whose token ids say where they are: 1000 * document + position."""
    doc = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    ids = np.concatenate([1000 * d + np.arange(n) for d, n in enumerate(lengths)]).astype(np.int32)
    return TokenSet(kind="text", inputs=ids, doc=doc, labels={}, source={})


def vectors(num_docs: int) -> TokenSet:
    doc = np.repeat(np.arange(num_docs, dtype=np.int32), 3)
    rows = np.arange(3 * num_docs, dtype=np.float32)[:, None]
    return TokenSet(kind="vectors", inputs=rows, doc=doc, labels={}, source={}, target=np.arange(num_docs) % 2)


def test_every_epoch_draws_every_item_once_in_another_order() -> None:
    drawn = np.concatenate([draw(step, batch=3, items=7, seed=0)[0] for step in range(14)])
    epochs = drawn.reshape(6, 7)
    assert (np.sort(epochs, axis=1) == np.arange(7)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_step_may_span_several_epochs() -> None:
    item, epoch = draw(0, batch=10, items=4, seed=0)
    assert sorted(np.bincount(item)) == [2, 2, 3, 3]
    assert epoch.tolist() == [0] * 4 + [1] * 4 + [2] * 2


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    tokens = stream([40, 60, 33])
    one, other = (Windows(tokens, seq=8, batch=4, seed=3) for _ in range(2))
    for step in range(5):
        other(step)
    assert torch.equal(one(5).inputs, other(5).inputs)
    assert not torch.equal(one(5).inputs, Windows(tokens, seq=8, batch=4, seed=4)(5).inputs)


def test_targets_are_the_next_token_of_the_same_document() -> None:
    source = Windows(stream([40, 60, 33]), seq=8, batch=4, seed=0)
    seams = 0
    for step in range(20):
        batch = source(step)
        assert bool(batch.valid.all()) and batch.target is not None
        inside = batch.target != IGNORED
        assert torch.equal(batch.target[inside], batch.inputs[inside] + 1)
        next_input = batch.inputs[:, 1:]
        crossing = next_input // 1000 != batch.inputs[:, :-1] // 1000
        assert torch.equal(crossing, ~inside[:, :-1])
        seams += int(crossing.sum())
    assert seams > 0


def test_an_epoch_of_windows_sees_each_token_at_most_once_and_nearly_all_of_them() -> None:
    tokens = stream([40, 60, 33])
    source = Windows(tokens, seq=8, batch=1, seed=0)
    seen = torch.cat([source(step).inputs.flatten() for step in range(source.items)])
    assert len(seen.unique()) == len(seen) >= tokens.num_tokens - 2 * 8


def test_windows_shift_between_epochs() -> None:
    source = Windows(stream([400]), seq=8, batch=1, seed=0)
    firsts = {int(source(step).inputs[0, 0]) % 8 for step in range(0, 8 * source.items, source.items)}
    assert len(firsts) > 1


def test_too_little_text_is_refused_with_the_number_needed() -> None:
    with pytest.raises(InputError, match=r"data\.tokens gives 16 tokens.*at least 17"):
        Windows(stream([16]), seq=8, batch=1, seed=0)
    assert Windows(stream([17]), seq=8, batch=1, seed=0).items == 1


def test_documents_keep_their_class() -> None:
    source = Documents(vectors(5), max_seq=4, batch=5, seed=0)
    batch = source(0)
    assert batch.target is not None
    assert sorted(batch.inputs[:, 0, 0].tolist()) == [0.0, 3.0, 6.0, 9.0, 12.0]
    assert torch.equal(batch.target, (batch.inputs[:, 0, 0] / 3 % 2).long())


def test_documents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"max_seq = 2.*3 positions"):
        Documents(vectors(5), max_seq=2, batch=5, seed=0)
    with pytest.raises(InputError, match="no class"):
        Documents(stream([3, 3]), max_seq=4, batch=5, seed=0)


def test_evaluation_sees_each_document_at_most_once_and_the_same_ones_each_time() -> None:
    held = Held(Documents(vectors(10), max_seq=4, batch=4, seed=0), 8)
    first, second = held(), held()
    assert len(first) == 2
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, second, strict=True))
    seen = torch.cat([batch.inputs[:, 0, 0] for batch in first])
    assert len(seen.unique()) == len(seen)
