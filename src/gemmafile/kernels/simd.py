"""The SIMD layer: vector types and intrinsics for Numba. Kernels are written once, against this file.

Every vector is 512 bits wide or a part of that (16 float32, 64 bytes); LLVM splits it for AVX2, NEON or plain
code. Operators (+ - * & | ^ << >> < >) work on vectors of one type. Memory is reached by raw addresses (intp);
no load or store needs alignment. Names end in the type they return: `load_f32x16(address)`.

Types and the choice of instructions are in `emit.py`. Only the kernel builders import these modules: they need
Numba.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir
from numba import njit
from numba.core import types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from gemmafile.kernels.emit import (
    BITS,
    ELEMENT,
    F32,
    FEATURES,
    HAS_NEON,
    I8,
    I16,
    I32,
    I64,
    SCALAR,
    Vec,
    address,
    bf16_to_f32,
    call,
    constant,
    f32_to_bf16,
    f32_to_half,
    fma_f32,
    half,
    half_to_f32,
    hide,
    load_at,
    load_part,
    look_up,
    make,
    pointer,
    shuffle,
    splat,
    stack_on_a_line,
    store_at,
    store_part,
    tree_sum,
    vec,
    void,
)

device = njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)
"""A function that kernels call; always inlined, so that LLVM sees that no error can come back (Numba's error path
needs Python, and our objects need nothing)."""

# --- operators ----------------------------------------------------------------------------------------------------


def _operator(op: Any, on_int: Any, on_float: Any = None, on_unsigned: Any = None) -> None:
    class Template(AbstractTemplate):
        key = op

        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vec) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    infer_global(op)(Template)

    @lower_builtin(op, Vec, Vec)
    def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind = sig.args[0]
        if kind.is_float:
            return on_float(b, *args)
        return (on_unsigned if on_unsigned and kind.kind[0] == "u" else on_int)(b, *args)


_operator(operator.add, lambda b, x, y: b.add(x, y), lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, lambda b, x, y: b.sub(x, y), lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, lambda b, x, y: b.mul(x, y), lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, None, lambda b, x, y: b.fdiv(x, y))
_operator(operator.and_, lambda b, x, y: b.and_(x, y))
_operator(operator.or_, lambda b, x, y: b.or_(x, y))
_operator(operator.xor, lambda b, x, y: b.xor(x, y))


def _shift(op: Any, signed: str, unsigned: str) -> None:
    """A shift of every lane by one number."""

    class Template(AbstractTemplate):
        key = op

        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], Vec) and isinstance(args[1], types.Integer):
                return signature(args[0], *args)
            return None

    infer_global(op)(Template)

    @lower_builtin(op, Vec, types.Integer)
    def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
        kind, element = sig.args[0], ELEMENT[sig.args[0].kind]
        by = args[1]
        if by.type.width != element.width:
            by = b.trunc(by, element) if by.type.width > element.width else b.zext(by, element)
        return getattr(b, unsigned if kind.kind[0] == "u" else signed)(args[0], splat(b, by, kind.n))


_shift(operator.lshift, "shl", "shl")
_shift(operator.rshift, "ashr", "lshr")


# --- intrinsics: each `make` returns one that kernels call ----------------------------------------------------


def loader(kind: str, n: int) -> Any:
    """load(address) -> n elements."""
    t = vec(kind, n)
    return make(t, [address], lambda b, a: load_at(b, a, t.llvm))


def storer(kind: str, n: int) -> Any:
    """store(address, vector)."""
    t = vec(kind, n)
    return make(void, [address, t], lambda b, a, v: store_at(b, v, a))


def scalar_loader(kind: str) -> Any:
    return make(SCALAR[kind], [address], lambda b, a: load_at(b, a, ELEMENT[kind]))


def scalar_storer(kind: str) -> Any:
    return make(void, [address, SCALAR[kind]], lambda b, a, v: store_at(b, v, a))


def shuffler(kind: str, n: int, lanes: Sequence[int]) -> Any:
    """shuffled(x, y): lanes of x, then of y."""
    t = vec(kind, n)
    return make(vec(kind, len(lanes)), [t, t], lambda b, x, y: shuffle(b, x, y, lanes))


def caster(source: tuple[str, int], target: tuple[str, int]) -> Any:
    """The same bits as another type."""
    s, t = vec(*source), vec(*target)
    return make(t, [s], lambda b, v: v if s.llvm == t.llvm else b.bitcast(v, t.llvm))


def converter(source: str, target: str, n: int) -> Any:
    """Element by element: widening, narrowing, integer to float (to nearest), float to integer (truncated)."""
    s, t = vec(source, n), vec(target, n)

    def code(b: Any, v: Any) -> Any:
        signed = source[0] == "i"
        if t.is_float:
            return (b.sitofp if signed else b.uitofp)(v, t.llvm)
        if s.is_float:
            return b.fptosi(v, t.llvm)
        if BITS[target] < BITS[source]:
            return b.trunc(v, t.llvm)
        return (b.sext if signed else b.zext)(v, t.llvm)

    return make(t, [s], code)


def splatter(kind: str, n: int) -> Any:
    return make(vec(kind, n), [SCALAR[kind]], lambda b, x: splat(b, x, n))


def constants(kind: str, values: Sequence[Any]) -> Any:
    """A function without arguments that returns the vector."""
    t = vec(kind, len(values))
    return make(t, [], lambda b: constant(t.llvm, values))


def table(values: Sequence[int]) -> Any:
    """look_up(u8x64): values[i] for every byte i, which is 0 to 15."""
    return make(vec("u8", 64), [vec("u8", 64)], lambda b, i: look_up(b, values, i))


def _compare(kind: str, n: int, test: str) -> Any:
    t = vec(kind, n)

    def code(b: Any, x: Any, y: Any) -> Any:
        return b.fcmp_ordered(test, x, y) if t.is_float else b.icmp_signed(test, x, y)

    return make(vec("b1", n), [t, t], code)


load_f32x16, store_f32x16 = loader("f32", 16), storer("f32", 16)
load_i32x16 = loader("i32", 16)
load_u8x64, store_u8x64 = loader("u8", 64), storer("u8", 64)
load_i8x64 = loader("i8", 64)
load_u8x32, load_u8x16, load_i8x16 = loader("u8", 32), loader("u8", 16), loader("i8", 16)
load_i32x4, store_i32x16, store_f32x4 = loader("i32", 4), storer("i32", 16), storer("f32", 4)
load_i16x16 = loader("i16", 16)

load_f32, store_f32 = scalar_loader("f32"), scalar_storer("f32")
load_i64, store_i64 = scalar_loader("i64"), scalar_storer("i64")
load_i32, store_i32 = scalar_loader("i32"), scalar_storer("i32")
load_u32, load_u64, load_u8 = scalar_loader("u32"), scalar_loader("u64"), scalar_loader("u8")
store_i16 = scalar_storer("i16")

splat_f32x16, splat_f32x4 = splatter("f32", 16), splatter("f32", 4)
splat_u8x64, splat_i32x16 = splatter("u8", 64), splatter("i32", 16)
lanes_i32x16 = constants("i32", range(16))

join_u8x16 = shuffler("u8", 16, range(32))
join_u8x32 = shuffler("u8", 32, range(64))
u8_as_u16x32, u16_as_u8x64 = caster(("u8", 64), ("u16", 32)), caster(("u16", 32), ("u8", 64))
i32_to_f32x16, i32_to_f32x4 = converter("i32", "f32", 16), converter("i32", "f32", 4)
f32_to_i32x16, i32_to_i8x16 = converter("f32", "i32", 16), converter("i32", "i8", 16)
f32_as_i32x16, i32_as_f32x16 = caster(("f32", 16), ("i32", 16)), caster(("i32", 16), ("f32", 16))
store_i8x16 = storer("i8", 16)

_f16v, _f4v = vec("f32", 16), vec("f32", 4)
fma = make(_f16v, [_f16v] * 3, fma_f32)
fma_x4 = make(_f4v, [_f4v] * 3, fma_f32)
fma_scalar = make(types.float32, [types.float32] * 3, fma_f32)
round_even = make(_f16v, [_f16v], lambda b, v: call(b, "llvm.rint.v16f32", v.type, [v]))
absolute = make(_f16v, [_f16v], lambda b, v: call(b, "llvm.fabs.v16f32", v.type, [v]))
negate = make(_f16v, [_f16v], lambda b, v: b.fneg(v))
sqrt_scalar = make(types.float32, [types.float32], lambda b, v: call(b, "llvm.sqrt.f32", v.type, [v]))
less, greater = _compare("f32", 16, "<"), _compare("f32", 16, ">")
equal = _compare("f32", 16, "==")
less_i32, greater_i32 = _compare("i32", 16, "<"), _compare("i32", 16, ">")
select = make(_f16v, [vec("b1", 16), _f16v, _f16v], lambda b, m, x, y: b.select(m, x, y))
both = make(vec("b1", 16), [vec("b1", 16)] * 2, lambda b, x, y: b.and_(x, y))
sum_f32x16 = make(types.float32, [_f16v], tree_sum)
sum_i32x16 = make(types.int32, [vec("i32", 16)], tree_sum)
"""Tree sums over the lanes."""


def _maximum(b: Any, v: Any) -> Any:
    """Of all lanes; a NaN lane is passed over, as `max` in the law's softmax does."""
    while v.type.count > 1:
        x, y = half(b, v, 0), half(b, v, 1)
        v = b.select(b.fcmp_ordered(">", y, x), y, x)
    return b.extract_element(v, ir.Constant(I32, 0))


