"""What the first page would have to wait for, done while the browser still opens: imports, the samples' first views."""

from __future__ import annotations

import logging

from moescope.errors import InputError
from moescope.imports import import_views
from moescope.store import TraceRow
from moescope_server.analysis import Analysis
from moescope_server.traces import TraceCache

log = logging.getLogger(__name__)


def warm_up(analysis: Analysis, traces: TraceCache) -> None:
    """Import what figures and measures need (plotly, scipy), read every card, look at the samples."""
    import_views()
    import numpy as np

    from moescope.projection import project

    store = analysis.store
    project(np.random.default_rng(0).normal(size=(64, 4)), "pca")
    for row in store.checkpoints():
        store.card(row)
    shown = [trace for trace in store.traces(origin="sample") if trace.run is None]
    store.runs()  # bundled ones get their rows; their many snapshots are measured when they are looked at
    for trace in shown:
        try:
            _first_view(analysis, traces, trace)
            analysis.measurements(traces.open(trace))
        except InputError as error:
            log.warning("the sample trace %s cannot be shown: %s", trace.id, error)


def _first_view(analysis: Analysis, traces: TraceCache, trace: TraceRow) -> None:
    opened = traces.open(trace)
    layer = analysis.overview(opened)["default_layer"]
    if opened.trace.layers[layer].hidden_nd is not None:
        analysis.projected(opened, layer, "pca")
