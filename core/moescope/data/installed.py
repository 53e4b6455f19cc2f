"""Text that is on every machine with moescope: source code, headers, documentation, licences and data files."""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from moescope.config import Config, doc
from moescope.data import packages
from moescope.data.base import Document, TextCorpus
from moescope.data.packages import SourceFile
from moescope.data.syntax import syntax_spans
from moescope.data.windows import characters, interleave, windows

Domain = Literal["python", "cpp", "english", "licence", "data"]
DOMAINS: tuple[Domain, ...] = ("python", "cpp", "english", "licence", "data")
_LARGEST_FILE = 200_000
_LARGEST_DATA = 4_000_000
_LONG_LINE = re.compile(r"[^\n]{1000}")
_RUN = 8
_REPEATS = 0.6
_LICENCE = re.compile(r"(?!.*\.(py|pyi|h|js|json)$).*(licen[cs]e|copying|notice)[^/]*$", re.IGNORECASE)
_DATA_SUFFIXES = (".json", ".yaml", ".yml")
_TESTS = re.compile(r"(^|/)(tests?|testing)/")


@dataclass(frozen=True, kw_only=True)
class InstalledConfig(Config):
    """Which of the installed text, and how it is cut."""

    domains: tuple[Domain, ...] = field(
        default=DOMAINS, metadata=doc("kinds of text, each with an equal share of the characters")
    )
    split: Literal["all", "train", "held_out"] = field(
        default="all", metadata=doc("files are train or held out for good, by a hash")
    )
    held_out: float = field(default=0.1, metadata=doc("share of the files that is held out"))
    max_characters: int = field(
        default=1500, metadata=doc("longer files are cut into windows of at most this, at line breaks")
    )
    min_characters: int = field(default=200, metadata=doc("shorter windows are left out"))
    package_cap: int = field(default=300_000, metadata=doc("most characters that one package gives to one domain"))
    seed: int = field(default=0, metadata=doc("order of the files"))

    def __post_init__(self) -> None:
        self.require(0 < len(self.domains) == len(set(self.domains)), "domains", "at least one, each once")
        self.require(0 < self.held_out < 1, "held_out", "must lie between 0 and 1")
        self.require(self.max_characters >= 100, "max_characters", "must be at least 100")
        self.require(
            0 < self.min_characters <= self.max_characters,
            "min_characters",
            "must be positive and at most max_characters",
        )
        self.require(self.package_cap > 0, "package_cap", "must be positive")


class InstalledCorpus(TextCorpus):
    """Domains interleaved by characters, packages interleaved within a domain: any prefix holds a fair share of each.

    Labels: `domain` and `package` (documents), `syntax` (tokens of Python documents, by `tokenize`). Documents come in
    an order that depends on names and the seed only. No text is in two domains: of the Python files, a fixed third
    gives its docstrings to `english` and the rest its source to `python`. Windows of licences that mostly repeat one
    that came before (by runs of eight words) are left out; as a few files hold most of them, they are held out window
    by window, everything else file by file.
    """

    Config = InstalledConfig
    interleaved = True
    description = "Source code, C++ headers, English documentation, licences and data files that are on this machine"

    config: InstalledConfig

    def documents(self) -> Iterator[Document]:
        distributed = [file for name in packages.installed_distributions() for file in packages.package_files(name)]
        untested = [file for file in distributed if not _TESTS.search(file.name)]
        source = [*packages.standard_library(), *(file for file in untested if file.name.endswith(".py"))]
        make: dict[Domain, Callable[[], Iterable[_Lazy]]] = {
            "python": lambda: [_Lazy(file, _python_source) for file in source if _hash(-2, file.id) % 3],
            "cpp": lambda: [_Lazy(file, _plain) for file in packages.torch_headers()],
            "english": lambda: [
                *(_Lazy(file, _docstrings) for file in source if not _hash(-2, file.id) % 3),
                *_topics(),
            ],
            "licence": lambda: _licences(distributed, self.config.max_characters),
            "data": lambda: [_Lazy(file, _plain) for file in untested if _is_data(file)],
        }
        return interleave((self._domain(domain, make[domain]()) for domain in self.config.domains), characters)

    def _domain(self, domain: Domain, found: Iterable[_Lazy]) -> Iterator[Document]:
        by_package: dict[str, list[_Lazy]] = {}
        for item in found:
            if self._wanted(item.file.id):
                by_package.setdefault(item.file.package, []).append(item)
        order = sorted(by_package, key=lambda package: _hash(self.config.seed, package))
        sources = (self._package(domain, package, by_package[package]) for package in order)
        return interleave(sources, characters, cap=self.config.package_cap)

    def _package(self, domain: Domain, package: str, items: list[_Lazy]) -> Iterator[Document]:
        for item in sorted(items, key=lambda item: _hash(self.config.seed, item.file.id)):
            read = item.read(item.file)
            if read is None:
                continue
            labelled = Document(read.id, read.text, {"domain": domain, "package": package}, read.spans)
            cut = windows(labelled, self.config.max_characters)
            long_enough = [window for window in cut if len(window.text) >= self.config.min_characters]
            yield from sorted(long_enough, key=lambda window: _hash(self.config.seed, window.id))

    def _wanted(self, name: str) -> bool:
        held_out = _hash(-1, name) < self.config.held_out * 2**64
        return self.config.split == "all" or held_out == (self.config.split == "held_out")


