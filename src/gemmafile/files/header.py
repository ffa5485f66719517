"""The header of a GGUF file: from mapped bytes to metadata and tensor entries, believing nothing.

    "GGUF"  uint32 version  uint64 n_tensors  uint64 n_keys
    n_keys x     string key   uint32 type   value
    n_tensors x  string name  uint32 n_dims  uint64[n_dims] dims, fastest first  uint32 format  uint64 offset
    padding to general.alignment (32), then the tensors' bytes, each offset counted from here

A string is its uint64 length and its bytes; an array its items' uint32 type, their uint64 count, and the items.
Every count, length and offset is held against the bytes that are left before it is used, so a hostile file
costs no more time and memory than its header has bytes, and HEADER_BYTES bounds those.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from gemmafile.errors import BadFile
from gemmafile.files.cursor import Cursor, quote
from gemmafile.files.metadata import DTYPES, SCALARS, TYPE_NAMES, Field, Metadata, StringArray, describe_type
from gemmafile.files.tensors import TensorInfo, read_tensors

VERSIONS: Final = (2, 3)
DEFAULT_ALIGNMENT: Final = 32

MAX_KEYS: Final = 1 << 14
MAX_TENSORS: Final = 1 << 16
MAX_NESTED_ARRAYS: Final = 1 << 14
MAX_NESTING: Final = 8
MAX_KEY_BYTES: Final = (1 << 16) - 1
MAX_ALIGNMENT: Final = 1 << 24

# The fewest bytes that one of each can take: no count may promise more than the file has room for.
_MIN_KEY_BYTES: Final = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES: Final = 8 + 1 + 4 + 8 + 4 + 8
_MIN_ARRAY_BYTES: Final = 4 + 8

_U64 = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Header:
    """All of a header: tensors in file order, offsets checked and made absolute."""

    version: int
    metadata: Metadata
    tensors: list[TensorInfo]
    alignment: int


def read_header(path: Path, buffer: Any, alignment: int = DEFAULT_ALIGNMENT) -> Header:
    """Read the header of a mapped file (anything with the buffer protocol and slices).

    `alignment`  of the tensors of a file that does not say
    Raises BadFile, with the field and the byte, for the first thing that does not hold.
    """
    cursor = Cursor(path, buffer)
    version = _read_version(cursor)
    n_tensors = cursor.count("number of tensors", _MIN_TENSOR_BYTES, MAX_TENSORS)
    n_keys = cursor.count("number of metadata keys", _MIN_KEY_BYTES, MAX_KEYS)
    fields = _read_fields(cursor, n_keys)
    alignment = _read_alignment(path, fields, alignment)
    tensors = read_tensors(cursor, n_tensors, alignment)
    return Header(version, Metadata(path, fields), tensors, alignment)


def _read_version(cursor: Cursor) -> int:
    cursor.take(4, "magic")
    start = cursor.position
    version = cursor.u32("version")
    if version in VERSIONS:
        return version
    if version & 0xFFFF == 0 and version:
        raise cursor.bad("is a big-endian GGUF: convert the model for a little-endian machine", "version", start)
    if version == 1:
        raise cursor.bad("is GGUF version 1, which is no longer read: convert the model again", "version", start)
    raise cursor.bad(f"is {version}, expected {' or '.join(map(str, VERSIONS))}", "version", start)


def _read_fields(cursor: Cursor, n_keys: int) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    for i in range(n_keys):
        start = cursor.position
        key = cursor.text(f"metadata key {i + 1} of {n_keys}", MAX_KEY_BYTES)
        name = f"key {quote(key)}"
        if key in fields:
            raise cursor.bad("is there twice", name, start)
        type_name = _read_type(cursor, name)
        byte = cursor.position
        value, type_name = _read_value(cursor, name, type_name)
        fields[key] = Field(value, type_name, byte)
    return fields


def _read_type(cursor: Cursor, field: str) -> str:
    start = cursor.position
    type_id = cursor.u32(field)
    if type_id >= len(TYPE_NAMES):
        raise cursor.bad(f"has value type {type_id}, expected 0 to {len(TYPE_NAMES) - 1}", field, start)
    return TYPE_NAMES[type_id]


def _read_value(cursor: Cursor, field: str, type_name: str) -> tuple[Any, str]:
    """A value and the type to remember: a scalar's own, an array's element's."""
    if type_name == "string":
        return cursor.text(field), type_name
    if type_name == "array":
        return _read_array(cursor, field, 1)
    start = cursor.position
    value = cursor.unpack(SCALARS[type_name], field)
    if type_name == "bool" and cursor.buffer[start] > 1:
        raise cursor.bad(f"is {cursor.buffer[start]}, expected 0 (false) or 1 (true)", field, start)
    return value, type_name


