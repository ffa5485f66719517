"""How float32 activations become int8: the steps that every kernel shares. Needs Numba.

Twin: `activations.quantize_int8`.
"""

from __future__ import annotations

from numba.core import types

from gemmafile.kernels import simd

_f32 = types.float32
_infinity = _f32(float("inf"))
_splat, _select, _equal = simd.splat_f32x16, simd.select, simd.equal
_greater, _round_even, _to_int = simd.greater, simd.round_even, simd.f32_to_i32x16


@simd.device
def larger(x, y):
    return _select(_greater(x, y), x, y)


@simd.device
def scale_and_d(largest, taint):
    """(127 / largest, largest / 127); zeros for a block of (nearly) zeros, (0, NaN) for one with a NaN or
    an infinity in it: `taint`, the sum of 0 * x, is a NaN then."""
    scale, d = _f32(127) / largest, largest / _f32(127)
    if taint != taint:
        return _f32(0), _f32(float("nan"))
    if scale == _infinity:
        return _f32(0), _f32(0)
    return scale, d


@simd.device
def rounded(v, scale):
    """float32x16 of whole numbers; a NaN times 0 must not reach the integer conversion."""
    r = _round_even(v * _splat(scale))
    return _select(_equal(r, r), r, _splat(_f32(0)))


@simd.device
def quantized(v, scale):
    """int32x16"""
    return _to_int(rounded(v, scale))
