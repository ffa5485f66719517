"""Machine code kept by us: the loader of the small ELF64 objects that `compile.py` and `build.py` make.

An object is laid out and relocated in ordinary memory, copied into fresh pages, and the pages turned from writable
to executable: never both. A symbol that the object does not define itself is refused, and so is any relocation that
`relocations.py` does not list. Every offset and length is checked: damaged bytes give BadObject. (Whole, but hostile
code is another matter: what is loaded must be trusted, see `kept.py`.)
Source: System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from dataclasses import dataclass

from gemmafile.errors import GemmafileError
from gemmafile.kernels.relocations import AARCH64, X86_64, Fill, fill_place
from gemmafile.kernels.targets import machine

_WRITE, _ALLOC, _EXECUTE = 1, 2, 4
_SYMTAB, _RELA, _NOBITS, _REL = 2, 4, 8, 9
_COMMON, _FUNCTION = 0xFFF2, 2

_MACHINES: dict[str, tuple[int, dict[int, tuple[int, Fill]]]] = {"x86_64": (62, X86_64), "aarch64": (183, AARCH64)}
"""Kind of processor -> (its number in ELF, its relocations)."""

MAX_BYTES = 64 << 20
"""Room that one object may take; ours take some 10 kB."""

MAX_SECTIONS = 4096


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


@dataclass(frozen=True, slots=True)
class _Symbol:
    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


_loaded: list[mmap.mmap] = []
"""Machine code stays for the life of the process: other threads may be in it."""


def load_object(data: bytes, entry: str) -> int:
    """Load an object and return the address of the function `entry`. Raises BadObject."""
    try:
        elf = _Elf(data)
        start = elf.offset_of(entry)
        pages = mmap.mmap(-1, max(elf.size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        pages[: elf.size] = bytes(elf.image_at(base))
    except (struct.error, ValueError, OverflowError) as e:
        raise BadObject(f"damaged machine code for {entry}: {e}") from e
    except OSError as e:
        raise BadObject(f"no memory for machine code: {e.strerror}") from e
    _make_executable(base, len(pages))
    _loaded.append(pages)
    return base + start


def check_object(data: bytes, entry: str, kind: str) -> None:
    """Would this object load on a `kind` of processor, at some address? Raises BadObject."""
    try:
        elf = _Elf(data, kind)
        elf.offset_of(entry)
        elf.image_at(1 << 40)
    except (struct.error, ValueError, OverflowError) as e:
        raise BadObject(f"damaged machine code for {entry}: {e}") from e


class _Elf:
    """An object's sections laid out behind each other. Raises BadObject, struct.error, ValueError."""

    def __init__(self, data: bytes, kind: str | None = None):
        self.data = data
        number, self._relocations = _MACHINES.get(kind or machine(), (0, {}))
        if data[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", data, 16) != (1, number):
            raise BadObject(f"machine code is not an ELF64 object for {kind or machine()}")
        self.sections = self._read_sections()
        self.symbols = self._read_symbols()
        self.places, self.commons, self.size = self._lay_out()

    def _read_sections(self) -> list[_Section]:
        (table,) = struct.unpack_from("<Q", self.data, 40)
        entry_size, count = struct.unpack_from("<HH", self.data, 58)
        if entry_size != 64 or count > MAX_SECTIONS:
            raise ValueError("its table of sections is not one")
        self._check_range(table, 64 * count, "the table of sections")
        sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", self.data, table + 64 * i)) for i in range(count)]
        for s in sections:
            if s.type != _NOBITS:
                self._check_range(s.offset, s.size, "a section")
        return sections

    def _check_range(self, offset: int, size: int, what: str) -> None:
        if offset + size > len(self.data):
            raise ValueError(f"{what} ends behind the object")

    def _read_symbols(self) -> list[_Symbol]:
        tables = [s for s in self.sections if s.type == _SYMTAB]
        if len(tables) != 1 or tables[0].link >= len(self.sections):
            raise ValueError("it has no table of symbols, or several")
        self._names = self.sections[tables[0].link]
        if self._names.type == _NOBITS:
            raise ValueError("its symbols have no names")
        start = tables[0].offset
        return [_Symbol(*struct.unpack_from("<IBBHQQ", self.data, start + 24 * k)) for k in range(tables[0].size // 24)]

    def _lay_out(self) -> tuple[dict[int, int], dict[int, int], int]:
        """Where each section that is needed at run time goes, where common symbols go (Numba's environment pointers,
        which our kernels never read), and how much room all take."""
        places: dict[int, int] = {}
        commons: dict[int, int] = {}
        end = 0
        for i, s in enumerate(self.sections):
            if s.flags & _ALLOC and s.size:
                if s.flags & _WRITE and s.type != _NOBITS:
                    raise BadObject("machine code has writable data")
                places[i], end = _reserve(end, s.size, s.align)
        for k, symbol in enumerate(self.symbols):
            if symbol.section == _COMMON:
                commons[k], end = _reserve(end, symbol.size, 64)
        return places, commons, end

    def offset_of(self, entry: str) -> int:
        """Where a function begins in the image."""
        for k, symbol in enumerate(self.symbols):
            if symbol.name and self._name(symbol) == entry:
                section = self.sections[symbol.section] if symbol.section in self.places else None
                if section is None or not section.flags & _EXECUTE or symbol.info & 15 != _FUNCTION:
                    raise ValueError("it is no function")
                if symbol.value >= section.size:
                    raise ValueError("it begins behind its section")
                return self._place_of(k)
        raise BadObject(f"machine code has no function {entry!r}")

    def _name(self, symbol: _Symbol) -> str:
        start, end = self._names.offset + symbol.name, self._names.offset + self._names.size
        return self.data[start : self.data.index(b"\0", start, end)].decode()

    def _place_of(self, index: int) -> int:
        """A symbol's offset in the image."""
        if index >= len(self.symbols):
            raise ValueError("a relocation names a symbol that is not there")
        symbol = self.symbols[index]
        if index in self.commons:
            return self.commons[index]
        if symbol.section not in self.places:
            raise BadObject(f"machine code needs {self._name(symbol)!r}, which it does not contain")
        if symbol.value > self.sections[symbol.section].size:
            raise ValueError("a symbol lies behind its section")
        return self.places[symbol.section] + symbol.value

    def image_at(self, base: int) -> bytearray:
        """The sections, relocated for the address `base`."""
        image = bytearray(self.size)
        for i, at in self.places.items():
            s = self.sections[i]
            if s.type != _NOBITS:
                image[at : at + s.size] = self.data[s.offset : s.offset + s.size]
        for s in self.sections:
            if s.type == _REL and s.info in self.places:
                raise ValueError("it has relocations without addends")
            if s.type == _RELA and s.info in self.places:
                self._relocate(image, s, base)
        return image

    def _relocate(self, image: bytearray, table: _Section, base: int) -> None:
        start, room = self.places[table.info], self.sections[table.info].size
        for at in range(table.offset, table.offset + table.size - table.size % 24, 24):
            offset, info, addend = struct.unpack_from("<QQq", self.data, at)
            if info & 0xFFFFFFFF not in self._relocations:
                raise BadObject(f"machine code has a relocation of unknown type {info & 0xFFFFFFFF}")
            size, fill = self._relocations[info & 0xFFFFFFFF]
            if offset + size > room:
                raise ValueError("a relocation lies behind its section")
            value = base + self._place_of(info >> 32) + addend
            fill_place(image, start + offset, size, fill, value, base + start + offset)


def _reserve(end: int, size: int, align: int) -> tuple[int, int]:
    """The next place behind `end`, and the end of `size` bytes there."""
    align = max(64, align)
    if align & (align - 1) or align > mmap.PAGESIZE or size > MAX_BYTES:
        raise ValueError("it asks for too much room")
    start = -(-end // align) * align
    if start + size > MAX_BYTES:
        raise ValueError("it asks for too much room")
    return start, start + size


def _make_executable(base: int, size: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    if libc.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(length), mmap.PROT_READ | mmap.PROT_EXEC):
        raise BadObject(f"the system does not let pages become executable (errno {ctypes.get_errno()})")
    if machine() == "aarch64":
        _flush_instructions(base, size)


def _flush_instructions(base: int, size: int) -> None:
    """Instruction caches of aarch64 do not see what was written as data.

    Linux looks after pages that become executable for the first time; GCC's runtime does it in any case.
    """
    name, function = ("libgcc_s.so.1", "__clear_cache")
    if sys.platform == "darwin":
        name, function = ("libSystem.dylib", "sys_icache_invalidate")
    try:
        flush = getattr(ctypes.CDLL(name), function)
    except (OSError, AttributeError):
        return
    flush.restype = None
    second = size if sys.platform == "darwin" else base + size
    flush(ctypes.c_void_p(base), ctypes.c_size_t(second))
