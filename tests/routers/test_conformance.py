"""Laws over every router: a new router is tested by being registered. What a router breaks by design is declared by it,
and checked to be broken."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moescope.model.experts import ExpertBank
from moescope.model.layers import MoELayer
from moescope.routers import ROUTERS
from moescope.routers.base import Law, Router, Routing
from router_cases import CASES, Case, context, gates, randn, sent, wanted

SEEDS = range(6)
D, E = 12, 6
every_router = pytest.mark.parametrize("case", CASES, ids=str)


def law(case: Case, name: Law, holds: list[bool]) -> None:
    """The law holds in every trial, or the router declares that it breaks it, and it does."""
    if name in case.build().breaks:
        assert not all(holds), f"{case} declares that it breaks {name}, but does not"
    else:
        assert all(holds), f"{case} breaks {name} without declaring it"


def layer(case: Case, *, num_experts: int = E, seed: int = 0) -> MoELayer:
    bank = ExpertBank(num_experts, D, 8)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        bank.gate_up.normal_(0, 0.3, generator=generator)
        bank.down.normal_(0, 0.3, generator=generator)
    return MoELayer(case.build(D, num_experts, seed=seed), bank, None, num_experts)


def check_contract(routing: Routing, alive_E: Tensor, sums_to_one: bool) -> None:
    num_tokens, num_experts = routing.logits_TE.shape
    for name in ("logits_TE", "probs_TE", "scores_TE", "gate_TK"):
        assert getattr(routing, name).dtype == torch.float32, name
    assert routing.expert_TK.dtype == torch.int64
    assert routing.wanted_TK.dtype == routing.sent_TK.dtype == routing.valid_T.dtype == torch.bool
    assert routing.expert_TK.shape == routing.gate_TK.shape == routing.wanted_TK.shape == routing.sent_TK.shape
    assert routing.logits_TE[:, alive_E].isfinite().all()
    assert (routing.logits_TE[:, ~alive_E] == -torch.inf).all()
    assert (routing.probs_TE[:, ~alive_E] == 0).all()
    torch.testing.assert_close(routing.probs_TE.sum(1), torch.ones(num_tokens))
    assert not routing.scores_TE.isnan().any()
    assert ((routing.expert_TK >= 0) & (routing.expert_TK < num_experts)).all()
    assert routing.gate_TK.isfinite().all() and (routing.gate_TK >= 0).all()
    assert (routing.gate_TK[~routing.sent_TK] == 0).all()
    assert (routing.wanted_TK | ~routing.sent_TK).all(), "sent implies wanted"
    assert not routing.wanted_TK[~routing.valid_T].any(), "padding wants nothing"
    assert alive_E[routing.expert_TK[routing.wanted_TK]].all(), "nobody wants a dead expert"
    assert (wanted(routing) <= 1).all(), "an expert is wanted once per token"
    sorted_gates = routing.gate_TK.where(routing.sent_TK, -1.0)
    both = routing.sent_TK[:, 1:] & routing.sent_TK[:, :-1]
    assert (sorted_gates[:, :-1] >= sorted_gates[:, 1:])[both].all(), "best first"
    if sums_to_one:
        torch.testing.assert_close(routing.gate_TK.sum(1)[routing.valid_T], torch.ones(int(routing.valid_T.sum())))


@every_router
@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    num_tokens=st.sampled_from([1, 7, 100, 513]),
    num_experts=st.sampled_from([1, 5, 16]),
    dead=st.booleans(),
    padded=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_routing_keeps_the_contract(
    case: Case, num_tokens: int, num_experts: int, dead: bool, padded: bool, training: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    alive_E = torch.ones(num_experts, dtype=torch.bool)
    valid_T = torch.ones(num_tokens, dtype=torch.bool)
    if dead and num_experts > 1:
        alive_E[torch.randperm(num_experts, generator=generator)[: num_experts // 2]] = False
    if padded:
        valid_T[torch.randint(0, num_tokens, (1,), generator=generator).item() :] = False
    router = case.fit(num_experts).build(D, num_experts, seed=seed)
    h_Td = torch.randn(num_tokens, D, generator=generator)
    routing = router(h_Td, context(1, num_tokens, num_experts, valid_T=valid_T, alive_E=alive_E, training=training))
    check_contract(routing, alive_E, "gates_sum_to_one" not in router.breaks)


@pytest.mark.parametrize("name", [name for name, kind in ROUTERS.items() if "k" in kind.Config.__dataclass_fields__])
@pytest.mark.parametrize("k", [1, 2, 5, 9, 16])
def test_fixed_k_sends_every_valid_token_to_k_experts(name: str, k: int) -> None:
    router = Case(name, {"k": k}).build(D, 16)
    assert router.k == k
    assert (sent(router(randn(40, D), context(1, 40, 16))).sum(1) == k).all()


@every_router
def test_gates_sum_to_one(case: Case) -> None:
    holds = []
    for seed in SEEDS:
        routing = case.build(seed=seed)(randn(30, D, seed=seed), context(1, 30, E))
        holds.append(bool(torch.allclose(routing.gate_TK.sum(1), torch.ones(30), atol=1e-6)))
    law(case, "gates_sum_to_one", holds)


@every_router
def test_permuting_tokens_permutes_the_routing(case: Case) -> None:
    holds = []
    for seed in SEEDS:
        router, h_Td = case.build(seed=seed), randn(32, D, seed=seed + 50)
        order_T = torch.randperm(32, generator=torch.Generator().manual_seed(seed))
        plain = gates(router(h_Td, context(2, 16, E)))
        shuffled = gates(router(h_Td[order_T], context(2, 16, E)))
        holds.append(bool(torch.allclose(plain[order_T], shuffled, atol=1e-6)))
    law(case, "token_permutation", holds)


@every_router
def test_relabelling_experts_relabels_the_routing(case: Case) -> None:
    holds = []
    for seed in SEEDS:
        router, other = case.build(seed=seed), case.build(seed=seed)
        order_E = torch.randperm(E, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            other.weight.copy_(router.weight[order_E])
        h_Td = randn(32, D, seed=seed + 50)
        plain, relabelled = router(h_Td, context(2, 16, E)), other(h_Td, context(2, 16, E))
        same = torch.allclose(gates(plain)[:, order_E], gates(relabelled), atol=1e-6)
        holds.append(same and torch.equal(sent(plain)[:, order_E], sent(relabelled)))
    law(case, "expert_relabelling", holds)


@every_router
def test_a_single_expert_is_the_expert(case: Case) -> None:
    holds = []
    for seed in SEEDS:
        moe, x_Td = layer(case.fit(1), num_experts=1, seed=seed), randn(24, D, seed=seed)
        y_Td, _ = moe(x_Td, context(2, 12, 1))
        gate, up = (x_Td @ moe.bank.gate_up[0].T).chunk(2, dim=1)
        expected = (torch.nn.functional.silu(gate) * up) @ moe.bank.down[0].T
        holds.append(bool(torch.allclose(y_Td, expected, atol=1e-5)))
    law(case, "single_expert_is_expert", holds)


@every_router
def test_identical_experts_make_the_output_independent_of_routing(case: Case) -> None:
    outputs = []
    for seed in (0, 1):
        moe = layer(case, seed=0)
        moe.router = case.build(seed=seed)
        with torch.no_grad():
            moe.bank.gate_up.copy_(moe.bank.gate_up[:1].expand_as(moe.bank.gate_up))
            moe.bank.down.copy_(moe.bank.down[:1].expand_as(moe.bank.down))
        outputs.append(moe(randn(30, D), context(1, 30, E))[0])
    same = torch.allclose(*outputs, atol=1e-5)
    assert same == ("gates_sum_to_one" not in case.build().breaks)


@every_router
def test_declared_causality_holds_in_the_whole_layer(case: Case) -> None:
    """Changing what comes later changes nothing earlier: not the output, not the decision."""
    holds = []
    for seed in range(12):
        moe, seq, cut = layer(case, seed=seed), 24, 5 + seed
        x_BSd = randn(2, seq, D, seed=seed)
        changed_BSd = x_BSd.clone()
        changed_BSd[:, cut:] = randn(2, seq - cut, D, seed=seed + 99) * 2
        ctx = context(2, seq, E, training=True)
        runs = [copy.deepcopy(moe)(x.flatten(0, 1), ctx) for x in (x_BSd, changed_BSd)]
        before, after = (y.view(2, seq, D)[:, :cut] for y, _ in runs)
        sent_before, sent_after = (sent(record.routing).view(2, seq, E)[:, :cut] for _, record in runs)
        holds.append(bool(torch.allclose(before, after, atol=1e-6) and torch.equal(sent_before, sent_after)))
    assert all(holds) == (moe.router.causal == "yes"), f"{case} declares causal = {moe.router.causal}"


@every_router
def test_a_causal_router_decides_a_prefix_as_it_decides_the_whole(case: Case) -> None:
    """Not even the number of later tokens enters, given the model's longest sequence."""
    holds = []
    for seed in SEEDS:
        router, h_Td = case.build(seed=seed), randn(40, D, seed=seed + 4)
        whole = router(h_Td, context(1, 40, E, max_seq=40))
        for length in (1, 2, 11, 39):
            prefix = router(h_Td[:length], context(1, length, E, max_seq=40))
            holds.append(bool(torch.allclose(gates(prefix), gates(whole)[:length], atol=1e-6)))
    assert all(holds) == (router.causal == "yes")


