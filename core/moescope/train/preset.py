"""The bundled run configurations, read without torch: listing them must cost nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moescope.errors import InputError

FOLDER: Final = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A run configuration with a name: `seconds` is about its time on two CPU cores, `config` its plain values."""

    name: str
    title: str
    description: str
    seconds: int
    config: Mapping[str, Any]


def preset_names() -> tuple[str, ...]:
    """Names of the bundled presets, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_preset(name_or_file: str | Path) -> Preset:
    """A bundled preset by its name, or a TOML file of the same form (`title`, `description`, `seconds` are optional).

    Raises `InputError` for a name that is neither, and for a file that is not TOML.
    """
    names = preset_names()
    path = FOLDER / f"{name_or_file}.toml" if str(name_or_file) in names else Path(name_or_file)
    if not path.is_file():
        raise InputError(f"{name_or_file} is neither a preset ({', '.join(names)}) nor a file.")
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not TOML: {error}.") from None
    card = {
        key: values.pop(key, default) for key, default in (("title", path.stem), ("description", ""), ("seconds", 0))
    }
    for key, kind in (("title", str), ("description", str), ("seconds", int)):
        if not isinstance(card[key], kind):
            raise InputError(
                f"{path.name}: {key} = {card[key]!r} is not {'text' if kind is str else 'a whole number'}."
            )
    return Preset(name=path.stem, config=values, **card)


def presets() -> dict[str, Preset]:
    """Every bundled preset by name."""
    return {name: read_preset(name) for name in preset_names()}


PARTS: Final = ("model.router", "expansion.detector", "expansion.initialiser", "expansion.acceptor")
"""Settings that name an entry of a registry; its options stand beside it, `model.router_config` and so on."""


_DEEPEST: Final = 50
"""Tables within tables that a key may lead through; no configuration has nearly as many."""


def for_parts(values: Mapping[str, Any], chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """`values` for the `PARTS` that are `chosen`: the options that stand there stay only if they are the part's own."""
    for dotted, name in chosen.items():
        above, _, key = dotted.partition(".")
        table = values.get(above)
        if name is not None and isinstance(table, Mapping) and table.get(key) != name:
            values = {**values, above: {**table, f"{key}_config": {}}}
    return values


def override(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with dotted keys set: `{"optim.lr": 1e-3}`. Another router, detector, initialiser or acceptor starts
    from its own default options.

    Raises `InputError` where a key leads through a value.
    """
    return _override(for_parts(values, {part: overrides.get(part) for part in PARTS}), overrides, "")


def _override(values: Mapping[str, Any], overrides: Mapping[str, Any], above: str) -> dict[str, Any]:
    changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for dotted, value in overrides.items():
        head, _, rest = dotted.partition(".")
        if not head or dotted.endswith(".") or dotted.count(".") > _DEEPEST:
            shown = above + dotted if len(above + dotted) <= 200 else f"{(above + dotted)[:200]}..."
            raise InputError(f"{shown!r} is not a key: write table.key=value.")
        if not rest:
            changed[head] = value
            continue
        table = changed.get(head, {})
        if not isinstance(table, Mapping):
            raise InputError(f"{above}{dotted} cannot be set: {above}{head} is {table!r}, not a table.")
        changed[head] = _override(table, {rest: value}, f"{above}{head}.")
    return changed


def parse_override(text: str) -> tuple[str, Any]:
    """`"optim.lr=1e-3"` as key and value. The value is TOML, or `none`; another bare word is a string."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise InputError(f"{text!r} sets nothing: write key=value.")
    if value == "none":
        return key, None
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value
