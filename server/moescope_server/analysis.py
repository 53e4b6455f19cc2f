"""What is computed about a trace: figures, measures, cards. Computed once, kept in memory and on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import json
import os
import threading
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moescope.errors import InputError
from moescope.store import NotFoundError, Store
from moescope_server.memo import Memo
from moescope_server.traces import OpenTrace
from moescope_server.wire import encode

if TYPE_CHECKING:
    from moescope.metrics import Measurement
    from moescope.projection import Method, Progress, Projection

_FIGURE_BYTES = 96 << 20

POINT_DRAWS = 40
"""Draws from the null and for the interval of a measure in a series: a band and a bar, not a test."""


class Analysis:
    """Derived values of traces. Figures are JSON bytes in memory; measures are files in the home's cache."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._figures: Memo[bytes] = Memo(_FIGURE_BYTES, len)
        self._values: Memo[Any] = Memo(512)
        self._digests: Memo[str] = Memo(256)

    def digest(self, opened: OpenTrace) -> str:
        """A hash of the trace's content."""

        def make() -> str:
            with Path(opened.stamp[0]).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

        return self._digests.get(opened.stamp, make)

    def measurements(self, opened: OpenTrace) -> list[dict[str, Any]]:
        """Every measure of every layer, as plain values."""
        key = hashlib.sha256(f"{self.digest(opened)} {_code('moescope.metrics')}".encode()).hexdigest()
        file = self.store.home / "cache" / "metrics" / f"{key}.json"

        def make() -> list[dict[str, Any]]:
            if not file.is_file():
                from moescope.metrics import measure

                _keep(file, [dataclasses.asdict(item) for item in measure(opened.trace)])
            kept: list[dict[str, Any]] = json.loads(file.read_bytes())
            return kept

        found: list[dict[str, Any]] = self._values.get(("measurements", key), make)
        return found

    def value(self, opened: OpenTrace, name: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """`make()`, kept as long as the trace's file is the same."""
        return self._values.get((opened.stamp, name), make)

    def figure(self, key: tuple[Any, ...], make: Callable[[], Any]) -> bytes:
        """The JSON of the plotly figure that `make` returns."""

        def encoded() -> bytes:
            text: str = make().to_json(validate=False)
            return text.encode()

        return self._figures.get(key, encoded)

    def mutual_information(self, opened: OpenTrace) -> list[Any]:
        """What the routing says about each label, without intervals: quick enough for the first picture."""

        def make() -> list[Any]:
            from moescope.metrics import measure

            return measure(opened.trace, ["mutual_information"], bootstrap=0)

        found: list[Any] = self.value(opened, ("mutual_information",), make)
        return found

    def overview(self, opened: OpenTrace) -> dict[str, Any]:
        """What the page shows first: colours, the layer and label that tell most, and findings."""
        found: dict[str, Any] = self.value(opened, ("overview",), lambda: self._overview(opened))
        return found

    def _overview(self, opened: OpenTrace) -> dict[str, Any]:
        from moescope.figures.cards import defaults, findings
        from moescope.figures.palette import label_colours, layer_colours

        trace, measured = opened.trace, self.mutual_information(opened)
        layer, label = defaults(trace, measured)
        return {
            "palette": {layer: layer_colours(trace, layer) for layer in trace.layer_ids},
            "label_palette": {name: label_colours(labels.names) for name, labels in trace.labels.items()},
            "default_layer": layer,
            "default_label": label,
            "findings": findings(trace, measured),
        }

    def expert(self, opened: OpenTrace, layer: int, expert: int) -> dict[str, Any]:
        """The expert card."""
        from moescope.figures.cards import expert_card

        layer = opened.layer(layer)
        found: dict[str, Any] = self.value(
            opened, ("expert", layer, expert), lambda: expert_card(opened.trace, layer, expert)
        )
        return found

    def answers(self, opened: OpenTrace) -> dict[int, dict[int, str]]:
        """What each expert of each layer responds to, in two words."""
        from moescope.figures.cards import answers

        found: dict[int, dict[int, str]] = self.value(opened, ("answers",), lambda: answers(opened.trace))
        return found

    def point(self, opened: OpenTrace, layer: int, names: tuple[str, ...]) -> list[Measurement]:
        """Some measures of one layer with few draws, as a point of a series; kept on disk."""
        from moescope.metrics import Measurement, measure

        few = f"{self.digest(opened)} {_code('moescope.metrics')} {layer} {names} {POINT_DRAWS}"
        file = self.store.home / "cache" / "metrics" / f"{hashlib.sha256(few.encode()).hexdigest()}.json"

        def make() -> list[Measurement]:
            if not file.is_file():
                found = measure(opened.trace, names, [layer], permutations=POINT_DRAWS, bootstrap=POINT_DRAWS)
                _keep(file, [dataclasses.asdict(item) for item in found])
            return [Measurement(**item) for item in json.loads(file.read_bytes())]

        found: list[Measurement] = self.value(opened, ("point", layer, names), make)
        return found

    def project(
        self,
        opened: OpenTrace,
        layer: int,
        method: Method,
        progress: Progress | None = None,
        *,
        after: Projection | None = None,
    ) -> Projection:
        """Positions of the sampled tokens in the plane; kept on disk. Raises `InputError` if no vectors were kept."""
        from moescope.projection import project

        folder = self.store.home / "cache" / "projections"
        return project(_vectors(opened, layer), method, cache=folder, progress=progress, after=after)

    def projected(
        self, opened: OpenTrace, layer: int, method: Method, *, after: Projection | None = None
    ) -> Projection | None:
        """The same if it is quick: PCA, or what is on disk already; else None."""
        from moescope.projection import cached_projection

        since = None if after is None else after.key
        if method == "pca":
            quick: Projection = self.value(
                opened, ("pca", layer, since), lambda: self.project(opened, layer, "pca", after=after)
            )
            return quick
        folder = self.store.home / "cache" / "projections"
        return cached_projection(_vectors(opened, layer), method, cache=folder, after=after)


def _keep(file: Path, value: Any) -> None:
    """Write JSON; the file appears complete or not at all."""
    partial = file.with_name(f".{file.stem}.{os.getpid()}.{threading.get_ident()}.partial")
    partial.write_bytes(encode(value))
    partial.replace(file)


def parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def accepted(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given; one that the function does not take is refused."""
    known = parameters(function)
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in known:
            raise InputError(f"This figure has no option {name!r}.")
    return given


def figure_function(name: str) -> Callable[..., Any]:
    from moescope.figures import FIGURES

    if name not in FIGURES:
        raise NotFoundError(f"There is no figure {name!r}; there are {', '.join(FIGURES)}.")
    function: Callable[..., Any] = FIGURES[name]
    return function


def _vectors(opened: OpenTrace, layer: int) -> np.ndarray:
    vectors = opened.trace.layers[layer].hidden_nd
    if vectors is None or opened.trace.sample is None:
        raise InputError(f"This trace kept no hidden vectors of layer {layer}, so there is nothing to place on a map.")
    return vectors


@cache
def _code(package: str) -> str:
    """A hash of a package's source, so that what an older version computed is not taken for its own."""
    folder = Path(str(importlib.import_module(package).__file__)).parent
    seen = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        seen.update(file.read_bytes())
    return seen.hexdigest()
