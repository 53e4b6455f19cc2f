"""Where the same tokens went, from one snapshot of a run to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go

from moescope.errors import InputError
from moescope.events import Event
from moescope.figures.base import figure
from moescope.figures.counts import get_layer
from moescope.figures.lives import family_order, lives
from moescope.figures.palette import NEUTRAL, expert_colours
from moescope.figures.wording import number, percent
from moescope.metrics.view import alive_experts
from moescope.trace.schema import Trace

STAYS, MOVES, TO_CHILD = 0.3, 0.4, 0.8
"""How opaque a band is: of tokens that stay, that change, and that go from a parent to its child."""


def token_flow(
    before: Trace, after: Trace, layer: int, *, events: Iterable[Event] = (), steps: tuple[int, int] | None = None
) -> go.Figure:
    """Bands from each token's first expert at one snapshot to its first expert at a later one.

    events: of the run, for who is whose child; without them no band is told from the others. steps: of the snapshots.
    Raises `InputError` where the traces are not of the same tokens or lack the layer.
    """
    old, new = get_layer(before, layer), get_layer(after, layer)
    if before.num_tokens != after.num_tokens or not np.array_equal(before.doc, after.doc):
        raise InputError("The two snapshots are not of the same tokens, so none can be followed from one to the other.")
    log = list(events)
    found = [life for life in lives(log, layer) if life.parent is not None] if log else []
    children = {(life.parent, life.expert) for life in found if steps is None or steps[0] <= life.born <= steps[1]}
    order = family_order(lives(log, layer)) if log else []
    left = _nodes(old.top1_T, alive_experts(old), order)
    right = _nodes(new.top1_T, alive_experts(new), order)
    flow = _flow(old.top1_T, new.top1_T, left, right)
    top = max((*left, *right), default=-1)
    shade = dict(enumerate(expert_colours(top + 1))) | {-1: NEUTRAL}
    moved = sum(int(flow[i, j]) for i, a in enumerate(left) for j, b in enumerate(right) if a != b)
    total = before.num_tokens
    when = ("an earlier step", "a later step") if steps is None else (f"step {steps[0]}", f"step {steps[1]}")
    return figure(
        [_sankey(left, right, flow, shade, children)],
        name="token_flow",
        layer=layer,
        title=f"Token flow, layer {layer}",
        caption=(
            f"First expert of the same n = {number(total)} probe tokens in layer {layer}: left at {when[0]}, right at "
            f"{when[1]}. {percent(moved / max(total, 1))} of them changed it. A band has the colour of the expert it "
            "leads to" + (", strong where it leads from a parent to its child." if children else ".")
        ),
        shown=total,
        total=total,
        again=("snapshot",),
        margin={"l": 12, "r": 12, "t": 8, "b": 8},
    )


def _nodes(top1_T: np.ndarray, alive: np.ndarray, order: Sequence[int]) -> list[int]:
    """Experts with a token or alive, those of the family first in its order; -1 (no expert) last."""
    used = set(np.unique(top1_T).tolist())
    known = [expert for expert in order if expert in used]
    return [*known, *sorted(used - set(known) - {-1}), *([-1] if -1 in used else [])]


def _flow(old_T: np.ndarray, new_T: np.ndarray, left: Sequence[int], right: Sequence[int]) -> np.ndarray:
    """int64 [left, right]: tokens that went from one to the other."""
    row = {expert: i for i, expert in enumerate(left)}
    column = {expert: i for i, expert in enumerate(right)}
    made = np.zeros((len(left), len(right)), np.int64)
    pairs, count = np.unique(np.stack([old_T, new_T]), axis=1, return_counts=True)
    for (a, b), n in zip(pairs.T.tolist(), count.tolist(), strict=True):
        made[row[a], column[b]] = n
    return made


def _sankey(
    left: Sequence[int],
    right: Sequence[int],
    flow: np.ndarray,
    shade: dict[int, str],
    children: set[tuple[int | None, int]],
) -> go.Sankey:
    names = [_name(expert) for expert in (*left, *right)]
    places = [(i, j) for i in range(len(left)) for j in range(len(right)) if flow[i, j]]
    out, into = flow.sum(1), flow.sum(0)
    colours, words = [], []
    for i, j in places:
        a, b, n = left[i], right[j], int(flow[i, j])
        child = (a, b) in children
        colours.append(_see_through(shade[b], TO_CHILD if child else STAYS if a == b else MOVES))
        verb = "stay with" if a == b else "go from parent to child:" if child else "go"
        where = _name(a) if a == b else f"{_name(a)} → {_name(b)}"
        words.append(
            f"{number(n)} tokens {verb} {where}<br>{percent(n / max(int(out[i]), 1))} of {_name(a)}'s before, "
            f"{percent(n / max(int(into[j]), 1))} of {_name(b)}'s after"
        )
    x = [0.001] * len(left) + [0.999] * len(right)
    return go.Sankey(
        arrangement="fixed",
        node={
            "label": names, "color": [shade[expert] for expert in (*left, *right)], "x": x,
            "y": [*_middles(out), *_middles(into)], "pad": 10, "thickness": 16, "line": {"width": 0},
            "customdata": [number(int(n)) for n in (*out, *into)],
            "hovertemplate": "%{label}: %{customdata} tokens<extra></extra>",
        },
        link={
            "source": [i for i, _ in places], "target": [len(left) + j for _, j in places],
            "value": [int(flow[i, j]) for i, j in places], "color": colours, "customdata": words,
            "hovertemplate": "%{customdata}<extra></extra>",
        },
        meta={"role": "flow", "experts": [*left, *right]},
    )  # fmt: skip


def _middles(count: np.ndarray) -> list[float]:
    """Where each node's middle lies, as a share of the height."""
    share = count / max(float(count.sum()), 1.0)
    middles: list[float] = np.clip(np.cumsum(share) - share / 2, 0.001, 0.999).tolist()
    return middles


def _name(expert: int) -> str:
    return "no expert" if expert < 0 else f"E{expert}"


def _see_through(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
