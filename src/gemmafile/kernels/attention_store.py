"""Keys and values of a pass stored into their pages, one kernel for each kind of cached number: `attention_store.f16`.

Layout of pages: `cache.py`. Twin: `KVCache.store`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmafile.kernels.cache import CACHE_TYPES, Q8_0_BLOCK
from gemmafile.kernels.ops import N_ROWS, NEXT, POSITIONS, ROW_TABLES, SCRATCH, SCRATCH_BYTES, slots

BLOCK_SHIFT, PAGE_SHIFT = 6, 7
STORED_TOGETHER = 32
"""Rows stored by one thread: neighbours share cache lines of transposed keys."""

X, X_STRIDE, TARGET, PAGE_BYTES, HEAD_BYTES, BLOCK_BYTES, N_KV, HEAD_DIM, WIDTH, IS_KEYS = slots(
    "X X_STRIDE TARGET PAGE_BYTES HEAD_BYTES BLOCK_BYTES N_KV HEAD_DIM WIDTH IS_KEYS"
)
"""Fields: float32 rows, the layer's keys or values, bytes of a page, of one kv head in it, and of one block
of keys; kv heads, head size and size as stored."""


def kernels() -> dict[str, Callable[..., None]]:
    return {kind: _make(kind) for kind in CACHE_TYPES}


def _make(kind: str) -> Callable[..., None]:
    from numba.core import types

    from gemmafile.kernels import simd

    load, load_i32, load_f32 = simd.load_i64, simd.load_i32, simd.load_f32
    load_u32, load_part, splat, atomic_add = simd.load_u32, simd.load_part_f32x16, simd.splat_f32x16, simd.atomic_add
    quotient, remainder, round_even, select = simd.quotient, simd.remainder, simd.round_even, simd.select
    less, greater, load_f16, store_f16 = simd.less, simd.greater, simd.load_f16, simd.store_f16
    f32_to_i32, i32_to_i8, store_i8 = simd.f32_to_i32x16, simd.i32_to_i8x16, simd.store_i8x16
    load_byte, store_byte = simd.load_u8, simd.scalar_storer("u8")
    size = CACHE_TYPES[kind].n_bytes
    f32 = types.float32
    store_one: Any = {"f32": simd.store_f32, "f16": simd.store_f16, "bf16": simd.store_bf16}.get(kind)
    store_16: Any = {"f32": simd.store_f32x16, "f16": simd.store_f16x16, "bf16": simd.store_bf16x16}.get(kind)
    infinity = f32(float("inf"))

    @simd.device
    def store_numbers(x, target, step, n, scratch):
        """n float32 to places `step` numbers apart."""
        if step == 1:
            d = 0
            while d + 16 <= n:
                store_16(target + size * d, load_part(x + 4 * d, 16))
                d += 16
            for i in range(d, n):
                store_one(target + size * i, load_f32(x + 4 * i))
        else:
            for d in range(n):
                store_one(target + size * step * d, load_f32(x + 4 * d))

    @simd.device
    def store_block(x, target, step, scale, n, scratch):
        """Up to 32 numbers and their scale; `scratch` holds 32 bytes."""
        most = 0
        for i in range(n):
            most = max(most, types.int64(load_u32(x + 4 * i) & types.uint32(0x7FFFFFFF)))
        simd_store_u32(scratch, types.uint32(most))  # an infinity or a NaN is the largest of all
        store_f16(scale, load_f32(scratch) / f32(127))
        wide = load_f16(scale)
        for i in range(2):
            q = splat(f32(0))
            if wide > f32(0) and wide < infinity:
                q = round_even(load_part(x + 64 * i, max(0, n - 16 * i)) / splat(wide))
                q = select(greater(q, splat(f32(127))), splat(f32(127)), q)
                q = select(less(q, splat(f32(-127))), splat(f32(-127)), q)
            store_i8(scratch + 16 * i, i32_to_i8(f32_to_i32(q)))
        for i in range(n):
            store_byte(target + step * i, load_byte(scratch + i))

    simd_store_u32 = simd.scalar_storer("u32")
    scaled = kind == "q8_0"

    def store(op, shared, thread):
        """k or v of each row into the page of its position: k transposed, v as it is."""
        n_kv, head_dim, width = load(op + N_KV), load(op + HEAD_DIM), load(op + WIDTH)
        is_keys = load(op + IS_KEYS)
        n = load(shared + N_ROWS)
        scratch = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        together = 1
        if n >= 2 * STORED_TOGETHER:
            together = STORED_TOGETHER
        n_tasks = quotient(n + together - 1, together) * n_kv
        while True:
            task = atomic_add(op + NEXT, 1)
            if task >= n_tasks:
                return
            head, first = remainder(task, n_kv), quotient(task, n_kv) * together
            for row in range(first, min(n, first + together)):
                position = load_i32(load(shared + POSITIONS) + 4 * row)
                page = load_i32(load(load(shared + ROW_TABLES) + 8 * row) + 4 * (position >> PAGE_SHIFT))
                x = load(op + X) + row * load(op + X_STRIDE) + 4 * head * head_dim
                inside = position & 127
                base = load(op + TARGET) + page * load(op + PAGE_BYTES) + head * load(op + HEAD_BYTES)
                if is_keys:
                    base += (inside >> BLOCK_SHIFT) * load(op + BLOCK_BYTES)
                    target, step = base + size * (inside & 63), 64
                    scale, scale_step = base + 64 * width + 2 * (inside & 63), 128
                else:
                    target, step = base + size * inside * width, 1
                    scale, scale_step = base + 128 * width + 2 * inside * (width >> 5), 2
                if scaled:
                    d = 0
                    while d < head_dim:
                        store_block(x + 4 * d, target + step * d, step, scale, min(Q8_0_BLOCK, head_dim - d), scratch)
                        scale += scale_step
                        d += Q8_0_BLOCK
                else:
                    store_numbers(x, target, step, head_dim, scratch)

    return store
