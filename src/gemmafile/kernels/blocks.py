"""Blocks of quantised weights as exact integers, and the product of rows of them with quantised activations.

A format gives `integers`: its blocks unpacked to `Integers`. The order of the float steps is docs/numerics.md's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gemmafile.kernels.float32 import fma

CHUNK_WEIGHTS = 1 << 21
"""Weights unpacked at once: at most 64 MB with what is made from them on the way."""


@dataclass(frozen=True, slots=True, eq=False)
class Integers:
    """Rows of B blocks. A weight is scale · weights, with minima − min_scale · minima[its sub-block], or + offset.

    weights    int16[N, B, block]  sub-scale · weight, the weight with its offset
    scale      float32[N, B]
    minima     uint8[N, B, sub-blocks]  K-quants with minima
    min_scale  float32[N, B]            K-quants with minima
    offset     float32[N, B]            Q4_1
    """

    weights: np.ndarray
    scale: np.ndarray
    minima: np.ndarray | None = None
    min_scale: np.ndarray | None = None
    offset: np.ndarray | None = None


def split_blocks(data: np.ndarray, n_bytes: int) -> np.ndarray:
    """uint8[..., B * n_bytes] -> uint8[..., B, n_bytes], a view where the memory allows."""
    return data.reshape(*data.shape[:-1], -1, n_bytes)


def read_half(blocks: np.ndarray, byte: int) -> np.ndarray:
    """The float16 at `byte` of each block: uint8[..., B, n_bytes] -> float32[..., B]."""
    return np.ascontiguousarray(blocks[..., byte : byte + 2]).view("<f2")[..., 0].astype(np.float32)


def read_nibbles(data: np.ndarray) -> np.ndarray:
    """uint8[..., n] -> uint8[..., 2n]: the low four bits of all bytes, then the high four."""
    return np.concatenate((data & 15, data >> 4), axis=-1)


def multiply_blocks(
    q: np.ndarray, d: np.ndarray, rows: np.ndarray, integers: Callable[[np.ndarray], Integers]
) -> np.ndarray:
    """Quantised activations q int8[T, K], d float32[T, B], times rows uint8[N, row bytes]: float32[T, N]."""
    out = np.empty((len(q), len(rows)), np.float32)
    step = max(1, CHUNK_WEIGHTS // q.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):  # scales may be infinite or NaN, as in a compiled kernel
        for first in range(0, len(rows), step):
            out[:, first : first + step] = _multiply_chunk(q, d, integers(rows[first : first + step])).T
    return out


def _multiply_chunk(q: np.ndarray, d: np.ndarray, w: Integers) -> np.ndarray:
    """float32[N, T]. The matrix products are of integers in floats wide enough to hold every sum exactly."""
    n_rows, n_blocks, block = w.weights.shape
    exact = np.float32 if block == 32 else np.float64  # 32 · 128 · 127 < 2^24; 256 · 4096 · 127 < 2^53
    weights, q = w.weights.astype(exact), q.reshape(len(q), n_blocks, block).astype(exact)
    f = np.zeros((n_rows, len(q)), np.float32)
    for b in range(n_blocks):
        d_a = d[:, b]
        f = fma((weights[:, b] @ q[:, b].T).astype(np.float32), w.scale[:, b, None] * d_a, f)
        if w.minima is not None and w.min_scale is not None:
            minima = w.minima[:, b].astype(exact)
            sums = q[:, b].reshape(len(q), minima.shape[1], block // minima.shape[1]).sum(axis=-1)
            f = fma((minima @ sums.T).astype(np.float32), -(w.min_scale[:, b, None] * d_a), f)
        if w.offset is not None:
            f = fma(w.offset[:, b, None], d_a * q[:, b].sum(axis=-1), f)
    return f
