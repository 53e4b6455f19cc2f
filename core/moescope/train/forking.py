"""A fork: another run's checkpoint, gone on from under another configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import torch

from moescope.config import dump
from moescope.data.tokenizer import UNKNOWN
from moescope.errors import InputError
from moescope.expansion.controller import Growth
from moescope.model import Transformer
from moescope.model.checkpoint import read_config
from moescope.train.config import RunConfig
from moescope.train.prepare import Prepared
from moescope.train.state import Counts, Saved, differences

_FROM_DATA: Final = ("vocab_size", "d_input", "num_classes", "num_values")


@dataclass(frozen=True)
class Fork(Saved):
    """A checkpoint that another run begins with.

    The model has to be the same, but for options of its router that change no tensor; everything else may differ.
    Weights, alive experts, moments, steps and tokens go on; seconds begin anew. What calibration found goes on where
    the objectives are the same, and what growth has gathered where `expansion` is.
    """

    verb: ClassVar[str] = "forked"

    def check(self, config: RunConfig) -> None:
        """Raise `InputError` naming what `config` does not go on with."""
        trained, _ = read_config(self.path)
        free = {f"model.{name}" for name in _FROM_DATA}
        for key, here, there in differences(dump(config.model), dump(trained), "model"):
            if key not in free and not key.startswith("model.router_config"):
                raise InputError(
                    f"{self.path.name} cannot be forked with another model: {key} is {here!r}, it was {there!r}; "
                    "only options of the router may differ."
                )
        if config.optim.steps <= self.counts.step:
            raise InputError(
                f"optim.steps = {config.optim.steps}: a fork of {self.path.name} goes on from step {self.counts.step}, "
                "so it must be above that."
            )

    def check_data(self, config: RunConfig, data: Prepared) -> None:
        """Raise `InputError` where the model cannot read this data, or lacks words or classes for it."""
        trained, _ = read_config(self.path)
        for name in _FROM_DATA:
            here, there = getattr(data.model, name), getattr(trained, name)
            if here != there and not (name == "num_classes" and here < there):
                raise InputError(f"{self.path.name} cannot be forked onto this data: {name} is {here}, it was {there}.")
        unknown = None if data.tokenizer is None else data.tokenizer.token_to_id(UNKNOWN)
        if unknown is None or dump(config.data) == self.as_now["data"]:
            return
        share = float((data.train.inputs == unknown).mean())
        if share:
            raise InputError(
                f"{self.path.name} cannot be forked onto this data: {share:.1%} of its words are not in the vocabulary."
            )

    def begun(self, config: RunConfig) -> Counts:
        """How far the new run is."""
        same = dump(config)["objectives"] == self.as_now["objectives"]
        scales = self.counts.scales if same else {}
        return Counts(step=self.counts.step, tokens=self.counts.tokens, scales=scales)

    def fitted(self, model: Transformer, data: Prepared) -> Transformer:
        """The checkpoint's model under the router's options of now. Raises `InputError` where they change a tensor."""
        wanted = replace(model.config, router_config=data.model.router_config)
        if wanted == model.config:
            return model
        with torch.device("meta"):
            changed = Transformer(wanted, seed=None)
        old, new = model.state_dict(), changed.state_dict()
        for name in sorted(old.keys() | new.keys()):
            if name not in old or name not in new or old[name].shape != new[name].shape:
                raise InputError(
                    f"{self.path.name} cannot be forked with this model.router_config: it changes the tensor {name!r}."
                )
        changed.load_state_dict(old, assign=True)
        return changed.train()

    def restore_growth(self, growth: Growth, config: RunConfig) -> None:
        if dump(config)["expansion"] == self.as_now.get("expansion"):
            super().restore_growth(growth, config)

    def forked(self) -> Mapping[str, Any]:
        """What `run_started` says of where the run comes from."""
        _, card = read_config(self.path)
        return {"run": card.get("run"), "checkpoint": self.path.name, "step": self.counts.step}
