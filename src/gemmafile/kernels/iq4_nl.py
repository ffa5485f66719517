"""IQ4_NL: 32 weights in 18 bytes
    byte 0-1   scale   float16
    byte 2-17  index   4 bits each       weight[i] = scale * CODEBOOK[index[i]]
               byte 2 + i holds index[i] in its low half and index[i + 16] in its high half

Activations are int8 in blocks of 32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, read_nibbles, split_blocks

BLOCK, BYTES = 32, 18
ACTIVATIONS = 32

CODEBOOK = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16)
"""Close together where weights are many. Source: `kvalues_iq4nl` in ggml-common.h."""
CODEBOOK_OFFSET = 128
"""Added in the kernels, which multiply unsigned weights."""


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 18] -> float32[..., n * 32]"""
    w = integers(data)
    return (w.scale[..., None] * w.weights).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 18] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    return Integers(CODEBOOK[read_nibbles(blocks[..., 2:])], read_half(blocks, 0))


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 32]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 32 * 18]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`."""
    from gemmafile.kernels import simd
    from gemmafile.kernels.quads import Quad, build_kernels, nibble_halves

    indices, look_up = nibble_halves(2), simd.table((CODEBOOK + CODEBOOK_OFFSET).tolist())

    @simd.device
    def halves(p0, p1, p2, p3):
        low, high = indices(p0, p1, p2, p3)
        return look_up(low), look_up(high)

    return build_kernels(Quad(BYTES, None, halves, CODEBOOK_OFFSET))
