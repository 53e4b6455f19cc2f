"""Growth of one model in one run: when to look, what to change, what to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from moescope import ranks
from moescope.errors import InputError
from moescope.expansion.base import ROUNDING, Finding
from moescope.expansion.config import ExpansionConfig
from moescope.expansion.heldout import HeldOut
from moescope.expansion.layer_growth import Birth, LayerGrowth, Told
from moescope.expansion.slots import LayerSlots
from moescope.expansion.slots import SlotOptimizer as SlotOptimizer
from moescope.expansion.token_gradients import Captured, capture
from moescope.expansion.watch import views
from moescope.model import Transformer
from moescope.objectives.base import LayerRecord
from moescope.objectives.redundancy import Redundancy

_VERSION: Final = 1


class Growth:
    """Watches the MoE layers in the first steps of a run, adds and removes experts, and says what it saw and did.

    Growth changes slots between the backward pass and the optimizer's step, so that parent and child both take that
    step, from gradients that the initialiser may have edited; they are clipped afterwards. After the phase nothing
    changes but by hand. Every rank holds a Growth and decides alike, by the first one's numbers.

    steps:    of the whole run, which the phase may be a share of.
    seed:     of the run.
    evaluate: held-out loss now, evaluation mode, called by every rank at the same time.
    """

    def __init__(
        self,
        config: ExpansionConfig,
        model: Transformer,
        optimizer: SlotOptimizer,
        *,
        steps: int,
        seed: int,
        evaluate: Callable[[], float],
    ) -> None:
        self.config, self.model = config, model
        self.end = config.phase_end(steps)
        self.held = HeldOut(model, evaluate)
        moe = list(model.moe.items())
        following = [layer for _, layer in moe[1:]] + [None]
        self.layers: dict[int, LayerGrowth] = {
            index: LayerGrowth(config, LayerSlots(index, layer, after, optimizer), self.held, seed)
            for (index, layer), after in zip(moe, following, strict=True)
        }
        self.ended = self.end == 0
        self._redundancy = Redundancy()
        self._captured: dict[int, Captured] = {}

    def growing(self, step: int) -> bool:
        """Whether experts are watched on the step after `step` optimizer steps."""
        return not self.ended and self.config.start <= step < self.end

    def _named(self) -> dict[int, LayerGrowth]:
        chosen = self.config.layers
        return {index: layer for index, layer in self.layers.items() if chosen == "all" or index in chosen}

    def _watched(self) -> dict[int, LayerGrowth]:
        return {index: layer for index, layer in self._named().items() if not layer.given_up}

    @contextmanager
    def watching(self, step: int) -> Iterator[None]:
        """Around forward and backward of one step: captures what detectors read beyond gradients, where they do."""
        self._captured = {}
        if not self.growing(step):
            yield
            return
        with ExitStack() as stack:
            for index, layer in self._watched().items():
                if layer.detector.wants_gradients(step):
                    self._captured[index] = stack.enter_context(capture(layer.slots.layer))
            yield

    def records(self, records: Sequence[LayerRecord]) -> tuple[LayerRecord, ...]:
        """The records of a forward pass, with the pairs of duplicated experts."""
        return tuple(
            replace(record, pairs=tuple(self.layers[record.layer].pairs)) if self.layers[record.layer].pairs else record
            for record in records
        )

    def losses(self, records: Sequence[LayerRecord]) -> dict[str, Tensor]:
        """What growth adds to the loss of a step, coefficients included: {"redundancy": ...} while it grows."""
        if self.ended or not self.config.redundancy or not records:
            return {}
        total = torch.stack([self._redundancy(record) for record in records]).sum()
        return {"redundancy": self.config.redundancy * total}

    def after_backward(self, step: int, records: Sequence[LayerRecord], loss: Tensor) -> Told:
        """Look at every layer, and grow. Gradients are averaged over ranks and not yet clipped.

        step: optimizer steps done before this one. loss: the step's training loss, objectives left out.
        """
        watched = self._watched() if self.growing(step) else {}
        if not watched:
            return []
        seen = views(
            step,
            {index: (layer.slots.layer, layer.detector.scope) for index, layer in watched.items()},
            {record.layer: record for record in records},
            loss,
            {index: captured.of for index, captured in self._captured.items()},
        )
        findings = {index: _agreed(layer.detector.look(seen[index])) for index, layer in watched.items()}
        self._captured = {}
        rows, changes = [], Told()
        for index, layer in watched.items():
            busy = any(other.acceptor.busy() for other in self.layers.values())
            row, told = layer.follow(seen[index], findings[index], step, self.end, busy)
            rows.append(row)
            changes += told
        self.held.changed()
        due = (step - self.config.start) % self.config.drift_every == 0
        if not due and not changes and not any(any(row["fired"]) for row in rows):
            return []
        return [("drift", {"detector": self.config.detector, "layers": rows}), *changes]

    def after_step(self, step: int) -> Told:
        """Acceptances, the end of the phase, pruning. step: optimizer steps done."""
        if self.ended:
            return []
        told = Told()
        for layer in self.layers.values():
            verdict = layer.acceptor.after_step(step, layer.measure)
            told += [] if verdict is None else layer.carry_out(verdict)
        why = self._over(step)
        if why:
            self.ended = True
            if self.config.prune_at_end:
                budget = self.held.loss() * (1 + max(self.config.prune_tolerance, ROUNDING))
                for layer in self._named().values():
                    told += layer.prune(budget)
            used = self.held.used()
            counts = [{"layer": i, "alive": layer.num_alive, "used": used[i]} for i, layer in self.layers.items()]
            told.append(("growth_ended", {"why": why, "layers": counts}))
        self.held.changed()
        return told

    def _over(self, step: int) -> str:
        """Why growth is over, or "". Pruning waits for the end of the phase: copies need time to part."""
        if step < self.end and self.config.prune_at_end:
            return ""
        watched = self._watched()
        if not watched:
            return "patience"
        changing = any(layer.acceptor.busy() or layer.detector.drops for layer in watched.values())
        if not changing and all(layer.slots.free() is None for layer in watched.values()):
            return "full"
        return "phase over" if step >= self.end else ""

    def split(self, layer: int, expert: int, step: int) -> Told:
        """Duplicate an expert by hand. Raises `InputError` in one sentence."""
        one = self._alive(layer, expert)
        if not one.slots.layer.router.grows:
            raise InputError(f"Router {self.model.config.router!r} has no row per expert that a copy could take over.")
        if one.slots.free() is None:
            raise InputError(f"Block {layer} has no free slot: all {one.num_alive} are in use (model.max_experts).")
        birth = Birth(parent=expert, why="by hand", detector=None, signals={})
        told = [one.split(birth, step)]
        self.held.changed()
        return told

    def retire(self, layer: int, expert: int, step: int) -> Told:
        """Remove an expert by hand. Raises `InputError` in one sentence."""
        one = self._alive(layer, expert)
        if one.num_alive == 1:
            raise InputError(f"Expert {expert} is the last one of block {layer}.")
        told = one.retire(expert, "by hand")
        self.held.changed()
        return told

    def _alive(self, layer: int, expert: int) -> LayerGrowth:
        if layer not in self.layers:
            raise InputError(f"Block {layer} has no experts; those that do are {', '.join(map(str, self.layers))}.")
        if expert not in self.layers[layer].slots.alive():
            raise InputError(f"Block {layer} has no living expert {expert}.")
        return self.layers[layer]

    def tensors(self) -> dict[str, Tensor]:
        """State of exact resume, with `plain`; on the CPU."""
        return {
            f"{index}.{name}": value.detach().cpu().clone()
            for index, layer in self.layers.items()
            for name, value in layer.tensors().items()
        }

    def plain(self) -> dict[str, Any]:
        layers = {str(i): {"pairs": layer.pairs, "given_up": layer.given_up} for i, layer in self.layers.items()}
        return {"version": _VERSION, "ended": self.ended, "layers": layers}

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Go on as the Growth that gave `tensors` and `plain` would have. Raises `InputError` where they do not fit."""
        try:
            if plain["version"] != _VERSION:
                raise InputError(f"The growth's state is of version {plain['version']!r}; this is {_VERSION}.")
            for index, layer in self.layers.items():
                first = f"{index}."
                own = {name.removeprefix(first): t for name, t in tensors.items() if name.startswith(first)}
                layer.restore(own, plain["layers"][str(index)])
            self.ended = bool(plain["ended"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The growth's state does not belong to this run ({error}).") from None


def _agreed(finding: Finding) -> Finding:
    """The first rank's decision; its numbers are the same on all, but for what a device may round."""
    if ranks.world() == 1:
        return finding
    num_slots = len(finding.fired_E)
    chosen = -1 if finding.chosen is None else finding.chosen
    decided = ranks.agreed(torch.tensor([chosen, *(slot in finding.drop for slot in range(num_slots))]))
    chosen = int(decided[0])
    return replace(
        finding,
        chosen=None if chosen < 0 else chosen,
        drop=tuple(decided[1:].nonzero()[:, 0].tolist()),
        direction_d=None if finding.direction_d is None else ranks.agreed(finding.direction_d),
        row_d=None if finding.row_d is None else ranks.agreed(finding.row_d),
    )
