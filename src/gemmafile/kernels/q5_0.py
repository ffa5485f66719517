"""Q5_0: 32 weights in 22 bytes
    byte 0-1   scale   float16
    byte 2-5   high    1 bit each, a uint32: bit i is bit 4 of q[i]
    byte 6-21  low     4 bits each       weight[i] = scale * (q[i] - 16)
               byte 6 + i holds the low bits of q[i] in its low half and of q[i + 16] in its high half

Activations are int8 in blocks of 32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def kernels() -> dict[str, Callable[..., None]]:
    """The compiled twins of `multiply`."""
    from gemmafile.kernels.quads import Quad, build_kernels

    return build_kernels(Quad(BYTES, None, five_bit_halves(2, 6), 16))


def five_bit_halves(high_at: int, low_at: int) -> Any:
    """`Quad.halves` for blocks with 4 bytes of fifth bits at `high_at` and 16 bytes of low bits at `low_at`."""
    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.quads import nibble_halves

    low_bits = nibble_halves(low_at)
    words, bytes_ = emit.vec("i32", 4), emit.vec("u8", 64)
    four_words = emit.make(words, [emit.address] * 4, _join_words)
    fifth_bits = emit.make(bytes_, [words, emit.address], _spread_bits)

    @simd.device
    def halves(p0, p1, p2, p3):
        low, high = low_bits(p0, p1, p2, p3)
        bits = four_words(p0 + high_at, p1 + high_at, p2 + high_at, p3 + high_at)
        return low | fifth_bits(bits, 0), high | fifth_bits(bits, 1)

    return halves


def _join_words(b: Any, *at: Any) -> Any:
    """The four bytes of high bits of four blocks."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    v = ir.Constant(ir.VectorType(emit.I32, 4), ir.Undefined)
    for i, a in enumerate(at):
        v = b.insert_element(v, emit.load_at(b, a, emit.I32), ir.Constant(emit.I32, i))
    return v


def _spread_bits(b: Any, words: Any, half: Any) -> Any:
    """Bit i of half a word of each block -> 16 in byte i of the block's 16, else 0; half 0 or 1 is a constant."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    # Every byte gets the byte of the word that holds its bit, then keeps that bit.
    bits = b.bitcast(words, ir.VectorType(emit.I8, 16))
    first = emit.shuffle(b, bits, bits, [4 * (i // 16) + i % 16 // 8 for i in range(64)])
    second = emit.shuffle(b, bits, bits, [4 * (i // 16) + 2 + i % 16 // 8 for i in range(64)])
    spread = b.select(b.icmp_signed("==", half, ir.Constant(emit.I64, 0)), first, second)
    masks = emit.constant(spread.type, [1 << i % 8 for i in range(64)])
    is_set = b.icmp_signed("!=", b.and_(spread, masks), emit.splat_constant(spread.type, 0))
    return b.select(is_set, emit.splat_constant(spread.type, 16), emit.splat_constant(spread.type, 0))
