"""Sinusoidal positions, blocks without norms, and the head for values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from moescope.errors import InputError
from moescope.model import Batch, ModelConfig, Transformer, loss, num_targets
from moescope.model.layers import sinusoids
from router_cases import randn

TEXT: dict[str, Any] = {
    "vocab_size": 30, "d_model": 16, "num_layers": 2, "num_heads": 2, "num_experts": 3, "d_expert": 8, "max_seq": 12,
}  # fmt: skip
VALUES: dict[str, Any] = {
    "input": "vectors", "head": "values", "d_input": 5, "num_values": 3, "causal": False, "num_heads": 0, "d_model": 8,
    "num_layers": 1, "num_experts": 1, "max_seq": 4, "norm": "none", "expert": "linear",
    "router": "switch",
}  # fmt: skip


def full(inputs: Tensor, target: Tensor | None = None) -> Batch:
    return Batch(inputs, torch.ones(inputs.shape[:2], dtype=torch.bool), target)


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_are_those_of_the_paper(width: int) -> None:
    found = sinusoids(torch.tensor([[0, 1, 37]]), width)
    for place, position in enumerate((0, 1, 37)):
        for i in range(width):
            angle = position / 10000 ** (2 * (i // 2) / width)
            expected = math.cos(angle) if i % 2 else math.sin(angle)
            assert found[0, place, i].item() == pytest.approx(expected, abs=1e-5)


def test_sinusoidal_positions_are_added_and_turn_nothing() -> None:
    """Equal tokens at two positions differ by the sinusoids alone; without them attention cannot tell order."""
    made = Transformer(ModelConfig(**TEXT, position="sinusoidal"), seed=0).eval()
    inputs = torch.tensor([[3, 3, 7, 9]])
    batch = full(inputs)
    expected = made.embed(inputs) * 4.0 + sinusoids(torch.arange(4)[None], 16)
    torch.testing.assert_close(made._embedded(batch), expected)
    one = Transformer(ModelConfig(**{**TEXT, "num_layers": 1}, position="sinusoidal"), seed=0).eval()
    other = full(torch.tensor([[3, 7, 3, 9]]))  # one block: its last position sees a set, but for what positions say
    nowhere = [one(replace(each, position=torch.zeros(1, 4, dtype=torch.long))).logits[0, 3] for each in (batch, other)]
    torch.testing.assert_close(*nowhere, atol=1e-5, rtol=1e-4)
    placed = [one(each).logits[0, 3] for each in (batch, other)]
    assert not torch.allclose(*placed, atol=1e-4)


def test_the_embedding_is_drawn_as_large_as_the_positions() -> None:
    made = Transformer(ModelConfig(**{**TEXT, "vocab_size": 500}, position="sinusoidal"), seed=0)
    embedded = made._embedded(full(torch.arange(500)[:, None]))
    assert made.embed.weight.std().item() == pytest.approx(16**-0.5, rel=0.05)
    assert embedded.var().item() == pytest.approx(1.5, rel=0.25)


def test_without_norms_no_weight_of_one_is_left_and_the_model_is_affine() -> None:
    made = Transformer(ModelConfig(**VALUES), seed=0).double().eval()
    assert not [name for name, _ in made.named_parameters() if "norm" in name]
    x_Bd = randn(6, 5).double()
    (layer,) = made.moe.values()
    h_Bd = made.embed(x_Bd)
    y_Bm = (h_Bd + h_Bd @ layer.bank.weight[0].T) @ made.head.weight.T
    torch.testing.assert_close(made(full(x_Bd[:, None])).logits, y_Bm)


def test_the_loss_of_values_is_the_mean_squared_error_per_item() -> None:
    made = Transformer(ModelConfig(**VALUES), seed=0).eval()
    target = randn(6, 3, seed=3)
    batch = full(randn(6, 1, 5), target)
    output = made(batch)
    errors = [sum((output.logits[i, j] - target[i, j]) ** 2 for j in range(3)) / 3 for i in range(6)]
    torch.testing.assert_close(loss(output, batch), sum(errors) / 6)
    assert num_targets(batch) == 6
    assert batch.scored_from(3) is batch
    rows = batch.to("cpu").target
    assert rows is not None and rows.dtype == torch.float32


def test_values_of_a_padded_item_are_those_of_the_item_alone() -> None:
    made = Transformer(ModelConfig(**VALUES), seed=0).eval()
    rows = randn(2, 4, 5)
    valid = torch.tensor([[True, True, False, False], [True] * 4])
    both, alone = made(Batch(rows, valid)).logits[0], made(full(rows[:1, :2])).logits[0]
    torch.testing.assert_close(both, alone)


def test_a_head_without_values_is_refused() -> None:
    with pytest.raises(InputError, match="num_values"):
        ModelConfig(**{**VALUES, "num_values": 0})
    with pytest.raises(InputError, match="class"):
        ModelConfig(**{**VALUES, "head": "next_token"})
