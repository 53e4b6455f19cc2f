from __future__ import annotations

from typing import Any

import torch
from torch import nn

from moescope.model import ModelConfig, Transformer
from moescope.train.config import OptimConfig
from moescope.train.optimizer import Optimizer, decays


def model(**changes: Any) -> Transformer:
    values = {"vocab_size": 20, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_expert": 8, "num_experts": 4}
    return Transformer(ModelConfig(**{**values, "num_shared_experts": 1, "moe_layers": (1,), **changes}), seed=0)


def gradients(made: Transformer, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for layer in made.parameters():
        layer.grad = torch.randn(layer.shape, generator=draw)
    for moe in made.moe.values():
        for weight in (moe.bank.gate_up, moe.bank.down, moe.router.weight):
            assert isinstance(weight, nn.Parameter) and weight.grad is not None
            weight.grad[~moe.alive_E] = 0.0


def test_matrices_decay_and_norms_and_embeddings_do_not() -> None:
    wanted = decays(model())
    assert {name for name, decay in wanted.items() if not decay} == {
        "embed.weight",
        "norm.weight",
        *(f"blocks.{layer}.{norm}.weight" for layer in (0, 1) for norm in ("norm", "attention_norm")),
    }
    for name in ("blocks.1.moe.bank.gate_up", "blocks.1.moe.router.weight", "blocks.0.mlp.down.weight"):
        assert wanted[name]


def test_a_bias_does_not_decay_and_an_input_projection_does() -> None:
    made = model(input="vectors", head="class", d_input=3, num_classes=2, vocab_size=0)
    assert decays(made)["embed.weight"] and not decays(made)["embed.bias"]


def test_a_frozen_router_is_not_optimised() -> None:
    made = model(router="frozen")
    before = made.moe[1].router.weight.clone()
    optimizer = Optimizer(made, OptimConfig(lr=0.1, weight_decay=0.5))
    made.moe[1].router.weight.grad = None
    for name, weight in optimizer.parameters.items():
        assert ".router." not in name
        weight.grad = torch.ones_like(weight)
    optimizer.step(0.1)
    assert torch.equal(before, made.moe[1].router.weight)


def test_steps_are_adamw_with_the_decay_written_out() -> None:
    """Algorithm 2 of 1711.05101 by hand, in float64."""
    made, config = model(), OptimConfig(lr=0.02, weight_decay=0.3, beta1=0.8, beta2=0.9, eps=1e-6)
    optimizer, wanted = Optimizer(made, config), decays(made)
    reference = {name: weight.detach().double() for name, weight in made.named_parameters()}
    moments = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in reference.items()}
    for step in range(1, 4):
        gradients(made, step)
        rate = 0.02 / step
        for name, weight in made.named_parameters():
            assert weight.grad is not None
            gradient, (m, v) = weight.grad.double(), moments[name]
            m.mul_(0.8).add_(0.2 * gradient)
            v.mul_(0.9).add_(0.1 * gradient**2)
            update = (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-6)
            decay = 1 - rate * 0.3 if wanted[name] else 1.0
            reference[name] = reference[name] * decay - rate * update
        optimizer.step(rate)
        assert all(weight.grad is None for weight in made.parameters())
    for name, weight in made.named_parameters():
        torch.testing.assert_close(weight.detach().double(), reference[name], rtol=1e-4, atol=1e-6)


def test_dead_slots_stay_as_they_are_and_alive_ones_decay_as_if_there_were_none() -> None:
    partly, whole = model(num_experts=3, max_experts=5), model(num_experts=5)
    whole.load_state_dict({k: v for k, v in partly.state_dict().items() if "alive_E" not in k}, strict=False)
    before = {name: weight.detach().clone() for name, weight in partly.named_parameters()}
    config = OptimConfig(lr=0.1, weight_decay=0.5)
    for made in (partly, whole):
        optimizer = Optimizer(made, config)
        for step in range(3):
            gradients(made, step)
            optimizer.step(0.1)
    for name in ("bank.gate_up", "bank.down", "router.weight"):
        full = f"blocks.1.moe.{name}"
        now, other = partly.get_parameter(full), whole.get_parameter(full)
        assert torch.equal(now[3:], before[full][3:])
        torch.testing.assert_close(now[:3], other[:3])
        assert not torch.equal(now[:3], before[full][:3])


def test_restoring_the_state_makes_the_next_step_the_same_bit_for_bit() -> None:
    one, other = model(), model()
    config = OptimConfig(lr=0.01)
    first = Optimizer(one, config)
    for step in range(3):
        gradients(one, step)
        first.step(0.01)
    other.load_state_dict(one.state_dict())
    second = Optimizer(other, config)
    second.restore(first.state())
    for made, optimizer in ((one, first), (other, second)):
        gradients(made, 9)
        optimizer.step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_who_decays_by_whom_follows_the_masks_as_they_are_now() -> None:
    """Slots come and go between steps: as an optimizer made anew for the masks of every step, bit for bit."""
    one, other = model(num_experts=3, max_experts=5), model(num_experts=3, max_experts=5)
    config = OptimConfig(lr=0.1, weight_decay=0.5)
    going = Optimizer(one, config)
    state: dict[str, torch.Tensor] = {}
    for step, alive in enumerate(([0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 1, 2, 3, 4])):
        for made in (one, other):
            made.moe[1].alive_E = torch.tensor([e in alive for e in range(5)])
            gradients(made, step)
        going.masks_changed()
        fresh = Optimizer(other, config)
        fresh.restore(state)
        going.step(0.1)
        fresh.step(0.1)
        state = fresh.state()
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert all(torch.equal(value, state[name]) for name, value in going.state().items())


def test_a_dying_slot_leaves_no_momentum_and_a_copied_one_has_none_or_its_parents() -> None:
    made = model(num_experts=5)
    optimizer = Optimizer(made, OptimConfig(lr=0.1))
    optimizer.copy_slot(1, 0, 4, "copy")
    assert optimizer.state() == {} and optimizer.read_slot(1, 0) == {}, "before the first step there is none"
    gradients(made, 0)
    optimizer.step(0.1)
    slots = ("bank.gate_up", "bank.down", "router.weight")

    def moment(name: str) -> torch.Tensor:
        return optimizer.state()[f"exp_avg.blocks.1.moe.{name}"]

    before = {name: moment(name) for name in slots}
    kept = optimizer.read_slot(1, 2)
    optimizer.clear_slot(1, 2)
    optimizer.copy_slot(1, 0, 3, "zero")
    optimizer.copy_slot(1, 1, 4, "copy")
    for name in slots:
        now = moment(name)
        assert not now[2].any() and not now[3].any()
        assert torch.equal(now[4], before[name][1]) and torch.equal(now[:2], before[name][:2])
    optimizer.write_slot(1, 2, kept)
    assert all(torch.equal(moment(name)[2], before[name][2]) for name in slots)
    optimizer.write_slot(1, 2, {})
    assert not any(moment(name)[2].any() for name in slots)
