"""Token gradients: their sum is the gradient of the weight, each is that of a loss of its own, whatever computes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional as F

from moescope.errors import InputError
from moescope.expansion.base import TokenGradients
from moescope.expansion.token_gradients import Captured, capture
from moescope.model import Batch, ModelConfig, Transformer, loss
from moescope.model.experts import WAYS
from moescope.model.linear import LINEAR_WAYS

E, D, ALL = 5, 16, 10**9
BANKS = [("swiglu", way) for way in WAYS] + [(kind, way) for kind in ("silu", "linear") for way in LINEAR_WAYS]


def make(expert: str, way: str | None = None, **changes: Any) -> Transformer:
    """Two blocks, attention in both; the second has experts, of which slot 1 is dead (as in any block with experts)."""
    known = {"vocab_size": 30, "max_seq": 12, "d_model": D, "d_dense": 16, "d_expert": 8, "num_layers": 2}
    moe = {"num_heads": 2, "moe_layers": (1,), "num_experts": E, "router": "top_p", "router_config": {"p": 0.7}}
    model = Transformer(ModelConfig(**{**known, **moe, "expert": expert, **changes}), seed=3)
    for layer in model.moe.values():
        layer.bank.way = way
        with torch.no_grad():
            layer.alive_E[1] = False
            if isinstance(weight := layer.router.rows_Ed, Tensor):
                weight.mul_(10.0)
            layer.bank.get_parameter(layer.bank.first).mul_(3.0)
    return model


def make_batch(rows: int = 6, seq: int = 9, seed: int = 0) -> Batch:
    """Sequences of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    token_BS = torch.randint(30, (rows, seq + 1), generator=generator)
    valid_BS = torch.arange(seq) < torch.randint(3, seq + 1, (rows, 1), generator=generator)
    return Batch(token_BS[:, :-1], valid_BS, token_BS[:, 1:].where(valid_BS, -100))


def backward(model: Transformer, batch: Batch, keeps: Sequence[Any] = ()) -> Captured:
    """One pass; with `keeps`, a loss that also reads what each slot gave, as objectives do."""
    (layer,) = model.moe.values()
    model.zero_grad()
    with capture(layer) as captured, model.keeping(keeps):
        output = model(batch)
        total = loss(output, batch)
        (record,) = output.records
        for kept in (record.output_TKd, record.activation_TKf):
            if kept is not None:
                total = total + 0.01 * kept.square().sum()
        total.backward()
    return captured


def summed_outer(found: TokenGradients) -> Tensor:
    """One token at a time."""
    total_gd = torch.zeros(found.u_ng.shape[1], found.x_nd.shape[1])
    for u_g, x_d in zip(found.u_ng, found.x_nd, strict=True):
        total_gd += torch.outer(u_g, x_d)
    return total_gd


@pytest.mark.parametrize(("expert", "way"), BANKS)
@pytest.mark.parametrize("keeps", [(), ("outputs",)])
def test_summed_over_tokens_they_are_the_gradient_of_the_weight(expert: str, way: str, keeps: tuple[str, ...]) -> None:
    model = make(expert, way)
    captured = backward(model, make_batch(), keeps)
    (layer,) = model.moe.values()
    grad_Egd = layer.bank.get_parameter(layer.bank.first).grad
    assert grad_Egd is not None
    for index in range(E):
        torch.testing.assert_close(summed_outer(captured.of(index, ALL)), grad_Egd[index], rtol=1e-4, atol=1e-7)
    assert len(captured.of(1, ALL).x_nd) == 0, "nothing is sent to a dead expert"
    assert (grad_Egd.flatten(1).norm(dim=1) > 1e-5).sum() == E - 1, "the other experts have something to compare"


