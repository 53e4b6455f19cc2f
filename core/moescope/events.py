"""What a run says while it goes on: an append-only log that the browser follows and a finished run replays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

EVENT_KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "run_started": (
            "The run's configuration, the model's size (`params`, `layers`), the data's size, the device; of a fork, "
            "`forked`: `{run, checkpoint, step}`."
        ),
        "train": (
            "One training step: `loss` (nats per token, or per image; squared error per item, of values), `objectives` "
            "(name to weighted value, summed over layers), `lr`, `grad_norm`, `tokens` seen so far, `seconds` since "
            "the start."
        ),
        "calibration": (
            "What the objectives are multiplied by, found on the first batch: `target` (the balance loss there) and "
            "`objectives`, each `{coefficient, calibrated, value, scale, effective}` (and a `note`); value and target "
            "are summed over layers."
        ),
        "load": (
            "Share of assignments per expert at one step: `layers` is a list of `{layer, load, alive, maxvio, dropped, "
            "tokens, experts_per_token, effective_experts}`; `load` sums to 1 over the alive experts, whose slots "
            "`alive` names; `dropped` is the share of wanted assignments that were dropped. Where an objective reads "
            "outputs: `output_norm`, their mean length."
        ),
        "eval": (
            "Loss on held-out data: `loss`, `tokens`, and for classes `accuracy`; `evals` holds the same of each "
            "further evaluation, by name, with `clean`, the loss on the same documents as they are, and for text "
            "`kept`, the loss over targets that were not replaced."
        ),
        "drift": (
            "One evaluation of the growth detector, after the backward pass of this step, whether anything fired: "
            "`detector`, `layers`, a list of `{layer, experts, fired, chosen, signals, thresholds}`; `experts` are the "
            "alive slots and all lists are in their order; `signals` maps a name (`grad_norm`, `z`, `p_value`, ...) to "
            "values, null where not yet defined; `thresholds` maps a signal to `{at, fires: below | above}`; `chosen` "
            "is the expert that is duplicated now, or null; a `note` says why none was."
        ),
        "expansion": (
            "A slot came alive: `layer`, `parent`, `child`, `why` (`drift`, `coverage`, `random` or `by hand`), "
            "`detector`, `signals` of the parent, `initialiser`, `preserved` (whether logits were shifted by log 2), "
            "`loss_before` (held-out), `output_change` (root mean square of the change of the layer's output over that "
            "of the output), `selection_change` (share of tokens whose chosen experts changed, the child counting as "
            "its parent), `alive` (slots afterwards)."
        ),
        "acceptance": (
            "An expansion was judged: `layer`, `parent`, `child`, `kept`, `acceptor`, `loss_before` and `loss_after` "
            "(held-out, without and with the child), `why` (one sentence), `patience` left or null, `alive`."
        ),
        "prune": (
            "A slot died: `layer`, `expert`, `why` (`end of growth`, `never reached` or `by hand`), `loss_before` and "
            "`loss_after` (held-out, with and without it), `alive`."
        ),
        "growth_ended": (
            "From here on the set of experts is fixed: `why` (`phase over`, `patience` or `full`), `layers`, a list of "
            "`{layer, alive, used}`: `used` counts experts with at least 1 % of an even share of the held-out tokens."
        ),
        "order": (
            "An order by hand was carried out or refused: `id`, `order` (`pause`, `go_on`, `checkpoint`, `split`, "
            "`retire`), `layer`, `expert`, `done`, `why` (one sentence where refused)."
        ),
        "run_paused": "The run waits, its process alive, until it is told to go on.",
        "run_unpaused": "It goes on: `seconds`, how long it waited (not counted in the run's time).",
        "snapshot": "A trace of the fixed probe set: `path` (below the run's folder), `tokens`.",
        "checkpoint": "A checkpoint folder was completed: `path` (below the run's folder), `seconds`.",
        "run_resumed": "The run went on from a checkpoint, or began again where it had none: `from_step`.",
        "run_finished": "The last step was done: `loss`, `eval_loss`, `seconds`.",
        "run_stopped": "The user stopped the run; it can be resumed from its last checkpoint: `path`.",
        "run_failed": "The run died: `error`, one sentence; `orphan`: it was found dead, without a word of its own.",
        "job": (
            "A job changed: its public row (`id`, `kind`, `status`, `stage`, `progress`, `seconds_left`, `error`, "
            "`result`)."
        ),
    }
)
"""The closed table of event kinds, each with what its payload holds."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened at one step of one run.

    `id` is given by the store on appending (0 before), `time` is seconds since the epoch. Raises `ValueError` for a
    kind that is not in `EVENT_KINDS`.
    """

    run: str
    step: int
    kind: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0
    time: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in EVENT_KINDS:
            raise ValueError(f"unknown event kind {self.kind!r}; the kinds are {', '.join(EVENT_KINDS)}")


def loss_unit(config: Mapping[str, Any]) -> str:
    """The unit of a run's loss, from its plain configuration: squared error where the model predicts values."""
    return "squared error" if config.get("model", {}).get("head") == "values" else "nats"
