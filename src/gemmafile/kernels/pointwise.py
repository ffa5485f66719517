"""Everything that is not a matrix product or attention: norms, gates, rotation, adds, caps, row picking.

Rows are handed out one by one; a row's arithmetic is docs/numerics.md's, 16 lanes at a time.
Twins: the methods of the same names in `reference.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from gemmafile.kernels.ops import NEXT, OUTPUTS, ROWS, slots

X, X_STRIDE, OUT, OUT_STRIDE, WIDTH = slots("X X_STRIDE OUT OUT_STRIDE WIDTH")
"""Address and row stride of the input and the output (bytes), and numbers in a row. Every kernel here has them."""
FIRST_OWN = "X X_STRIDE OUT OUT_STRIDE WIDTH "
*_, WEIGHT, GROUP, EPS = slots(FIRST_OWN + "WEIGHT GROUP EPS")
*_, Y, Y_STRIDE = slots(FIRST_OWN + "Y Y_STRIDE")
*_, CAP, INVERSE_CAP = slots(FIRST_OWN + "CAP INVERSE_CAP")
*_, HEAD_DIM, HALF, COS, SIN = slots(FIRST_OWN + "HEAD_DIM HALF COS SIN")


def kernels() -> dict[str, Callable[..., None]]:
    from numba.core import types

    from gemmafile.kernels import simd
    from gemmafile.kernels.rounding import larger

    f32 = types.float32
    atomic_add, load, load_i32 = simd.atomic_add, simd.load_i64, simd.load_i32
    load_part, store_part = simd.load_part_f32x16, simd.store_part_f32x16
    load_f32, store_f32, fma, fma_scalar = simd.load_f32, simd.store_f32, simd.fma, simd.fma_scalar
    splat, exp, tanh, negate, sqrt = simd.splat_f32x16, simd.exp, simd.tanh, simd.negate, simd.sqrt_scalar
    sum_lanes, max_lanes, load_v = simd.sum_f32x16, simd.max_f32x16, simd.load_f32x16

    def norm(op, shared, thread):
        """out = x * (1 / sqrt(mean(x²) + eps)) * weight, for each group of GROUP numbers of a row."""
        width, group, weight = load(op + WIDTH), load(op + GROUP), load(op + WEIGHT)
        eps = load_f32(op + EPS)
        n = load(shared + load(op + ROWS))
        while True:
            row = atomic_add(op + NEXT, 1)
            if row >= n:
                return
            x, out = load(op + X) + row * load(op + X_STRIDE), load(op + OUT) + row * load(op + OUT_STRIDE)
            start = 0
            while start < width:  # `range` with a step that may be 0 raises, and a kernel cannot
                total = splat(f32(0))
                for i in range(0, group, 16):
                    v = load_part(x + 4 * (start + i), group - i)
                    total = fma(v, v, total)
                scale = f32(1) / sqrt(sum_lanes(total) / f32(group) + eps)
                for i in range(0, group, 16):
                    at = 4 * (start + i)
                    v = load_part(x + at, group - i) * splat(scale) * load_part(weight + 4 * i, group - i)
                    store_part(out + at, v, group - i)
                start += group

    def gelu(op, shared, thread):
        """out = x / (1 + exp(-2 sqrt(2 / pi) (x + 0.044715 x³))) * y"""
        width, n = load(op + WIDTH), load(shared + load(op + ROWS))
        while True:
            row = atomic_add(op + NEXT, 1)
            if row >= n:
                return
            x, out = load(op + X) + row * load(op + X_STRIDE), load(op + OUT) + row * load(op + OUT_STRIDE)
            y = load(op + Y) + row * load(op + Y_STRIDE)
            for i in range(0, width, 16):
                v = load_part(x + 4 * i, width - i)
                t = fma(v * v, splat(f32(0.044715)), splat(f32(1)))
                u = v * t * splat(f32(-1.5957691216057308))
                store_part(out + 4 * i, v / (splat(f32(1)) + exp(u)) * load_part(y + 4 * i, width - i), width - i)

    def silu(op, shared, thread):
        """out = x / (1 + exp(-x)) * y"""
        width, n = load(op + WIDTH), load(shared + load(op + ROWS))
        while True:
            row = atomic_add(op + NEXT, 1)
            if row >= n:
                return
            x, out = load(op + X) + row * load(op + X_STRIDE), load(op + OUT) + row * load(op + OUT_STRIDE)
            y = load(op + Y) + row * load(op + Y_STRIDE)
            for i in range(0, width, 16):
                v = load_part(x + 4 * i, width - i)
                v = v / (splat(f32(1)) + exp(negate(v)))
                store_part(out + 4 * i, v * load_part(y + 4 * i, width - i), width - i)

    def add(op, shared, thread):
        """out = x + y; out may be x."""
        width, n = load(op + WIDTH), load(shared + load(op + ROWS))
        while True:
            row = atomic_add(op + NEXT, 1)
            if row >= n:
                return
            x, out = load(op + X) + row * load(op + X_STRIDE), load(op + OUT) + row * load(op + OUT_STRIDE)
            y = load(op + Y) + row * load(op + Y_STRIDE)
            for i in range(0, width, 16):
                v = load_part(x + 4 * i, width - i) + load_part(y + 4 * i, width - i)
                store_part(out + 4 * i, v, width - i)

    def softcap(op, shared, thread):
        """out = cap * tanh(x / cap); the row is cut into pieces of 4096, it may be a whole vocabulary."""
        width = load(op + WIDTH)
        cap, inverse = splat(load_f32(op + CAP)), splat(load_f32(op + INVERSE_CAP))
        pieces = (width + 4095) >> 12
        n = load(shared + load(op + ROWS)) * pieces
        while True:
            task = atomic_add(op + NEXT, 1)
            if task >= n:
                return
            row, piece = simd.quotient(task, pieces), simd.remainder(task, pieces)
            x, out = load(op + X) + row * load(op + X_STRIDE), load(op + OUT) + row * load(op + OUT_STRIDE)
            i = 4096 * piece
            while i < min(width, 4096 * piece + 4096):
                store_part(out + 4 * i, cap * tanh(load_part(x + 4 * i, width - i) * inverse), width - i)
                i += 16

    def take_outputs(op, shared, thread):
        """out[i] = x[outputs[i]], whole rows."""
        width, n = load(op + WIDTH), load(shared + load(op + ROWS))
        while True:
            i = atomic_add(op + NEXT, 1)
            if i >= n:
                return
            row = load_i32(load(shared + OUTPUTS) + 4 * i)
            x, out = load(op + X) + row * load(op + X_STRIDE), load(op + OUT) + i * load(op + OUT_STRIDE)
            for k in range(0, width, 16):
                store_part(out + 4 * k, load_part(x + 4 * k, width - k), width - k)

    def peaks(op, shared, thread):
        """out[g] = the largest of numbers 128 g to 128 g + 127, NaN if one of them is not finite; WIDTH is a multiple
        of 128, the row is cut into pieces of 4096."""
        width = load(op + WIDTH)
        pieces = (width + 4095) >> 12
        n = load(shared + load(op + ROWS)) * pieces
        while True:
            task = atomic_add(op + NEXT, 1)
            if task >= n:
                return
            row, piece = simd.quotient(task, pieces), simd.remainder(task, pieces)
            x, out = load(op + X) + row * load(op + X_STRIDE), load(op + OUT) + row * load(op + OUT_STRIDE)
            i = 4096 * piece
            while i < min(width, 4096 * piece + 4096):
                largest = load_v(x + 4 * i)
                taint = largest * splat(f32(0))
                for k in range(1, 8):
                    v = load_v(x + 4 * i + 64 * k)
                    largest, taint = larger(v, largest), fma(v, splat(f32(0)), taint)
                store_f32(out + (i >> 5), max_lanes(largest) + sum_lanes(taint))
                i += 128

    def make_rotate(interleaved):
        first, second = (1, 0) if interleaved else (0, 1)
        step = 2 if interleaved else 1

        def rotate(op, shared, thread):
            """Pairs (x1, x2) of each head turned by the row's angles; the rest of a head is copied."""
            width, head_dim, half = load(op + WIDTH), load(op + HEAD_DIM), load(op + HALF)
            n = load(shared + load(op + ROWS))
            apart = first + second * half
            while True:
                row = atomic_add(op + NEXT, 1)
                if row >= n:
                    return
                x, out = load(op + X) + row * load(op + X_STRIDE), load(op + OUT) + row * load(op + OUT_STRIDE)
                cos, sin = load(op + COS) + 4 * half * row, load(op + SIN) + 4 * half * row
                head = 0
                while head < width:
                    for j in range(half):
                        one = 4 * (head + step * j)
                        two = one + 4 * apart
                        x1, x2 = load_f32(x + one), load_f32(x + two)
                        c, s = load_f32(cos + 4 * j), load_f32(sin + 4 * j)
                        store_f32(out + one, fma_scalar(x1, c, -(x2 * s)))
                        store_f32(out + two, fma_scalar(x2, c, x1 * s))
                    for j in range(head + 2 * half, head + head_dim):
                        store_f32(out + 4 * j, load_f32(x + 4 * j))
                    head += head_dim

        return rotate

    return {
        "norm": norm, "gelu": gelu, "silu": silu, "add": add, "softcap": softcap, "take_outputs": take_outputs,
        "peaks": peaks,
        "rotate": make_rotate(False), "rotate_interleaved": make_rotate(True),
    }  # fmt: skip
