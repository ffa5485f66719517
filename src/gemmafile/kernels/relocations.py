"""Relocations: the places in machine code that depend on where it is loaded, filled in.

Sources: System V ABI, AMD64 supplement, section 4.4; ELF for the Arm 64-bit Architecture, section 5.7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

Fill = Callable[[int, int, int], int]
"""fill(word, value, place): the new word of an instruction or a datum that stood as `word`. Raises OverflowError
where `value` cannot be reached."""


def _check(value: int, low: int, high: int) -> int:
    if not low <= value < high:
        raise OverflowError(f"a relocation does not reach: {value:#x}")
    return value


def _absolute(bits: int) -> Fill:
    return lambda word, value, place: _check(value, 0, 1 << bits)


def _signed(bits: int) -> Fill:
    half = 1 << (bits - 1)
    return lambda word, value, place: _check(value, -half, half) & ((1 << bits) - 1)


def _relative(bits: int) -> Fill:
    half = 1 << (bits - 1)
    return lambda word, value, place: _check(value - place, -half, half) & ((1 << bits) - 1)


X86_64: dict[int, tuple[int, Fill]] = {
    1: (8, _absolute(64)),  # R_X86_64_64
    2: (4, _relative(32)),  # PC32
    4: (4, _relative(32)),  # PLT32: the function itself, there is no table
    10: (4, _absolute(32)),  # 32
    11: (4, _signed(32)),  # 32S
    24: (8, _relative(64)),  # PC64
}
"""Type of relocation -> (bytes filled, how)."""


def _page(word: int, value: int, place: int) -> int:
    """ADRP: the distance in 4 KiB pages, 21 bits, the lowest two apart from the rest."""
    pages = _check((value >> 12) - (place >> 12), -(1 << 20), 1 << 20)
    return word & 0x9F00001F | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5


def _page_offset(scale: int) -> Fill:
    """ADD, LDR, STR: the lowest 12 bits of the address in units of the operand's 2^scale bytes."""

    def fill(word: int, value: int, place: int) -> int:
        if value & ((1 << scale) - 1):
            raise OverflowError(f"a relocation is not aligned: {value:#x}")
        return word & 0xFFC003FF | (value & 0xFFF) >> scale << 10

    return fill


def _branch(bits: int, shift: int) -> Fill:
    """A branch: the distance in instructions, `bits` of them, from bit `shift` on."""
    mask, half = (1 << bits) - 1, 1 << (bits + 1)

    def fill(word: int, value: int, place: int) -> int:
        distance = _check(value - place, -half, half)
        if distance & 3:
            raise OverflowError(f"a branch is not aligned: {distance:#x}")
        return word & ~(mask << shift) | (distance >> 2 & mask) << shift

    return fill


def _move(group: int, *, checked: bool) -> Fill:
    """MOVZ, MOVK: 16 bits of the address."""

    def fill(word: int, value: int, place: int) -> int:
        if checked:
            _check(value, 0, 1 << (16 * group + 16))
        return word & 0xFFE0001F | (value >> 16 * group & 0xFFFF) << 5

    return fill


AARCH64: dict[int, tuple[int, Fill]] = {
    257: (8, _absolute(64)),  # R_AARCH64_ABS64
    258: (4, _absolute(32)),  # ABS32
    260: (8, _relative(64)),  # PREL64
    261: (4, _relative(32)),  # PREL32
    275: (4, _page),  # ADR_PREL_PG_HI21
    277: (4, _page_offset(0)),  # ADD_ABS_LO12_NC
    278: (4, _page_offset(0)),  # LDST8_ABS_LO12_NC
    284: (4, _page_offset(1)),  # LDST16
    285: (4, _page_offset(2)),  # LDST32
    286: (4, _page_offset(3)),  # LDST64
    299: (4, _page_offset(4)),  # LDST128
    279: (4, _branch(14, 5)),  # TSTBR14
    280: (4, _branch(19, 5)),  # CONDBR19
    282: (4, _branch(26, 0)),  # JUMP26
    283: (4, _branch(26, 0)),  # CALL26
    263: (4, _move(0, checked=True)),  # MOVW_UABS_G0
    264: (4, _move(0, checked=False)),
    265: (4, _move(1, checked=True)),  # MOVW_UABS_G1
    266: (4, _move(1, checked=False)),
    267: (4, _move(2, checked=True)),  # MOVW_UABS_G2
    268: (4, _move(2, checked=False)),
    269: (4, _move(3, checked=True)),  # MOVW_UABS_G3
}


def fill_place(image: bytearray, at: int, size: int, fill: Fill, value: int, place: int) -> None:
    """Fill `size` bytes of `image` at `at`, which will stand at address `place`. Raises OverflowError."""
    kind = "<I" if size == 4 else "<Q"
    (word,) = struct.unpack_from(kind, image, at)
    struct.pack_into(kind, image, at, fill(word, value, place))
