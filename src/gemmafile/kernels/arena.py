"""The arena: where the values of a tape lie while a pass runs.

Each value has rows of float32, a row padded to 32 numbers so that kernels may store whole vectors, and once more where
rows would otherwise lie whole pages apart: a product writes the same columns of many rows at a time, which would
then be on the same few lines of the first-level cache. A place is used again once its value has been read for the last
time. Memory is anonymous and costs nothing until it is touched.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np

from gemmafile.model.tape import Tape, Value, reads, writes


def aligned_bytes(n_bytes: int) -> np.ndarray:
    """uint8[n_bytes] of zeros at the start of a page, not touched yet."""
    return np.frombuffer(mmap.mmap(-1, max(1, n_bytes)), np.uint8, n_bytes)


HUGE_BYTES = 4 << 20


def aligned_rows(n_bytes: int) -> np.ndarray:
    """The same for rows that a product goes through side by side; from HUGE_BYTES on in huge pages where the system has
    them. A tile's tokens are each in a page of its own else, and a core finds few pages at once."""
    if n_bytes < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return aligned_bytes(n_bytes)
    # Private: Linux gives shared memory huge pages only where its administrator says so.
    pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.uint8, n_bytes)


def give_back(memory: np.ndarray) -> None:
    """Have what `aligned_bytes` or `aligned_rows` gave take no memory until it is touched again. What it held
    is lost."""
    pages: Any = memory
    while isinstance(pages, np.ndarray):
        pages = pages.base
    pages = getattr(pages, "obj", pages)
    assert isinstance(pages, mmap.mmap)
    for advice in ("MADV_REMOVE", "MADV_DONTNEED"):  # for shared memory, and for private, which refuses the first
        with contextlib.suppress(OSError, AttributeError):
            pages.madvise(getattr(mmap, advice))
            return


def row_floats(width: int) -> int:
    """Numbers from row to row."""
    whole = -(-width // 32) * 32
    return whole if whole % 1024 else whole + 32


class Arena:
    """Places for all values of a tape, `rows` rows each."""

    def __init__(self, tape: Tape, rows: int):
        self.rows = rows
        places, sizes = plan(tape)
        self._place = places
        self._buffers = [aligned_rows(4 * rows * size) for size in sizes]

    @property
    def buffers(self) -> Sequence[np.ndarray]:
        """All of its memory."""
        return self._buffers

    def stride(self, value: Value) -> int:
        """Bytes from row to row."""
        return 4 * row_floats(value.width)

    def address(self, value: Value) -> int:
        return int(self._buffers[self._place[value.id]].ctypes.data)

    def view(self, value: Value, n_rows: int) -> np.ndarray:
        """float32[n_rows, width], no copy."""
        floats = row_floats(value.width)
        buffer = self._buffers[self._place[value.id]].view(np.float32)
        return buffer[: n_rows * floats].reshape(n_rows, floats)[:, : value.width]


def plan(tape: Tape) -> tuple[dict[int, int], list[int]]:
    """(value id -> place, numbers in a row of each place). The smallest free place that fits is taken, else the
    largest free one grows; a value's place is free after the last operation that reads it."""
    last_read = {v.id: i for i, op in enumerate(tape.ops) for v in reads(op)}
    places: dict[int, int] = {}
    sizes: list[int] = []
    free: list[int] = []
    for i, op in enumerate(tape.ops):
        for value in writes(op):
            places[value.id] = _choose(sizes, free, value.parts * row_floats(value.width))
        for value in {v.id: v for v in (*reads(op), *writes(op))}.values():
            if last_read.get(value.id, len(tape.ops) if value in writes(tape.ops[-1]) else i) == i:
                free.append(places[value.id])
    return places, sizes


def _choose(sizes: list[int], free: list[int], wanted: int) -> int:
    fitting = sorted((p for p in free if sizes[p] >= wanted), key=lambda p: sizes[p])
    chosen = fitting[0] if fitting else max(free, key=lambda p: sizes[p], default=None)
    if chosen is None:
        sizes.append(wanted)
        return len(sizes) - 1
    free.remove(chosen)
    sizes[chosen] = max(sizes[chosen], wanted)
    return chosen
