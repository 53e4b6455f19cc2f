"""Frozen, keyword-only dataclasses as configuration: parsed, validated, and described as JSON schema by pydantic."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Final, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from moescope.errors import InputError

C = TypeVar("C", bound="Config")

_LONGEST: Final = 200
"""Characters of a refused value that an error quotes."""


class _Validated(type):
    """Building a Config from Python checks its values as parsing does: a misspelt option must not pass for another."""

    def __call__(cls, *args: Any, **values: Any) -> Any:
        return super().__call__(*args, **values) if args else _validated(cls, values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(metaclass=_Validated):
    """Base of every configuration: unknown fields are refused, values are checked against their annotations.

    A subclass adds checks in `__post_init__` with `require`, and documents each field with `doc` as its metadata:
    `field(default=2, metadata=doc("experts per token"))`; the text becomes the help in the browser's form.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    def require(self, ok: bool, name: str, why: str) -> None:
        """Raise `InputError` naming the field and its value unless `ok`."""
        if not ok:
            raise InputError(f"{type(self).__name__}.{name} = {_shown(getattr(self, name))}: {why}")


def doc(text: str) -> dict[str, str]:
    """Field metadata that carries the field's help text."""
    return {"description": text}


def parse(cls: type[C], values: Mapping[str, Any]) -> C:
    """Build `cls` from plain values (as from TOML or JSON). Raises `InputError` in one sentence for the first fault."""
    built: C = _validated(cls, values)
    return built


@functools.cache
def _adapter(cls: type) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def _validated(cls: type, values: Mapping[str, Any]) -> Any:
    _refuse_huge(cls.__name__, values, 0)
    try:
        return _adapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise cause from None
        where = ".".join(str(part) for part in first["loc"])[:_LONGEST]
        value = first.get("input")
        shown = f" = {_shown(value)}" if where and not isinstance(value, (dict, list)) else ""
        raise InputError(f"{cls.__name__}{'.' if where else ''}{where}{shown}: {first['msg']}") from None


def _shown(value: Any) -> str:
    """A value as a sentence can quote it."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _refuse_huge(where: str, value: Any, depth: int) -> None:
    """Whole numbers beyond 2^53 fit neither JSON nor a database, and count nothing that a configuration counts."""
    if depth > 50:
        raise InputError(f"{where[:60]}... is nested more than 50 deep.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_huge(f"{where}.{key}", item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_huge(where, item, depth + 1)
    elif isinstance(value, int) and abs(value) > 2**53:
        raise InputError(f"{where} is a number of {value.bit_length()} bits; whole numbers go up to 2^53.")


def dump(config: Config) -> dict[str, Any]:
    """The configuration as plain values; `parse(type(config), dump(config)) == config`."""
    plain: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def schema(cls: type[Config]) -> dict[str, Any]:
    """JSON schema of `cls`, with each field's help text."""
    described = TypeAdapter(cls).json_schema()
    properties = described.get("properties", {})
    for item in dataclasses.fields(cls):
        if item.name in properties and "description" in item.metadata:
            properties[item.name].setdefault("description", item.metadata["description"])
    return described