max_f32x16 = make(types.float32, [_f16v], _maximum)


load_part_f32x16 = make(_f16v, [address, types.intp], lambda b, a, n: load_part(b, a, ir.VectorType(F32, 16), n))
"""load(address, n): see `load_part`."""
store_part_f32x16 = make(void, [address, _f16v, types.intp], store_part)
load_f16x16 = make(_f16v, [address], lambda b, a: half_to_f32(b, load_at(b, a, ir.VectorType(I16, 16))))
load_bf16x16 = make(_f16v, [address], lambda b, a: bf16_to_f32(b, load_at(b, a, ir.VectorType(I16, 16))))
store_f16x16 = make(void, [address, _f16v], lambda b, a, v: store_at(b, f32_to_half(b, v), a))
store_bf16x16 = make(void, [address, _f16v], lambda b, a, v: store_at(b, f32_to_bf16(b, v), a))


def _lane0(b: Any, v: Any) -> Any:
    return b.extract_element(v, ir.Constant(I32, 0))


def _half_scalar(b: Any, a: Any) -> Any:
    one = b.insert_element(
        ir.Constant(ir.VectorType(I16, 4), [ir.Constant(I16, 0)] * 4), load_at(b, a, I16), ir.Constant(I32, 0)
    )
    return _lane0(b, half_to_f32(b, one))


