"""Intel's matrix unit (AMX): eight tiles of 16 rows x 64 bytes, multiplied as bytes into int32, exactly.

`Tiles` makes the intrinsics; kernels that use them begin with `configure` and end with `release`. A process must ask
the system for the unit before its threads touch it, and a virtual machine may announce AMX and yet trap on it: it is
tried once, in a child process, and the outcome is kept beside the kernels (`is_ready`).
Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from gemmafile.kernels.ops import NEXT, OP_BYTES, SCRATCH, SCRATCH_BYTES, SHARED_BYTES, slots

(_OUT,) = slots("OUT")
TRIAL_SECONDS = 5.0

_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18

CONFIG_BYTES = 64


def request() -> bool:
    """Ask Linux for the tile registers, for this process and the threads it makes from now on."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (ctypes.c_long(v) for v in (_ARCH_PRCTL, _REQUEST, _TILE_DATA))
    return bool(libc.syscall(*arguments) == 0)


@cache
def is_ready() -> bool:
    """Can kernels use the matrix unit in this process? The answer of the trial is kept; GEMMAFILE_AMX=0 says no."""
    if os.environ.get("GEMMAFILE_AMX") == "0" or not (_is_announced() and request()):
        return False
    from gemmafile.kernels.kept import cache_folder, make_private

    kept = cache_folder() / "amx"
    with contextlib.suppress(OSError):
        return kept.read_text() == "works"
    from gemmafile.kernels.objects import BadObject

    try:
        outcome = works()
    except BadObject:  # neither code for the unit nor a compiler: another time there may be
        return False
    with contextlib.suppress(OSError):
        make_private(kept.parent)
        temporary = kept.with_name(f"amx.{os.getpid()}")
        temporary.write_text("works" if outcome else "does not work")
        os.replace(temporary, kept)
    return outcome


def _is_announced() -> bool:
    """By the features that code is made for."""
    given = os.environ.get("NUMBA_CPU_FEATURES")
    if given is not None:
        return {"+amx-int8", "+amx-bf16"} <= set(given.split(","))
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            return {"amx_int8", "amx_bf16"} <= set(next((line for line in f if line.startswith("flags")), "").split())
    except OSError:
        return False


