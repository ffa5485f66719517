"""The loader of machine code: relocations by the book, and BadObject for whatever is damaged or unknown."""

from __future__ import annotations

import contextlib
import ctypes
import struct

import numpy as np
import pytest

from gemmafile.kernels import build
from gemmafile.kernels.kept import MachineCode
from gemmafile.kernels.objects import BadObject, check_object, load_object
from gemmafile.kernels.relocations import AARCH64, X86_64, fill_place
from gemmafile.kernels.targets import machine

MACHINES = {"x86_64": 62, "aarch64": 183}
EXECUTABLE, DATA, WRITABLE = 6, 2, 3  # section flags: allocated and executable, allocated, allocated and writable


def make_object(
    code: bytes, rela: bytes = b"", *, kind: str = "x86_64", data: bytes = b"", flags: int = EXECUTABLE,
    data_flags: int = DATA, align: int = 16, value: int = 0, info: int = 0x12,
) -> bytes:  # fmt: skip
    """An object with a function "f" in `code`, a symbol "d" at the start of `data`, and an undefined symbol "u"."""
    names = b"\0f\0d\0u\0"
    symbols = bytes(24)
    symbols += struct.pack("<IBBHQQ", 1, info, 0, 1, value, len(code))
    symbols += struct.pack("<IBBHQQ", 3, 0x11, 0, 2, 0, len(data))
    symbols += struct.pack("<IBBHQQ", 5, 0x10, 0, 0, 0, 0)
    parts = [code, data, rela, symbols, names]
    offsets = [64 + sum(len(part) for part in parts[:i]) for i in range(6)]
    sections = [bytes(64)] + [
        struct.pack("<IIQQQQIIQQ", 0, type_, section_flags, 0, offset, len(part), link, target, section_align, size)
        for type_, section_flags, offset, part, link, target, section_align, size in (
            (1, flags, offsets[0], code, 0, 0, align, 0),
            (1, data_flags, offsets[1], data, 0, 0, 16, 0),
            (4, 0, offsets[2], rela, 4, 1, 8, 24),
            (2, 0, offsets[3], symbols, 5, 1, 8, 24),
            (3, 0, offsets[4], names, 0, 0, 1, 0),
        )
    ]
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, MACHINES[kind], 1, 0, 0, offsets[5],
                                                             0, 64, 0, 0, 64, len(sections), 5)  # fmt: skip
    return head + b"".join(parts) + b"".join(sections)


def relocation(offset: int, kind: int, symbol: int, addend: int = 0) -> bytes:
    return struct.pack("<QQq", offset, symbol << 32 | kind, addend)


@pytest.mark.skipif(machine() != "x86_64", reason="code for x86-64")
def test_code_reads_its_constants() -> None:
    """mov eax, [rip + d]; ret"""
    data = struct.pack("<i", 12345)
    whole = make_object(b"\x8b\x05\0\0\0\0\xc3", relocation(2, 2, 2, -4), data=data)
    assert ctypes.CFUNCTYPE(ctypes.c_int)(load_object(whole, "f"))() == 12345


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        (make_object(b"\xc3" * 8, relocation(0, 2, 3)), "needs 'u'"),
        (make_object(b"\xc3" * 8, relocation(0, 99, 1)), "unknown type 99"),
        (make_object(b"\xc3" * 8, relocation(5, 2, 1)), "behind its section"),
        (make_object(b"\xc3" * 8, relocation(2**64 - 1, 2, 1)), "behind its section"),
        (make_object(b"\xc3" * 8, relocation(0, 2, 4)), "symbol that is not there"),
        (make_object(b"\xc3" * 8, relocation(0, 2, 1, 2**33)), "does not reach"),
        (make_object(b"\xc3", data=b"1234", data_flags=WRITABLE), "writable data"),
        (make_object(b"\xc3", align=2**40), "too much room"),
        (make_object(b"\xc3", align=96), "too much room"),
        (make_object(b"\xc3", value=1), "behind its section"),
        (make_object(b"\xc3", flags=DATA), "no function"),
        (make_object(b"\xc3", info=0x11), "no function"),
        (make_object(b"\xc3", kind="aarch64"), "not an ELF64 object for x86_64"),
        (b"", "not an ELF64 object"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(whole: bytes, message: str) -> None:
    with pytest.raises(BadObject, match=message):
        check_object(whole, "f", "x86_64")


def test_a_function_that_is_not_there() -> None:
    with pytest.raises(BadObject, match="no function 'g'"):
        check_object(make_object(b"\xc3"), "g", "x86_64")


@pytest.fixture(scope="module")
def code() -> MachineCode:
    return build.compile_here("pointwise.softcap")


def test_the_loader_survives_any_cut(code: MachineCode) -> None:
    load_object(code.data, code.entry)
    for cut in np.random.default_rng(1).integers(0, len(code.data), 60):
        with pytest.raises(BadObject):
            load_object(code.data[: int(cut)], code.entry)


def test_the_loader_survives_any_bytes(code: MachineCode) -> None:
    """Headers, sections, symbols and relocations changed at random: BadObject, or an address. Nothing is run."""
    rng = np.random.default_rng(2)
    (table,) = struct.unpack_from("<Q", code.data, 40)
    text = struct.unpack_from("<QQ", code.data, table + 64 * 2 + 24)
    survived = 0
    for _ in range(1500):
        damaged = bytearray(code.data)
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(0, len(damaged)))
            if text[0] <= at < sum(text):
                at = int(rng.integers(table, len(damaged)))
            damaged[at] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(0, 256)]))
        with contextlib.suppress(BadObject):
            check_object(bytes(damaged), code.entry, machine())
            survived += 1
    assert 0 < survived < 1500


