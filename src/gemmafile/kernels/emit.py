"""Vector types for Numba, and pieces of LLVM code on them.

A piece takes an IR builder and values and returns values; `simd.py` and `tiles.py` make intrinsics of them. Where an
instruction exists on some CPUs only (int8 and bfloat16 dot products, half floats), the choice is made here, from
FEATURES. Needs Numba.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from gemmafile.kernels import targets

address = types.intp
void = types.void


def _features() -> frozenset[str]:
    """Of the CPU that is compiled for."""
    target = targets.compiling_for()
    if target:
        return target.features
    given = os.environ.get("NUMBA_CPU_FEATURES")
    if given is not None:
        return frozenset(f[1:] for f in given.split(",") if f.startswith("+"))
    return frozenset(k for k, v in llvm.get_host_cpu_features().items() if v)


FEATURES = _features()
HAS_VNNI_512 = {"avx512vnni", "avx512vl", "avx512bw"} <= FEATURES
HAS_VNNI = HAS_VNNI_512 or {"avxvnni", "avx2"} <= FEATURES
"""Dot products of bytes: of vectors of 64 bytes, or of 32 at most (AVX-VNNI)."""
HAS_AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= FEATURES
HAS_BF16 = "avx512bf16" in FEATURES and HAS_AVX512
HAS_AVX2 = "avx2" in FEATURES
FEW_REGISTERS = HAS_AVX2 and not HAS_AVX512
"""16 vectors of 32 bytes."""
HAS_NEON = "neon" in FEATURES
HAS_NEON_DOT = "dotprod" in FEATURES
HAS_NEON_MIXED_DOT = "i8mm" in FEATURES
HAS_F16 = bool({"f16c", "fullfp16", "neon"} & FEATURES) or HAS_AVX512

# --- types -----------------------------------------------------------------------------------------------------

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


class _BFloat(ir.types.Type):  # type: ignore[misc]
    """llvmlite has no bfloat type."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


BF16 = _BFloat()
ELEMENT = {"b1": I1, "i8": I8, "u8": I8, "i16": I16, "u16": I16, "i32": I32, "u32": I32, "i64": I64, "u64": I64,
            "f32": F32}  # fmt: skip
BITS = {name: int(name[1:]) for name in ELEMENT}
SCALAR = {"i8": types.int8, "u8": types.uint8, "i16": types.int16, "u16": types.uint16, "i32": types.int32,
           "u32": types.uint32, "i64": types.int64, "u64": types.uint64, "f32": types.float32}  # fmt: skip


class Vec(types.Type):
    """n elements of one kind; kinds are i8 u8 i16 u16 i32 u32 f32, and b1 for masks."""

    def __init__(self, kind: str, n: int):
        self.kind, self.n = kind, n
        super().__init__(name=f"{kind}x{n}")

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(ELEMENT[self.kind], self.n)

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


def load_halves(b: Any, at: Sequence[Any], offset: int = 0) -> Any:
    """The float16 at each address + offset: <n x float>."""
    v = ir.Constant(ir.VectorType(I16, len(at)), ir.Undefined)
    for i, a in enumerate(at):
        v = b.insert_element(v, load_at(b, a, I16, offset), ir.Constant(I32, i))
    return half_to_f32(b, v)


def load_half_pairs(b: Any, at: Sequence[Any], offset: int) -> tuple[Any, Any]:
    """The float16 at each of four addresses + offset, and the one behind each: two <4 x float>."""
    v = ir.Constant(ir.VectorType(I32, len(at)), ir.Undefined)
    for i, a in enumerate(at):
        v = b.insert_element(v, load_at(b, a, I32, offset), ir.Constant(I32, i))
    pairs = b.bitcast(v, ir.VectorType(I16, 2 * len(at)))
    both = half_to_f32(b, shuffle(b, pairs, pairs, [*range(0, 2 * len(at), 2), *range(1, 2 * len(at), 2)]))
    return half(b, both, 0), half(b, both, 1)


def hide(b: Any, v: Any) -> Any:
    """v, of which the compiler knows nothing from here on, where registers are few: a loop of a hidden length stays a
    loop. Unrolled it would take more registers than there are."""
    return b.asm(ir.FunctionType(v.type, [v.type]), "", "=r,0", [v], False) if FEW_REGISTERS else v


