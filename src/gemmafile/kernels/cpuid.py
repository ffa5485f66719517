"""Features of an x86-64 CPU asked of the CPU itself, where there is no /proc/cpuinfo to read them from.

CPUID and XGETBV are run as a few bytes of machine code. A feature counts when the CPU has it and the system saves its
registers. Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID; volume 1, 13.3.
"""

from __future__ import annotations

import ctypes
import mmap

_CPUID = bytes.fromhex("53 89f8 89f1 4989d0 0fa2 418900 41895804 41894808 4189500c 5b c3".replace(" ", ""))
"""push rbx; mov eax, edi; mov ecx, esi; mov r8, rdx; cpuid; store eax, ebx, ecx, edx at r8; pop rbx; ret"""

_XGETBV = bytes.fromhex("31c9 0f01d0 c3".replace(" ", ""))
"""xor ecx, ecx; xgetbv; ret"""

_EAX, _EBX, _ECX, _EDX = range(4)
_PLAIN = {
    (1, 0, _EDX): {25: "sse", 26: "sse2"},
    (1, 0, _ECX): {0: "sse3", 9: "ssse3", 13: "cx16", 19: "sse4.1", 20: "sse4.2", 22: "movbe", 23: "popcnt"},
    (7, 0, _EBX): {3: "bmi", 8: "bmi2"},
    (0x80000001, 0, _ECX): {5: "lzcnt", 6: "sse4a"},
}
_OF_YMM = {
    (1, 0, _ECX): {12: "fma", 28: "avx", 29: "f16c"},
    (7, 0, _EBX): {5: "avx2"},
    (7, 0, _ECX): {8: "gfni"},
    (7, 1, _EAX): {4: "avxvnni"},
}
_OF_ZMM = {
    (7, 0, _EBX): {16: "avx512f", 17: "avx512dq", 21: "avx512ifma", 28: "avx512cd", 30: "avx512bw", 31: "avx512vl"},
    (7, 0, _ECX): {
        1: "avx512vbmi", 6: "avx512vbmi2", 11: "avx512vnni", 12: "avx512bitalg", 14: "avx512vpopcntdq",
    },
    (7, 0, _EDX): {23: "avx512fp16"},
    (7, 1, _EAX): {5: "avx512bf16"},
}  # fmt: skip
_OF_TILES = {(7, 0, _EDX): {24: "amx-tile", 25: "amx-int8", 22: "amx-bf16"}}

_OSXSAVE = 27
_YMM, _ZMM, _TILES = 0x6, 0xE6, 0x60000


def x86_features() -> frozenset[str]:
    """Names as LLVM has them; none where the system does not let such code run."""
    try:
        pages = mmap.mmap(-1, mmap.PAGESIZE)
        pages[: len(_CPUID)] = _CPUID
        pages[64 : 64 + len(_XGETBV)] = _XGETBV
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC):
            return frozenset()
    except (OSError, ValueError):
        return frozenset()
    _kept.append(pages)
    cpuid = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(start)
    xgetbv = ctypes.CFUNCTYPE(ctypes.c_uint32)(start + 64)
    out = (ctypes.c_uint32 * 4)()

    def ask(leaf: int, subleaf: int) -> list[int]:
        cpuid(leaf & 0x80000000, 0, ctypes.addressof(out))
        if leaf > out[_EAX]:
            return [0, 0, 0, 0]
        cpuid(leaf, subleaf, ctypes.addressof(out))
        return list(out)

    saved = xgetbv() if ask(1, 0)[_ECX] >> _OSXSAVE & 1 else 0
    found: set[str] = set()
    for table, needed in ((_PLAIN, 0), (_OF_YMM, _YMM), (_OF_ZMM, _ZMM), (_OF_TILES, _TILES)):
        if saved & needed == needed:
            for (leaf, subleaf, register), bits in table.items():
                value = ask(leaf, subleaf)[register]
                found |= {name for bit, name in bits.items() if value >> bit & 1}
    return frozenset(found)


_kept: list[mmap.mmap] = []
