"""The metadata of a model: a mapping from keys to values, with getters that name what is wrong.

`gguf.py` fills it, `gguf_writer.py` writes it; everything above reads it through the getters.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, overload

import numpy as np

from gemmafile.errors import BadFile, nearest

TYPE_NAMES: Final = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "float32",
    "bool",
    "string",
    "array",
    "uint64",
    "int64",
    "float64",
)
"""The value types of GGUF; the place in this list is the number in the file."""

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(name).newbyteorder("<") for name in TYPE_NAMES if name not in ("string", "array")
}
"""What an array of a type is in memory: little-endian, as in the file."""

SCALARS: Final = {name: struct.Struct(f"<{code}") for name, code in zip(DTYPES, "BbHhIif?Qqd", strict=True)}
"""How one value of a type is read and written."""

_LENGTH = struct.Struct("<Q").unpack_from


class _Required(Enum):
    """Says that a getter was given no default (None may be one)."""

    REQUIRED = 0


REQUIRED: Final = _Required.REQUIRED
T = TypeVar("T")
NumericArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Typed:
    """A value with its GGUF type: a scalar's, or an array's element's when `value` is a sequence."""

    value: Any
    type: str


@dataclass(frozen=True, slots=True)
class Field:
    """A key's value as read: `byte` is where the value lies in the file, None when it was overridden."""

    value: Any
    type: str
    byte: int | None


class StringArray(Sequence[str]):
    """Strings of a file, decoded when asked for; they cost nothing before.

    Strings must be UTF-8: decoding one that is not raises BadFile naming the item. `to_bytes` takes any.
    A slice is a list. `field` is what the errors call the array.
    """

    def __init__(self, path: Path, field: str, buffer: Any, start: int, end: int, count: int):
        """`buffer[start:end]` holds `count` strings, each after its uint64 length: checked by the reader."""
        self._path, self._field = path, field
        self._buffer, self._start, self._end, self._count = buffer, start, end, count
        self._offsets = array("q", [start])

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._decode(i) for i in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"string {index} of {self._count}")
        return self._decode(index % self._count)

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_list())

    def __repr__(self) -> str:
        return f"<StringArray of {self._count}>"

    def to_bytes(self) -> list[bytes]:
        """All strings as they lie in the file."""
        blob, position, strings = self._blob(), 0, []
        for _ in range(self._count):
            start = position + 8
            position = start + _LENGTH(blob, position)[0]
            strings.append(blob[start:position])
        return strings

    def to_list(self) -> list[str]:
        """All strings, decoded: 0.1 s for 400,000."""
        blob, position, strings = self._blob(), 0, []
        try:
            for _ in range(self._count):
                start = position + 8
                position = start + _LENGTH(blob, position)[0]
                strings.append(blob[start:position].decode())
        except UnicodeDecodeError as error:
            raise self._not_utf8(len(strings), self._start + start, error) from None
        return strings

    def raw(self, index: int) -> bytes:
        """One string as it lies in the file; 0 <= index < len."""
        start = self._find(index) + 8
        return bytes(self._buffer[start : start + _LENGTH(self._buffer, start - 8)[0]])

    def _decode(self, index: int) -> str:
        try:
            return self.raw(index).decode()
        except UnicodeDecodeError as error:
            raise self._not_utf8(index, self._find(index) + 8, error) from None

    def _not_utf8(self, index: int, byte: int, error: UnicodeDecodeError) -> BadFile:
        return BadFile(self._path, f"item {index} is not UTF-8", field=self._field, byte=byte + error.start)

    def _blob(self) -> bytes:
        return bytes(self._buffer[self._start : self._end])

    def _find(self, index: int) -> int:
        """Where the length of string `index` lies. Found by walking there, and remembered."""
        if index >= len(self._offsets):
            # Twice as far as asked, so that going through an array by index walks it once. The table is
            # replaced, never changed: threads may share it.
            offsets, position = self._offsets[:], self._offsets[-1]
            for _ in range(len(offsets), min(2 * index, self._count - 1) + 1):
                position += 8 + _LENGTH(self._buffer, position)[0]
                offsets.append(position)
            self._offsets = offsets
        return self._offsets[index]