load_f16 = make(types.float32, [address], _half_scalar)
"""One float16 as float32."""


def _scalar_to(b: Any, a: Any, x: Any, convert: Any) -> None:
    store_at(b, _lane0(b, convert(b, splat(b, x, 4))), a)


store_f16 = make(void, [address, types.float32], lambda b, a, x: _scalar_to(b, a, x, f32_to_half))
store_bf16 = make(void, [address, types.float32], lambda b, a, x: _scalar_to(b, a, x, f32_to_bf16))


# --- threads --------------------------------------------------------------------------------------------------------


def _atomic_add(b: Any, a: Any, v: Any) -> Any:
    return b.atomic_rmw("add", pointer(b, a, v.type), v, "seq_cst")


atomic_add = make(types.int64, [address, types.int64], _atomic_add)
"""Adds to the int64 at an address; returns what was there before."""
atomic_load = make(types.int64, [address], lambda b, a: b.load_atomic(pointer(b, a, I64), "acquire", 8))
atomic_store = make(void, [address, types.int64], lambda b, a, v: b.store_atomic(v, pointer(b, a, I64), "release", 8))


def _pause(b: Any) -> None:
    if "sse2" in FEATURES:
        call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
    elif HAS_NEON:
        call(b, "llvm.aarch64.hint", ir.VoidType(), [ir.Constant(I32, 1)])  # yield


pause = make(void, [], _pause)
"""Tells the core that this is a spin loop."""


def _prefetch(b: Any, a: Any, level: int = 2) -> None:
    p = pointer(b, a, I8)
    arguments = [p, *(ir.Constant(I32, v) for v in (0, 4 - level, 1))]  # read, this level of cache, data
    call(b, "llvm.prefetch.p0", ir.VoidType(), arguments)


