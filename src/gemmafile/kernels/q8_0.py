"""Q8_0: 32 weights in 34 bytes
    byte 0-1   scale   float16
    byte 2-33  q       int8[32]          weight[i] = scale * q[i]

Activations are int8 in blocks of 32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, split_blocks

BLOCK, BYTES = 32, 34
ACTIVATIONS = 32


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 34] -> float32[..., n * 32]"""
    w = integers(data)
    return (w.scale[..., None] * w.weights).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 34] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    return Integers(blocks[..., 2:].view(np.int8).astype(np.int16), read_half(blocks, 0))


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 32]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 32 * 34]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`. Signed bytes become unsigned ones by an offset of 128."""
    from numba.core import types

    from gemmafile.kernels import simd
    from gemmafile.kernels.quads import Quad, build_kernels

    load_16, join_16, join_32, splat = simd.load_u8x16, simd.join_u8x16, simd.join_u8x32, simd.splat_u8x64

    @simd.device
    def halves(p0, p1, p2, p3):
        sign = splat(types.uint8(128))
        low = join_32(join_16(load_16(p0 + 2), load_16(p1 + 2)), join_16(load_16(p2 + 2), load_16(p3 + 2)))
        high = join_32(join_16(load_16(p0 + 18), load_16(p1 + 18)), join_16(load_16(p2 + 18), load_16(p3 + 18)))
        return low ^ sign, high ^ sign

    return build_kernels(Quad(BYTES, None, halves, 128))
