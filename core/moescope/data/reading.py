"""Reading the user's files within bounds: plain or gzip, UTF-8, no links out of a folder."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

from moescope.errors import InputError

_PROSE = {".txt", ".text", ".md", ".rst", ".tex", ".adoc", ".org", ".html", ".htm", ".xml", ".css", ".srt", ".vtt"}
_TABLES = {".csv", ".tsv", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".jsonl", ".ndjson", ".conllu", ".conll"}
_C_LIKE = {
    ".c",
    ".h",
    ".cc",
    ".cpp",
    ".cxx",
    ".hh",
    ".hpp",
    ".hxx",
    ".cu",
    ".cuh",
    ".cs",
    ".m",
    ".java",
    ".kt",
    ".scala",
}
_SCRIPTS = {
    ".py",
    ".pyi",
    ".js",
    ".mjs",
    ".ts",
    ".jsx",
    ".tsx",
    ".rb",
    ".pl",
    ".php",
    ".lua",
    ".r",
    ".jl",
    ".sh",
    ".sql",
}
_OTHER_CODE = {".go", ".rs", ".swift", ".fs", ".hs", ".ml", ".ex", ".erl", ".clj", ".lisp", ".f90", ".proto", ".cmake"}
_TEXT_SUFFIXES = frozenset(_PROSE | _TABLES | _C_LIKE | _SCRIPTS | _OTHER_CODE)


def text_files(root: Path, most: int) -> list[Path]:
    """Regular files below a folder that look like text, in order of their names.

    Left out: hidden files and folders, links (which might lead out of the folder), and files with suffixes that are not
    text. Raises `InputError` where there are none or more than `most`.
    """
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        found += [path for name in files if _looks_like_text(path := Path(folder, name))]
        if len(found) > most:
            raise InputError(f"{root}: more than {most:,} text files are below this folder; choose a smaller one.")
    if not found:
        raise InputError(f"{root}: there are no text files below this folder.")
    return sorted(found, key=lambda path: path.relative_to(root).parts)


def _looks_like_text(path: Path) -> bool:
    suffix = (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()
    named = suffix in _TEXT_SUFFIXES or (not suffix and path.name.isupper())
    return named and not path.name.startswith(".") and stat.S_ISREG(path.lstat().st_mode)


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a file; `.gz` is unpacked, and never further than `most_bytes`.

    Raises `InputError` for a file that cannot be read, is damaged, too large, binary or not UTF-8.
    """
    content = _unpacked(path, most_bytes) if path.suffix == ".gz" else _plain(path, most_bytes)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise InputError(f"{path}: the text is UTF-16; save it as UTF-8.") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: byte {content[error.start]:#04x} is not UTF-8.") from None
    if "\0" in text:
        raise InputError(f"{path}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}: a NUL byte; this is no text.")
    return text


def _plain(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}).") from None
    if len(content) > most_bytes:
        raise InputError(f"{path}: the file has more than {most_bytes:,} bytes, which is the most that is read.")
    return content


def _unpacked(path: Path, most_bytes: int) -> bytes:
    try:
        with gzip.open(path, "rb") as file:
            content = file.read(most_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: it is not a whole gzip file ({error}).") from None
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror}).") from None
    if len(content) > most_bytes:
        raise InputError(f"{path}: unpacked it has more than {most_bytes:,} bytes, which is the most that is read.")
    return content


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines from 1, without their ends; only LF, CR LF and CR end a line."""
    return enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1)
