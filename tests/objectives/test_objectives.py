"""Laws of the auxiliary losses, over the registry, and each one's own arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from moescope.objectives import OBJECTIVES
from moescope.objectives.base import LayerRecord
from moescope.routers.base import Routing
from router_cases import CASES, Case, context, randn

D, E = 12, 6
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_router = pytest.mark.parametrize("case", CASES, ids=str)


def build(name: str) -> Any:
    return OBJECTIVES[name](OBJECTIVES[name].Config())


def routing(
    logits_TE: Tensor, expert_TK: Tensor, *, wanted_TK: Tensor | None = None, valid_T: Tensor | None = None
) -> Routing:
    """Routing as of a softmax router that wanted `expert_TK`, everything sent."""
    if wanted_TK is None:
        wanted_TK = torch.ones_like(expert_TK, dtype=torch.bool)
    if valid_T is None:
        valid_T = torch.ones(len(logits_TE), dtype=torch.bool)
    wanted_TK = wanted_TK & valid_T[:, None]
    probs_TE = logits_TE.softmax(1)
    gate_TK = probs_TE.gather(1, expert_TK).where(wanted_TK, 0.0)
    return Routing(logits_TE, probs_TE, probs_TE, expert_TK, gate_TK, wanted_TK, wanted_TK, valid_T)


def record(made: Routing, alive_E: Tensor | None = None) -> LayerRecord:
    alive_E = torch.ones(made.num_experts, dtype=torch.bool) if alive_E is None else alive_E
    return LayerRecord(layer=0, routing=made, alive_E=alive_E, input_Td=torch.zeros(len(made.valid_T), D))


def routed(case: Case, h_Td: Tensor, *, valid_T: Tensor | None = None, alive_E: Tensor | None = None) -> LayerRecord:
    router = case.build(D, E)
    made = router(h_Td, context(1, len(h_Td), E, valid_T=valid_T, alive_E=alive_E, max_seq=40))
    return record(made, alive_E)


@every_objective
@every_router
def test_losses_are_finite_float32_scalars_and_padding_never_counts(name: str, case: Case) -> None:
    objective, h_Td = build(name), randn(40, D)
    plain = objective(routed(case, h_Td))
    assert plain.shape == () and plain.dtype == torch.float32 and plain.isfinite()
    for fill in (0.0, 50.0):
        padded_Td = torch.cat([h_Td, torch.full((9, D), fill)])
        same = objective(routed(case, padded_Td, valid_T=torch.arange(49) < 40))
        torch.testing.assert_close(same, plain)
    assert objective(routed(case, h_Td, valid_T=torch.zeros(40, dtype=torch.bool))) == 0


@every_objective
@every_router
def test_padding_and_dead_slots_get_no_gradient(name: str, case: Case) -> None:
    router, h_Td = case.build(D, E), randn(20, D).requires_grad_()
    alive_E, valid_T = torch.arange(E) != 2, torch.arange(20) < 15
    made = router(h_Td, context(1, 20, E, valid_T=valid_T, alive_E=alive_E))
    build(name)(record(made, alive_E)).backward()
    assert h_Td.grad is not None and h_Td.grad.isfinite().all()
    assert (h_Td.grad[15:] == 0).all() and (h_Td.grad[:15] != 0).any()
    if router.weight.requires_grad:
        assert router.weight.grad is not None and (router.weight.grad[2] == 0).all()


@every_objective
def test_permuting_tokens_slots_or_experts_changes_nothing(name: str) -> None:
    objective, logits_TE = build(name), randn(30, E)
    expert_TK = logits_TE.topk(3, dim=1).indices
    wanted_TK = randn(30, 3, seed=4) > -0.5
    valid_T = torch.arange(30) % 4 != 0
    plain = objective(record(routing(logits_TE, expert_TK, wanted_TK=wanted_TK, valid_T=valid_T)))
    generator = torch.Generator().manual_seed(0)
    tokens, experts = (torch.randperm(n, generator=generator) for n in (30, E))
    slots = torch.tensor([2, 0, 1])
    new_id = experts.argsort()
    for other in (
        routing(logits_TE[tokens], expert_TK[tokens], wanted_TK=wanted_TK[tokens], valid_T=valid_T[tokens]),
        routing(logits_TE, expert_TK[:, slots], wanted_TK=wanted_TK[:, slots], valid_T=valid_T),
        routing(logits_TE[:, experts], new_id[expert_TK], wanted_TK=wanted_TK, valid_T=valid_T),
    ):
        torch.testing.assert_close(objective(record(other)), plain)


@every_objective
def test_a_dead_slot_is_as_if_it_were_not_there(name: str) -> None:
    logits_TE, alive_E = randn(30, 4), torch.tensor([True, False, True, True, False, True])
    wide_TE = torch.full((30, 6), -torch.inf)
    wide_TE[:, alive_E] = logits_TE
    expert_TK = logits_TE.topk(2, dim=1).indices
    slot_of = alive_E.nonzero()[:, 0]
    few, many = record(routing(logits_TE, expert_TK)), record(routing(wide_TE, slot_of[expert_TK]), alive_E)
    torch.testing.assert_close(build(name)(few), build(name)(many))


@every_objective
def test_gradients_equal_finite_differences(name: str) -> None:
    """With the choice held fixed, as the objectives hold it."""
    objective, logits_TE = build(name), randn(7, 5).double().requires_grad_()
    expert_TK = logits_TE.detach().topk(2, dim=1).indices
    valid_T = torch.arange(7) != 3

    def of(z_TE: Tensor) -> Tensor:
        made = routing(z_TE, expert_TK, valid_T=valid_T)
        assert made.probs_TE.dtype == torch.float64
        return objective(record(made))

    assert torch.autograd.gradcheck(of, (logits_TE,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_load_balance_is_1_at_balance_for_any_k(k: int) -> None:
    expert_TK = (torch.arange(60)[:, None] + torch.arange(k)) % E
    balanced = record(routing(torch.zeros(60, E), expert_TK))
    assert build("load_balance")(balanced).item() == pytest.approx(1.0, abs=1e-6)
    lopsided = record(routing(randn(60, E) + torch.arange(E), expert_TK))
    assert build("load_balance")(lopsided).item() == pytest.approx(1.0, abs=1e-6), "balance of what is chosen is enough"


def test_load_balance_is_the_number_of_alive_experts_at_collapse() -> None:
    logits_TE = torch.full((50, E), -1e4)
    logits_TE[:, 3] = 0.0
    collapsed = routing(logits_TE, torch.full((50, 1), 3))
    assert build("load_balance")(record(collapsed)).item() == pytest.approx(E)
    alive_E = torch.arange(E) != 5
    dead = dataclasses.replace(collapsed, logits_TE=logits_TE.masked_fill(~alive_E, -torch.inf))
    assert build("load_balance")(record(dead, alive_E)).item() == pytest.approx(E - 1)


@every_router
def test_load_balance_equals_the_sum_by_hand(case: Case) -> None:
    valid_T, alive_E = torch.arange(30) % 7 != 6, torch.arange(E) != 1
    made = routed(case, randn(30, D), valid_T=valid_T, alive_E=alive_E)
    r = made.routing
    f, P, total = [0.0] * E, [0.0] * E, 0
    for t in range(30):
        for slot in range(r.expert_TK.shape[1]):
            if r.wanted_TK[t, slot]:
                f[int(r.expert_TK[t, slot])] += 1
                total += 1
        if valid_T[t]:
            P = [a + b for a, b in zip(P, r.probs_TE[t].tolist(), strict=True)]
    num_valid = int(valid_T.sum())
    expected = 5 * sum(a / total * b / num_valid for a, b in zip(f, P, strict=True))
    assert build("load_balance")(made).item() == pytest.approx(expected, rel=1e-5)


def test_load_balance_equals_transformers_for_switch() -> None:
    """Switch's own loss, k = 1, no padding; transformers' Mixtral form counts k-fold, ours is 1 at balance."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        load_balancing_loss_func as switch_loss,
    )

    made = routed(Case("switch", {"capacity_factor": None}), randn(40, D))
    expected = switch_loss(made.routing.probs_TE[None], made.routing.expert_TK.flatten()[None])
    torch.testing.assert_close(build("load_balance")(made), expected.float())
    two = routed(Case("topk_softmax", {"k": 2}), randn(40, D))
    mixtral = load_balancing_loss_func((two.routing.logits_TE,), num_experts=E, top_k=2)
    torch.testing.assert_close(2 * build("load_balance")(two), mixtral)