def _read_array(cursor: Cursor, field: str, depth: int) -> tuple[Any, str]:
    """An array and its element type; `depth` arrays deep."""
    type_name = _read_type(cursor, field)
    if type_name == "string":
        return _read_strings(cursor, field), type_name
    if type_name == "array":
        return _read_nested(cursor, field, depth), type_name
    dtype = DTYPES[type_name]
    count = cursor.count(f"{field}: length", dtype.itemsize)
    start = cursor.take(count * dtype.itemsize, field)
    # Bools are looked at as bytes first: any other than 0 and 1 would be a bool NumPy does not know.
    array = np.frombuffer(cursor.buffer, np.uint8 if type_name == "bool" else dtype, count, start)
    if type_name == "bool":
        if count and array.max() > 1:
            wrong = int(np.argmax(array > 1))
            raise cursor.bad(f"item {wrong} is {array[wrong]}, expected 0 or 1", field, start + wrong)
        array = array.view(np.bool_)
    return array, type_name


def _read_nested(cursor: Cursor, field: str, depth: int) -> tuple[Any, ...]:
    if depth >= MAX_NESTING:
        raise cursor.bad(f"has arrays nested more than {MAX_NESTING} deep", field)
    count = cursor.count(f"{field}: length", _MIN_ARRAY_BYTES)
    cursor.n_nested_arrays += count
    if cursor.n_nested_arrays > MAX_NESTED_ARRAYS:
        raise cursor.bad(f"the file has more than {MAX_NESTED_ARRAYS} arrays in arrays", field)
    return tuple(_read_array(cursor, f"{field}[{i}]", depth + 1)[0] for i in range(count))


def _read_strings(cursor: Cursor, field: str) -> StringArray:
    """Walk over an array of strings without reading them: a quarter of a million in 0.02 s."""
    count = cursor.count(f"{field}: length", _U64.size)
    buffer, unpack = cursor.buffer, _U64.unpack_from
    start = position = cursor.position
    last = cursor.end - _U64.size  # where the last length could stand
    for _ in range(count):
        if position > last:
            raise _cut_strings(cursor, field)
        position += 8 + unpack(buffer, position)[0]
    if position > cursor.end:
        raise _cut_strings(cursor, field)
    cursor.position = position
    return StringArray(cursor.path, field, buffer, start, position, count)


def _cut_strings(cursor: Cursor, field: str) -> BadFile:
    """The error for the first string, from the cursor on, that does not fit in what is left: there is one."""
    index, position = -1, cursor.position
    while position <= cursor.end:
        index, start = index + 1, position
        if position + 8 > cursor.end:
            break
        position += 8 + int.from_bytes(cursor.buffer[position : position + 8], "little")
    limit = "the header may have" if cursor.end < cursor.n_bytes else "the file has"
    return cursor.bad(f"item {index} does not fit in the {cursor.end - start} bytes {limit} left", field, start)


def _read_alignment(path: Path, fields: Mapping[str, Field], default: int) -> int:
    """What tensors are aligned to: a power of two, and a multiple of 8 as the format demands."""
    field = fields.get("general.alignment")
    if field is None:
        return default
    alignment = field.value
    if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        shown = alignment if type(alignment) is int else describe_type(alignment, field.type)
        what = f"is {shown}, expected a power of two from 8 to {MAX_ALIGNMENT}"
        raise BadFile(path, what, field="key 'general.alignment'", byte=field.byte)
    return alignment