@pytest.mark.parametrize("expert", ["swiglu", "silu", "linear"])
def test_each_is_the_gradient_where_only_that_token_has_a_loss(expert: str) -> None:
    """Without attention a token's loss reaches the expert through that token alone."""
    model = make(expert, num_heads=0, num_layers=1, moe_layers=(0,))
    batch = make_batch(4, 9)
    captured = backward(model, batch)
    (layer,) = model.moe.values()
    routing = captured.record.routing
    for index in (0, 2):
        found = captured.of(index, ALL)
        tokens = (routing.sent_TK & (routing.expert_TK == index)).any(1).nonzero()[:, 0].tolist()
        assert len(found.x_nd) == len(tokens) > 1
        for n, t in enumerate(tokens):
            model.zero_grad()
            logits_TV, target_T = model(batch).logits.flatten(0, 1), batch.target.flatten()
            (F.cross_entropy(logits_TV[t], target_T[t]) / (target_T >= 0).sum()).backward()
            alone_gd = layer.bank.get_parameter(layer.bank.first).grad[index]
            torch.testing.assert_close(torch.outer(found.u_ng[n], found.x_nd[n]), alone_gd, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("keeps", [(), ("outputs",)])
def test_the_pass_itself_is_bit_for_bit_the_same(keeps: tuple[str, ...]) -> None:
    grads = []
    for watched in (False, True):
        model, batch = make("swiglu"), make_batch()
        (layer,) = model.moe.values()
        with capture(layer) if watched else nullcontext(), model.keeping(keeps):
            loss(model(batch), batch).backward()
        grads.append([weight.grad for weight in model.parameters()])
        assert not layer._forward_hooks, "nothing is left behind"
    for one, two in zip(*grads, strict=True):
        assert torch.equal(one, two)


def test_a_seeded_sample_of_the_tokens_in_their_order() -> None:
    captured = backward(make("silu"), make_batch(8, 12))
    whole = captured.of(0, ALL)
    few = captured.of(0, 7, seed=1)
    assert len(whole.x_nd) > 14 and len(few.x_nd) == len(few.u_ng) == 7
    rows = [int((whole.x_nd == row).all(1).nonzero()[0]) for row in few.x_nd]
    assert rows == sorted(rows), "the order of the batch"
    assert torch.equal(whole.u_ng[rows], few.u_ng)
    assert torch.equal(captured.of(0, 7, seed=1).x_nd, few.x_nd), "the same seed, the same tokens"
    others = [captured.of(0, 7, seed=seed).x_nd for seed in range(2, 6)]
    assert not all(torch.equal(few.x_nd, other) for other in others), "another seed, other tokens"


def test_where_experts_are_handed_something_else_than_was_routed_both_are_told() -> None:
    model = make(
        "linear", num_layers=2, moe_layers="all", router="ac_release_swin", router_config={}, leaky_control=True
    )
    layer = model.moe[1]
    batch = make_batch()
    with capture(layer) as captured:
        loss(model(batch), batch).backward()
    found = captured.of(0, ALL)
    assert found.h_nd is not None and not torch.equal(found.h_nd, found.x_nd)
    torch.testing.assert_close(summed_outer(found), layer.bank.weight.grad[0], rtol=1e-4, atol=1e-7)


def test_low_precision_gradients_are_near() -> None:
    model, batch = make("swiglu"), make_batch()
    (layer,) = model.moe.values()
    with capture(layer) as captured, torch.autocast("cpu", torch.bfloat16):
        loss(model(batch), batch).backward()
    error = summed_outer(captured.of(0, ALL)) - layer.bank.get_parameter("gate_up").grad[0]
    assert error.norm() < 0.05 * layer.bank.get_parameter("gate_up").grad[0].norm()


def test_without_a_backward_pass_there_are_none() -> None:
    model = make("linear")
    (layer,) = model.moe.values()
    with capture(layer) as captured:
        with pytest.raises(RuntimeError, match="no backward pass"):
            captured.of(0, ALL)
        with torch.no_grad():
            model(make_batch())
        with pytest.raises(RuntimeError, match="no backward pass"):
            captured.of(0, ALL)


def test_soft_routing_has_no_tokens() -> None:
    model = make("swiglu", router="soft", router_config={}, leaky_control=True)
    (layer,) = model.moe.values()
    with capture(layer), pytest.raises(InputError, match="mixtures of tokens"):
        model(make_batch())


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    whole = make_batch(6)
    half = slice(3 * rank, 3 * rank + 3)
    batch = Batch(whole.inputs[half], whole.valid[half], whole.target[half])
    captured = backward(make("swiglu"), batch)
    torch.save([captured.of(index, most, 4) for index in range(E) for most in (ALL, 6)], f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_tokens_of_one(tmp_path: Path) -> None:
    multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    torch.serialization.add_safe_globals([TokenGradients])
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    captured = backward(make("swiglu"), make_batch(6))
    alone = [captured.of(index, most, 4) for index in range(E) for most in (ALL, 6)]
    for one, two, expected in zip(first, second, alone, strict=True):
        assert torch.equal(one.x_nd, two.x_nd) and torch.equal(one.u_ng, two.u_ng)
        torch.testing.assert_close(one.x_nd, expected.x_nd)
        torch.testing.assert_close(one.u_ng, expected.u_ng)