def prefetcher(n_bytes: int, level: int = 2) -> Any:
    """prefetch(address): n_bytes from there on, into this level of cache."""

    def code(b: Any, a: Any) -> None:
        for offset in range(0, n_bytes, 64):
            _prefetch(b, b.add(a, ir.Constant(I64, offset)), level)

    return make(void, [address], code)


def row_prefetcher(n_rows: int, n_bytes: int, level: int = 2) -> Any:
    """prefetch(address, stride): n_bytes of each of so many rows, into this level of cache."""

    def code(b: Any, a: Any, stride: Any) -> None:
        for _ in range(n_rows):
            for offset in range(0, n_bytes, 64):
                _prefetch(b, b.add(a, ir.Constant(I64, offset)), level)
            a = b.add(a, stride)

    return make(void, [address, address], code)


quotient = make(types.int64, [types.int64] * 2, lambda b, x, y: b.sdiv(x, y))
remainder = make(types.int64, [types.int64] * 2, lambda b, x, y: b.srem(x, y))
"""Of numbers from 0 up, the divisor not 0: `//` and `%` would bring Python's checks along."""


align_stack = make(void, [], stack_on_a_line)
"""See `emit.stack_on_a_line`."""
hidden = make(types.int64, [types.int64], hide)
"""See `emit.hide`."""


def _call_at(b: Any, function: Any, *arguments: Any) -> None:
    t = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
    b.call(b.inttoptr(function, t.as_pointer()), arguments)


call_kernel = make(void, [address] * 4, _call_at)
"""call_kernel(function, op, shared, thread): a kernel through its address."""


def _call_yield(b: Any, function: Any) -> None:
    b.call(b.inttoptr(function, ir.FunctionType(I32, []).as_pointer()), [])


call_yield = make(void, [address], _call_yield)
"""Calls an `int f(void)` such as sched_yield through its address."""

# --- functions of numbers, in the order docs/numerics.md states ---------------------------------------------------


@device
def _hold(x, low, high):
    return select(less(x, low), low, select(greater(x, high), high, x))


@device
def _exp_parts(x):
    """(n, e) with e^x = 2^n * (1 + e); Cephes expf."""
    n = round_even(x * splat_f32x16(types.float32(1.44269504)))
    r = fma(n, splat_f32x16(types.float32(-0.693359375)), x)
    r = fma(n, splat_f32x16(types.float32(2.12194440e-4)), r)
    p = splat_f32x16(types.float32(1.9875691500e-4))
    p = fma(p, r, splat_f32x16(types.float32(1.3981999507e-3)))
    p = fma(p, r, splat_f32x16(types.float32(8.3334519073e-3)))
    p = fma(p, r, splat_f32x16(types.float32(4.1665795894e-2)))
    p = fma(p, r, splat_f32x16(types.float32(1.6666665459e-1)))
    p = fma(p, r, splat_f32x16(types.float32(5.0000001201e-1)))
    # A NaN must not reach the integer conversion, where it has no defined value.
    return f32_to_i32x16(select(equal(x, x), n, splat_f32x16(types.float32(0)))), fma(p, r * r, r)


@device
def _times_power(y, n):
    """y * 2^n, for results that are normal numbers."""
    return i32_as_f32x16(f32_as_i32x16(y) + (n << 23))


@device
def exp(x):
    """float32x16"""
    low = splat_f32x16(types.float32(-87.33))
    n, e = _exp_parts(_hold(x, low, splat_f32x16(types.float32(88.72))))
    y = _times_power(e + splat_f32x16(types.float32(1)), n)
    return select(equal(x, x), select(less(x, low), splat_f32x16(types.float32(0)), y), x)


@device
def tanh(x):
    """float32x16; (e^2x - 1) / (e^2x + 1), the -1 taken before digits are lost to it."""
    one, bound = splat_f32x16(types.float32(1)), splat_f32x16(types.float32(30))
    n, e = _exp_parts(_hold(x + x, splat_f32x16(types.float32(-30)), bound))
    power = _times_power(one, n)
    m = fma(power, e, power - one)
    return select(equal(x, x), m / (m + splat_f32x16(types.float32(2))), x)