@dataclass(frozen=True)
class _Lazy:
    """A file and how to read it when its turn comes; None where it holds nothing of use."""

    file: SourceFile
    read: Callable[[SourceFile], Document | None]


def _hash(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest(), "big")


def _is_data(file: SourceFile) -> bool:
    return file.name.endswith(_DATA_SUFFIXES) and ".dist-info/" not in file.name


def _read(file: SourceFile, largest: int = _LARGEST_FILE) -> str | None:
    """The text of a file; None where it is too large, not UTF-8, generated, or has very long lines."""
    try:
        with Path(file.path).open("rb") as opened:
            content = opened.read(largest + 1)
        if len(content) > largest:
            return None
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, UnicodeDecodeError):
        return None
    if "@generated" in text[:500] or "\0" in text or _LONG_LINE.search(text):
        return None
    return text


def _plain(file: SourceFile) -> Document | None:
    text = _read(file, _LARGEST_DATA if file.name.endswith(_DATA_SUFFIXES) else _LARGEST_FILE)
    return None if text is None else Document(file.id, text)


def _python_source(file: SourceFile) -> Document | None:
    text = _read(file)
    spans = None if text is None else syntax_spans(text)
    return None if text is None or spans is None else Document(file.id, text, {}, {"syntax": spans})


def _docstrings(file: SourceFile) -> Document | None:
    """The prose of a module's docstrings, paragraph by paragraph."""
    text = _read(file)
    if text is None or text.count('"""') < 4:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return None
    return _prose_document(file.id, "\n\n".join(_docstrings_in(tree)))


def _docstrings_in(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    found = ast.get_docstring(node)
    if found:
        yield found
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings_in(child)


def _licences(files: Iterable[SourceFile], max_characters: int) -> Iterator[_Lazy]:
    """Windows of licences, near-duplicates left out; read at once, as what repeats depends on all that came before."""
    seen: set[str] = set()
    for file in files:
        document = _plain(file) if _LICENCE.match(file.name) else None
        for window in windows(document, max_characters) if document else ():
            words = re.findall(r"[a-z]+", window.text.lower())
            runs = {" ".join(words[i : i + _RUN]) for i in range(max(1, len(words) - _RUN + 1))}
            repeats = len(runs & seen) > _REPEATS * len(runs)
            seen |= runs
            if not repeats:
                part = SourceFile(file.package, window.id.removeprefix(f"{file.package}/"), file.path)
                yield _Lazy(part, partial(_given, window))


def _given(document: Document, _: SourceFile) -> Document:
    return document


def _topics() -> Iterator[_Lazy]:
    """The language reference that `help()` shows."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name in sorted(topics):
        document = _prose_document(f"stdlib/topics/{name}", inspect.cleandoc(topics[name]))
        if document is not None:
            yield _Lazy(SourceFile("stdlib", f"topics/{name}", ""), partial(_given, document))


def _prose_document(name: str, text: str) -> Document | None:
    prose = [part.strip("\n") for part in re.split(r"\n\s*\n", text) if _is_prose(part)]
    prose = list(dict.fromkeys(prose))
    return Document(name, "\n\n".join(prose) + "\n") if prose else None


def _is_prose(paragraph: str) -> bool:
    """Whether a paragraph is sentences: long enough, nearly all letters, no doctest or markup, ends like one."""
    stripped = paragraph.strip()
    plain = sum(c.isalpha() or c in " ,.'\n" for c in stripped)
    markup = any(mark in stripped for mark in (">>>", "```", "::", "http", " = ", "|", "---"))
    return len(stripped) >= 80 and plain > 0.93 * len(stripped) and not markup and stripped[-1] in ".:;!?"
