"""Stepping through the bytes of a header, each step held against the bytes that are left."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

from gemmafile.errors import BadFile

HEADER_BYTES: Final = 128 << 20
"""Largest header read; the largest known (512k merges, a tokenizer.json embedded) is near 50 MB."""

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Cursor:
    """A place in a mapped header that only moves forward and never past the end.

    `buffer` is anything with the buffer protocol and slices; `end` is where the header must have ended.
    """

    def __init__(self, path: Path, buffer: Any):
        self.path, self.buffer = path, buffer
        self.position, self.n_bytes = 0, len(buffer)
        self.end = min(self.n_bytes, HEADER_BYTES)
        self.n_nested_arrays = 0  # met so far: the reader of values bounds them

    def bad(self, what: str, field: str, byte: int | None = None) -> BadFile:
        """The error for something at `byte`, or where the cursor stands."""
        return BadFile(self.path, what, field=field, byte=self.position if byte is None else byte)

    def need(self, n: int, field: str) -> None:
        """Raise BadFile unless `n` more bytes are there."""
        left = self.end - self.position
        if n > left and self.end < self.n_bytes:
            raise self.bad(f"takes {n} bytes: the header would be over {HEADER_BYTES >> 20} MiB", field)
        if n > left:
            raise self.bad(f"takes {n} bytes, the file has {left} left (cut short, or damaged)", field)

    def take(self, n: int, field: str) -> int:
        """Step over `n` bytes; returns where they start."""
        self.need(n, field)
        start = self.position
        self.position += n
        return start

    def unpack(self, kind: struct.Struct, field: str) -> Any:
        return kind.unpack_from(self.buffer, self.take(kind.size, field))[0]

    def u32(self, field: str) -> int:
        value: int = self.unpack(_U32, field)
        return value

    def u64(self, field: str) -> int:
        value: int = self.unpack(_U64, field)
        return value

    def count(self, field: str, item_bytes: int, limit: int | None = None) -> int:
        """A uint64 count of things that take `item_bytes` or more each."""
        start = self.position
        count = self.u64(field)
        if limit is not None and count > limit:
            raise self.bad(f"is {count}, expected {limit} at most", field, start)
        if count * item_bytes > self.end - self.position:
            left = self.end - self.position
            raise self.bad(f"is {count}: there is no room for them in the {left} bytes left", field, start)
        return count

    def text(self, field: str, limit: int | None = None) -> str:
        """A string: its uint64 length, its bytes, which must be UTF-8."""
        start = self.position
        n = self.u64(field)
        if limit is not None and not 0 < n <= limit:
            raise self.bad(f"is {n} bytes long, expected 1 to {limit}", field, start)
        begin = self.take(n, field)
        try:
            return bytes(self.buffer[begin : begin + n]).decode()
        except UnicodeDecodeError as error:
            raise self.bad("is not UTF-8", field, begin + error.start) from None


def quote(name: str) -> str:
    """A hostile name for a message: escaped, and not longer than a line."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