@every_router
def test_declared_learnability_holds(case: Case) -> None:
    moe, x_Td = layer(case), randn(48, D, seed=7)
    state = {name: value.clone() for name, value in moe.router.state_dict().items()}
    target_Td = randn(48, D, seed=8)
    optimizer = torch.optim.SGD(moe.parameters(), lr=0.1)
    y_Td, _ = moe(x_Td, context(2, 24, E, training=True))
    (y_Td - target_Td).square().mean().backward()
    optimizer.step()
    moved = (moe.router.weight - state["weight"]).abs().max().item()
    if moe.router.learns:
        assert moved > 1e-6
    else:
        assert moved < 1e-8


@every_router
def test_dead_slots_get_no_gradient_and_valid_gradients_are_finite(case: Case) -> None:
    moe = layer(case)
    moe.alive_E[[1, 4]] = False
    valid_T = torch.arange(24) < 20
    ctx = context(1, 24, E, valid_T=valid_T, alive_E=moe.alive_E, training=True)
    y_Td, record = moe(randn(24, D), ctx)
    (y_Td.square().sum() + record.routing.probs_TE.square().sum()).backward()
    for weight in (moe.router.weight, moe.bank.gate_up, moe.bank.down):
        if weight.grad is not None:
            assert weight.grad.isfinite().all()
            assert (weight.grad[[1, 4]] == 0).all()
    assert (y_Td[20:] == 0).all()


