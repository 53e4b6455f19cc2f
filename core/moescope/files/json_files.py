"""JSON from others: capped in size and depth, strict, without duplicate names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from moescope.errors import InputError

MIB = 1 << 20


def shown(value: object, *, quote: bool = True) -> str:
    """A value from a file as it may stand in a sentence: one line, at most 80 characters."""
    text = repr(value) if quote else " ".join(str(value).split())
    return text if len(text) <= 80 else text[:60] + "..." + text[-17:]


def read_json(path: str | Path, *, limit: int = 16 * MIB, depth: int = 32) -> Any:
    """Parse a JSON file of at most `limit` bytes, nested at most `depth` deep, without duplicate names.

    Raises `InputError`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path.name}: there is no such file.")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise InputError(f"{path.name} is larger than the {limit:,} bytes allowed for it.")
    plain = parse_json(content, path.name)
    if _deeper_than(plain, depth):
        raise InputError(f"{path.name} is nested more than {depth} levels deep.")
    return plain


def parse_json(content: bytes, what: str) -> Any:
    """Parse JSON strictly: no duplicate names, no NaN or infinity. Raises `InputError` that begins with `what`."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(items)
        if len(made) != len(items):
            seen: set[str] = set()
            twice = next(name for name, _ in items if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InputError(f"{what} names {shown(twice)} twice.")
        return made

    def constant(text: str) -> NoReturn:
        raise InputError(f"{what} holds {text}, which is not JSON.")

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except InputError:
        raise
    except RecursionError:
        raise InputError(f"{what} is nested too deep to be read.") from None
    except ValueError as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InputError(f"{what} is not valid JSON: {shown(reason, quote=False)}.") from None


def _deeper_than(plain: Any, depth: int) -> bool:
    level = [plain]
    for _ in range(depth):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return False
    return any(isinstance(item, (dict, list)) for item in level)
