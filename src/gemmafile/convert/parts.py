"""A GGUF in parts, and parts as one file: names, keys and cuts as llama.cpp's gguf-split makes them.

PREFIX-00001-of-0000N.gguf   all keys, and the first tensors
PREFIX-0000i-of-0000N.gguf   split.no, split.count, split.tensors.count, and the next tensors
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from gemmafile.errors import BadSettings
from gemmafile.files.formats import Format
from gemmafile.files.gguf import ModelFile
from gemmafile.files.gguf_writer import Tensor, write_gguf
from gemmafile.files.header import DEFAULT_ALIGNMENT
from gemmafile.files.metadata import Typed
from gemmafile.files.open import check_is_new
from gemmafile.files.tensors import TensorInfo

SPLIT_KEYS: Final = ("split.no", "split.tensors.count", "split.count")
PIECE_BYTES: Final = 16 << 20
MAX_PARTS: Final = 65535
UNITS: Final = {"K": 10**3, "M": 10**6, "G": 10**9}


def parse_size(flag: str, text: str) -> int:
    """ "2G", "500M" in bytes, as gguf-split reads them: thousands, not 1,024s. Raises BadSettings."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].upper() in UNITS else (text, "")
    if not number.isascii() or not number.isdecimal() or not unit or not 0 < int(number) < 10**9:
        raise BadSettings(f"{flag} is {text!r}, expected a number and M or G, such as 2G")
    return int(number) * UNITS[unit]


def plan_parts(
    tensors: list[TensorInfo], *, max_tensors: int | None = None, max_bytes: int | None = None, keys_alone: bool = False
) -> list[list[TensorInfo]]:
    """Which tensors each part gets: at most `max_tensors`, or as many as take `max_bytes` (padded; one at least).

    `keys_alone`  the first part has the keys and no tensor. Raises BadSettings for more parts than names allow.
    """
    parts: list[list[TensorInfo]] = [[]]
    n_bytes = 0
    for i, tensor in enumerate(tensors):
        size = tensor.n_bytes + -tensor.n_bytes % DEFAULT_ALIGNMENT
        full = n_bytes + size > max_bytes if max_bytes is not None else i > 0 and max_tensors and i % max_tensors == 0
        if full and parts[-1]:
            parts.append([])
            n_bytes = 0
        parts[-1].append(tensor)
        n_bytes += size
    parts = [[], *parts] if keys_alone else parts
    if len(parts) > MAX_PARTS:
        raise BadSettings(f"that would be {len(parts)} parts, expected at most {MAX_PARTS}")
    return parts


def split_model(
    file: ModelFile, prefix: Path, parts: list[list[TensorInfo]], on_bytes: Callable[[int], None] = lambda n: None
) -> list[Path]:
    """Write the parts; returns their paths. Raises BadFile."""
    n_tensors = len(file.tensors)
    paths = [prefix.with_name(f"{prefix.name}-{i + 1:05d}-of-{len(parts):05d}.gguf") for i in range(len(parts))]
    for path in paths:
        check_is_new(file, path)
    for i, part in enumerate(parts):
        keys = keys_of(file) if i == 0 else {}
        numbers = Typed(i, "uint16"), Typed(n_tensors, "int32"), Typed(len(parts), "uint16")
        keys |= dict(zip(SPLIT_KEYS, numbers, strict=True))
        write_gguf(paths[i], keys, [copied(file, tensor, on_bytes) for tensor in part])
    return paths


def join_model(file: ModelFile, out: Path, on_bytes: Callable[[int], None] = lambda n: None) -> None:
    """Write all parts of an open model as one file. Raises BadFile."""
    check_is_new(file, out)
    write_gguf(out, keys_of(file), [copied(file, tensor, on_bytes) for tensor in file.tensors.values()])


def keys_of(file: ModelFile) -> dict[str, Typed]:
    """The keys of a model as they are, but for those of its parts."""
    return {key: file.metadata.typed(key) for key in file.metadata if key not in SPLIT_KEYS}


def copied(
    file: ModelFile, tensor: TensorInfo, on_bytes: Callable[[int], None], target: Format | None = None
) -> Tensor:
    """A tensor for the writer, copied in pieces."""

    def read() -> Iterator[Any]:
        data = file.data(tensor.name)
        for start in range(0, data.nbytes, PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            yield piece
            on_bytes(piece.nbytes)

    return tensor.name, target or tensor.format, tensor.shape, read