@every_router
def test_routing_is_float32_under_bfloat16_and_autocast(case: Case) -> None:
    router, h_Td = case.build(), randn(30, D).bfloat16()
    expected = router(h_Td.float(), context(1, 30, E))
    low = router(h_Td, context(1, 30, E))
    with torch.autocast("cpu", torch.bfloat16):
        cast = router(h_Td, context(1, 30, E))
        wide = router(h_Td.float(), context(1, 30, E))
    for name in (item.name for item in dataclasses.fields(Routing)):
        for routing in (low, cast, wide):
            assert torch.equal(getattr(routing, name), getattr(expected, name)), name


@every_router
def test_casting_the_model_leaves_the_router_in_float32(case: Case) -> None:
    moe = layer(case)
    before = {name: value.clone() for name, value in moe.router.state_dict().items()}
    moe.to(torch.bfloat16)
    assert moe.bank.down.dtype == torch.bfloat16
    for name, value in moe.router.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == before[name].dtype
    y_Td, _ = moe(randn(10, D).bfloat16(), context(1, 10, E))
    assert y_Td.dtype == torch.bfloat16


@every_router
def test_padding_changes_nothing_for_the_others(case: Case) -> None:
    """Neither what stands in padding nor how much of it there is."""
    router = case.build(seed=2)
    h_BSd = randn(3, 10, D, seed=5)
    plain = router(h_BSd.flatten(0, 1), context(3, 10, E, max_seq=32))
    for fill in (0.0, 1.0, 100.0):
        padded_BSd = torch.full((3, 17, D), fill)
        padded_BSd[:, :10] = h_BSd
        valid_BS = (torch.arange(17) < 10).expand(3, 17)
        routing = router(padded_BSd.flatten(0, 1), context(3, 17, E, valid_T=valid_BS.flatten(), max_seq=32))
        for read in (gates, sent, wanted):
            torch.testing.assert_close(read(routing).view(3, 17, E)[:, :10].flatten(0, 1), read(plain))


