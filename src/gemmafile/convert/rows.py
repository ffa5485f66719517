"""Numbers of one float format as another, row by row in pieces: a matrix larger than memory passes through.

Formats: F32, F16, BF16; to Q8_0 as well. Every rounding is to the nearest, as in ggml; the same format comes out as it
went in.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from gemmafile.errors import BackendUnavailable
from gemmafile.files.formats import Format
from gemmafile.files.huggingface.tensor_names import widen
from gemmafile.kernels.quantizers.rows import quantize_rows

PIECE_WEIGHTS = 1 << 22
"""Numbers of one piece: 16 MB as float32."""
THREADS = 2

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class NotFinite(Exception):
    """A number that is infinite or NaN; `number` is its place in the tensor."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def encode_rows(raw: Bytes, source: str, target: Format, columns: int) -> Iterator[Bytes]:
    """The pieces of a matrix in another format.

    raw  uint8 of F32, F16 or BF16 numbers · source  which · columns  of a row
    Raises NotFinite for a number that is none, or that is too large for the target (F16).
    """
    rows_a_piece = max(1, PIECE_WEIGHTS // columns)
    row_bytes = columns * (4 if source == "F32" else 2)
    starts = range(0, raw.nbytes // row_bytes, rows_a_piece)

    def work(start: int) -> Bytes:
        piece = raw[start * row_bytes : (start + rows_a_piece) * row_bytes]
        try:
            return _encode(piece, source, target.name, columns)
        except NotFinite as error:
            raise NotFinite(start * columns + error.number) from None

    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[Bytes]] = deque()
        for start in starts:
            waiting.append(pool.submit(work, start))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _encode(piece: Bytes, source: str, target: str, columns: int) -> Bytes:
    _check_finite(piece, source)
    if source == target:
        return piece
    values = widen(piece, source)
    if target == "F32":
        return values.view(np.uint8)
    if target == "BF16":
        return round_bf16(values).view(np.uint8)
    if target == "F16":
        with np.errstate(over="ignore"):
            halves = values.astype("<f2")
        _check_finite(halves.view(np.uint8), "F16")
        return halves.view(np.uint8)
    assert target == "Q8_0", target
    try:
        return quantize_rows(values.reshape(-1, columns), target, None)[0].reshape(-1)
    except BackendUnavailable:  # no compiler here: NumPy, slow
        return quantize_q8_0(values)


_EXPONENT = {"F32": ("<u4", 0x7F800000), "F16": ("<u2", 0x7C00), "BF16": ("<u2", 0x7F80)}


def _check_finite(piece: Bytes, name: str) -> None:
    """An exponent of all ones: infinite, or no number."""
    dtype, mask = _EXPONENT[name]
    bad = (piece.view(dtype) & np.array(mask, dtype)) == mask
    if bad.any():
        raise NotFinite(int(np.argmax(bad)))


def round_bf16(values: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits uint16, to the nearest, ties to even."""
    bits = values.view("<u4")
    rounded: np.ndarray = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return rounded


def quantize_q8_0(values: np.ndarray) -> Bytes:
    """float32[n * 32] -> Q8_0 blocks: a float16 scale, max / 127, and 32 int8, halves away from zero."""
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        scaled = blocks * inverse[:, None]
    whole = np.trunc(scaled)
    whole += np.trunc(np.float32(2) * (scaled - whole))
    out = np.empty((len(blocks), 34), np.uint8)
    with np.errstate(over="ignore"):
        out[:, :2] = scale.astype("<f2")[:, None].view(np.uint8)
    out[:, 2:] = whole.astype(np.int8).view(np.uint8)
    return out.reshape(-1)