def stack_on_a_line(b: Any) -> None:
    """Have the function's stack start on a cache line. A vector that is spilled in a loop lies on two of them by chance
    else, and what is written there cannot be read again at once: half the speed."""
    if not HAS_AVX2:
        return
    place = cgutils.alloca_once(b, ir.VectorType(I32, 16))
    place.align = 64
    b.asm(ir.FunctionType(ir.VoidType(), [place.type]), "", "r", [place], True)


def together(b: Any, vectors: Sequence[Any]) -> list[Any]:
    """The vectors, where registers are few all known before any of them is used: else the compiler would make one sum
    after the other, and spill what they share."""
    if not FEW_REGISTERS:
        return list(vectors)
    types_ = [v.type for v in vectors]
    places = ",".join(["=x"] * len(vectors) + [str(i) for i in range(len(vectors))])
    known = b.asm(ir.FunctionType(ir.LiteralStructType(types_), types_), "", places, list(vectors), False)
    return [b.extract_value(known, i) for i in range(len(vectors))]


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
    result = b.select(
        b.icmp_signed(">=", magnitude, splat_constant(t32, 143 << 23)), splat_constant(t32, 0x7C00), result
    )
    result = b.select(
        b.icmp_signed(">", magnitude, splat_constant(t32, 0x7F800000)), splat_constant(t32, 0x7E00), result
    )
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
    if HAS_VNNI and (n == 8 or (n == 16 and HAS_VNNI_512)):
        # LLVM 20 and later take the bytes as bytes; see _dpbusd_type.
        return call(b, f"llvm.x86.avx512.vpdpbusd.{32 * n}", acc.type, [acc, *(_dpbusd_type(b, v, n) for v in (u, s))])
    if n > 8:
        parts = [dot_bytes(b, *(half(b, v, h) for v in (acc, u, s)), below_128=below_128) for h in range(2)]
        return shuffle(b, parts[0], parts[1], range(n))
    if HAS_AVX2 and n == 8 and below_128:
        t16 = ir.VectorType(I16, 16)  # a pair is at most 2 * 127 * 128 = 32512: no saturation
        pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", t16, [u, s])
        return b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", acc.type, [pairs, splat_constant(t16, 1)]))
    if HAS_AVX2 and n == 8:
        # A byte of each kind in 16 bits: the even ones, then the odd ones.
        t16 = ir.VectorType(I16, 16)
        eight, (wu, ws) = splat_constant(t16, 8), (b.bitcast(v, t16) for v in (u, s))
        even = b.and_(wu, splat_constant(t16, 255)), b.ashr(b.shl(ws, eight), eight)
        for pair in (even, (b.lshr(wu, eight), b.ashr(ws, eight))):
            acc = b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", acc.type, list(pair)))
        return acc
    if n > 4 and HAS_NEON_DOT:
        parts = [dot_bytes(b, *(half(b, v, h) for v in (acc, u, s)), below_128=below_128) for h in range(2)]
        return shuffle(b, parts[0], parts[1], range(n))
    if HAS_NEON_DOT:
        return _dot_bytes_neon(b, acc, u, s, below_128=below_128)
    wide = ir.VectorType(I16, 4 * n)
    wu, ws = b.zext(u, wide), b.sext(s, wide)
    t32 = ir.VectorType(I32, 4 * n)
    products = b.mul(b.sext(wu, t32), b.sext(ws, t32))
    for k in range(4):
        acc = b.add(acc, shuffle(b, products, products, [4 * i + k for i in range(n)]))
    return acc


def _dot_bytes_neon(b: Any, acc: Any, u: Any, s: Any, *, below_128: bool) -> Any:
    """`dot_bytes` for 4 lanes. Without a mixed product u is taken as signed, 128 less, and 128 * sum(s) added."""
    name = "llvm.aarch64.neon.{}.v4i32.v16i8"
    if HAS_NEON_MIXED_DOT:
        return call(b, name.format("usdot"), acc.type, [acc, u, s])
    if below_128:
        return call(b, name.format("sdot"), acc.type, [acc, u, s])
    zero, ones = splat_constant(acc.type, 0), splat_constant(s.type, 1)
    sums = call(b, name.format("sdot"), acc.type, [zero, ones, s])
    signed = b.xor(u, splat_constant(u.type, -128))
    acc = b.add(acc, b.shl(sums, splat_constant(acc.type, 7)))
    return call(b, name.format("sdot"), acc.type, [acc, signed, s])


