"""What every figure shares: the meta that the page links by, a layout without a theme, axes and colour bars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from moescope.figures.wording import escape

TRANSPARENT = "rgba(0,0,0,0)"
ABOVE = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
"""A legend in a row above the plot."""
GRID = "rgba(133,139,148,0.22)"


def figure(
    traces: Sequence[Any],
    *,
    name: str,
    title: str,
    caption: str,
    layer: int | None = None,
    shown: int | None = None,
    total: int | None = None,
    note: str | None = None,
    grow: Sequence[Mapping[str, Any]] = (),
    again: Sequence[str] = (),
    options: Mapping[str, Sequence[Any]] | None = None,
    **layout: Any,
) -> go.Figure:
    """A figure with transparent background, no theme, and `layout.meta` as docs/contracts.md says.

    grow: how events extend it. again: kinds of events after which it is to be asked for again. options: what may be
    chosen, by the name of the parameter.
    """
    meta: dict[str, Any] = {"moescope": 1, "name": name, "layer": layer, "title": title, "caption": caption}
    meta |= {"shown": shown, "total": total, "note": note}
    if grow:
        meta["grow"] = [dict(entry) for entry in grow]
    if again:
        meta["again"] = list(again)
    if options is not None:
        meta["options"] = {name: list(values) for name, values in options.items()}
    return go.Figure(
        data=list(traces),
        layout={
            "template": {"layout": {"autotypenumbers": "strict"}},
            "paper_bgcolor": TRANSPARENT,
            "plot_bgcolor": TRANSPARENT,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "hovermode": "closest",
            "hoverlabel": {"align": "left"},
            "dragmode": False,
            "meta": meta,
            **layout,
        },
    )


def axis(title: str | None = None, **options: Any) -> dict[str, Any]:
    """An axis that makes room for its own labels and draws a faint grid readable in light and dark."""
    made: dict[str, Any] = {"automargin": True, "gridcolor": GRID, "zeroline": False, "showline": False}
    made |= {"ticks": "outside", "ticklen": 3, "tickcolor": TRANSPARENT}
    if title is not None:
        made["title"] = {"text": title, "standoff": 6}
    return made | options


def category_axis(title: str, names: Sequence[str], **options: Any) -> dict[str, Any]:
    """An axis of category strings in the given order, without a grid; ticks show the names literally."""
    fixed = {"type": "category", "categoryorder": "array", "categoryarray": list(names), "showgrid": False}
    if any(escape(name) != name for name in names):
        fixed |= {"tickmode": "array", "tickvals": list(names), "ticktext": [escape(name) for name in names]}
    return axis(title, **fixed, **options)


def expert_axis(names: Sequence[str], **options: Any) -> dict[str, Any]:
    """The axis of the experts; of many, every second, fifth, tenth ... is named, upright."""
    step = next(x for x in (1, 2, 5, 10, 20, 50, 100, 1000) if len(names) <= 16 * x)
    return category_axis("expert", names, tickmode="array", tickvals=list(names[::step]), tickangle=0, **options)


def cell_gap(columns: int) -> int:
    """Pixels between the cells of a heat-map."""
    return 1 if columns <= 40 else 0


def expert_names(experts: Iterable[int]) -> list[str]:
    """`E0`, `E1`, ... as they stand on every axis."""
    return [f"E{int(i)}" for i in experts]


def ratio_limit(value: np.ndarray) -> float:
    """Where a scale of log2 ratios ends: 2, 4 or 8 times, the first that holds the largest. Beyond it counts as it."""
    largest = float(value[np.isfinite(value)].max(initial=0.0))
    return next((x for x in (1.0, 2.0, 3.0) if largest <= x), 3.0)


def ratio_colorbar(limit: float, title: str) -> dict[str, Any]:
    """A colour bar for log2 of a ratio over [-limit, limit], with the ratios themselves as ticks."""
    steps = np.arange(-limit, limit + 1) if limit > 1 else np.array([-1, -0.5, 0, 0.5, 1])
    words = [f"{2.0**x:.2g}×" if x > -1 else f"1/{2 ** round(-x)}" for x in steps]
    words[0], words[-1] = f"≤ {words[0]}", f"≥ {words[-1]}"
    return {
        "title": {"text": title, "side": "right"}, "tickvals": steps.tolist(), "ticktext": words, "thickness": 10,
        "ticks": "", "outlinewidth": 0, "len": 1.0, "xpad": 4, "ypad": 0,
    }  # fmt: skip
