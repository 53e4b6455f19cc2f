"""Open traces, kept open, and the images in them."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moescope.errors import InputError
from moescope.store import NotFoundError, TraceRow
from moescope.trace.schema import Trace
from moescope_server.memo import Memo

Stamp = tuple[str, int, int]


@dataclass(frozen=True)
class OpenTrace:
    """A trace, and which state of which file it was read from."""

    trace: Trace
    stamp: Stamp

    def layer(self, layer: int | None) -> int:
        """This layer, the first if None. Raises `NotFoundError` for one that is not there."""
        ids = self.trace.layer_ids
        chosen = ids[0] if layer is None and ids else layer
        if chosen is None or chosen not in ids:
            raise NotFoundError(f"This trace has no MoE layer {layer}; it has {', '.join(map(str, ids)) or 'none'}.")
        return chosen


class TraceCache:
    """The traces looked at last, each read once."""

    def __init__(self, keep: int = 8) -> None:
        self._open: Memo[OpenTrace] = Memo(keep)

    def open(self, row: TraceRow) -> OpenTrace:
        """Raises `NotFoundError` if the file has gone, `InputError` if it is no trace."""
        stamp = _stamp(row.path)
        return self._open.get(stamp, lambda: _open(stamp))


def _stamp(path: str) -> Stamp:
    try:
        info = Path(path).stat()
    except OSError:
        raise NotFoundError(f"The trace's file {Path(path).name} is no longer there.") from None
    return path, info.st_mtime_ns, info.st_size


def _open(stamp: Stamp) -> OpenTrace:
    from moescope.trace.io import read_trace

    return OpenTrace(read_trace(stamp[0]), stamp)


def image_png(trace: Trace, doc: int) -> bytes:
    """A document's image as a grey PNG."""
    if trace.images is None:
        raise InputError("This trace has no images.")
    if not 0 <= doc < len(trace.images):
        raise NotFoundError(f"This trace has no document {doc}; it has {len(trace.images)}.")
    height, width = trace.images[doc].shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row starts with its filter: 0, none
    rows[:, 1:] = trace.images[doc]
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
