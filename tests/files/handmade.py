"""GGUF bytes laid down by hand, true or false: the writer under test has no part in them."""

from __future__ import annotations

import struct
from collections.abc import Iterable

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


def key(name: str | bytes, type_id: int, payload: bytes) -> bytes:
    return text(name) + u32(type_id) + payload


def array(type_id: int, count: int, payload: bytes) -> bytes:
    return u32(type_id) + u64(count) + payload


def tensor(name: str | bytes, dims: Iterable[int], format_id: int = F32, offset: int = 0) -> bytes:
    dims = list(dims)
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(format_id) + u64(offset)


def gguf(
    keys: Iterable[bytes] = (),
    tensors: Iterable[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these parts; the counts are true unless given."""
    keys, tensors = list(keys), list(tensors)
    head = b"GGUF" + u32(version)
    head += u64(len(tensors) if n_tensors is None else n_tensors) + u64(len(keys) if n_keys is None else n_keys)
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data
