"""The SIMD layer: vector types and intrinsics for Numba. Kernels are written once, against this file.

Every vector is 512 bits wide or a part of that (16 float32, 64 bytes); LLVM splits it for AVX2, NEON or plain
code. Operators (+ - * & | ^ << >> < >) work on vectors of one type. Memory is reached by raw addresses (intp);
no load or store needs alignment. Names end in the type they return: `load_f32x16(address)`.

Only `compile.py` and the kernel builders import this module: it needs Numba. Where an instruction exists on
some CPUs only (int8 and bfloat16 dot products, half floats), the choice is made here, from FEATURES.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir
from numba import njit
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, register_model

device = njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)
"""A function that kernels call; always inlined, so that LLVM sees that no error can come back (Numba's error path
needs Python, and our objects need nothing)."""

address = types.intp
void = types.void


def _host_features() -> frozenset[str]:
    given = os.environ.get("NUMBA_CPU_FEATURES")
    if given is not None:
        return frozenset(f[1:] for f in given.split(",") if f.startswith("+"))
    return frozenset(k for k, v in llvm.get_host_cpu_features().items() if v)


FEATURES = _host_features()
HAS_VNNI = {"avx512vnni", "avx512vl", "avx512bw"} <= FEATURES
HAS_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= FEATURES
HAS_BF16 = "avx512bf16" in FEATURES and HAS_AVX512
HAS_AVX2 = "avx2" in FEATURES
HAS_F16 = bool({"f16c", "fullfp16", "neon"} & FEATURES) or HAS_AVX512

# --- types -----------------------------------------------------------------------------------------------------

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


class _BFloat(ir.types.Type):
    """llvmlite has no bfloat type."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BF16 = _BFloat()
_ELEMENT = {"b1": I1, "i8": I8, "u8": I8, "i16": I16, "u16": I16, "i32": I32, "u32": I32, "i64": I64, "u64": I64,
            "f32": F32}  # fmt: skip
_BITS = {name: int(name[1:]) for name in _ELEMENT}
_SCALAR = {"i8": types.int8, "u8": types.uint8, "i16": types.int16, "u16": types.uint16, "i32": types.int32,
           "u32": types.uint32, "i64": types.int64, "u64": types.uint64, "f32": types.float32}  # fmt: skip


class Vec(types.Type):
    """n elements of one kind; kinds are i8 u8 i16 u16 i32 u32 f32, and b1 for masks."""

    def __init__(self, kind: str, n: int):
        self.kind, self.n = kind, n
        super().__init__(name=f"{kind}x{n}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(_ELEMENT[self.kind], self.n)

    @property
    def is_float(self) -> bool:
        return self.kind == "f32"


@register_model(Vec)
class _VecModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vec):
        super().__init__(dmm, fe_type, fe_type.llvm)


_vectors: dict[tuple[str, int], Vec] = {}


def vec(kind: str, n: int) -> Vec:
    """The type of n elements of a kind; one object for each."""
    return _vectors.setdefault((kind, n), Vec(kind, n))


# --- pieces of LLVM code, used by the intrinsics below and by tiles.py ----------------------------------------


def constant(t: ir.VectorType, values: Sequence[Any]) -> ir.Constant:
    return ir.Constant(t, [ir.Constant(t.element, v) for v in values])


def splat_constant(t: ir.VectorType, value: Any) -> ir.Constant:
    return constant(t, [value] * t.count)


