"""Q5_0: 32 weights in 22 bytes
    byte 0-1   scale   float16
    byte 2-5   high    1 bit each, a uint32: bit i is bit 4 of q[i]
    byte 6-21  low     4 bits each       weight[i] = scale * (q[i] - 16)
               byte 6 + i holds the low bits of q[i] in its low half and of q[i + 16] in its high half

Activations are int8 in blocks of 32.
"""

from __future__ import annotations

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, read_nibbles, split_blocks

BLOCK, BYTES = 32, 22
ACTIVATIONS = 32


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 22] -> float32[..., n * 32]"""
    w = integers(data)
    return (w.scale[..., None] * w.weights).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 22] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    high = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")
    q = read_nibbles(blocks[..., 6:]) | high << 4
    return Integers(q.astype(np.int16) - np.int16(16), read_half(blocks, 0))


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 32]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 32 * 22]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)
