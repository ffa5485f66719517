"""CPUs that machine code is made for, and which of them this machine is. Needs nothing but the standard library.

A target is a name for a set of features. Code for it runs on every CPU that has them all, so what a target may use
is written out here and added to a level that is fixed, rather than left to what LLVM knows of a CPU's name (that of
Neoverse V1 would bring SVE along). x86-64 levels are those of the System V ABI, AMD64 supplement, section 3.1.1.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import sys
from dataclasses import dataclass
from functools import cache

from gemmafile.errors import BadSettings, nearest


@dataclass(frozen=True)
class Target:
    """`level`  LLVM's name of the level below · `features`  LLVM's names of all that its code may use"""

    name: str
    machine: str
    level: str
    features: frozenset[str]

    @property
    def triple(self) -> str:
        """What LLVM compiles for; ELF everywhere, as the loader is ours."""
        return f"{self.machine}-unknown-linux-gnu"

    @property
    def llvm_features(self) -> str:
        # x18 belongs to the system on macOS; leaving it alone costs nothing. Vectors of 512 bits are meant.
        own = "+reserve-x18" if self.machine == "aarch64" else "-prefer-256-bit"
        return ",".join([*(f"+{feature}" for feature in sorted(self.features)), own])


_V3 = "sse sse2 sse3 ssse3 sse4.1 sse4.2 popcnt cx16 avx avx2 fma f16c bmi bmi2 lzcnt movbe"
_V4 = f"{_V3} avx512f avx512bw avx512cd avx512dq avx512vl"
_ICE = f"{_V4} avx512vnni avx512vbmi avx512vbmi2 avx512bitalg avx512vpopcntdq avx512ifma gfni"

_ARM = "neon fp-armv8"
_ARM_2 = f"{_ARM} dotprod fullfp16 lse rdm crc"

TARGETS = {
    name: Target(name, machine, level, frozenset(features.split()))
    for name, machine, level, features in (
        ("sapphirerapids", "x86_64", "x86-64-v4", f"{_ICE} avx512bf16 avx512fp16 avxvnni amx-tile amx-int8 amx-bf16"),
        ("znver4", "x86_64", "x86-64-v4", f"{_ICE} avx512bf16 sse4a"),
        ("x86-64-v4-vnni", "x86_64", "x86-64-v4", f"{_V4} avx512vnni"),
        ("x86-64-v4", "x86_64", "x86-64-v4", _V4),
        ("alderlake", "x86_64", "x86-64-v3", f"{_V3} avxvnni"),
        ("x86-64-v3", "x86_64", "x86-64-v3", _V3),
        ("neoverse-v1", "aarch64", "generic", f"{_ARM_2} i8mm bf16"),
        ("apple-m2", "aarch64", "generic", f"{_ARM_2} i8mm bf16"),
        ("apple-m1", "aarch64", "generic", _ARM_2),
        ("neoverse-n1", "aarch64", "generic", _ARM_2),
        ("armv8-a", "aarch64", "generic", _ARM),
    )
}
"""Most capable first: the order in which they are tried."""

CARRIED = ("sapphirerapids", "x86-64-v4-vnni", "x86-64-v3")
"""What a wheel carries code for (`make wheel`)."""


def find_target(name: str) -> Target:
    """A target by name. Raises BadSettings."""
    if name not in TARGETS:
        raise BadSettings(f"no CPU is called {name!r} here{nearest(name, TARGETS)}: expected {', '.join(TARGETS)}")
    return TARGETS[name]


_chosen: list[Target] = []


def choose(target: Target) -> None:
    """Let this process make code for a target; before `emit.py` is imported, and for good."""
    _chosen.append(target)


def compiling_for() -> Target | None:
    """The target that this process makes code for; None: the machine it runs on."""
    return _chosen[-1] if _chosen else None


def runnable() -> list[Target]:
    """The targets whose code this machine runs, best first."""
    return [t for t in TARGETS.values() if t.machine == machine() and t.features <= cpu_features()]


def machine() -> str:
    """The kind of processor, in the words of `uname -m` on Linux."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def is_overridden() -> bool:
    """Has someone chosen features by hand? Then nothing but code compiled with them will do."""
    return any(os.environ.get(name) is not None for name in _COMPILER_SETTINGS)


_COMPILER_SETTINGS = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT")


@cache
def native_name() -> str:
    """The name of this very CPU: `native-` and 16 hex digits over all that compiling for it depends on."""
    digest = hashlib.sha256(f"{machine()}\n{_cpu()}\n{sorted(cpu_features())}".encode())
    for name in _COMPILER_SETTINGS:
        digest.update(f"{name}={os.environ.get(name)}".encode())
    return f"native-{digest.hexdigest()[:16]}"


_LINUX_NAMES = {
    "pni": "sse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "bmi1": "bmi", "abm": "lzcnt",
    "avx512_vnni": "avx512vnni", "avx512_vbmi2": "avx512vbmi2", "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16",
    "avx_vnni": "avxvnni", "amx_tile": "amx-tile", "amx_int8": "amx-int8", "amx_bf16": "amx-bf16",
}  # fmt: skip
"""Features that Linux names otherwise than LLVM does."""

_HWCAP = {1: "neon", 7: "crc", 8: "lse", 10: "fullfp16", 12: "rdm", 20: "dotprod"}
_HWCAP2 = {13: "i8mm", 14: "bf16"}
"""Bits of AT_HWCAP and AT_HWCAP2 on aarch64 (arch/arm64/include/uapi/asm/hwcap.h)."""


@cache
def cpu_features() -> frozenset[str]:
    """Features of this CPU, or those chosen by NUMBA_CPU_FEATURES; names as LLVM has them.

    Linux tells them. On other systems only what every CPU of the kind has is assumed.
    """
    given = os.environ.get("NUMBA_CPU_FEATURES")
    if given is not None:
        return frozenset(feature[1:] for feature in given.split(",") if feature.startswith("+"))
    if machine() == "aarch64":
        return _arm_features()
    flags = next((line.split(":", 1)[1] for line in _cpu().splitlines() if line.startswith("flags")), "")
    if not flags and sys.platform.startswith("linux"):  # no /proc: a bare container, a chroot
        from gemmafile.kernels.cpuid import x86_features

        return x86_features()
    return frozenset(_LINUX_NAMES.get(flag, flag) for flag in flags.split())


def _arm_features() -> frozenset[str]:
    found = {"neon", "fp-armv8"}
    if sys.platform.startswith("linux"):
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        for number, names in ((16, _HWCAP), (26, _HWCAP2)):
            bits = int(getauxval(number))
            found |= {name for bit, name in names.items() if bits >> bit & 1}
    return frozenset(found)


@cache
def _cpu() -> str:
    """The first processor's name and features as the system tells them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            block = f.read(65536).split("\n\n", 1)[0]
    except OSError:
        return platform.processor()
    wanted = ("model", "flags", "vendor", "Features", "CPU")
    return "\n".join(line for line in block.splitlines() if line.startswith(wanted))
