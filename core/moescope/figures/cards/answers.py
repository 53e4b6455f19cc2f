"""What each expert responds to, in two words: the label's value with its highest significant lift."""

from __future__ import annotations

from moescope.figures.cards.association import Cell, discoveries, label_cells
from moescope.trace.schema import Trace


def answers(trace: Trace) -> dict[int, dict[int, str]]:
    """{layer: {expert: label and value}} of the experts for which any is found; `association` says what passes.

    Lift is the share of the value's tokens that choose the expert over the share of all labelled tokens that do.
    """
    best: dict[tuple[int, int], Cell] = {}
    for name, labels in trace.labels.items():
        cells, tested = label_cells(trace, name, labels)
        for cell, _ in discoveries(cells, tested):
            place = (cell.layer, cell.expert)
            if place not in best or cell.share / cell.base > best[place].share / best[place].base:
                best[place] = cell
    found: dict[int, dict[int, str]] = {layer: {} for layer in trace.layer_ids}
    for (layer, expert), cell in sorted(best.items()):
        found[layer][expert] = f"{cell.label} {trace.labels[cell.label].names[cell.value]}"
    return found
