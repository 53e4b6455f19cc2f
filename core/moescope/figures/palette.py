"""Colours: the one place that gives a colour to an expert, a label's value or a number.

Twenty categorical colours, found by search for the largest smallest CIEDE2000 difference under normal vision and under
simulated protanopia, deuteranopia and tritanopia (Machado, Oliveira and Fernandes 2009, severity 1), every one readable
on white and on near-black. `tests/figures/test_palette.py` states and checks what holds for the first 8, 12 and 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from moescope.metrics.view import alive_experts
from moescope.trace.schema import Trace

CATEGORICAL: Final[tuple[str, ...]] = (
    "#b80a00", "#00b8d6", "#c2ad14", "#7000f5", "#00665c", "#f55299", "#857a5c", "#5c7ae0", "#a3335c", "#85ad70",
    "#665285", "#ad7000", "#a38fad", "#526633", "#ad52ad", "#009985", "#e099a3", "#d63347", "#a38fff", "#855c70",
)  # fmt: skip
"""In order of use: any first n of them are chosen to lie far apart."""

MAX_DISTINCT: Final = len(CATEGORICAL)
NEUTRAL: Final = "#858b94"
"""Experts beyond what a palette can tell apart, reference lines, and (hollow) what is unlabelled."""

BAND: Final = "rgba(133,139,148,0.28)"
"""Fill of a null's band."""

BLANK: Final = "rgba(133,139,148,0.85)"
"""Marks of cells that have no value."""

HIGHLIGHTED: Final = 8
"""Beyond `MAX_DISTINCT` experts this many, the most used, keep a colour until the reader picks others."""

SEQUENTIAL: Final[tuple[tuple[float, str], ...]] = (
    (0.0, "#3e4989"), (0.2, "#31688e"), (0.4, "#26828e"), (0.6, "#1f9e89"), (0.8, "#35b779"), (1.0, "#55c467"),
)  # fmt: skip
"""The middle of viridis (Smith and van der Walt 2015): monotone in lightness, readable on white and near-black."""

DIVERGING: Final[tuple[tuple[float, str], ...]] = (
    (0.0, "rgba(30,98,206,0.96)"),
    (0.25, "rgba(62,132,224,0.62)"),
    (0.5, "rgba(133,139,148,0.06)"),
    (0.75, "rgba(232,134,30,0.74)"),
    (1.0, "rgba(222,102,0,1)"),
)
"""Blue below, orange above, fading into the page at the middle, so that it is read alike in light and dark."""


def expert_colours(n: int) -> list[str]:
    """One hex colour per expert: distinct up to `MAX_DISTINCT` experts, beyond that the neutral grey for all."""
    return list(CATEGORICAL[:n]) if n <= MAX_DISTINCT else [NEUTRAL] * n


def label_colours(values: Sequence[str]) -> list[str]:
    """One hex colour per value of a label, grey from the 21st on. Unlabelled is no value: hollow, and `NEUTRAL`."""
    return [CATEGORICAL[i] if i < MAX_DISTINCT else NEUTRAL for i in range(len(values))]


def layer_colours(trace: Trace, layer: int) -> list[str]:
    """One hex colour per expert id of one layer, as every view of this trace shows it.

    Up to `MAX_DISTINCT` experts: `expert_colours`. Beyond, the `HIGHLIGHTED` most used experts (as best expert of a
    token) have a colour and the others are grey. Ids that are no alive expert have an entry too, never used.
    """
    traced = trace.layers[layer]
    colours = expert_colours(int(alive_experts(traced).max(initial=-1)) + 1)
    if len(colours) > MAX_DISTINCT:
        used = np.bincount(traced.top1_T[traced.top1_T >= 0], minlength=len(colours))
        for colour, expert in zip(CATEGORICAL, np.argsort(-used, kind="stable")[:HIGHLIGHTED], strict=False):
            colours[int(expert)] = colour
    return colours
