"""The tensor entries of a GGUF header: what each tensor is and where its bytes lie."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Final, NamedTuple

from gemmafile.errors import BadFile
from gemmafile.files.cursor import Cursor
from gemmafile.files.formats import FORMATS, REMOVED, Format

MAX_TENSOR_NAME_BYTES: Final = 255
MAX_DIMS: Final = 4


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    `shape`   NumPy order, GGUF's dimensions reversed: a matmul's weight is (rows out, columns in)
    `path`    the shard it lies in
    `offset`  byte offset in that file; a multiple of 8, at least
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    path: Path
    offset: int
    n_bytes: int

    @property
    def n_weights(self) -> int:
        """How many numbers the tensor holds."""
        return prod(self.shape)


class _Entry(NamedTuple):
    """A tensor's entry as it stands in the file; `byte` is where its offset stands."""

    name: str
    dims: tuple[int, ...]
    format: Format
    offset: int
    byte: int


def read_tensors(cursor: Cursor, n_tensors: int, alignment: int) -> list[TensorInfo]:
    """The tensors of a file, in its order; the cursor stands at the first entry.

    Raises BadFile for a name twice, dimensions, format or size that cannot be, data outside the file or shared.
    """
    entries: list[_Entry] = []
    seen: set[str] = set()
    for i in range(n_tensors):
        start = cursor.position
        name = cursor.text(f"name of tensor {i + 1} of {n_tensors}", MAX_TENSOR_NAME_BYTES)
        field = f"tensor {name!r}"
        if name in seen:
            raise cursor.bad("is there twice", field, start)
        seen.add(name)
        dims = _read_dims(cursor, field)
        tensor_format = _read_format(cursor, field)
        if dims[0] % tensor_format.weights_per_block:
            what = f"has rows of {dims[0]} weights, {tensor_format.name} needs a multiple of "
            raise cursor.bad(f"{what}{tensor_format.weights_per_block}", field, start)
        byte = cursor.position
        entries.append(_Entry(name, dims, tensor_format, cursor.u64(f"{field}: offset"), byte))
    # Offsets count from the end of the last entry, known only now.
    data_start = -(-cursor.position // alignment) * alignment
    tensors = [_place_tensor(cursor, entry, alignment, data_start) for entry in entries]
    _check_overlap(cursor.path, tensors)
    return tensors


def _read_dims(cursor: Cursor, field: str) -> tuple[int, ...]:
    start = cursor.position
    n_dims = cursor.u32(f"{field}: number of dimensions")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.bad(f"has {n_dims} dimensions, expected 1 to {MAX_DIMS}", field, start)
    start = cursor.position
    dims = tuple(cursor.u64(f"{field}: dimensions") for _ in range(n_dims))
    if not all(dims):
        raise cursor.bad(f"has dimensions {dims}, none may be 0", field, start)
    return dims


def _read_format(cursor: Cursor, field: str) -> Format:
    start = cursor.position
    format_id = cursor.u32(f"{field}: format")
    if format_id in FORMATS:
        return FORMATS[format_id]
    if format_id in REMOVED:
        what = f"has tensor type {format_id} ({REMOVED[format_id]}), which ggml gave up: convert the model again"
    else:
        what = f"has the unknown tensor type {format_id}"
    raise cursor.bad(what, field, start)


def _place_tensor(cursor: Cursor, entry: _Entry, alignment: int, data_start: int) -> TensorInfo:
    """Turn an entry into a TensorInfo, if its data is aligned and in the file."""
    field = f"tensor {entry.name!r}: offset"
    n_bytes = entry.format.row_bytes(entry.dims[0]) * prod(entry.dims[1:])
    if entry.offset % alignment:
        raise cursor.bad(f"is {entry.offset}, expected a multiple of {alignment}", field, entry.byte)
    start = data_start + entry.offset
    if start + n_bytes > cursor.n_bytes:
        what = f"its {n_bytes} bytes from byte {start} do not fit in the file of {cursor.n_bytes}"
        raise cursor.bad(f"{what} (cut short, or damaged)", field, entry.byte)
    return TensorInfo(entry.name, entry.dims[::-1], entry.format, cursor.path, start, n_bytes)


def _check_overlap(path: Path, tensors: list[TensorInfo]) -> None:
    ordered = sorted(tensors, key=lambda tensor: tensor.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.n_bytes > after.offset:
            what = f"overlaps tensor {before.name!r}"
            raise BadFile(path, what, field=f"tensor {after.name!r}", byte=after.offset)
