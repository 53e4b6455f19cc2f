"""The cells of a sweep: every variant with every seed, each a complete run configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from moescope.errors import InputError
from moescope.sweep.file import SweepFile
from moescope.sweep.settings import difference, merged
from moescope.train.preset import override

_ORDER: Final = ("data", "optim.batch", "optim.seq", "optim.steps", "optim.loss_from")
"""What has to be the same for equal seeds to mean the same data in the same order, and the same targets."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep. `config` are the plain values of its complete run configuration."""

    name: str
    variant: str
    seed: int
    config: Mapping[str, Any]

    @property
    def steps(self) -> int:
        return int(self.config["optim"]["steps"])


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All cells, seed by seed so that every variant is seen early; what a reader must know; variants that leak."""

    cells: tuple[Cell, ...]
    notes: tuple[str, ...]
    leaky: tuple[str, ...]


def build(sweep: SweepFile, set: Mapping[str, Any]) -> Grid:
    """The cells of a sweep, `set` on top of every one. Raises `InputError`, naming the variant that cannot be run."""
    from moescope.config import dump
    from moescope.train.config import parse_run_config

    config = sweep.config
    if "seed" in set or "seed" in config.set:
        raise InputError("`seed` is the sweep's to set, one run for each of `seeds`: change `seeds` (`--seeds 5,6,7`).")
    resolved: dict[str, dict[str, Any]] = {}
    leaky = []
    for name, variant in config.variants.items():
        if "seed" in variant.set:
            raise InputError(f"Variant {name!r} sets `seed`, which is the sweep's to set: see `seeds`.")
        values = override(merged(merged(sweep.base, config.set), variant.set), set)
        try:
            run = parse_run_config(values)
        except InputError as error:
            raise InputError(f"Variant {name!r} cannot be run: {error}") from None
        if run.model.head == "next_token" and run.model.leaky_control and _sees_later_tokens(run.model):
            leaky.append(name)
        resolved[name] = dump(run)
    cells = tuple(
        Cell(name=f"{name}-s{seed}", variant=name, seed=seed, config=_seeded(values, seed, config.fresh_data))
        for seed in config.seeds
        for name, values in resolved.items()
    )
    return Grid(cells=cells, notes=tuple(_notes(resolved)), leaky=tuple(leaky))


def _seeded(values: Mapping[str, Any], seed: int, fresh_data: bool) -> dict[str, Any]:
    data = {**values["data"], "seed": seed} if fresh_data else values["data"]
    return {**values, "seed": seed, "data": data}


def _sees_later_tokens(model: Any) -> bool:
    import torch

    from moescope.model.transformer import build_moe

    with torch.device("meta"):
        return build_moe(model).router.causal != "yes"


def _notes(resolved: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where variants do not see the same data in the same order."""
    first, *others = resolved
    notes = []
    for name in others:
        for key in _ORDER:
            found = difference(_at(resolved[name], key), _at(resolved[first], key), key)
            if found:
                notes.append(
                    f"{name} does not learn from the same data in the same order as {first}: {found[0]} is "
                    f"{found[1]!r}, not {found[2]!r}."
                )
    return notes


def _at(values: Mapping[str, Any], dotted: str) -> Any:
    found: Any = values
    for key in dotted.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
