"""Machine code kept by us: the loader of the small ELF64 objects that `compile.py` makes.

An object is copied into fresh pages, relocated, and the pages turned from writable to executable: never both.
A symbol that the object does not define itself is refused, and so is any relocation not listed here.
Source: System V ABI, AMD64 supplement, section 4.4 (relocations).
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass

from gemmafile.errors import GemmafileError

_WRITE, _ALLOC = 1, 2
_NOBITS, _SYMTAB, _RELA = 8, 2, 4
_COMMON = 0xFFF2
_X86_64 = 62

_R_64, _R_PC32, _R_PLT32, _R_32, _R_32S, _R_PC64 = 1, 2, 4, 10, 11, 24


class BadObject(GemmafileError):
    """An object that cannot be loaded."""


@dataclass(frozen=True, slots=True)
class _Section:
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


_loaded: list[mmap.mmap] = []
"""Machine code stays for the life of the process: other threads may be in it."""


def load_object(data: bytes, entry: str) -> int:
    """Load an object and return the address of the function `entry`. Raises BadObject."""
    try:
        return _load(data, entry)
    except (struct.error, IndexError, ValueError) as e:
        raise BadObject(f"damaged machine code for {entry}: {e}") from e


def _load(data: bytes, entry: str) -> int:
    if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", data, 16) != (1, _X86_64):
        raise BadObject("machine code is not an ELF64 object for x86-64")
    sections = _sections(data)
    places, size = _place(sections)
    symbol_table = next(s for s in sections if s.type == _SYMTAB)
    commons = _place_commons(data, symbol_table, size)
    size = max([size, *(at + n for at, n in commons.values())])
    pages = mmap.mmap(-1, max(size, 1))
    base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for i, at in places.items():
        s = sections[i]
        if s.type != _NOBITS:
            pages[at : at + s.size] = data[s.offset : s.offset + s.size]
    addresses = _Symbols(data, symbol_table, sections[symbol_table.link], places, commons, base)
    for s in sections:
        if s.type == _RELA and s.info in places:
            _relocate(data, s, pages, places[s.info], base, addresses)
    _make_executable(base, len(pages))
    _loaded.append(pages)
    return addresses.of_name(entry)


def _sections(data: bytes) -> list[_Section]:
    (table,) = struct.unpack_from("<Q", data, 40)
    (count,) = struct.unpack_from("<H", data, 60)
    return [_Section(*struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * i)) for i in range(count)]


def _place(sections: list[_Section]) -> tuple[dict[int, int], int]:
    """Where each section that is needed at run time goes, and how much room they take."""
    places: dict[int, int] = {}
    end = 0
    for i, s in enumerate(sections):
        if s.flags & _ALLOC and s.size:
            if s.flags & _WRITE and s.type != _NOBITS:
                raise BadObject("machine code has writable data")
            end = -(-end // max(64, s.align)) * max(64, s.align)
            places[i] = end
            end += s.size
    return places, end


def _place_commons(data: bytes, table: _Section, end: int) -> dict[int, tuple[int, int]]:
    """Room for common symbols (Numba's environment pointers, which our kernels never read)."""
    commons = {}
    for k in range(table.size // 24):
        _, _, _, section, _, size = struct.unpack_from("<IBBHQQ", data, table.offset + 24 * k)
        if section == _COMMON:
            end = -(-end // 64) * 64
            commons[k] = (end, size)
            end += size
    return commons


class _Symbols:
    def __init__(
        self, data: bytes, table: _Section, names: _Section, places: dict[int, int],
        commons: dict[int, tuple[int, int]], base: int,
    ):  # fmt: skip
        self.data, self.table, self.names, self.places, self.commons, self.base = (
            data,
            table,
            names,
            places,
            commons,
            base,
        )

    def _name(self, offset: int) -> str:
        start = self.names.offset + offset
        return self.data[start : self.data.index(b"\0", start)].decode()

    def address(self, index: int) -> int:
        name, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", self.data, self.table.offset + 24 * index)
        if index in self.commons:
            return self.base + self.commons[index][0]
        if section not in self.places:
            raise BadObject(f"machine code needs {self._name(name)!r}, which it does not contain")
        return self.base + self.places[section] + int(value)

    def of_name(self, wanted: str) -> int:
        for k in range(self.table.size // 24):
            (name,) = struct.unpack_from("<I", self.data, self.table.offset + 24 * k)
            if name and self._name(name) == wanted:
                return self.address(k)
        raise BadObject(f"machine code has no function {wanted!r}")


def _relocate(data: bytes, rela: _Section, pages: mmap.mmap, place: int, base: int, symbols: _Symbols) -> None:
    for at in range(rela.offset, rela.offset + rela.size, 24):
        offset, info, addend = struct.unpack_from("<QQq", data, at)
        kind, value = info & 0xFFFFFFFF, symbols.address(info >> 32) + addend
        where = place + offset
        if kind == _R_64:
            struct.pack_into("<Q", pages, where, value)
        elif kind == _R_PC64:
            struct.pack_into("<q", pages, where, value - (base + where))
        elif kind in (_R_PC32, _R_PLT32):
            struct.pack_into("<i", pages, where, value - (base + where))
        elif kind == _R_32:
            struct.pack_into("<I", pages, where, value)
        elif kind == _R_32S:
            struct.pack_into("<i", pages, where, value)
        else:
            raise BadObject(f"machine code has a relocation of unknown type {kind}")


def _make_executable(base: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    length = -(-size // page) * page
    if libc.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(length), mmap.PROT_READ | mmap.PROT_EXEC):
        raise BadObject(f"the system does not let pages become executable (errno {ctypes.get_errno()})")
