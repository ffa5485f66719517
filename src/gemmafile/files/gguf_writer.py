"""Writing GGUF: metadata and tensors to a file, or to the parts of a split model.

The tensors are written one at a time: give a function in place of the data, and a model larger than memory
can be written. A file appears under its name when it is whole. `gguf.py` reads what this writes;
`encode.py` says which GGUF type a Python value gets.

A mistake of the caller's (a size that does not fit, a name twice) is a ValueError; a file that cannot be
written is a BadFile.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from gemmafile.files.atomic import replace_file
from gemmafile.files.encode import encode_string, encode_value
from gemmafile.files.formats import Format, format_by_name
from gemmafile.files.header import DEFAULT_ALIGNMENT, MAX_ALIGNMENT, VERSIONS
from gemmafile.files.metadata import Typed
from gemmafile.files.tensors import MAX_DIMS, MAX_TENSOR_NAME_BYTES

__all__ = ["Typed", "write_gguf", "write_split"]

Block: TypeAlias = bytes | bytearray | memoryview | np.ndarray[Any, np.dtype[Any]]
Data: TypeAlias = Block | Callable[[], Block | Iterator[Block]]
Tensor: TypeAlias = tuple[str, Format | str, Sequence[int], Data]
"""Name, format, shape in NumPy order, data: the blocks as bytes, or numbers of the format's own dtype,
or a function that returns them, whole or piece by piece, called when the tensor's turn comes."""

# BF16 has no NumPy dtype: its bits are given as uint16.
_DTYPES = {
    "F32": "<f4",
    "F16": "<f2",
    "F64": "<f8",
    "BF16": "<u2",
    "I8": "<i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor to be written; `offset` counts from the start of the data."""

    name: str
    format: Format
    shape: tuple[int, ...]
    data: Data
    offset: int
    n_bytes: int

    def encode(self) -> bytes:
        dims = struct.pack(f"<I{len(self.shape)}Q", len(self.shape), *reversed(self.shape))
        return encode_string(self.name) + dims + struct.pack("<IQ", self.format.id, self.offset)


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[Tensor],
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    version: int = 3,
) -> None:
    """Write a model to `path`, replacing what is there.

    `alignment`  of the tensors; takes the place of a `general.alignment` in the metadata
    Raises ValueError for what cannot be a GGUF, BadFile if the file cannot be written.
    """
    if version not in VERSIONS:
        raise ValueError(f"GGUF version {version} is not written, only {VERSIONS}")
    if not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise ValueError(f"the alignment is {alignment}, expected a power of two from 8 to {MAX_ALIGNMENT}")
    entries = _place_tensors(tensors, alignment)
    fields = {key: value for key, value in metadata.items() if key != "general.alignment"}
    if alignment != DEFAULT_ALIGNMENT:
        fields["general.alignment"] = Typed(alignment, "uint32")
    head = [b"GGUF", struct.pack("<IQQ", version, len(entries), len(fields))]
    head += [encode_string(key) + encode_value(value) for key, value in fields.items()]
    head += [entry.encode() for entry in entries]
    with replace_file(Path(path)) as file:
        _write_padded(file, b"".join(head), alignment)
        for entry in entries:
            for block in _read_data(entry):
                file.write(block)
            file.write(bytes(-entry.n_bytes % alignment))


def write_split(
    prefix: str | Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[Tensor],
    n_parts: int,
    *,
    alignment: int = DEFAULT_ALIGNMENT,
    version: int = 3,
) -> list[Path]:
    """Write a model as PREFIX-00001-of-0000N.gguf and so on; the first part carries the metadata.

    Returns the paths. The parts get equal numbers of tensors, and may get none.
    """
    tensors, prefix = list(tensors), Path(prefix)
    per_part = ceil(len(tensors) / n_parts)
    paths = []
    for i in range(n_parts):
        fields = dict(metadata) if i == 0 else {}
        fields["split.no"] = Typed(i, "uint16")
        fields["split.count"] = Typed(n_parts, "uint16")
        fields["split.tensors.count"] = Typed(len(tensors), "int32")
        path = prefix.with_name(f"{prefix.name}-{i + 1:05d}-of-{n_parts:05d}.gguf")
        part = tensors[i * per_part : (i + 1) * per_part]
        write_gguf(path, fields, part, alignment=alignment, version=version)
        paths.append(path)
    return paths


def _place_tensors(tensors: Iterable[Tensor], alignment: int) -> list[_Entry]:
    """Each tensor after the one before it, aligned."""
    entries: list[_Entry] = []
    seen: set[str] = set()
    offset = 0
    for name, tensor_format, shape, data in tensors:
        if isinstance(tensor_format, str):
            tensor_format = format_by_name(tensor_format)
        shape = tuple(int(dim) for dim in shape)
        if name in seen or not 0 < len(name.encode()) <= MAX_TENSOR_NAME_BYTES:
            raise ValueError(f"tensor {name!r}: a name must be new, and 1 to {MAX_TENSOR_NAME_BYTES} bytes")
        if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1 or shape[-1] % tensor_format.weights_per_block:
            raise ValueError(f"tensor {name!r}: {tensor_format.name} cannot have the shape {shape}")
        seen.add(name)
        n_bytes = prod(shape[:-1]) * tensor_format.row_bytes(shape[-1])
        entries.append(_Entry(name, tensor_format, shape, data, offset, n_bytes))
        offset += n_bytes + -n_bytes % alignment
    return entries


def _read_data(entry: _Entry) -> Iterator[memoryview]:
    """The tensor's bytes, not copied where the caller's own will do."""
    data = entry.data() if callable(entry.data) else entry.data
    n_bytes = 0
    for piece in data if isinstance(data, Iterator) else [data]:
        block = _to_bytes(entry, piece)
        n_bytes += block.nbytes
        if n_bytes > entry.n_bytes:
            break
        yield block
    if n_bytes != entry.n_bytes:
        raise ValueError(f"tensor {entry.name!r}: has {n_bytes} bytes, its shape takes {entry.n_bytes}")


def _to_bytes(entry: _Entry, data: Block) -> memoryview:
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8:
            dtype = np.dtype(_DTYPES.get(entry.format.name, np.uint8))
            if data.dtype.newbyteorder("<") != dtype:
                raise ValueError(f"tensor {entry.name!r}: {data.dtype} is not {entry.format.name}")
            data = data.astype(dtype, copy=False)
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    return memoryview(data).cast("B")


def _write_padded(file: BinaryIO, data: bytes | memoryview, alignment: int) -> None:
    file.write(data)
    file.write(bytes(-len(data) % alignment))
