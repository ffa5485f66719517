"""Q4_K: 256 weights in 144 bytes, 8 sub-blocks of 32
    byte 0-1     scale      float16
    byte 2-3     min_scale  float16
    byte 4-15    sub-scales and sub-minima, 6 bits each; s and m of sub-block j:
                 j < 4    s = low 6 bits of byte 4 + j       m = low 6 bits of byte 8 + j
                 j >= 4   s = low half of byte 8 + j, and above it the top 2 bits of byte j
                          m = high half of byte 8 + j, and above it the top 2 bits of byte 4 + j
    byte 16-143  q          4 bits each   weight[i] = scale * s * q[i] - min_scale * m
                 byte 16 + 32g + i holds q[64g + i] in its low half and q[64g + 32 + i] in its high half

Activations are int8 in blocks of 256.
"""

from __future__ import annotations

import numpy as np

from gemmafile.kernels.activations import quantize_int8
from gemmafile.kernels.blocks import Integers, multiply_blocks, read_half, read_nibbles, split_blocks

BLOCK, BYTES = 256, 144
ACTIVATIONS = 256


def dequantize(data: np.ndarray) -> np.ndarray:
    """uint8[..., n * 144] -> float32[..., n * 256]"""
    blocks = split_blocks(data, BYTES)
    scales, minima = read_sub_scales(blocks)
    scale = read_half(blocks, 0)[..., None] * scales.astype(np.float32)
    minimum = read_half(blocks, 2)[..., None] * minima.astype(np.float32)
    return (scale[..., None] * _read_weights(blocks) - minimum[..., None]).reshape(*data.shape[:-1], -1)


def integers(data: np.ndarray) -> Integers:
    """uint8[..., n * 144] -> the blocks' exact integers."""
    blocks = split_blocks(data, BYTES)
    scales, minima = read_sub_scales(blocks)
    weights = (scales.astype(np.int16)[..., None] * _read_weights(blocks)).reshape(*blocks.shape[:-1], BLOCK)
    return Integers(weights, read_half(blocks, 0), minima, read_half(blocks, 2))


def read_sub_scales(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s, m uint8[..., 8] of each block."""
    s, m, rest = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    return (
        np.concatenate((s & 63, rest & 15 | s >> 6 << 4), axis=-1),
        np.concatenate((m & 63, rest >> 4 | m >> 6 << 4), axis=-1),
    )


def _read_weights(blocks: np.ndarray) -> np.ndarray:
    """q uint8[..., 8, 32] of each block."""
    pairs = blocks[..., 16:].reshape(*blocks.shape[:-1], 4, 32)
    return read_nibbles(pairs).reshape(*blocks.shape[:-1], 8, 32)


def quantize_activations(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[T, K] -> int8[T, K], float32[T, K / 256]"""
    return quantize_int8(x, ACTIVATIONS)


def multiply(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32[T, K] times rows uint8[N, K / 256 * 144]: float32[T, N]."""
    return multiply_blocks(*quantize_activations(x), rows, integers)