def test_router_z_equals_transformers() -> None:
    from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

    made = routed(Case("topk_softmax"), randn(40, D))
    torch.testing.assert_close(build("router_z")(made), router_z_loss_func(made.routing.logits_TE[None]))


def test_minimising_each_objective_moves_its_own_measure() -> None:
    """load_balance evens out the load; router_z shrinks the logits."""
    h_Td = randn(400, D) + 1.0
    for name in OBJECTIVES:
        router = Case("topk_softmax", {"k": 1}).build(D, E, scale=20)
        optimizer = torch.optim.Adam(router.parameters(), lr=0.02)
        values = []
        for _ in range(60):
            made = record(router(h_Td, context(1, 400, E)))
            load_E = torch.bincount(made.routing.expert_TK[:, 0], minlength=E).float() / 400
            lse_T = made.routing.logits_TE.logsumexp(1)
            values.append(load_E.max().item() * E if name == "load_balance" else lse_T.square().mean().item())
            optimizer.zero_grad()
            build(name)(made).backward()
            optimizer.step()
        assert values[-1] < 0.7 * values[0], (name, values[0], values[-1])


@every_objective
def test_every_objective_says_what_it_is(name: str) -> None:
    kind = OBJECTIVES[name]
    assert kind.rule and kind.source and kind.__doc__