def works() -> bool:
    """Does the matrix unit give right answers here? Tried in a fork of this process, which may die of it.

    Raises BadObject where there is no code for the trial and none can be made.
    """
    from gemmafile.kernels.compile import kernel_addresses

    op, shared, scratch = (np.zeros(size, np.int64) for size in (OP_BYTES // 8, SHARED_BYTES // 8, 1024))
    out = np.frombuffer(mmap.mmap(-1, 1024), np.int32)  # seen by both processes
    shared[SCRATCH // 8], op[_OUT // 8] = scratch.ctypes.data, out.ctypes.data
    kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(kernel_addresses(["amx.trial"])["amx.trial"])
    arguments = op.ctypes.data, shared.ctypes.data, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads: the child only computes
        child = os.fork()
    if child == 0:
        try:
            for number in (signal.SIGILL, signal.SIGSEGV, signal.SIGBUS):
                signal.signal(number, signal.SIG_DFL)
            kernel(*arguments)
        finally:
            os._exit(0)
    deadline = time.monotonic() + TRIAL_SECONDS
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        time.sleep(0.001)
    return bool((out == 64 * 3).all())


@cache
def tiles() -> Tiles:
    return Tiles()


class Tiles:
    """Intrinsics on tiles by number. Needs Numba."""

    def __init__(self) -> None:
        import llvmlite.ir as ir

        from gemmafile.kernels import emit

        self._ir, self._emit = ir, emit
        self.configure = emit.make(emit.void, [emit.address], self._configure)
        """configure(config): loads the 64 bytes there (`write_config`)"""
        self.release = emit.make(emit.void, [], lambda b: self._call(b, "tilerelease", []))

    def _call(self, b: Any, name: str, arguments: list[Any]) -> None:
        self._emit.call(b, f"llvm.x86.{name}", self._ir.VoidType(), arguments)

    def _number(self, n: int) -> Any:
        return self._ir.Constant(self._emit.I8, n)

    def _configure(self, b: Any, config: Any) -> None:
        self._call(b, "ldtilecfg", [self._emit.pointer(b, config, self._emit.I8)])

    def zero(self, tile: int) -> Any:
        return self._emit.make(self._emit.void, [], lambda b: self._call(b, "tilezero", [self._number(tile)]))

    def load(self, tile: int) -> Any:
        """load(address, stride): row i from address + i * stride."""
        return self._move(tile, "tileloadd64")

    def store(self, tile: int) -> Any:
        """store(address, stride)"""
        return self._move(tile, "tilestored64")

    def _move(self, tile: int, name: str) -> Any:
        def code(b: Any, at: Any, stride: Any) -> None:
            self._call(b, name, [self._number(tile), self._emit.pointer(b, at, self._emit.I8), stride])

        return self._emit.make(self._emit.void, [self._emit.address] * 2, code)

    def dot(self, c: int, a: int, b_: int, *, unsigned_a: bool = False, unsigned_b: bool = False) -> Any:
        """c[m][n] += the products of a[m][4k ...] with b[k][4n ...] (int8, or uint8), over all k."""
        name = f"tdpb{'u' if unsigned_a else 's'}{'u' if unsigned_b else 's'}d"

        def code(b: Any) -> None:
            self._call(b, name, [self._number(n) for n in (c, a, b_)])

        return self._emit.make(self._emit.void, [], code)

    def dot_bf16(self, c: int, a: int, b_: int) -> Any:
        """c[m][n] += the chains of products of the even and of the odd bfloat16 of a[m] and b, each begun at zero."""

        def code(b: Any) -> None:
            self._call(b, "tdpbf16ps", [self._number(n) for n in (c, a, b_)])

        return self._emit.make(self._emit.void, [], code)


def config_writer(rows: list[int], columns: list[int]) -> Any:
    """write(address): the 64 bytes of a configuration; tile i has rows[i] rows of columns[i] bytes."""
    import struct

    from gemmafile.kernels import emit

    data = struct.pack("<BB14x", 1, 0) + struct.pack("<16H", *columns, *[0] * (16 - len(columns)))
    data += struct.pack("<16B", *rows, *[0] * (16 - len(rows)))
    words = struct.unpack("<8q", data)

    def code(b: Any, at: Any) -> None:
        import llvmlite.ir as ir

        for i, word in enumerate(words):
            emit.store_at(b, ir.Constant(emit.I64, word), at, 8 * i)

    return emit.make(emit.void, [emit.address], code)


def kernels() -> dict[str, Callable[..., None]]:
    """The trial: 16 x 64 ones times 64 x 16 threes."""
    from numba.core import types

    from gemmafile.kernels import simd

    unit = tiles()
    write = config_writer([16] * 3, [64] * 3)
    zero, load_a, load_b, dot, store = unit.zero(0), unit.load(1), unit.load(2), unit.dot(0, 1, 2), unit.store(0)
    configure, release = unit.configure, unit.release
    load, splat, store_bytes, atomic_add = simd.load_i64, simd.splat_u8x64, simd.store_u8x64, simd.atomic_add

    def trial(op, shared, thread):
        """Every thread computes; the first to come stores."""
        scratch = load(shared + SCRATCH) + thread * load(shared + SCRATCH_BYTES)
        write(scratch)
        for i in range(16):
            store_bytes(scratch + 64 + 64 * i, splat(types.uint8(1)))
            store_bytes(scratch + 1088 + 64 * i, splat(types.uint8(3)))
        configure(scratch)
        zero()
        load_a(scratch + 64, 64)
        load_b(scratch + 1088, 64)
        dot()
        if atomic_add(op + NEXT, 1) == 0:
            store(load(op + _OUT), 64)
        release()

    return {"trial": trial}
