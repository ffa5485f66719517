"""F32, F16 and BF16: one number after another, little-endian, no blocks and no scales.

    F32   4 bytes  float32
    F16   2 bytes  float16
    BF16  2 bytes  the high half of a float32; its products are those of the bfloat16 dot instructions

Activations are float32, or rounded to bfloat16 for BF16.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np

from gemmafile.kernels.activations import round_bf16
from gemmafile.kernels.cache import from_cache
from gemmafile.kernels.float32 import LANES, fma, tree

CHUNK_STEPS = 64
"""Steps of the 16 lanes after which they are joined and begin at zero again."""
BF16_STEPS = 8
"""The same for the 16 lanes of pairs of BF16."""

_CHUNK_LANES = 1 << 17  # of all rows computed at once: what is made on the way stays in the cache

Step = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(w, x, acc) -> acc: what happens to the lanes of [rows, T, 16] for columns w [rows, 1, n], x [T, n]."""


class F32:
    """Weights of 4 bytes."""

    BLOCK, BYTES = 1, 4
    ACTIVATIONS = None

    def dequantize(self, data: np.ndarray) -> np.ndarray:
        """uint8[..., n * BYTES] -> float32[..., n]"""
        return data.view("<f4").astype(np.float32)

    def quantize_activations(self, x: np.ndarray) -> np.ndarray:
        """Activations are used as they are."""
        return x

    def multiply(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float32[T, K] times rows uint8[N, K * BYTES]: float32[T, N]."""
        return _multiply_lanes(x, rows, self.dequantize, LANES, fma)


class F16(F32):
    """Weights of 2 bytes, used as the float32 they are."""

    BYTES = 2

    def dequantize(self, data: np.ndarray) -> np.ndarray:
        """uint8[..., n * BYTES] -> float32[..., n]"""
        return data.view("<f2").astype(np.float32)


class BF16:
    """Weights of 2 bytes; activations are rounded to bfloat16 too."""

    BLOCK, BYTES = 1, 2
    ACTIVATIONS = None

    def dequantize(self, data: np.ndarray) -> np.ndarray:
        """uint8[..., n * BYTES] -> float32[..., n]"""
        return from_cache(data.view("<u2"), "bf16")

    def quantize_activations(self, x: np.ndarray) -> np.ndarray:
        """float32[T, K] -> bfloat16 bits uint16[T, K]"""
        return round_bf16(x)

    def multiply(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float32[T, K] times rows uint8[N, K * BYTES]: float32[T, N]."""

        def read(data: np.ndarray) -> np.ndarray:
            return _flush(self.dequantize(data))

        rounded = _flush(from_cache(self.quantize_activations(x), "bf16"))
        return _multiply_pairs(rounded, rows, read)


def _multiply_lanes(
    x: np.ndarray, rows: np.ndarray, read: Callable[[np.ndarray], np.ndarray], columns: int, step: Step
) -> np.ndarray:
    """x float32[T, K] times rows, `columns` of them a step: float32[T, N]."""
    padding = ((0, 0), (0, -x.shape[1] % columns))
    x = np.pad(x, padding)
    out = np.empty((len(x), len(rows)), np.float32)
    n_rows, chunk = max(1, _CHUNK_LANES // (LANES * max(1, len(x)))), CHUNK_STEPS * columns
    for first in range(0, len(rows), n_rows):
        w = np.pad(read(rows[first : first + n_rows]), padding)
        sums = (
            _sum_chunk(w[:, i : i + chunk], x[:, i : i + chunk], columns, step) for i in range(0, x.shape[1], chunk)
        )
        with np.errstate(over="ignore", invalid="ignore"):
            out[:, first : first + n_rows] = reduce(np.add, sums).T
    return out


def _sum_chunk(w: np.ndarray, x: np.ndarray, columns: int, step: Step) -> np.ndarray:
    """w float32[rows, n] times x float32[T, n]: float32[rows, T]."""
    acc = np.zeros((len(w), len(x), LANES), np.float32)
    for i in range(0, x.shape[1], columns):
        acc = step(w[:, None, i : i + columns], x[:, i : i + columns], acc)
    return tree(acc)


def _multiply_pairs(x: np.ndarray, rows: np.ndarray, read: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """x float32[T, K] times rows, in chunks whose lanes are added one after the other: float32[T, N]."""
    chunk = BF16_STEPS * 2 * LANES
    padding = ((0, 0), (0, -x.shape[1] % chunk))
    x = np.pad(x, padding)
    out = np.empty((len(x), len(rows)), np.float32)
    n_rows = max(1, _CHUNK_LANES // (LANES * max(1, len(x))))
    for first in range(0, len(rows), n_rows):
        w = np.pad(read(rows[first : first + n_rows]), padding)
        total = np.zeros((len(w), len(x)), np.float32)
        for start in range(0, x.shape[1], chunk):
            acc = np.zeros((*total.shape, LANES), np.float32)
            for i in range(start, start + chunk, 2 * LANES):
                acc = _add_pairs(w[:, None, i : i + 2 * LANES], x[:, i : i + 2 * LANES], acc)
            for lane in range(LANES):
                with np.errstate(over="ignore", invalid="ignore"):
                    total = _flush(total + acc[..., lane])
        out[:, first : first + n_rows] = total.T
    return out


def _add_pairs(w: np.ndarray, x: np.ndarray, acc: np.ndarray) -> np.ndarray:
    """The odd number of each pair, then the even one."""
    for i in (1, 0):
        acc = _flush(fma(w[..., i::2], x[..., i::2], acc))
    return acc


def _flush(x: np.ndarray) -> np.ndarray:
    """Numbers below 2^-126 become zero, as the bfloat16 dot instruction takes and leaves them."""
    return np.where(np.abs(x) < np.finfo(np.float32).smallest_normal, np.float32(0), x)