@every_router
@pytest.mark.parametrize("training", [False, True])
def test_same_seed_same_result_and_evaluation_is_deterministic(case: Case, training: bool) -> None:
    one, two, h_Td = case.build(seed=9), case.build(seed=9), randn(30, D)
    for _ in range(2):
        first, second = (router(h_Td, context(1, 30, E, training=training)) for router in (one, two))
        for item in dataclasses.fields(Routing):
            assert torch.equal(getattr(first, item.name), getattr(second, item.name))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    before = {name: value.clone() for name, value in one.state_dict().items()}
    again = [one(h_Td, context(1, 30, E)) for _ in range(2)]
    law(case, "deterministic_evaluation", [torch.equal(again[0].gate_TK, again[1].gate_TK)])
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items()), (
        "evaluation keeps the state"
    )


@every_router
def test_save_and_load_changes_nothing(case: Case) -> None:
    router, h_Td = case.build(seed=1), randn(30, D)
    for _ in range(3):
        router(h_Td, context(1, 30, E, training=True))
    other: Router = case.build(seed=2)
    other.load_state_dict(router.state_dict())
    for item in dataclasses.fields(Routing):
        one, two = (getattr(each(h_Td, context(1, 30, E)), item.name) for each in (router, other))
        assert torch.equal(one, two), item.name


@every_router
def test_ties_go_to_the_lower_expert_id(case: Case) -> None:
    """Equal logits everywhere: whatever each token got, it is the lowest ids, alike on every run."""
    router = case.build()
    with torch.no_grad():
        router.weight.zero_()
    routing = router(randn(12, D), context(1, 12, E, max_seq=96))
    if router.k is not None or case.name == "top_p":
        num = routing.wanted_TK.sum(1)
        assert (num == num[0]).all()
        assert torch.equal(wanted(routing), (torch.arange(E) < num[:, None]).float())
    else:
        assert torch.equal(wanted(routing)[:, 0], wanted(routing)[:, -1]), "experts with equal scores take equal tokens"
        taken = wanted(routing)[:, 0]
        assert torch.equal(taken, (torch.arange(12) < taken.sum()).float()), "earlier tokens first"


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_says_what_it_is(name: str) -> None:
    kind = ROUTERS[name]
    assert kind.causal in ("yes", "no") and isinstance(kind.learns, bool)
    for text in (kind.rule, kind.source, kind.k_meaning, kind.__doc__):
        assert text
    config = kind.Config()
    router = kind(config, 8, 8)
    assert (router.causal, router.breaks) == (kind.causal, kind.breaks), "class attributes hold for the defaults"
