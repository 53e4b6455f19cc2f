"""Names and archives that others chose: nothing leaves its folder, and bytes are counted while they are read."""

from __future__ import annotations

import copy
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from moescope.errors import InputError
from moescope.files.json_files import MIB, shown

WANTED_SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".md", ".jinja", ".model", ".toml"})
PICKLE_SUFFIXES: Final = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".distcp", ".metadata"}
)


def safe_relative(name: str) -> PurePosixPath:
    """A name that someone else chose, as a path that stays below the folder it is joined to. Raises `InputError`."""
    what = f"the file name {shown(name)}"
    what = f"the file name {shown(name)}"
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{what} is not valid Unicode.") from None
    if not name.strip() or len(encoded) > 1024:
        raise InputError(f"{what} is empty or too long.")
    if "\\" in name or ":" in name or any(ord(char) < 32 or ord(char) == 127 for char in name):
        raise InputError(f"{what} holds a backslash, a colon or a control character, which none may.")
    if name.startswith("/"):
        raise InputError(f"{what} is an absolute path; only names below the checkpoint's folder are accepted.")
    parts = [part for part in name.split("/") if part]
    if ".." in parts:
        raise InputError(f"{what} points outside the checkpoint's folder.")
    parts = [part for part in parts if part != "."]
    if not parts or len(parts) > 16 or any(len(part.encode("utf-8")) > 255 for part in parts):
        raise InputError(f"{what} is empty, too long or too deep.")
    return PurePosixPath(*parts)


def wanted(name: PurePosixPath) -> bool:
    """Whether a checkpoint needs a file of this name; others are left out. Raises `InputError` for pickles."""
    suffix = name.suffix.lower() or (name.name.lower() if name.name.startswith(".") else "")
    if suffix in PICKLE_SUFFIXES:
        why = "is a pickle by its name; pickles can run code and are never opened: save it as safetensors"
        raise InputError(f"{shown(name.name)} {why}.")
    hidden = name.parts[0] == "__MACOSX" or name.name.startswith(".")
    return not hidden and suffix in WANTED_SUFFIXES


@dataclass(frozen=True, kw_only=True)
class ArchiveLimits:
    """What an archive may expand to: `files` members, bytes each and in all, and times its own size."""

    files: int = 2_000
    each: int = 8 << 30
    total: int = 16 << 30
    ratio: int = 200
    ratio_floor: int = 64 * MIB
    """Below this many bytes in all the ratio does not matter."""


def extract_archive(source: str | Path, into: Path, limits: ArchiveLimits | None = None) -> list[Path]:
    """Extract the files that a checkpoint needs from a zip into the folder `into`, and return their paths.

    Every member is checked, wanted or not. Bytes are counted while they are read, because declared sizes lie. Members
    of types that a checkpoint does not need are left out. Raises `InputError`; call it inside `staged`, so that
    nothing stays behind.
    """
    source = Path(source)
    limits = limits or ArchiveLimits()
    budget = min(limits.total, max(limits.ratio * source.stat().st_size, limits.ratio_floor))
    made: list[Path] = []
    try:
        _check_directory(source, limits)
        with zipfile.ZipFile(source) as archive:
            for info, name in _members(archive, source.name, limits):
                if not wanted(name):
                    continue
                target = into.joinpath(*name.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                limit = min(limits.each, budget)
                unbound = copy.copy(info)
                unbound.file_size = 1 << 62  # zipfile cuts a member at its declared size; here the excess must show
                with archive.open(unbound) as member, target.open("xb") as file:
                    budget -= _copy(member, file, source.name, info, limit)
                made.append(target)
    except InputError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, struct.error, ValueError) as error:
        raise InputError(f"{source.name} is not a zip archive that can be read: {shown(error, quote=False)}.") from None
    except zlib.error as error:
        raise InputError(f"{source.name} is damaged: {shown(error, quote=False)}.") from None
    return made


def _check_directory(source: Path, limits: ArchiveLimits) -> None:
    """Refuse a list of members that is too long before zipfile reads all of it into memory."""
    with source.open("rb") as file:
        tail_start = max(source.stat().st_size - (1 << 16) - 128, 0)
        file.seek(tail_start)
        tail = file.read()
    for magic, layout, offset in ((b"PK\x05\x06", "<I", 12), (b"PK\x06\x06", "<Q", 40)):
        at = tail.find(magic)
        while at >= 0:
            field = tail[at + offset : at + offset + struct.calcsize(layout)]
            size = struct.unpack(layout, field)[0] if len(field) == struct.calcsize(layout) else 0
            if limits.files * 2048 < size != 0xFFFFFFFF:
                raise InputError(f"{source.name} lists too many members: its directory takes {size:,} bytes.")
            at = tail.find(magic, at + 1)


def _members(
    archive: zipfile.ZipFile, source: str, limits: ArchiveLimits
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    infos = archive.infolist()
    if len(infos) > limits.files:
        raise InputError(f"{source} holds {len(infos):,} members, more than the {limits.files:,} allowed.")
    members: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
    seen: dict[str, bool] = {}
    for info in infos:
        name = safe_relative(info.orig_filename)
        kind = stat.S_IFMT(info.external_attr >> 16)
        what = f"{source}: member {shown(info.orig_filename)}"
        if kind == stat.S_IFLNK:
            raise InputError(f"{what} is a symbolic link; links are not accepted.")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{what} is a device, pipe or socket, not a file.")
        if info.flag_bits & 0x1:
            raise InputError(f"{what} is encrypted.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{what} is compressed in another way than deflate, which zip files for upload must use.")
        folder = info.is_dir() or kind == stat.S_IFDIR
        key = str(name).casefold()
        if key in seen and not (folder and seen[key]):
            raise InputError(f"{source} holds {shown(str(name))} twice.")
        seen[key] = folder
        if not folder:
            members.append((info, name))
    for _, name in members:
        if any(seen.get(str(parent).casefold()) is False for parent in name.parents):
            raise InputError(f"{source}: {shown(str(name))} lies below a file.")
    return members


def _copy(member: IO[bytes], file: IO[bytes], source: str, info: zipfile.ZipInfo, limit: int) -> int:
    what = f"{source}: member {shown(info.filename)}"
    count = 0
    while chunk := member.read(MIB):
        count += len(chunk)
        if count > info.file_size:
            raise InputError(f"{what} declares {info.file_size:,} bytes but expands to more.")
        if count > limit:
            raise InputError(f"{what} expands to more than is allowed: it looks like a zip bomb.")
        file.write(chunk)
    if count != info.file_size:
        raise InputError(f"{what} declares {info.file_size:,} bytes but holds {count:,}.")
    return count