def look_up(b: Any, table: Sequence[int], i: Any) -> Any:
    """table[i] for vectors of bytes i from 0 to 15; the table has 16 bytes."""
    n = i.type.count
    name = {64: "llvm.x86.avx512.pshuf.b.512", 32: "llvm.x86.avx2.pshuf.b"}.get(n if HAS_AVX512 or n < 64 else 0)
    if name and HAS_AVX2:
        return call(b, name, i.type, [constant(i.type, [table[k % 16] for k in range(n)]), i])
    if HAS_NEON and n == 16:
        return call(b, "llvm.aarch64.neon.tbl1.v16i8", i.type, [constant(i.type, table), i])
    if HAS_AVX2 or HAS_NEON:
        low, high = (look_up(b, table, half(b, i, h)) for h in range(2))
        return shuffle(b, low, high, range(n))
    found = splat_constant(i.type, table[0])
    for k in range(1, 16):
        found = b.select(b.icmp_signed("==", i, splat_constant(i.type, k)), splat_constant(i.type, table[k]), found)
    return found


def dot_words(b: Any, acc: Any, x: Any, y: Any) -> Any:
    """acc[i] += x[2i] * y[2i] + x[2i+1] * y[2i+1]: <n x i32>, <2n x i16> signed."""
    n = acc.type.count
    if HAS_VNNI and n == (16 if HAS_VNNI_512 else 8):
        pairs = (x, y) if _BYTES_IN_DPBUSD else (b.bitcast(v, ir.VectorType(I32, n)) for v in (x, y))
        return call(b, f"llvm.x86.avx512.vpdpwssd.{32 * n}", acc.type, [acc, *pairs])
    if HAS_AVX2 and n > 8:
        parts = [dot_words(b, *(half(b, v, h) for v in (acc, x, y))) for h in range(2)]
        return shuffle(b, parts[0], parts[1], range(n))
    if HAS_AVX2 and n == 8:
        return b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", acc.type, [x, y]))
    t32 = ir.VectorType(I32, 2 * n)
    products = b.mul(b.sext(x, t32), b.sext(y, t32))
    even, odd = (shuffle(b, products, products, range(k, 2 * n, 2)) for k in range(2))
    return b.add(acc, b.add(even, odd))


