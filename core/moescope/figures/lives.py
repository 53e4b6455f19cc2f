"""What a run's log says about its experts: which layers have them, who came from whom, when, and until when."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from moescope.errors import InputError
from moescope.events import Event

CHANGES: Final = ("expansion", "acceptance", "prune", "growth_ended")
"""Kinds of events that change a set of experts, or end its changing."""


@dataclass(frozen=True)
class Life:
    """One expert from birth to death. A slot that is used again is another life of the same id.

    parent: None for those that were there from the start. why: of the birth, "" for those. end: of the death.
    born, died: steps; None: it lives.
    """

    layer: int
    expert: int
    parent: int | None
    born: int
    died: int | None = None
    why: str = ""
    end: str = ""


def settled(events: Iterable[Event], kinds: Collection[str]) -> list[Event]:
    """Events of some kinds in their order, without what a resume did again: going on from step s forgets later ones."""
    kept: list[Event] = []
    for event in events:
        if event.kind == "run_resumed":
            start = int(event.payload.get("from_step", event.step))
            kept = [old for old in kept if old.step <= start]
        elif event.kind in kinds:
            kept.append(event)
    return kept


def last_step(events: Iterable[Event]) -> int:
    """The largest step of the run as it went on."""
    return max((event.step for event in settled(events, ("train", "load", "drift", *CHANGES))), default=0)


def moe_layers(log: Sequence[Event]) -> list[int]:
    """Blocks that have experts, as the run said at its start; else those whose load or drift it told."""
    for event in log:
        if event.kind == "run_started" and event.payload.get("layers"):
            return [int(item["layer"]) for item in event.payload["layers"]]
    told = [event for event in log if event.kind in ("load", "drift")]
    return [int(item["layer"]) for item in told[-1].payload["layers"]] if told else []


def the_layer(log: Sequence[Event], layer: int | None) -> int:
    """This layer, the first if None. Raises `InputError` for one that the run does not have."""
    known = moe_layers(log)
    if layer is None:
        return known[0] if known else 0
    if known and layer not in known:
        raise InputError(
            f"Layer {layer} is not an MoE layer of this run; its MoE layers are {', '.join(map(str, known))}."
        )
    return layer


def of_layer(event: Event, layer: int) -> dict[str, Any] | None:
    """The entry of one layer in an event that holds a list of them."""
    return next((item for item in event.payload.get("layers", ()) if int(item["layer"]) == layer), None)


def lives(log: Sequence[Event], layer: int) -> list[Life]:
    """Every life of one layer, those from the start first, then in order of birth."""
    made = _from_the_start(log, layer)
    living = {life.expert: place for place, life in enumerate(made)}
    for event in settled(log, ("expansion", "acceptance", "prune")):
        told = event.payload
        if int(told.get("layer", -1)) != layer:
            continue
        if event.kind == "expansion":
            child = int(told["child"])
            _die(made, living, child, event.step, "replaced")
            living[child] = len(made)
            made.append(Life(layer, child, int(told["parent"]), event.step, why=str(told.get("why", ""))))
        elif event.kind == "prune":
            _die(made, living, int(told["expert"]), event.step, str(told.get("why", "")))
        elif not told["kept"]:
            _die(made, living, int(told["child"]), event.step, f"removed: {told.get('why', '')}")
    return made


def _die(made: list[Life], living: dict[int, int], expert: int, step: int, why: str) -> None:
    place = living.pop(expert, None)
    if place is not None:
        made[place] = replace(made[place], died=step, end=why)


def _from_the_start(log: Sequence[Event], layer: int) -> list[Life]:
    """As the run said when it started; else every expert whose load was told, from when it was."""
    for event in log:
        told = of_layer(event, layer) if event.kind == "run_started" else None
        if told is not None:
            ids = told.get("alive") or range(int(told["num_experts"]))
            return [Life(layer, int(expert), None, event.step) for expert in ids]
    born: dict[int, int] = {}
    for event in settled(log, ("load",)):
        told = of_layer(event, layer) or {}
        for expert in told.get("alive", range(len(told.get("load", ())))):
            born.setdefault(int(expert), event.step)
    first = min(born.values(), default=0)
    return [Life(layer, expert, None, 0 if step == first else step) for expert, step in sorted(born.items())]


def alive_at(found: Iterable[Life], step: int) -> set[int]:
    """Experts that took part in a step: those born before it (or there from the start) and not dead yet."""
    return {
        life.expert
        for life in found
        if (life.born < step or (life.parent is None and life.born <= step))
        and (life.died is None or step <= life.died)
    }


def family_order(found: Sequence[Life]) -> list[int]:
    """Ids so that every expert stands beside its parent and no lane is crossed by a later birth.

    Depth first from the experts of the start; of one parent's children the one born last stands nearest to it. A slot
    that was used more than once stands where its longest life belongs.
    """
    until = max((life.died or life.born for life in found), default=0) + 1
    longest: dict[int, Life] = {}
    for life in found:
        old = longest.get(life.expert)
        if old is None or _length(life, until) > _length(old, until):
            longest[life.expert] = life
    children: dict[int, list[Life]] = {}
    for life in longest.values():
        if life.parent is not None and life.parent in longest:
            children.setdefault(life.parent, []).append(life)
    order: list[int] = []
    waiting = sorted((e for e, life in longest.items() if life.parent not in longest), reverse=True)
    waiting = [*sorted(set(longest) - set(waiting), reverse=True), *waiting]  # a cycle of reused slots has no root
    while waiting:
        expert = waiting.pop()
        if expert not in order:
            order.append(expert)
            waiting += [life.expert for life in sorted(children.get(expert, ()), key=lambda life: life.born)]
    return order


def _length(life: Life, until: int) -> float:
    return float("inf") if life.died is None else life.died - life.born if life.parent is not None else until
