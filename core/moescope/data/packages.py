"""Finding the files that come with moescope: the standard library and the packages that moescope depends on."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NOT_EVERYWHERE = frozenset(
    # Distributions of Python leave these out, or keep them in packages of their own.
    {
        "test",
        "tests",
        "idlelib",
        "tkinter",
        "turtledemo",
        "lib2to3",
        "distutils",
        "ensurepip",
        "pydoc_data",
        "encodings",
    }
    | {"site-packages", "dist-packages", "__pycache__", "idle_test", "lib-dynload"}
)


@dataclass(frozen=True, order=True)
class SourceFile:
    """One file of a package. `name` is its path inside the package, with forward slashes."""

    package: str
    name: str
    path: str

    @property
    def id(self) -> str:
        return f"{self.package}/{self.name}"


def standard_library() -> list[SourceFile]:
    """Python files of the standard library, without tests; a folder `email` is the package `stdlib.email`."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_EVERYWHERE and not name.startswith("config-")]
        relative = Path(folder).relative_to(root)
        package = f"stdlib.{relative.parts[0]}" if relative.parts else "stdlib"
        found += [SourceFile(package, (relative / f).as_posix(), f"{folder}/{f}") for f in files if f.endswith(".py")]
    return sorted(found)


def installed_distributions(root: str = "moescope") -> list[str]:
    """Names of everything that `root` needs and that is installed, in order, `root` itself left out."""
    seen: set[str] = set()
    todo = [root]
    while todo:
        name = _normal(todo.pop())
        if name in seen:
            continue
        try:
            requires = importlib.metadata.distribution(name).requires or []
        except importlib.metadata.PackageNotFoundError:
            continue
        seen.add(name)
        todo += [match.group() for item in requires if "extra ==" not in item and (match := re.match(r"[\w.-]+", item))]
    return sorted(seen - {_normal(root)})


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def package_files(name: str) -> list[SourceFile]:
    """Every file that a distribution installed, sorted by name; nothing where the installer kept no record."""
    distribution = importlib.metadata.distribution(name)
    root = str(distribution.locate_file(""))
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    names = sorted(
        row[0] for row in rows if row and not row[0].startswith(("../", "/")) and "__pycache__" not in row[0]
    )
    return [SourceFile(name, file, f"{root}/{file}") for file in names]


def torch_headers() -> list[SourceFile]:
    """C++ headers shipped with torch, found without importing it; `include/c10/...` is the package `torch.c10`."""
    spec = importlib.util.find_spec("torch")
    roots = list(spec.submodule_search_locations or []) if spec else []
    return sorted(file for root in roots for file in _headers(Path(root, "include")))


def _headers(root: Path) -> Iterator[SourceFile]:
    for folder, _, files in os.walk(root):
        parts = Path(folder).relative_to(root).parts
        package = ".".join(("torch", *parts[:1]))
        for name in files:
            if name.endswith((".h", ".hpp", ".cuh")):
                yield SourceFile(package, "/".join((*parts, name)), f"{folder}/{name}")
