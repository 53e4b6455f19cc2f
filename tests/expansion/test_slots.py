"""What happens to one slot: copied with its gradients, preserved where all are selected, dead as if it were not there,
put back bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from expansion_runs import Run
from moescope.expansion.base import Split
from moescope.expansion.clone import Clone, CloneConfig, along
from moescope.expansion.clone_direction import CloneDirection, CloneDirectionConfig
from moescope.expansion.slots import LOG_2
from moescope.routers import ROUTERS

GROWING = sorted(name for name, kind in ROUTERS.items() if kind.grows and kind.causal == "yes")
OFTEN: dict[str, Any] = {"detector": "random", "detector_config": {"rate": 1.0}}
DENSE: dict[str, dict[str, Any]] = {
    "topk_softmax": {"k": 5},
    "topk_presoftmax": {"k": 5},
    "noisy_topk": {"k": 5},
    "frozen": {"k": 5},
    "competition": {"k": 5, "rate": 0.0},
    "c2r": {"k": 5},
    "ac_ema": {"k": 5},
    "xmoe": {"k": 5},
    "mass": {"p": 1.0},
    "top_p": {"p": 1.0},
}


def by_hand(**more: Any) -> dict[str, Any]:
    return {"detector": "never", "phase_steps": 0, **more}


@pytest.mark.parametrize("name", DENSE)
def test_where_every_expert_is_selected_cloning_leaves_the_output_unchanged(name: str) -> None:
    options = {"router": name, "router_config": DENSE[name], "num_experts": 3, "max_experts": 5}
    run = Run(by_hand(), **options).go(2)
    before = run.evaluate()
    for layer in (0, 1):
        ((_, payload),) = run.growth.split(layer, 1, 2)
        assert payload["preserved"] and payload["output_change"] < 1e-5 and payload["selection_change"] == 0.0
        assert run.model.moe[layer].shift_E.tolist() == pytest.approx([0, -LOG_2, 0, -LOG_2, 0])
    assert run.evaluate() == pytest.approx(before, rel=1e-5)
    off = Run(by_hand(preserve="off"), **options).go(2)
    ((_, payload),) = off.growth.split(0, 1, 2)
    assert not payload["preserved"] and payload["output_change"] > 1e-3, "without the shift it does change"


@pytest.mark.parametrize("name", GROWING)
def test_elsewhere_the_change_is_measured(name: str) -> None:
    run = Run(by_hand(), router=name, num_experts=3).go(2)
    slots = run.growth.layers[1].slots
    run.growth.held.loss()
    x_Td, context, previous = run.growth.held._first[1]
    with torch.no_grad():
        y_Td, record = slots.layer(x_Td, context, previous)
    ((_, payload),) = run.growth.split(1, 0, 2)
    with torch.no_grad():
        again_Td, after = slots.layer(x_Td, replace(context, alive_E=slots.layer.alive_E), previous)
    valid_T = context.valid_T
    change = float((again_Td - y_Td)[valid_T].square().mean().sqrt() / y_Td[valid_T].square().mean().sqrt())
    assert payload["output_change"] == pytest.approx(change, rel=1e-4, abs=1e-7)
    differ = 0
    for t in valid_T.nonzero()[:, 0].tolist():
        sets = [
            {
                0 if e == payload["child"] else e
                for e, w in zip(r.routing.expert_TK[t].tolist(), r.routing.wanted_TK[t].tolist(), strict=True)
                if w
            }
            for r in (record, after)
        ]
        differ += sets[0] != sets[1]
    assert payload["selection_change"] == pytest.approx(differ / int(valid_T.sum()))


def test_auto_preserves_where_k_varies_or_the_copy_too_is_selected_and_not_under_fixed_k() -> None:
    for router, options, wanted in (
        ("mass", {}, True),
        ("topk_softmax", {"k": 4}, True),
        ("topk_softmax", {"k": 3}, False),
        ("sigmoid_bias", {}, False),
        ("dynmoe", {}, False),
    ):
        run = Run(by_hand(), router=router, router_config=options, num_experts=3)
        assert run.growth.split(0, 0, 0)[0][1]["preserved"] == wanted, (router, options)
    forced = Run(by_hand(preserve="on"), router="topk_softmax", num_experts=3)
    assert forced.growth.split(0, 0, 0)[0][1]["preserved"]
    cannot = Run(by_hand(preserve="on"), router="relu", num_experts=3)
    assert not cannot.growth.split(0, 0, 0)[0][1]["preserved"]


# gradients on the step of the growth


def test_the_parents_gradient_is_parallel_to_its_weights_and_the_clones_is_the_original() -> None:
    for how, parts in (("per_row", False), ("whole", True)):
        run = Run({**OFTEN, "initialiser_config": {"gradient": how}}, router="topk_softmax")
        records, main = run.backward()
        moe = run.model.moe[0]
        first, rows = moe.bank.get_parameter(moe.bank.first), moe.router.weight
        grads = {name: w.grad.clone() for name, w in moe.named_parameters() if w.grad is not None}
        told = run.growth.after_backward(0, records, main)
        (payload,) = [p for kind, p in told if kind == "expansion" and p["layer"] == 0]
        parent, child = payload["parent"], payload["child"]
        for name, weight in moe.named_parameters():
            assert weight.grad is not None
            assert torch.equal(weight.grad[child], grads[name][parent]), f"{name}: the copy has the original"
            if weight is first or weight is rows:
                kept, original = weight.grad[parent], grads[name][parent]
                vectors = [(kept.flatten(), weight[parent].flatten(), original.flatten())]
                if weight is first and not parts:
                    vectors = list(zip(kept, weight[parent], original, strict=True))
                for g, w, o in vectors:
                    g, w, o = (value.detach().double() for value in (g, w, o))
                    torch.testing.assert_close(g, (o @ w) / (w @ w) * w, rtol=1e-4, atol=1e-9)
                assert not torch.allclose(kept, original)
            else:
                assert torch.equal(weight.grad[parent], grads[name][parent]), f"{name} stays"


def test_along_is_the_projection_and_zero_where_there_is_no_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    grad, weight = torch.randn(2, 3, 4, generator=generator)
    weight[1] = 0
    by_row, whole = along(grad, weight, False), along(grad, weight, True)
    for row in (0, 2):
        expected = (grad[row] @ weight[row]) / (weight[row] @ weight[row]) * weight[row]
        torch.testing.assert_close(by_row[row], expected)
    assert (by_row[1] == 0).all()
    share = (grad * weight).sum() / weight.square().sum()
    torch.testing.assert_close(whole, share * weight)
    torch.testing.assert_close(along(along(grad, weight, False), weight, False), by_row)


def split(rows_Er: Tensor, seed: int = 0, direction_r: Tensor | None = None) -> Split:
    generator = torch.Generator().manual_seed(seed)
    return Split(
        parent=0, child=2, rows_Er=rows_Er, direction_r=direction_r, first_Egd=torch.zeros(4, 2, 3), generator=generator
    )


def test_a_direction_parts_the_rows_around_the_parents() -> None:
    row_r, direction_r = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 0.0, 7.0])
    rows_Er = row_r.repeat(4, 1)
    initialiser = CloneDirection(CloneDirectionConfig(push=0.2))
    initialiser.part(split(rows_Er, direction_r=direction_r))
    torch.testing.assert_close(rows_Er[2], torch.tensor([3.0, 4.0, 1.0]))
    torch.testing.assert_close(rows_Er[0], torch.tensor([3.0, 4.0, -1.0]))
    assert torch.equal(rows_Er[1], row_r) and torch.equal(rows_Er[3], row_r)
    drawn = [row_r.repeat(4, 1) for _ in range(3)]
    for rows, seed in zip(drawn, (0, 0, 1), strict=True):
        initialiser.part(split(rows, seed))
        torch.testing.assert_close(rows[0] + rows[2], 2 * row_r)
        assert float((rows[2] - row_r).norm()) == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_clone_is_exact() -> None:
    rows_Er = torch.randn(4, 3)
    before = rows_Er.clone()
    Clone(CloneConfig()).part(split(rows_Er))
    assert torch.equal(rows_Er, before)


# dead slots


@pytest.mark.parametrize("name", GROWING)
def test_dead_slots_get_neither_gradient_nor_decay_nor_momentum(name: str) -> None:
    """Slots 3 and 4 are dead from the start, 1 dies on the way: from then on it stays where it is."""
    run = Run(by_hand(), router=name, num_experts=3, steps=12).go(4)
    run.growth.retire(0, 1, 4)
    run.growth.retire(1, 1, 4)
    held = {}
    for index, layer in run.growth.layers.items():
        for rows_name, rows in layer.slots.rows.items():
            if isinstance(rows, torch.nn.Parameter):
                held[index, rows_name] = rows.detach().clone()
    moved = False
    for _ in range(4):
        records, main = run.backward()
        for (index, rows_name), _ in held.items():
            grad = run.growth.layers[index].slots.rows[rows_name].grad
            assert grad is None or (grad[[1, 3, 4]] == 0).all(), (index, rows_name)
        run.growth.after_backward(run.done, records, main)
        run.optimizer.step(0.01)
        run.done += 1
    for (index, rows_name), before in held.items():
        rows = run.growth.layers[index].slots.rows[rows_name]
        assert torch.equal(rows[[1, 3, 4]], before[[1, 3, 4]]), (index, rows_name)
        moved |= not torch.equal(rows[[0, 2]], before[[0, 2]])
    assert moved
    for state in run.optimizer.adamw.state.values():
        for kind in ("exp_avg", "exp_avg_sq"):
            if state[kind].ndim and len(state[kind]) == 5:
                assert (state[kind][[1, 3, 4]] == 0).all()


def test_a_slot_that_dies_within_a_step_does_not_move_in_it() -> None:
    run = Run(by_hand(), num_experts=3).go(3)
    records, main = run.backward()
    run.growth.retire(0, 1, 3)
    before = {name: rows[1].detach().clone() for name, rows in run.growth.layers[0].slots.rows.items()}
    run.optimizer.step(0.01)
    after = run.growth.layers[0].slots.rows
    assert all(torch.equal(after[name][1], value) for name, value in before.items())
    assert records and main > 0


@pytest.mark.parametrize("moments", ["zero", "copy"])
def test_moments_of_a_new_slot_are_zero_or_its_parents(moments: str) -> None:
    run = Run(by_hand(moments=moments)).go(3)
    before = {name: value.clone() for name, value in run.optimizer.state().items()}
    ((_, payload),) = run.growth.split(0, 1, 3)
    per_slot = [name for name in before if ".0.moe." in name and name.startswith("exp_avg")]
    assert len(per_slot) == 6
    for name, value in run.optimizer.state().items():
        if name in per_slot:
            wanted = before[name][1] if moments == "copy" else torch.zeros_like(before[name][1])
            assert torch.equal(value[payload["child"]], wanted)
            assert torch.equal(value[:2], before[name][:2]), "the parent keeps its own"
        else:
            assert torch.equal(value, before[name])


def test_a_reused_slot_has_nothing_of_the_one_before() -> None:
    """Born, trained, dead, born again from another: as if it had been free all along."""
    one, two = Run(by_hand(), num_experts=3).go(2), Run(by_hand(), num_experts=3).go(2)
    one.growth.split(0, 0, 2)
    one.growth.retire(0, 3, 2)
    shift_E = one.model.moe[0].shift_E
    assert shift_E.tolist() == pytest.approx([-LOG_2, 0, 0, 0, 0]), "what was measured is what is done"
    shift_E[0] = 0.0
    for run in (one, two):
        run.growth.split(0, 2, 2)
    for name, value in one.growth.layers[0].slots.keep(3).items():
        assert torch.equal(value, two.growth.layers[0].slots.keep(3)[name]), name


def test_what_was_kept_of_a_slot_is_put_back_bit_for_bit() -> None:
    for router in ("mass", "sigmoid_bias", "noisy_topk", "dynmoe"):
        run = Run(by_hand(), router=router, num_experts=3).go(3)
        slots = run.growth.layers[1].slots
        kept = slots.keep(1)
        assert {name.partition(".")[0] for name in kept} == {"rows", "shift", "moments"}
        run.growth.split(1, 1, 3)
        run.go(2)
        assert not all(torch.equal(a, kept[name]) for name, a in slots.keep(1).items())
        slots.put_back(1, kept)
        assert all(torch.equal(a, kept[name]) for name, a in slots.keep(1).items())


def test_statistics_of_the_next_layer_follow() -> None:
    run = Run(by_hand(), router="ac_ema", router_config={"warm": 1, "min_count": 1}, num_experts=3).go(3)
    later = run.model.moe[1].router
    assert later.evidence[1] > 0
    run.growth.split(0, 1, 3)
    assert torch.equal(later.dispersion[3], later.dispersion[1]) and later.evidence[3] == later.evidence[1]
    run.growth.retire(0, 3, 3)
    assert later.evidence[3] == 0