class Metadata(Mapping[str, Any]):
    """Keys and values, in file order.

    Scalars are int, float, bool or str; numeric and bool arrays are read-only NumPy views of the file, which
    may be unaligned; arrays of strings are StringArray; arrays of arrays are tuples of those.
    The getters raise BadFile, naming the key, where it is missing and no default is given, or of another type.
    """

    def __init__(self, path: Path, fields: Mapping[str, Field]):
        self._path, self._fields = path, dict(fields)

    def __getitem__(self, key: str) -> Any:
        return self._fields[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"<Metadata of {self._path}: {len(self)} keys>"

    def typed(self, key: str) -> Typed:
        """The value with its GGUF type: `write_gguf` writes it as it was."""
        field = self._fields[key]
        return Typed(field.value, field.type)

    def override(self, key: str, value: int | float | bool | str) -> None:
        """Set or replace a key for this run (`--override-kv`); the file stays as it is."""
        types = {bool: "bool", int: "int64", float: "float64", str: "string"}
        self._fields[key] = Field(value, types[type(value)], None)

    @overload
    def get_int(self, key: str) -> int: ...
    @overload
    def get_int(self, key: str, default: T) -> int | T: ...
    def get_int(self, key: str, default: Any = REQUIRED) -> Any:
        """An integer of any width; a bool is none."""
        return self._get(key, default, int, "an integer")

    @overload
    def get_float(self, key: str) -> float: ...
    @overload
    def get_float(self, key: str, default: T) -> float | T: ...
    def get_float(self, key: str, default: Any = REQUIRED) -> Any:
        """A float; an integer is taken too. May be infinite or NaN."""
        value = self._get(key, default, (int, float), "a number")
        return float(value) if isinstance(value, int) else value

    @overload
    def get_bool(self, key: str) -> bool: ...
    @overload
    def get_bool(self, key: str, default: T) -> bool | T: ...
    def get_bool(self, key: str, default: Any = REQUIRED) -> Any:
        """True or False; 0 and 1 are not taken."""
        return self._get(key, default, bool, "true or false")

    @overload
    def get_str(self, key: str) -> str: ...
    @overload
    def get_str(self, key: str, default: T) -> str | T: ...
    def get_str(self, key: str, default: Any = REQUIRED) -> Any:
        """A string."""
        return self._get(key, default, str, "a string")

    @overload
    def get_array(self, key: str) -> NumericArray: ...
    @overload
    def get_array(self, key: str, default: T) -> NumericArray | T: ...
    def get_array(self, key: str, default: Any = REQUIRED) -> Any:
        """A one-dimensional array of numbers or bools, read-only, perhaps unaligned."""
        return self._get(key, default, np.ndarray, "an array of numbers")

    @overload
    def get_strings(self, key: str) -> StringArray: ...
    @overload
    def get_strings(self, key: str, default: T) -> StringArray | T: ...
    def get_strings(self, key: str, default: Any = REQUIRED) -> Any:
        """An array of strings."""
        return self._get(key, default, StringArray, "an array of strings")

    def _get(self, key: str, default: Any, kind: type | tuple[type, ...], expected: str) -> Any:
        field = self._fields.get(key)
        if field is None:
            if default is not REQUIRED:
                return default
            raise BadFile(self._path, f"the key is missing{nearest(key, self._fields)}", field=f"key {key!r}")
        value = field.value
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            origin = "was overridden with" if field.byte is None else "is"
            what = f"{origin} {describe_type(value, field.type)}, expected {expected}"
            raise BadFile(self._path, what, field=f"key {key!r}", byte=field.byte)
        return value


def describe_type(value: Any, type_name: str) -> str:
    """ "a string", "a uint32", "an array of 3 float32", for messages."""
    if isinstance(value, (np.ndarray, StringArray, tuple)):
        return f"an array of {len(value)} {type_name}"
    return f"an {type_name}" if type_name.startswith("i") else f"a {type_name}"
