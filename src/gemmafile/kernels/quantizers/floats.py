"""F16 and BF16: a number rounded to the nearest there is, and read back to see that it is finite. Needs Numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gemmafile.kernels import simd
from gemmafile.kernels.quantizers.jobs import BAD, KIND, N_BLOCKS, OUT, SOURCE
from gemmafile.kernels.quantizers.lanes import number, read_numbers


def kernels() -> dict[str, Callable[..., None]]:
    return {
        "f16": _make(simd.store_f16x16, simd.load_f16x16),
        "bf16": _make(simd.store_bf16x16, simd.load_bf16x16),
    }


def _make(store: Any, load_back: Any) -> Callable[..., None]:
    """A kernel for a job whose N_BLOCKS are 16 numbers each."""
    read, write, fma, sum_lanes = simd.load_i64, simd.store_i64, simd.fma, simd.sum_f32x16

    def kernel(op, shared, thread):
        source, kind, out, n = read(op + SOURCE), read(op + KIND), read(op + OUT), read(op + N_BLOCKS)
        taint = number(0)
        for i in range(n):
            store(out + 32 * i, read_numbers(kind, source, 16 * i))
            taint = fma(load_back(out + 32 * i), number(0), taint)
        total = sum_lanes(taint)
        if total != total:
            write(op + BAD, 1)

    return kernel
