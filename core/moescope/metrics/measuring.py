"""One call that computes any of the registered measures for any layers of a trace."""

from __future__ import annotations

from collections.abc import Sequence

from moescope.errors import InputError
from moescope.metrics.base import Measurement
from moescope.metrics.view import LayerView, TraceView
from moescope.trace.schema import Trace


def measure(
    trace: Trace,
    names: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    *,
    seed: int = 0,
    permutations: int = 200,
    bootstrap: int = 200,
) -> list[Measurement]:
    """Every measure in `names` (all of METRICS) for every layer in `layers` (all of the trace), layer by layer.

    The same seed gives the same numbers, whichever other measures are asked for. `permutations` are draws from each
    null (a measure may draw fewer on large data, and says so in its detail), `bootstrap` are resamples for each
    interval; 0 of the latter leaves intervals out. Raises `InputError` for a name or a layer that does not exist.
    """
    from moescope.metrics import METRICS

    wanted = list(METRICS) if names is None else list(names)
    for name in wanted:
        if name not in METRICS:
            raise InputError(f"There is no measure {name!r}; the measures are {', '.join(METRICS)}.")
    chosen = trace.layer_ids if layers is None else tuple(layers)
    for layer in chosen:
        if layer not in trace.layer_ids:
            raise InputError(
                f"The trace has no MoE layer {layer}; its layers are {', '.join(map(str, trace.layer_ids))}."
            )
    if permutations < 2:
        raise InputError(f"permutations = {permutations}: a null needs at least 2 draws.")
    view = TraceView(trace, seed=seed, permutations=permutations, bootstrap=bootstrap)
    found: list[Measurement] = []
    for layer in chosen:
        layer_view = LayerView(view, layer)
        for name in wanted:
            found.extend(METRICS[name]().compute(layer_view))
    return found
