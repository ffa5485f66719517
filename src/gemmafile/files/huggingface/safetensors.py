"""One safetensors file: a header in JSON, then the tensors' bytes. Nothing in the header is believed.

    uint64 n   n bytes of JSON: {"NAME": {"dtype": "BF16", "shape": [R, C], "data_offsets": [begin, end]}, ...}
    the bytes, offsets counted from here; they lie one behind the other and end with the file

Read here and not by the `safetensors` package: that one hands out copies (NumPy has no bfloat16), this one places in
a map, from which the kernels read. Source: https://github.com/huggingface/safetensors (format, and what it refuses).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from gemmafile.errors import BadFile
from gemmafile.files.cursor import quote
from gemmafile.files.identify import HEAD_BYTES, describe_content

MAX_HEADER_BYTES: Final = 100_000_000
MAX_TENSORS: Final = 1 << 16
MAX_DIMS: Final = 8
MAX_DIM: Final = 1 << 40

DTYPE_BYTES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "C64": 8,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `n_bytes` at `offset` of the file `path`. `shape` in NumPy order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    n_bytes: int


def read_safetensors(path: Path, buffer: Any) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of a mapped file, by name, and the texts of its `__metadata__`.

    Raises BadFile for the first thing that does not hold.
    """
    n_bytes = len(buffer)
    n_header = int.from_bytes(buffer[:8], "little") if n_bytes >= 8 else 0
    if n_bytes < 10 or n_header < 2 or bytes(buffer[8:9]) != b"{":
        what = describe_content(bytes(buffer[:HEAD_BYTES]), n_bytes)
        raise BadFile(path, f"{what}; expected safetensors (a pickle is never loaded: it can run any code)")
    if n_header > min(MAX_HEADER_BYTES, n_bytes - 8):
        what = f"its {n_header} bytes do not fit in the file of {n_bytes} (cut short, or damaged)"
        raise BadFile(path, what, field="header", byte=0)
    header = _parse(path, bytes(buffer[8 : 8 + n_header]))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFile(path, "is no table of texts", field="__metadata__")
    if len(header) > MAX_TENSORS:
        raise BadFile(path, f"has {len(header)} tensors, expected at most {MAX_TENSORS}", field="header")
    tensors = [_read_entry(path, name, entry, 8 + n_header, n_bytes) for name, entry in header.items()]
    _check_places(path, tensors, 8 + n_header, n_bytes)
    return sorted(tensors, key=lambda tensor: tensor.name), metadata


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise BadFile(path, "is there twice", field=f"header, {quote(twice)}")
        return table

    try:
        header = json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise BadFile(path, f"is no JSON: {error}", field="header", byte=8) from None
    if not isinstance(header, dict):
        raise BadFile(path, "is no JSON object", field="header", byte=8)
    return header


def _read_entry(path: Path, name: str, entry: Any, start: int, n_bytes: int) -> StoredTensor:
    field = f"tensor {quote(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise BadFile(path, "has no dtype, shape and data_offsets", field=field)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise BadFile(path, f"has the unknown dtype {quote(str(dtype))}", field=field)
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise BadFile(path, f"has the shape {str(shape)[:80]}, expected up to {MAX_DIMS} whole numbers", field=field)
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise BadFile(path, f"has data_offsets {str(offsets)[:80]}, expected [begin, end]", field=field)
    begin, end = offsets
    if start + end > n_bytes:
        what = f"ends at byte {start + end}, and the file has {n_bytes} (cut short, or damaged)"
        raise BadFile(path, what, field=field, byte=start + begin)
    expected = prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        what = f"has {end - begin} bytes, and {dtype}{list(shape)} takes {expected}"
        raise BadFile(path, what, field=field, byte=start + begin)
    return StoredTensor(name, dtype, tuple(shape), path, start + begin, end - begin)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_DIM for item in value)


def _check_places(path: Path, tensors: list[StoredTensor], start: int, n_bytes: int) -> None:
    """The tensors fill the file behind the header, without holes and without sharing a byte."""
    at = start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.n_bytes)):
        if tensor.offset != at:
            what = "overlaps the one before it" if tensor.offset < at else f"leaves a hole behind byte {at}"
            raise BadFile(path, what, field=f"tensor {quote(tensor.name)}", byte=tensor.offset)
        at += tensor.n_bytes
    if at != n_bytes:
        raise BadFile(path, f"has {n_bytes - at} bytes behind the last tensor", byte=at)
