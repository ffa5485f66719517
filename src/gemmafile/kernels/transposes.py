"""Transposing 16 vectors of 16 lanes: rows of a matrix to vectors whose lanes are rows.

Needs Numba; only kernel builders import it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir

from gemmafile.kernels import emit
from gemmafile.kernels.emit import I64, address, load_at, make, store_at, vec, void

_INTS = ir.VectorType(emit.I32, 16)


def transposer(offsets: Sequence[int], apart: Callable[[Any, Any], list[Any]] | None = None) -> Any:
    """transpose(source, target): 16 rows of 16 dwords, 64 bytes apart -> vector k of the k-th dword of each row,
    stored at target + offsets[k]; or the vectors that `apart` makes of it, side by side from there on."""
    transposed = _transpose_code(offsets, apart)

    def code(b: Any, source: Any, target: Any) -> None:
        transposed(b, [b.add(source, ir.Constant(I64, 64 * i)) for i in range(16)], target)

    return make(void, [address, address], code)


def vector_transposer(offsets: Sequence[int], kind: str, apart: Callable[[Any, Any], list[Any]] | None = None) -> Any:
    """transpose(v0, ..., v15, target): the same of 16 vectors of 64 bytes of this kind."""
    transposed, rows = _place_code(offsets, apart), vec(kind, 64 if kind == "u8" else 16)

    def code(b: Any, *arguments: Any) -> None:
        transposed(b, [b.bitcast(v, _INTS) for v in arguments[:16]], arguments[16])

    return make(void, [*[rows] * 16, address], code)


def stream_transposer(offsets: Sequence[int], apart: Callable[[Any, Any], list[Any]] | None = None) -> Any:
    """transpose(source, stride, target): the same of rows `stride` bytes apart."""
    transposed = _transpose_code(offsets, apart)

    def code(b: Any, source: Any, stride: Any, target: Any) -> None:
        transposed(b, [b.add(source, b.mul(stride, ir.Constant(I64, i))) for i in range(16)], target)

    return make(void, [address, address, address], code)


def transpose(b: Any, rows: Sequence[Any]) -> list[Any]:
    """16 vectors of 16 lanes -> vector k of the k-th lane of each."""
    fours = [transpose_fours(b, rows[i : i + 4]) for i in range(0, 16, 4)]
    even, odd = ([q + i for q in (0, 8, 16, 24) for i in range(4)], [q + i for q in (4, 12, 20, 28) for i in range(4)])
    columns: list[Any] = [None] * 16
    for k in range(4):
        for first, part in ((0, even), (4, odd)):
            x, y = (emit.shuffle(b, fours[i][k], fours[i + 1][k], part) for i in (0, 2))
            columns[first + k], columns[first + 8 + k] = emit.shuffle(b, x, y, even), emit.shuffle(b, x, y, odd)
    return columns


def transpose_fours(b: Any, rows: Sequence[Any]) -> list[Any]:
    """4 vectors of 16 lanes -> vector k of each one's lanes k, k + 4, k + 8 and k + 12, four by four. Nothing crosses
    128 bits, so each shuffle is one instruction without a table."""

    def pairs(x: Any, y: Any, *order: int) -> Any:
        return emit.shuffle(b, x, y, [q + i % 4 + 16 * (i // 4) for q in (0, 4, 8, 12) for i in order])

    low = [pairs(rows[i], rows[i + 1], 0, 4, 1, 5) for i in (0, 2)]
    high = [pairs(rows[i], rows[i + 1], 2, 6, 3, 7) for i in (0, 2)]
    return [pairs(*half, *order) for half in (low, high) for order in ((0, 1, 4, 5), (2, 3, 6, 7))]


def _transpose_code(offsets: Sequence[int], apart: Callable[[Any, Any], list[Any]] | None) -> Callable[..., None]:
    place = _place_code(offsets, apart)
    return lambda b, sources, target: place(b, [load_at(b, source, _INTS) for source in sources], target)


def _place_code(offsets: Sequence[int], apart: Callable[[Any, Any], list[Any]] | None) -> Callable[..., None]:
    def code(b: Any, rows: Sequence[Any], target: Any) -> None:
        for row, offset in zip(transpose(b, rows), offsets, strict=True):
            for i, v in enumerate(apart(b, row) if apart else [row]):
                store_at(b, v, target, offset + 64 * i)

    return code
