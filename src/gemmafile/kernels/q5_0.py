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

    return build_kernels(Quad(BYTES, None, five_bit_halves(2, 6), 16, largest=31))


def five_bit_halves(high_at: int, low_at: int) -> Any:
    """`Quad.halves` for blocks with 4 bytes of fifth bits at `high_at` and 16 bytes of low bits at `low_at`."""
    from gemmafile.kernels import emit, simd
    from gemmafile.kernels.quads import nibble_halves

    low_bits, bytes_ = nibble_halves(low_at), emit.vec("u8", 64)
    fifth_of_first, fifth_of_last = (
        emit.make(bytes_, [bytes_] + [emit.address] * 4, _fifth_bits(high_at + 2 * half)) for half in range(2)
    )

    @simd.device
    def halves(p0, p1, p2, p3):
        low, high = low_bits(p0, p1, p2, p3)
        return fifth_of_first(low, p0, p1, p2, p3), fifth_of_last(high, p0, p1, p2, p3)

    return halves


def _fifth_bits(high_at: int) -> Callable[..., Any]:
    """with_fifth(low, p0, p1, p2, p3): 64 bytes, and 16 more in each whose bit is set; 16 bits at every p + high_at."""
    import llvmlite.ir as ir

    from gemmafile.kernels import emit

    def code(b: Any, low: Any, *blocks: Any) -> Any:
        bits = ir.Constant(emit.I64, 0)
        for i, p in enumerate(blocks):
            sixteen = b.zext(emit.load_at(b, p, emit.I16, high_at), emit.I64)
            bits = b.or_(bits, b.shl(sixteen, ir.Constant(emit.I64, 16 * i)))
        sixteen, zero = emit.splat_constant(low.type, 16), emit.splat_constant(low.type, 0)
        return b.or_(low, b.select(is_set(b, bits), sixteen, zero))

    def is_set(b: Any, bits: Any) -> Any:
        """Bit i -> lane i of a mask. Only AVX-512 has instructions for that."""
        if emit.HAS_AVX512:
            return b.bitcast(bits, ir.VectorType(emit.I1, 64))
        bytes_ = b.bitcast(bits, ir.VectorType(emit.I8, 8))
        spread = emit.shuffle(b, bytes_, bytes_, [i // 8 for i in range(64)])
        own = b.and_(spread, emit.constant(spread.type, [1 << i % 8 for i in range(64)]))
        return b.icmp_signed("!=", own, emit.splat_constant(own.type, 0))

    return code