def splat(b: Any, scalar: Any, n: int) -> Any:
    """A vector with `scalar` in every lane."""
    empty = ir.Constant(ir.VectorType(scalar.type, n), ir.Undefined)
    first = b.insert_element(empty, scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(first, empty, constant(ir.VectorType(I32, n), [0] * n))


def shuffle(b: Any, x: Any, y: Any, lanes: Sequence[int]) -> Any:
    """Lanes of x, then of y (numbered on from x's)."""
    return b.shuffle_vector(x, y, constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def call(b: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    """Call an LLVM intrinsic by name."""
    f = cgutils.get_or_insert_function(b.module, ir.FunctionType(result, [a.type for a in arguments]), name)
    return b.call(f, list(arguments))


def pointer(b: Any, addr: Any, t: Any, offset: int = 0) -> Any:
    """`addr` + `offset` bytes as a pointer to t."""
    if offset:
        addr = b.add(addr, ir.Constant(I64, offset))
    return b.inttoptr(addr, t.as_pointer())


def load_at(b: Any, addr: Any, t: Any, offset: int = 0) -> Any:
    return b.load(pointer(b, addr, t, offset), align=1)


def store_at(b: Any, value: Any, addr: Any, offset: int = 0) -> None:
    b.store(value, pointer(b, addr, value.type, offset), align=1)


def fma_f32(b: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z rounded once, vectors or scalars."""
    name = f"llvm.fma.v{x.type.count}f32" if isinstance(x.type, ir.VectorType) else "llvm.fma.f32"
    return call(b, name, x.type, [x, y, z])


def half_to_f32(b: Any, halves: Any) -> Any:
    """<n x i16> holding float16 -> <n x float>, exact."""
    n = halves.type.count
    if HAS_F16:
        return b.fpext(b.bitcast(halves, ir.VectorType(F16, n)), ir.VectorType(F32, n))
    # The exponent moves from bias 15 to 127 by a multiplication with 2^112, which also makes subnormals right.
    t32 = ir.VectorType(I32, n)
    wide = b.zext(halves, t32)
    magnitude = b.and_(wide, splat_constant(t32, 0x7FFF))
    value = b.fmul(
        b.bitcast(b.shl(magnitude, splat_constant(t32, 13)), ir.VectorType(F32, n)),
        splat_constant(ir.VectorType(F32, n), float(2**112)),
    )
    special = b.icmp_signed(">=", magnitude, splat_constant(t32, 0x7C00))
    bits = b.bitcast(value, t32)
    bits = b.select(special, b.or_(bits, splat_constant(t32, 0x7F800000)), bits)
    sign = b.shl(b.and_(wide, splat_constant(t32, 0x8000)), splat_constant(t32, 16))
    return b.bitcast(b.or_(bits, sign), ir.VectorType(F32, n))


def f32_to_half(b: Any, x: Any) -> Any:
    """<n x float> -> <n x i16> holding float16, to nearest even."""
    n = x.type.count
    if HAS_F16:
        return b.bitcast(b.fptrunc(x, ir.VectorType(F16, n)), ir.VectorType(I16, n))
    t32, tf = ir.VectorType(I32, n), ir.VectorType(F32, n)
    bits = b.bitcast(x, t32)
    sign = b.and_(b.lshr(bits, splat_constant(t32, 16)), splat_constant(t32, 0x8000))
    magnitude = b.and_(bits, splat_constant(t32, 0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, splat_constant(t32, 13)), splat_constant(t32, 1))
    normal = b.sub(b.add(magnitude, b.add(odd, splat_constant(t32, 0xFFF))), splat_constant(t32, 112 << 23))
    normal = b.lshr(normal, splat_constant(t32, 13))
    # Adding 0.5 lines a subnormal's bits up with the end of the float's; the addition rounds them.
    shifted = b.bitcast(b.fadd(b.bitcast(magnitude, tf), splat_constant(tf, 0.5)), t32)
    subnormal = b.sub(shifted, splat_constant(t32, 0x3F000000))
    result = b.select(b.icmp_signed("<", magnitude, splat_constant(t32, 113 << 23)), subnormal, normal)
    result = b.select(b.icmp_signed(">=", magnitude, splat_constant(t32, 143 << 23)), splat_constant(t32, 0x7C00), result)
    result = b.select(b.icmp_signed(">", magnitude, splat_constant(t32, 0x7F800000)), splat_constant(t32, 0x7E00), result)
    return b.trunc(b.or_(result, sign), ir.VectorType(I16, n))


def bf16_to_f32(b: Any, bits: Any) -> Any:
    """<n x i16> holding bfloat16 -> <n x float>, exact."""
    t32 = ir.VectorType(I32, bits.type.count)
    return b.bitcast(b.shl(b.zext(bits, t32), splat_constant(t32, 16)), ir.VectorType(F32, bits.type.count))


def f32_to_bf16(b: Any, x: Any) -> Any:
    """<n x float> -> <n x i16> holding bfloat16, to nearest even; NaN stays NaN."""
    t32 = ir.VectorType(I32, x.type.count)
    bits = b.bitcast(x, t32)
    odd = b.and_(b.lshr(bits, splat_constant(t32, 16)), splat_constant(t32, 1))
    rounded = b.lshr(b.add(bits, b.add(odd, splat_constant(t32, 0x7FFF))), splat_constant(t32, 16))
    quiet = b.or_(b.lshr(bits, splat_constant(t32, 16)), splat_constant(t32, 0x40))
    return b.trunc(b.select(b.fcmp_unordered("uno", x, x), quiet, rounded), ir.VectorType(I16, x.type.count))


def dot_bytes(b: Any, acc: Any, u: Any, s: Any, *, below_128: bool) -> Any:
    """acc[i] += the 4 products u[4i..4i+3] * s[4i..4i+3], u unsigned bytes, s signed; exact on every CPU.

    acc <n x i32>, u and s <4n x i8> · `below_128`  the caller knows that every u is at most 127
    """
    n = acc.type.count
    if HAS_VNNI and n in (8, 16):
        # LLVM 20 and later take the bytes as bytes; see _dpbusd_type.
        return call(b, f"llvm.x86.avx512.vpdpbusd.{32 * n}", acc.type, [acc, *(_dpbusd_type(b, v, n) for v in (u, s))])
    if n > 8:
        halves = [
            dot_bytes(b, *(_half(b, v, h) for v in (acc, u, s)), below_128=below_128) for h in range(2)
        ]
        return shuffle(b, *halves, range(n))
    if HAS_AVX2 and n == 8 and below_128:
        t16 = ir.VectorType(I16, 16)  # a pair is at most 2 * 127 * 128 = 32512: no saturation
        pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", t16, [u, s])
        return b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", acc.type, [pairs, splat_constant(t16, 1)]))
    wide = ir.VectorType(I16, 4 * n)
    wu, ws = b.zext(u, wide), b.sext(s, wide)
    t32 = ir.VectorType(I32, 4 * n)
    products = b.mul(b.sext(wu, t32), b.sext(ws, t32))
    for k in range(4):
        acc = b.add(acc, shuffle(b, products, products, [4 * i + k for i in range(n)]))
    return acc


def dot_words(b: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc[i] += x[2i] * y[2i] + x[2i+1] * y[2i+1]: <n x i32>, <2n x i16> signed."""
    n = acc.type.count
    if HAS_VNNI and n == 16:
        pairs = (x, y) if _BYTES_IN_DPBUSD else (b.bitcast(v, ir.VectorType(I32, n)) for v in (x, y))
        return call(b, "llvm.x86.avx512.vpdpwssd.512", acc.type, [acc, *pairs])
    t32 = ir.VectorType(I32, 2 * n)
    products = b.mul(b.sext(x, t32), b.sext(y, t32))
    even, odd = (shuffle(b, products, products, range(k, 2 * n, 2)) for k in range(2))
    return b.add(acc, b.add(even, odd))


def _half(b: Any, v: Any, h: int) -> Any:
    n = v.type.count // 2
    return shuffle(b, v, v, range(h * n, h * n + n))


_BYTES_IN_DPBUSD = llvm.llvm_version_info[0] >= 22
"""LLVM 22 declares vpdpbusd with vectors of bytes, earlier ones with vectors of int32."""


def _dpbusd_type(b: Any, v: Any, n: int) -> Any:
    return v if _BYTES_IN_DPBUSD else b.bitcast(v, ir.VectorType(I32, n))


def dot_bf16(b: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc[i] = fma(x[2i], y[2i], fma(x[2i+1], y[2i+1], acc[i])): <n x float>, <2n x i16> holding bfloat16.

    The order is AVX512_BF16's; denormals count as zero there.
    """
    n = acc.type.count
    if HAS_BF16 and n == 16:
        tb = ir.VectorType(BF16, 32)
        return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", acc.type, [acc, b.bitcast(x, tb), b.bitcast(y, tb)])
    t32 = ir.VectorType(I32, n)
    xi, yi = b.bitcast(x, t32), b.bitcast(y, t32)
    high, sixteen = splat_constant(t32, -65536), splat_constant(t32, 16)
    for odd in (True, False):
        parts = [b.and_(v, high) if odd else b.shl(v, sixteen) for v in (xi, yi)]
        acc = fma_f32(b, *(b.bitcast(p, acc.type) for p in parts), acc)
    return acc


def tree_sum(b: Any, v: Any) -> Any:
    """The law's tree: halves added until one lane is left."""
    add = b.fadd if isinstance(v.type.element, ir.FloatType) else b.add
    while v.type.count > 1:
        v = add(_half(b, v, 0), _half(b, v, 1))
    return b.extract_element(v, ir.Constant(I32, 0))


def tree_sum_rows(b: Any, rows: Sequence[Any]) -> Any:
    """Four vectors of 16 lanes -> <4 x> of their tree sums: the same additions, four rows side by side."""
    add = b.fadd if isinstance(rows[0].type.element, ir.FloatType) else b.add
    r = [add(_half(b, v, 0), _half(b, v, 1)) for v in rows]  # 8 lanes each
    pairs = []
    for x, y in ((r[0], r[1]), (r[2], r[3])):  # [x: 4 sums | y: 4 sums]
        pairs.append(add(shuffle(b, x, y, [0, 1, 2, 3, 8, 9, 10, 11]), shuffle(b, x, y, [4, 5, 6, 7, 12, 13, 14, 15])))
    x, y = pairs  # four groups of 4 lanes -> four groups of 2
    four = add(shuffle(b, x, y, [0, 1, 4, 5, 8, 9, 12, 13]), shuffle(b, x, y, [2, 3, 6, 7, 10, 11, 14, 15]))
    return add(shuffle(b, four, four, [0, 2, 4, 6]), shuffle(b, four, four, [1, 3, 5, 7]))


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
        kind, element = sig.args[0], _ELEMENT[sig.args[0].kind]
        by = args[1]
        if by.type.width != element.width:
            by = b.trunc(by, element) if by.type.width > element.width else b.zext(by, element)
        return getattr(b, unsigned if kind.kind[0] == "u" else signed)(args[0], splat(b, by, kind.n))


_shift(operator.lshift, "shl", "shl")
_shift(operator.rshift, "ashr", "lshr")


# --- intrinsics: each `make` returns one that kernels call ----------------------------------------------------


def make(result: Any, arguments: Sequence[Any], code: Callable[..., Any]) -> Any:
    """An intrinsic of fixed types: `code(builder, *llvm_values)` returns the result, or None for void."""
    sig = result(*arguments)
    names = ", ".join(f"a{i}" for i in range(len(arguments)))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = code(builder, *args)
        return context.get_dummy_value() if value is None else value

    # Numba reads the number of arguments from the function itself.
    namespace: dict[str, Any] = {"sig": sig, "codegen": codegen}
    exec(f"def made(typingctx, {names}):\n    return sig, codegen", namespace)  # noqa: S102
    return intrinsic(namespace["made"])


def loader(kind: str, n: int) -> Any:
    """load(address) -> n elements."""
    t = vec(kind, n)
    return make(t, [address], lambda b, a: load_at(b, a, t.llvm))


def storer(kind: str, n: int) -> Any:
    """store(address, vector)."""
    t = vec(kind, n)
    return make(void, [address, t], lambda b, a, v: store_at(b, v, a))


def scalar_loader(kind: str) -> Any:
    return make(_SCALAR[kind], [address], lambda b, a: load_at(b, a, _ELEMENT[kind]))


def scalar_storer(kind: str) -> Any:
    return make(void, [address, _SCALAR[kind]], lambda b, a, v: store_at(b, v, a))


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
        if _BITS[target] < _BITS[source]:
            return b.trunc(v, t.llvm)
        return (b.sext if signed else b.zext)(v, t.llvm)

    return make(t, [s], code)


def splatter(kind: str, n: int) -> Any:
    return make(vec(kind, n), [_SCALAR[kind]], lambda b, x: splat(b, x, n))


def constants(kind: str, values: Sequence[Any]) -> Any:
    """A function without arguments that returns the vector."""
    t = vec(kind, len(values))
    return make(t, [], lambda b: constant(t.llvm, values))


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
        x, y = _half(b, v, 0), _half(b, v, 1)
        v = b.select(b.fcmp_ordered(">", y, x), y, x)
    return b.extract_element(v, ir.Constant(I32, 0))


max_f32x16 = make(types.float32, [_f16v], _maximum)


def _lane_mask(b: Any, n: Any) -> Any:
    """Lanes below n."""
    t = ir.VectorType(I64, 16)
    return b.icmp_signed("<", constant(t, range(16)), splat(b, n, 16))


def load_part(b: Any, a: Any, t: Any, n: Any) -> Any:
    """The first n lanes of a vector, zeros behind; memory past them is not touched. n may exceed the lanes."""
    is_float = t.element is F32
    lanes = ir.VectorType(I64, t.count)
    mask = b.icmp_signed("<", constant(lanes, range(t.count)), splat(b, n, t.count))
    place = pointer(b, a, t)
    name = f"llvm.masked.load.v{t.count}{'f32' if is_float else 'i16'}.p0"
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(t, [place.type, I32, mask.type, t]), name)
    return b.call(function, [place, ir.Constant(I32, 1), mask, splat_constant(t, 0.0 if is_float else 0)])


def _store_part(b: Any, a: Any, v: Any, n: Any) -> None:
    pointer_ = pointer(b, a, v.type)
    function = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(ir.VoidType(), [v.type, pointer_.type, I32, ir.VectorType(I1, 16)]),
        "llvm.masked.store.v16f32.p0",
    )  # fmt: skip
    b.call(function, [v, pointer_, ir.Constant(I32, 1), _lane_mask(b, n)])


load_part_f32x16 = make(_f16v, [address, types.intp], lambda b, a, n: load_part(b, a, ir.VectorType(F32, 16), n))
"""load(address, n): see `load_part`."""
store_part_f32x16 = make(void, [address, _f16v, types.intp], _store_part)
load_f16x16 = make(_f16v, [address], lambda b, a: half_to_f32(b, load_at(b, a, ir.VectorType(I16, 16))))
load_bf16x16 = make(_f16v, [address], lambda b, a: bf16_to_f32(b, load_at(b, a, ir.VectorType(I16, 16))))
store_f16x16 = make(void, [address, _f16v], lambda b, a, v: store_at(b, f32_to_half(b, v), a))
store_bf16x16 = make(void, [address, _f16v], lambda b, a, v: store_at(b, f32_to_bf16(b, v), a))


def _lane0(b: Any, v: Any) -> Any:
    return b.extract_element(v, ir.Constant(I32, 0))


def _half_scalar(b: Any, a: Any) -> Any:
    one = b.insert_element(ir.Constant(ir.VectorType(I16, 4), [ir.Constant(I16, 0)] * 4), load_at(b, a, I16), ir.Constant(I32, 0))
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
    name = "llvm.x86.sse2.pause" if "sse2" in FEATURES or HAS_AVX2 else None
    if name:
        call(b, name, ir.VoidType(), [])


pause = make(void, [], _pause)
"""Tells the core that this is a spin loop."""


def _prefetch(b: Any, a: Any) -> None:
    p = pointer(b, a, I8)
    arguments = [p, *(ir.Constant(I32, v) for v in (0, 2, 1))]  # read, level 2, data
    call(b, "llvm.prefetch.p0", ir.VoidType(), arguments)


prefetch = make(void, [address], _prefetch)


def prefetcher(n_bytes: int) -> Any:
    """prefetch(address): n_bytes from there on."""

    def code(b: Any, a: Any) -> None:
        for offset in range(0, n_bytes, 64):
            _prefetch(b, b.add(a, ir.Constant(I64, offset)))

    return make(void, [address], code)


quotient = make(types.int64, [types.int64] * 2, lambda b, x, y: b.sdiv(x, y))
remainder = make(types.int64, [types.int64] * 2, lambda b, x, y: b.srem(x, y))
"""Of numbers from 0 up, the divisor not 0: `//` and `%` would bring Python's checks along."""


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
def exp(x):
    """float32x16; Cephes expf."""
    low, high = splat_f32x16(types.float32(-87.33)), splat_f32x16(types.float32(88.72))
    held = select(less(x, low), low, select(greater(x, high), high, x))
    n = round_even(held * splat_f32x16(types.float32(1.44269504)))
    r = fma(n, splat_f32x16(types.float32(-0.693359375)), held)
    r = fma(n, splat_f32x16(types.float32(2.12194440e-4)), r)
    p = splat_f32x16(types.float32(1.9875691500e-4))
    p = fma(p, r, splat_f32x16(types.float32(1.3981999507e-3)))
    p = fma(p, r, splat_f32x16(types.float32(8.3334519073e-3)))
    p = fma(p, r, splat_f32x16(types.float32(4.1665795894e-2)))
    p = fma(p, r, splat_f32x16(types.float32(1.6666665459e-1)))
    p = fma(p, r, splat_f32x16(types.float32(5.0000001201e-1)))
    y = fma(p, r * r, r) + splat_f32x16(types.float32(1))
    # A NaN must not reach the integer conversion, where it has no defined value.
    is_number = equal(x, x)
    n = select(is_number, n, splat_f32x16(types.float32(0)))
    y = i32_as_f32x16(f32_as_i32x16(y) + (f32_to_i32x16(n) << 23))
    return select(is_number, select(less(x, low), splat_f32x16(types.float32(0)), y), x)


@device
def tanh(x):
    """float32x16"""
    one = splat_f32x16(types.float32(1))
    return one - splat_f32x16(types.float32(2)) / (exp(x + x) + one)
