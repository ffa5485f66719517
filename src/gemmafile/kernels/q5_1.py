"""Q5_1: 32 weights in 24 bytes
    byte 0-1   scale   float16
    byte 2-3   m       float16
    byte 4-7   high    1 bit each, a uint32: bit i is bit 4 of q[i]
    byte 8-23  low     4 bits each       weight[i] = scale * q[i] + m
               byte 8 + i holds the low bits of q[i] in its low half and of q[i + 16] in its high half

Activations are int8 in blocks of 32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, read_nibbles, split_blocks

BLOCK, BYTES = 32, 24
ACTIVATIONS = 32


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 24] -> float32[..., n * 32]"""
    w = integers(data)
    assert w.offset is not None
    return (w.scale[..., None] * w.weights + w.offset[..., None]).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 24] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    high = np.unpackbits(blocks[..., 4:8], axis=-1, bitorder="little")
    weights = (read_nibbles(blocks[..., 8:]) | high << 4).astype(np.int16)
    return Integers(weights, read_half(blocks, 0), offset=read_half(blocks, 2))


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 32]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 32 * 24]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`."""
    from gemmafile.kernels.q5_0 import five_bit_halves
    from gemmafile.kernels.quads import Quad, build_kernels

    return build_kernels(Quad(BYTES, 2, five_bit_halves(4, 8), 0, largest=31))
