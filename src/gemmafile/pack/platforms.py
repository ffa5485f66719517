"""The systems a file can be packed for: their names, what `uname` calls them, and which wheels run there."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass

from gemmafile.errors import BadSettings, nearest


@dataclass(frozen=True)
class Platform:
    """`uname` as `uname -sm` says it ("" on Windows) · `tags` of wheels, the most wanted first · `kernels` targets of
    machine code that travel along"""

    name: str
    uname: str
    tags: tuple[str, ...]
    kernels: tuple[str, ...] = ()


_MANYLINUX = (*(f"manylinux_2_{minor}" for minor in range(36, 16, -1)), "manylinux2014")
"""Up to the C library of the oldest runtime that is packed, Debian 12's."""

_X86 = ("sapphirerapids", "x86-64-v4-vnni", "x86-64-v3")
_ARM = ("neoverse-v1", "neoverse-n1", "armv8-a")


def _linux(machine: str) -> tuple[str, ...]:
    return tuple(f"{tag}_{machine}" for tag in _MANYLINUX)


def _macos(machine: str) -> tuple[str, ...]:
    return tuple(f"macosx_{v}_{machine}" for v in ("14_0", "12_0", "11_0", "10_13", "10_12", "10_9"))


PLATFORMS = {
    p.name: p
    for p in (
        Platform("linux-x86_64", "Linux x86_64", _linux("x86_64"), _X86),
        Platform("linux-aarch64", "Linux aarch64", _linux("aarch64"), _ARM),
        Platform("macos-aarch64", "Darwin arm64", (*_macos("arm64"), *_macos("universal2"))),
        Platform("macos-x86_64", "Darwin x86_64", (*_macos("x86_64"), *_macos("universal2"))),
        Platform("windows-x86_64", "", ("win_amd64",)),
        Platform("windows-aarch64", "", ("win_arm64",)),
        Platform("freebsd-x86_64", "FreeBSD amd64", ()),
        Platform("freebsd-aarch64", "FreeBSD arm64", ()),
        Platform("openbsd-x86_64", "OpenBSD amd64", ()),
        Platform("openbsd-aarch64", "OpenBSD arm64", ()),
        Platform("netbsd-x86_64", "NetBSD amd64", ()),
        Platform("netbsd-aarch64", "NetBSD evbarm", ()),
    )
}
"""Six systems on two kinds of processor. Those without wheels use the Python and NumPy of the system."""


def find_platform(name: str) -> Platform:
    """By name; arm64 and amd64 are understood too. Raises BadSettings."""
    plain = name.strip().lower().replace("arm64", "aarch64").replace("amd64", "x86_64")
    if plain not in PLATFORMS:
        raise BadSettings(f"no platform is called {name!r}{nearest(plain, PLATFORMS)}: {', '.join(PLATFORMS)}")
    return PLATFORMS[plain]


def this_platform() -> Platform:
    """Raises BadSettings on a machine that has no name here."""
    system = {"win32": "windows", "darwin": "macos"}.get(sys.platform, sys.platform.rstrip("0123456789"))
    machine = platform.machine().lower()
    return find_platform(f"{system}-{machine}")
