"""Growth of one MoE layer: its detector, its acceptor, its slots, and every change to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moescope.config import parse
from moescope.expansion import ACCEPTORS, DETECTORS, INITIALISERS
from moescope.expansion.base import Finding, Measure, Split, Verdict, View
from moescope.expansion.config import ExpansionConfig
from moescope.expansion.heldout import HeldOut
from moescope.expansion.slots import LayerSlots

Told = list[tuple[str, dict[str, Any]]]
"""Kinds of events, and their payloads."""

_LOOKS, _PARTS = 5, 6
"""Branches of a run's seed: what detectors draw, and what initialisers do."""


@dataclass(frozen=True, kw_only=True)
class Birth:
    """Why and how a slot comes alive."""

    parent: int
    why: str
    detector: str | None
    signals: Mapping[str, float | None]
    direction_d: Tensor | None = None
    row_d: Tensor | None = None


class LayerGrowth:
    """pairs: (parent, child) of every duplication whose two slots are still those. given_up: out of patience."""

    def __init__(self, config: ExpansionConfig, slots: LayerSlots, held: HeldOut, seed: int) -> None:
        self.config, self.slots, self.held, self.seed = config, slots, held, seed
        num_slots, index = slots.layer.router.num_experts, slots.index
        detector = DETECTORS[config.detector]
        initialiser, acceptor = INITIALISERS[config.initialiser], ACCEPTORS[config.acceptor]
        looks = int(np.random.SeedSequence([seed, _LOOKS, index]).generate_state(1)[0])
        self.detector = detector(parse(detector.Config, config.detector_config), num_slots, looks)
        self.initialiser = initialiser(parse(initialiser.Config, config.initialiser_config))
        self.acceptor = acceptor(parse(acceptor.Config, config.acceptor_config), num_slots, config.patience)
        self.pairs: list[tuple[int, int]] = []
        self.kept: dict[str, Tensor] = {}
        self.given_up = False
        self.measure = Measure(now=held.loss, without=lambda slot: held.without(slots, slot))

    @property
    def num_alive(self) -> int:
        return len(self.slots.alive())

    def follow(self, view: View, finding: Finding, step: int, end: int, busy: bool) -> tuple[dict[str, Any], Told]:
        """Do what the detector found; its row of the `drift` event, and the changes."""
        row, told, chosen, notes = self._row(view, finding), Told(), finding.chosen, [finding.note]
        for slot in finding.drop:
            if self.num_alive > 1:
                told += self.retire(slot, "never reached")
        if chosen is not None:
            refused = self._refused(chosen, step, end, busy)
            if not refused:
                verdict = self.acceptor.before_growth(step, self.measure)
                told += [] if verdict is None else self.carry_out(verdict)
                refused = self._refused(chosen, step, end, busy)
            if refused:
                notes.append(refused)
            else:
                signals = {name: plain(value_E[chosen]) for name, value_E in finding.signals.items()}
                birth = Birth(
                    parent=chosen,
                    why=self.detector.why,
                    detector=self.config.detector,
                    signals=signals,
                    direction_d=finding.direction_d,
                    row_d=finding.row_d,
                )
                told.append(self.split(birth, step))
                child, before = told[-1][1]["child"], told[-1][1]["loss_before"]
                self.acceptor.began(step, chosen, child, before)
                row["chosen"] = chosen
        note = "; ".join(filter(None, notes))
        return (row | {"note": note} if note else row), told

    def _row(self, view: View, finding: Finding) -> dict[str, Any]:
        ids = view.alive_E.nonzero()[:, 0].tolist()
        return {
            "layer": self.slots.index,
            "experts": ids,
            "fired": [bool(finding.fired_E[e]) for e in ids],
            "chosen": None,
            "signals": {name: [plain(value_E[e]) for e in ids] for name, value_E in finding.signals.items()},
            "thresholds": {name: {"at": t.at, "fires": t.fires} for name, t in finding.thresholds.items()},
        }

    def _refused(self, chosen: int, step: int, end: int, busy: bool) -> str:
        """Why the chosen expert is not duplicated now, or ""."""
        if self.given_up:
            return "out of patience"
        if not bool(self.slots.layer.alive_E[chosen]):
            return "the chosen expert has just been removed"
        if self.slots.free() is None:
            return "no free slot"
        if busy:
            return "an expert is on trial"
        if step + self.acceptor.takes > end:
            return "a trial would outlast the phase"
        return ""

    def split(self, birth: Birth, step: int) -> tuple[str, dict[str, Any]]:
        """Duplicate an expert into the lowest free slot; the `expansion` event."""
        slots, parent, child = self.slots, birth.parent, self.slots.free()
        assert child is not None
        loss_before, before = self.held.loss(), self.held.answer(slots.index)
        if self.acceptor.keeps_parent and birth.detector is not None:
            self.kept = slots.keep(parent)
        preserved = birth.row_d is None and self._preserves()
        slots.copy(parent, child, self.config.moments)
        if preserved:
            slots.halve(parent, child)
        self.initialiser.part(self._split(birth, child, step))
        if birth.row_d is not None:
            slots.point(child, birth.row_d)
        self.pairs.append((parent, child))
        self.detector.grown(parent, child)
        self.acceptor.grown(parent, child)
        output_change, selection_change = before.change(self.held.answer(slots.index), parent, child)
        self.held.changed()
        return "expansion", {
            "layer": slots.index,
            "parent": parent,
            "child": child,
            "why": birth.why,
            "detector": birth.detector,
            "signals": dict(birth.signals),
            "initialiser": self.config.initialiser,
            "preserved": preserved,
            "loss_before": loss_before,
            "output_change": output_change,
            "selection_change": selection_change,
            "alive": self.num_alive,
        }

    def _split(self, birth: Birth, child: int, step: int) -> Split:
        layer = self.slots.layer
        first, rows_Er = layer.bank.get_parameter(layer.bank.first), layer.router.rows_Ed
        direction_r = None
        if birth.direction_d is not None and rows_Er is not None:
            direction_r = layer.router.towards(birth.direction_d.to(rows_Er.device))
        seed = np.random.SeedSequence([self.seed, _PARTS, self.slots.index, step, child]).generate_state(1)[0]
        return Split(
            parent=birth.parent,
            child=child,
            rows_Er=None if rows_Er is None else rows_Er.detach(),
            direction_r=direction_r,
            first_Egd=first.detach(),
            first_grad_Egd=first.grad,
            rows_grad_Er=None if rows_Er is None else rows_Er.grad,
            generator=torch.Generator().manual_seed(int(seed)),
        )

    def _preserves(self) -> bool:
        """Whether both logits are lowered. `auto`: where the child, too, will be selected, or the number varies."""
        layer = self.slots.layer
        if layer.shift_E is None or not layer.router.shifts or self.config.preserve == "off":
            return False
        k = layer.router.k
        return self.config.preserve == "on" or k is None or k > self.num_alive

    def retire(self, slot: int, why: str) -> Told:
        """Remove an expert, measuring what that costs; the `prune` event."""
        without, now = self.held.without(self.slots, slot), self.held.loss()
        self._remove(slot)
        if not self.acceptor.busy():  # the trial that it was kept for is off
            self.kept = {}
        payload = {"layer": self.slots.index, "expert": slot, "why": why, "loss_before": now, "loss_after": without}
        return [("prune", payload | {"alive": self.num_alive})]

    def carry_out(self, verdict: Verdict) -> Told:
        """Remove what was refused; the `acceptance` event."""
        parent_before, self.kept = self.kept, {}
        if not verdict.kept:
            self._remove(verdict.child)
            if verdict.roll_back and parent_before:
                self.slots.put_back(verdict.parent, parent_before)
        self.given_up = self.given_up or verdict.give_up
        names = ("parent", "child", "kept", "loss_before", "loss_after", "why", "patience")
        payload = {name: getattr(verdict, name) for name in names}
        return [
            (
                "acceptance",
                {"layer": self.slots.index, "acceptor": self.config.acceptor, **payload, "alive": self.num_alive},
            )
        ]

    def _remove(self, slot: int) -> None:
        self.slots.remove(slot)
        self.pairs = [pair for pair in self.pairs if slot not in pair]
        self.detector.retired(slot)
        self.acceptor.retired(slot)
        self.held.changed()

    def prune(self, budget: float) -> Told:
        """Remove experts, the least missed first, while the held-out loss stays at or below `budget`."""
        costs = {slot: self.measure.without(slot) for slot in self.slots.alive()} if self.num_alive > 1 else {}
        told = Told()
        for slot in sorted(costs, key=lambda slot: (costs[slot], slot)):
            if self.num_alive > 1 and self.measure.without(slot) <= budget:
                told += self.retire(slot, "end of growth")
        return told

    def tensors(self) -> dict[str, Tensor]:
        parts = {"detector": self.detector.state(), "acceptor": self.acceptor.state(), "kept": self.kept}
        return {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Put back `tensors` and `{pairs, given_up}`. Raises `KeyError` or `ValueError` where they do not fit."""
        parts: dict[str, dict[str, Tensor]] = {"detector": {}, "acceptor": {}, "kept": {}}
        for full, value in tensors.items():
            part, _, name = full.partition(".")
            parts[part][name] = value
        for kind, owner in (("detector", self.detector), ("acceptor", self.acceptor)):
            for name, value in owner.state().items():
                there = parts[kind][name]
                if value.numel() and (there.shape != value.shape or there.dtype != value.dtype):
                    raise ValueError(f"{kind}.{name} is {there.dtype} {list(there.shape)}")
            owner.restore(parts[kind])
        self.kept = parts["kept"]
        self.pairs = [(int(parent), int(child)) for parent, child in plain["pairs"]]
        self.given_up = bool(plain["given_up"])


def plain(value: Tensor) -> float | None:
    """A number for JSON, None where it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None