def test_huge_numbers_are_refused_without_taking_memory(code: MachineCode) -> None:
    (table,) = struct.unpack_from("<Q", code.data, 40)
    (count,) = struct.unpack_from("<H", code.data, 60)
    for i in range(count):
        for field in (24, 32, 48):  # offset, size, alignment
            for value in (2**31, 2**40, 2**63, 2**64 - 1):
                damaged = bytearray(code.data)
                struct.pack_into("<Q", damaged, table + 64 * i + field, value)
                with contextlib.suppress(BadObject):
                    check_object(bytes(damaged), code.entry, machine())


def test_the_loader_refuses_what_an_object_does_not_contain() -> None:
    from numba import cfunc
    from numba.core import types

    puts = types.ExternalFunction("puts", types.int32(types.intp))

    def calls_out(op: int, shared: int, thread: int) -> None:
        puts(op)

    made = cfunc(types.void(types.intp, types.intp, types.intp), nopython=True, error_model="numpy")(calls_out)
    with pytest.raises(BadObject, match="puts"):
        load_object(bytes(made._library._get_compiled_object()), made._wrapper_name)


def filled(kind: str, number: int, word: int, value: int, place: int) -> int:
    size, fill = {"x86_64": X86_64, "aarch64": AARCH64}[kind][number]
    image = bytearray(word.to_bytes(size, "little"))
    fill_place(image, 0, size, fill, value, place)
    return int.from_bytes(image, "little")


@pytest.mark.parametrize(
    ("number", "word", "value", "place", "wanted"),
    [
        (275, 0x90000008, 0x12345678, 0x12340000, 0xB0000028),  # adrp x8, .+0x5000
        (275, 0x90000008, 0x12340678, 0x12345FFC, 0xF0FFFFC8),  # adrp x8, .-0x5000
        (277, 0x91000108, 0x12345678, 0, 0x9119E108),  # add x8, x8, #0x678
        (299, 0x3DC00100, 0x12345670, 0, 0x3DC19D00),  # ldr q0, [x8, #0x670]
        (286, 0xF9400100, 0x12345678, 0, 0xF9433D00),  # ldr x0, [x8, #0x678]
        (283, 0x94000000, 0x1000, 0x2000, 0x97FFFC00),  # bl .-0x1000
        (282, 0x14000000, 0x2000, 0x1000, 0x14000400),  # b .+0x1000
        (280, 0x54000001, 0x1020, 0x1000, 0x54000101),  # b.ne .+0x20
        (264, 0xD2800000, 0x123456789ABC, 0, 0xD2935780),  # mov x0, #0x9abc
        (266, 0xF2A00000, 0x123456789ABC, 0, 0xF2AACF00),  # movk x0, #0x5678, lsl 16
        (267, 0xF2C00000, 0x123456789ABC, 0, 0xF2C24680),  # movk x0, #0x1234, lsl 32
        (261, 0, 0x1000, 0x2000, 0xFFFFF000),
        (257, 0, 2**48, 0, 2**48),
    ],
)
def test_relocations_of_aarch64(number: int, word: int, value: int, place: int, wanted: int) -> None:
    assert filled("aarch64", number, word, value, place) == wanted


@pytest.mark.parametrize(
    ("kind", "number", "value", "place"),
    [
        ("aarch64", 275, 1 << 33, 0),
        ("aarch64", 283, 1 << 27, 0),
        ("aarch64", 283, 2, 0),
        ("aarch64", 299, 0x678, 0),
        ("aarch64", 263, 1 << 16, 0),
        ("aarch64", 257, -1, 0),
        ("x86_64", 2, 1 << 31, 0),
        ("x86_64", 11, 1 << 31, 0),
        ("x86_64", 10, 1 << 32, 0),
        ("x86_64", 1, 1 << 64, 0),
    ],
)
def test_a_relocation_that_does_not_reach_is_refused(kind: str, number: int, value: int, place: int) -> None:
    with pytest.raises(OverflowError):
        filled(kind, number, 0, value, place)
