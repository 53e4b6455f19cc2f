"""Uploads: streamed to staging, checked, then moved into place. After a refusal nothing is left."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from moescope.errors import InputError
from moescope.files import ArchiveLimits, extract_archive, read_header, safe_relative, wanted
from moescope.store import CheckpointRow, Store, TraceRow
from moescope.store.ids import new_id

_CHUNK = 1 << 20
_MAX_FILES = 2_000


class _Receiver:
    """Writes each file of a multipart body below `folder` as it comes in; other fields are ignored."""

    def __init__(self, boundary: bytes, folder: Path) -> None:
        self.folder = folder
        self.files: list[Path] = []
        self.received = 0
        self.ended = False
        self._seen: set[str] = set()
        self._file: IO[bytes] | None = None
        self._field, self._value, self._disposition = b"", b"", b""
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._part_begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._part_data,
                "on_part_end": self.close,
                "on_end": self._end,
            },
        )

    def write(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def finish(self) -> None:
        self._parser.finalize()
        if not self.ended:
            raise FormParserError("the last boundary is missing")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _end(self) -> None:
        self.ended = True

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value
        self._field, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options or options.get(b"name") != b"files":
            return
        try:
            name = safe_relative(options[b"filename"].decode("utf-8"))
        except UnicodeDecodeError:
            raise InputError("A file's name is not valid UTF-8.") from None
        self.received += 1
        if self.received > _MAX_FILES:
            raise InputError(f"The upload has more than {_MAX_FILES:,} files.")
        if str(name).casefold() in self._seen:
            raise InputError(f"The upload has two files named {str(name)!r}.")
        self._seen.add(str(name).casefold())
        if name.suffix.lower() != ".zip" and not wanted(name):
            return  # its bytes are read and forgotten
        target = self.folder.joinpath(*name.parts)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._file = target.open("xb")
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"The upload has both a file and a folder named like {str(name)!r}.") from None
        self.files.append(target)

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])


async def receive(request: Request, folder: Path) -> list[Path]:
    """The files of the request's body, written below `folder` while it is read. Raises `InputError`."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InputError("An upload must be multipart/form-data with its files in the field 'files'.")
    try:
        receiver = _Receiver(boundary, folder)
    except FormParserError:
        raise InputError(f"The upload's boundary is {len(boundary):,} bytes long, which multipart forbids.") from None
    try:
        async for chunk in _large_chunks(request.stream()):
            await run_in_threadpool(receiver.write, chunk)
        await run_in_threadpool(receiver.finish)
    except FormParserError:
        raise InputError("The upload is not valid multipart/form-data, or it was cut off.") from None
    except OSError as error:
        raise InputError(f"The upload cannot be stored: {error.strerror}.") from None
    finally:
        receiver.close()
    if not receiver.received:
        raise InputError("The upload holds no file.")
    return receiver.files


async def _large_chunks(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    gathered = bytearray()
    async for chunk in stream:
        gathered += chunk
        if len(gathered) >= _CHUNK:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered)


async def take_upload(request: Request, store: Store, max_bytes: int) -> CheckpointRow | TraceRow:
    """Receive, check and register one upload. Raises `InputError`; then nothing of it is left."""
    _check_space(store, request)
    work = store.staging / f"upload-{uuid.uuid4().hex[:12]}"
    work.mkdir()
    try:
        files = await receive(request, work)
        return await run_in_threadpool(_register, store, work, files, max_bytes)
    finally:
        await run_in_threadpool(shutil.rmtree, work, ignore_errors=True)


def _check_space(store: Store, request: Request) -> None:
    length = request.headers.get("content-length", "0")
    free = shutil.disk_usage(store.home).free
    if length.isdigit() and int(length) > free - (64 << 20):
        raise InputError(f"The upload needs {int(length):,} bytes and the disk of the home folder has {free:,} left.")


def _register(store: Store, work: Path, files: list[Path], max_bytes: int) -> CheckpointRow | TraceRow:
    if not files:
        raise InputError("No uploaded file belongs to a checkpoint: that is a config.json with safetensors.")
    if len(files) == 1 and files[0].suffix.lower() == ".safetensors":
        return _register_single(store, files[0])
    name = ""
    for archive in [file for file in files if file.suffix.lower() == ".zip"]:
        if len(files) > 1:
            raise InputError("Upload a zip archive alone, without other files beside it.")
        name = archive.stem
        extract_archive(archive, work / "archive", ArchiveLimits(total=max_bytes, each=max_bytes))
        archive.unlink()
    return _register_folder(store, work, name)


def is_trace(file: Path) -> bool:
    """Whether a safetensors file says that it is a trace. Raises `InputError` if it is no safetensors file."""
    return "moescope_trace" in read_header(file).metadata


def _register_single(store: Store, file: Path) -> TraceRow:
    """A lone safetensors file may be a trace; weights alone do not say what model they are of."""
    if not is_trace(file):
        raise InputError(
            f"{file.name} holds weights without a config.json, which says what model they are of: "
            "upload the checkpoint's whole folder or a zip of it."
        )
    id, target = store.new_trace_path(file.stem)
    file.replace(target)
    try:
        return store.add_trace(target, file.stem, "upload", id=id)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _register_folder(store: Store, work: Path, name: str) -> CheckpointRow:
    from moescope.adapters import inspect_checkpoint

    root = _root(work)
    if root != work and root.name != "archive":
        name = root.name
    card = inspect_checkpoint(root, weights=True)
    name = name or f"{card.family} checkpoint"
    id = new_id(name)
    target = store.home / "checkpoints" / id
    root.rename(target)
    try:
        return store.add_checkpoint(target, name, "upload", id=id)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _root(folder: Path) -> Path:
    """Where the config.json is: the folder itself, or the one folder in it, and so on down."""
    while not (folder / "config.json").is_file():
        inside = list(folder.iterdir())
        if len(inside) != 1 or not inside[0].is_dir():
            raise InputError("The upload has no config.json, which says what model its weights are of.")
        folder = inside[0]
    return folder