def add_scaled_words(b: Any, acc: Any, x: Any, y: Any, scales: Any) -> Any:
    """acc + x * their scales + y * theirs, in whatever lanes: <16 x i32>, of x and y numbers that fit in 16 bits.

    scales <32 x i16>  four for lanes of x, then four for the same lanes of y, and so on
    """
    if not HAS_AVX2:
        for i, v in enumerate((x, y)):
            own = shuffle(b, scales, scales, [8 * (lane // 4) + 4 * i + lane % 4 for lane in range(16)])
            acc = b.add(acc, b.mul(v, b.sext(own, v.type)))
        return acc
    if not HAS_AVX512 and x.type.count == 16:
        parts = [add_scaled_words(b, *(half(b, v, h) for v in (acc, x, y, scales))) for h in range(2)]
        return shuffle(b, parts[0], parts[1], range(16))
    name = "llvm.x86.avx512.packssdw.512" if x.type.count == 16 else "llvm.x86.avx2.packssdw"
    return dot_words(b, acc, call(b, name, scales.type, [x, y]), scales)


def half(b: Any, v: Any, h: int) -> Any:
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
        acc = fma_f32(b, b.bitcast(parts[0], acc.type), b.bitcast(parts[1], acc.type), acc)
    return acc


def tree_sum(b: Any, v: Any) -> Any:
    """The law's tree: halves added until one lane is left."""
    add = b.fadd if isinstance(v.type.element, ir.FloatType) else b.add
    while v.type.count > 1:
        v = add(half(b, v, 0), half(b, v, 1))
    return b.extract_element(v, ir.Constant(I32, 0))


def tree_sum_rows(b: Any, rows: Sequence[Any]) -> Any:
    """Four vectors of 16 lanes -> <4 x> of their tree sums: the same additions, four rows side by side."""
    add = b.fadd if isinstance(rows[0].type.element, ir.FloatType) else b.add
    r = [add(half(b, v, 0), half(b, v, 1)) for v in rows]  # 8 lanes each
    pairs = []
    for x, y in ((r[0], r[1]), (r[2], r[3])):  # [x: 4 sums | y: 4 sums]
        pairs.append(add(shuffle(b, x, y, [0, 1, 2, 3, 8, 9, 10, 11]), shuffle(b, x, y, [4, 5, 6, 7, 12, 13, 14, 15])))
    x, y = pairs  # four groups of 4 lanes -> four groups of 2
    four = add(shuffle(b, x, y, [0, 1, 4, 5, 8, 9, 12, 13]), shuffle(b, x, y, [2, 3, 6, 7, 10, 11, 14, 15]))
    return add(shuffle(b, four, four, [0, 2, 4, 6]), shuffle(b, four, four, [1, 3, 5, 7]))


def sum_rows(b: Any, rows: Sequence[Any]) -> Any:
    """Four <16 x i32> -> <4 x i32> of their sums, in the order that takes the fewest shuffles."""
    lanes = range(0, 16, 4)
    low, high = ([i for q in lanes for i in (q + o, q + o + 16, q + o + 1, q + o + 17)] for o in (0, 2))
    x, y = (b.add(shuffle(b, x, y, low), shuffle(b, x, y, high)) for x, y in (rows[:2], rows[2:]))
    low, high = ([i for q in lanes for i in (q + o, q + o + 1, q + o + 16, q + o + 17)] for o in (0, 2))
    v = b.add(shuffle(b, x, y, low), shuffle(b, x, y, high))
    while v.type.count > 4:
        v = b.add(half(b, v, 0), half(b, v, 1))
    return v


def sum_fours(b: Any, v: Any) -> Any:
    """<16 x i32> -> <4 x i32>: the sums of lanes 0 to 3, 4 to 7, 8 to 11 and 12 to 15."""
    for _ in range(2):
        n = v.type.count
        v = b.add(shuffle(b, v, v, range(0, n, 2)), shuffle(b, v, v, range(1, n, 2)))
    return v


def lane_mask(b: Any, n: Any, lanes: int) -> Any:
    """<lanes x i1>: the lanes below n."""
    numbers = constant(ir.VectorType(I64, lanes), range(lanes))
    return b.icmp_signed("<", numbers, splat(b, n, lanes))


def load_part(b: Any, a: Any, t: Any, n: Any) -> Any:
    """The first n lanes of a vector, zeros behind; memory past them is not touched. n may exceed the lanes."""
    is_float = t.element is F32
    mask = lane_mask(b, n, t.count)
    place = pointer(b, a, t)
    name = f"llvm.masked.load.v{t.count}{'f32' if is_float else 'i16'}.p0"
    function = cgutils.get_or_insert_function(b.module, ir.FunctionType(t, [place.type, I32, mask.type, t]), name)
    return b.call(function, [place, ir.Constant(I32, 1), mask, splat_constant(t, 0.0 if is_float else 0)])


def store_part(b: Any, a: Any, v: Any, n: Any) -> None:
    pointer_ = pointer(b, a, v.type)
    function = cgutils.get_or_insert_function(
        b.module, ir.FunctionType(ir.VoidType(), [v.type, pointer_.type, I32, ir.VectorType(I1, 16)]),
        "llvm.masked.store.v16f32.p0",
    )  # fmt: skip
    b.call(function, [v, pointer_, ir.Constant(I32, 1), lane_mask(b, n, 16)])


def make(result: Any, arguments: Sequence[Any], code: Callable[..., Any]) -> Any:
    """An intrinsic of fixed types: `code(builder, *llvm_values)` returns the result, or None for void."""
    sig = result(*arguments)
    names = ", ".join(f"a{i}" for i in range(len(arguments)))

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = code(builder, *args)
        return context.get_dummy_value() if value is None else value

    # Numba reads the number of arguments from the function itself.
    namespace: dict[str, Any] = {"sig": sig, "codegen": codegen}
    exec(f"def made(typingctx, {names}):\n    return sig, codegen", namespace)
    return intrinsic(namespace["made"])
