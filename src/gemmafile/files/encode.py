"""Metadata values as GGUF bytes: the type a Python value gets, and how it is laid down.

What cannot be written is the caller's mistake: ValueError.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmafile.files.metadata import DTYPES, SCALARS, TYPE_NAMES, StringArray, Typed

_SEQUENCES = (list, tuple, np.ndarray, StringArray)


def encode_string(text: str | bytes) -> bytes:
    """A uint64 length and the bytes; a str as UTF-8."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def encode_value(value: Any) -> bytes:
    """A value with its type before it; `value` is anything `infer_type` takes.

    Raises ValueError if the value does not fit its type.
    """
    typed = infer_type(value)
    if typed.type not in TYPE_NAMES:
        raise ValueError(f"no GGUF value type is called {typed.type!r}")
    if isinstance(typed.value, _SEQUENCES):
        return _type_id("array") + _encode_array(typed)
    return _type_id(typed.type) + _encode_scalar(typed)


def infer_type(value: Any) -> Typed:
    """The GGUF type of a Python value.

    bool, str, bytes (a string as it is): their own · float: float32 · int: uint32, or int32, uint64, int64
    where it does not fit · a list: its items' type (ints: int32, or int64, uint64) · NumPy: its dtype
    · a tuple or list of sequences: an array of arrays · Typed: what it says.
    """
    if isinstance(value, Typed):
        return value
    if isinstance(value, StringArray):
        return Typed(value.to_bytes(), "string")
    if isinstance(value, (np.ndarray, np.generic)):
        return Typed(value, value.dtype.name)
    if isinstance(value, (list, tuple)):
        return Typed(value, _infer_items(value))
    return Typed(value, _infer_scalar(value))


def _infer_scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return _smallest_int(value, value, ("uint32", "int32", "uint64", "int64"))
    if isinstance(value, float):
        return "float32"
    if isinstance(value, (str, bytes)):
        return "string"
    raise ValueError(f"metadata cannot hold a {type(value).__name__}")


def _infer_items(items: Sequence[Any]) -> str:
    if not len(items):
        if isinstance(items, tuple):
            return "array"  # what the reader makes of an empty array of arrays
        raise ValueError("an empty list has no type: give Typed([], 'int32')")
    if all(isinstance(item, (*_SEQUENCES, Typed)) for item in items):
        return "array"
    if all(type(item) is int for item in items):
        return _smallest_int(min(items), max(items), ("int32", "int64", "uint64"))
    if all(type(item) in (int, float) for item in items):
        return "float32"
    types = {_infer_scalar(item) for item in items}
    if len(types) > 1:
        raise ValueError(f"an array holds one type, not {' and '.join(sorted(types))}")
    return types.pop()


def _smallest_int(low: int, high: int, types: Sequence[str]) -> str:
    for name in types:
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return name
    raise ValueError(f"no integer type holds {low} to {high}")


def _encode_scalar(typed: Typed) -> bytes:
    if typed.type == "string":
        return encode_string(typed.value)
    try:
        return SCALARS[typed.type].pack(typed.value)
    except (KeyError, struct.error, OverflowError) as error:
        raise ValueError(f"{typed.value!r} is no {typed.type}: {error}") from None


def _encode_array(typed: Typed) -> bytes:
    items = typed.value
    head = _type_id(typed.type) + struct.pack("<Q", len(items))
    if typed.type == "string":
        return head + b"".join(map(encode_string, items))
    if typed.type == "array":
        return head + b"".join(encode_value(item)[4:] for item in items)  # the type "array" is said once
    if isinstance(items, np.ndarray) and (items.ndim != 1 or items.dtype != DTYPES[typed.type]):
        raise ValueError(f"{items.dtype}{list(items.shape)} is no one-dimensional array of {typed.type}")
    try:
        return head + np.asarray(items, DTYPES[typed.type]).tobytes()
    except (TypeError, OverflowError) as error:
        raise ValueError(f"not an array of {typed.type}: {error}") from None


def _type_id(name: str) -> bytes:
    return struct.pack("<I", TYPE_NAMES.index(name))
