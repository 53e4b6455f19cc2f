"""Growth, seen from the router: what a copied slot is, what a removed one leaves, and who may grow at all."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from laws import D, E, layer, warmed
from torch import Tensor

from moescope.errors import InputError
from moescope.expansion.slots import LOG_2
from moescope.routers import ROUTERS
from moescope.routers.ac_ema import AcEma
from moescope.routers.base import Router, RouterContext, Routing
from router_cases import CASES, Case, context, randn, scene, wanted

GROWING = [case for case in CASES if case.build().grows]
REFUSED = {"expert_choice", "hash", "random", "global", "label", "soft", "ac_release_soft", "sinkhorn", "base"}
growing = pytest.mark.parametrize("case", GROWING, ids=str)

PARENT, CHILD = 1, 4
BEFORE_E = torch.arange(E) != CHILD


def trained(case: Case) -> Router:
    """A router after some training batches in which one slot was dead."""
    router = warmed(layer(case)).router
    with torch.no_grad():
        for name in router.per_expert:
            dict([*router.named_parameters(), *router.named_buffers()])[name][CHILD] = 7.0
    return router


def ctx(alive_E: Tensor, **known: Any) -> RouterContext:
    return context(2, 30, E, alive_E=alive_E, max_seq=40, step=5, num_steps=100, **known)


def decision(router: Router, h_Td: Tensor, known: RouterContext) -> Routing:
    """As `route`, but the layer before does not change: growth is this layer's."""
    made = scene(router, h_Td, known)
    if "previous" in router.needs:
        before = Case("topk_softmax").build(D, E, seed=321)
        made = replace(made, previous=before(h_Td, replace(known, alive_E=BEFORE_E, shift_E=None)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decided: Routing = router(h_Td, made)
    return decided


def test_routers_that_grow_are_those_that_choose_per_token_by_a_row_per_expert() -> None:
    assert {name for name, kind in ROUTERS.items() if not kind.grows} == REFUSED
    for case in GROWING:
        assert case.build().rows_Ed is not None and case.build().per_expert


@growing
def test_a_copied_slot_has_the_logits_of_its_original(case: Case) -> None:
    router, h_Td = trained(case), randn(60, D, seed=3)
    router.copy_slot(PARENT, CHILD)
    for training in (False, True):
        routing = decision(copy.deepcopy(router), h_Td, ctx(torch.ones(E, dtype=torch.bool), training=training))
        torch.testing.assert_close(routing.logits_TE[:, CHILD], routing.logits_TE[:, PARENT], rtol=1e-5, atol=1e-5)
    for name, rows in {**dict(router.named_parameters()), **dict(router.named_buffers())}.items():
        if name in router.per_expert:
            assert torch.equal(rows[CHILD], rows[PARENT]), name


@growing
def test_dead_slots_are_never_chosen_and_living_ones_may_be(case: Case) -> None:
    router, h_Td = trained(case), randn(60, D, seed=4)
    router.copy_slot(PARENT, CHILD)
    for training in (False, True):
        dead = wanted(decision(copy.deepcopy(router), h_Td, ctx(BEFORE_E, training=training)))
        assert (dead[:, CHILD] == 0).all()
    router.forget_slot(PARENT)
    alone = wanted(decision(router, h_Td, ctx(torch.arange(E) != PARENT)))
    assert (alone[:, PARENT] == 0).all()
    if "sequence" not in case.name:
        assert (alone[:, CHILD] > 0).any(), "the copy answers where its original did"


@growing
def test_a_removed_slot_leaves_the_router_as_if_it_had_never_been_copied(case: Case) -> None:
    router, h_Td = trained(case), randn(60, D, seed=5)
    before = decision(copy.deepcopy(router), h_Td, ctx(BEFORE_E))
    router.copy_slot(PARENT, CHILD)
    router.forget_slot(CHILD)
    after = decision(copy.deepcopy(router), h_Td, ctx(BEFORE_E))
    assert torch.equal(before.logits_TE, after.logits_TE)
    assert torch.equal(wanted(before), wanted(after))
    assert torch.equal(before.gate_TK, after.gate_TK)


@growing
def test_the_shift_is_added_to_the_logits_where_it_is_taken(case: Case) -> None:
    router, h_Td, shift_E = trained(case), randn(60, D, seed=6), torch.linspace(-1, 1, E)
    plain = decision(copy.deepcopy(router), h_Td, ctx(BEFORE_E))
    moved = decision(copy.deepcopy(router), h_Td, ctx(BEFORE_E, shift_E=shift_E))
    if router.shifts:
        torch.testing.assert_close(moved.logits_TE, plain.logits_TE + shift_E)
    else:
        assert torch.equal(moved.logits_TE, plain.logits_TE)


@growing
def test_log_two_less_on_both_leaves_the_pair_the_probability_of_the_original(case: Case) -> None:
    router, h_Td = trained(case), randn(60, D, seed=7)
    if not router.shifts:
        pytest.skip("no softmax, no shift")
    before = decision(copy.deepcopy(router), h_Td, ctx(BEFORE_E)).probs_TE
    router.copy_slot(PARENT, CHILD)
    shift_E = torch.zeros(E)
    shift_E[[PARENT, CHILD]] = -LOG_2
    after = decision(router, h_Td, ctx(torch.ones(E, dtype=torch.bool), shift_E=shift_E)).probs_TE
    torch.testing.assert_close(after[:, PARENT] + after[:, CHILD], before[:, PARENT])
    others = [e for e in range(E) if e not in (PARENT, CHILD)]
    torch.testing.assert_close(after[:, others], before[:, others])


def test_a_copy_works_with_whom_its_original_works_with() -> None:
    """c2r: both tables, rows and columns, and back again."""
    router = trained(Case("c2r", {"k": 3, "warmup_steps": 4}))
    assert bool(router.frozen)
    before = router.partner_EE.clone()
    router.copy_slot(PARENT, CHILD)
    for table_EE in (router.partner_EE, router.count_EE):
        assert torch.equal(table_EE[CHILD], table_EE[PARENT]) and torch.equal(table_EE[:, CHILD], table_EE[:, PARENT])
    assert bool(router.partner_EE[CHILD, PARENT] & router.partner_EE[PARENT, CHILD])
    kept = [e for e in range(E) if e != CHILD]
    assert torch.equal(router.partner_EE[kept][:, kept], before[kept][:, kept])
    router.forget_slot(CHILD)
    assert router.partner_EE[CHILD].all() and not router.count_EE[CHILD].any() and not router.count_EE[:, CHILD].any()


def test_statistics_of_the_layer_before_follow_its_experts() -> None:
    router = trained(Case("ac_ema"))
    assert isinstance(router, AcEma) and router.evidence[PARENT] > 0
    router.copy_cluster(PARENT, CHILD)
    assert torch.equal(router.dispersion[CHILD], router.dispersion[PARENT])
    assert router.evidence[CHILD] == router.evidence[PARENT]
    others = router.dispersion[PARENT].clone()
    router.forget_cluster(CHILD)
    assert router.evidence[CHILD] == 0 and not router.dispersion[CHILD].any()
    assert torch.equal(router.dispersion[PARENT], others)


def test_a_removed_expert_of_dynmoe_has_the_threshold_of_the_start() -> None:
    router = trained(Case("dynmoe", {"threshold": 0.2}))
    router.forget_slot(CHILD)
    assert router.threshold[CHILD].item() == pytest.approx(0.2)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_runs_refuse_growth_of_other_routers_in_one_sentence(name: str) -> None:
    from moescope.train.config import parse_run_config

    model = {"router": name, "num_experts": 4, "max_experts": 8, "d_model": 16, "num_heads": 2, "leaky_control": True}
    config = {"model": {**model, "num_layers": 1, "max_seq": 16}, "optim": {"seq": 16}}
    parse_run_config(config)
    with pytest.raises(InputError, match=f"router '{name}' does not choose experts"):
        parse_run_config({**config, "expansion": {}})
