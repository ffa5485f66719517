"""Activations as a matrix product reads them: int8 with a scale per block, or bfloat16.

Each format chooses one of these; all its kernels share it (docs/numerics.md).
"""

from __future__ import annotations

import numpy as np

from gemmafile.kernels.cache import round_bf16
from gemmafile.kernels.float32 import fma

__all__ = ["quantize_int8", "remainder", "round_bf16"]

_MAX = np.float32(127)


def quantize_int8(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> q int8[T, K] and d float32[T, K / block], x ≈ d · q with d = the block's max abs / 127.

    A block of zeros, or so small (below 4e-37) that 127 / max is infinite, has d = 0 and q = 0.
    One with an infinity or a NaN has d = NaN and q = 0, so that its row's results are NaN.
    """
    blocks = np.ascontiguousarray(x, np.float32).reshape(len(x), x.shape[1] // block, block)
    largest = np.abs(blocks).max(axis=-1, initial=0)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scale, d = _MAX / largest, largest / _MAX
        is_finite, is_tiny = np.isfinite(largest), np.isinf(scale)
        q = np.rint(blocks * np.where(is_finite & ~is_tiny, scale, np.float32(0))[..., None])
    q = np.where(is_finite[..., None], q, 0).astype(np.int8)
    d = np.where(is_finite, np.where(is_tiny, np.float32(0), d), np.float32(np.nan))
    return q.reshape(x.shape), d


def remainder(x: np.ndarray, block: int) -> np.ndarray:
    """What `quantize_int8` loses of x: float32[T, K]."""
    q, d = quantize_int8(x, block)
    return fma(q.astype(np.float32), np.repeat(-d, block, axis=1), x)
