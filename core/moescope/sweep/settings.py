"""Settings on top of settings: how a variant changes the base."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from moescope.errors import InputError
from moescope.train.preset import PARTS, for_parts

_WHOLE: Final = re.compile(r"model\.router_config|data\.spec|probe\.spec|(?:objectives|evals)\.[^.]+")
"""Tables that belong together: they are replaced, not merged."""


def nested(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The settings with dotted keys taken apart: `{"optim.lr": 1}` is `{"optim": {"lr": 1}}`."""
    made: dict[str, Any] = {}
    if above.count(".") > 50:
        raise InputError(f"A setting is nested more than 50 deep: {above[:60]}....")
    for dotted, value in settings.items():
        head, _, rest = dotted.partition(".")
        if not head or dotted.endswith("."):
            raise InputError(f"{above + dotted!r} is not a key: write table.key.")
        inner = {rest: value} if rest else value
        if isinstance(inner, Mapping):
            inner = nested(inner, f"{above}{head}.")
        made[head] = _joined(made[head], inner, above + head) if head in made else inner
    return made


def _joined(first: Any, second: Any, key: str) -> Any:
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        raise InputError(f"{key} is set twice: {first!r} and {second!r}.")
    joined = {**first, **second}
    for name in first.keys() & second.keys():
        joined[name] = _joined(first[name], second[name], f"{key}.{name}")
    return joined


def merged(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `settings` on top, nested or by dotted key.

    Tables are merged key by key, except those of one router's, corpus's, objective's or evaluation's options, which are
    replaced whole. Another router, detector, initialiser or acceptor than that of `values` starts from its own default
    options.
    """
    settings = nested(settings)
    chosen = {}
    for dotted in PARTS:
        above, _, key = dotted.partition(".")
        table = settings.get(above)
        chosen[dotted] = table.get(key) if isinstance(table, Mapping) else None
    return _merged(for_parts(values, chosen), settings, "")


def _merged(values: Mapping[str, Any], settings: Mapping[str, Any], above: str) -> dict[str, Any]:
    made = dict(values)
    for key, value in settings.items():
        before = made.get(key)
        made[key] = value
        if isinstance(value, Mapping) and isinstance(before, Mapping) and not _WHOLE.fullmatch(above + key):
            made[key] = _merged(before, value, f"{above}{key}.")
    return made


def difference(here: Any, there: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first setting, by its dotted key, that is not the same on both sides; None where all are."""
    if isinstance(here, Mapping) and isinstance(there, Mapping):
        for name in [*here, *(name for name in there if name not in here)]:
            found = difference(here.get(name), there.get(name), f"{key}.{name}" if key else str(name))
            if found:
                return found
        return None
    if isinstance(here, list | tuple) and isinstance(there, list | tuple) and len(here) == len(there):
        for index, (one, other) in enumerate(zip(here, there, strict=True)):
            if found := difference(one, other, f"{key}[{index}]"):
                return found
        return None
    return None if here == there else (key, here, there)
