"""The layout of a packed file: constants, the places of members, and the bytes of ZIP records.

       0  page 0: sh and cmd text with the places and hashes of what follows     4,096 bytes, written in one piece
    4096  slot A: start.sh, boot.py, unpack.py                                  30,720 bytes
   34816  slot B: the same of the other edition (see edit.py), or zeros         30,720 bytes
   65536  a standard ZIP64 archive with absolute offsets: members, the weights last of them at multiples of 65,536,
          the central directory and its end records, which end with the file

`docs/format.md` tells a stranger the same. Everything here is a pure function: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PAGE, SLOT_BYTES, HEAD_BYTES = 4096, 30720, 65536
SLOTS = (PAGE, PAGE + SLOT_BYTES)
ALIGNMENT = 65536
CHUNK_BYTES = 64 << 20

INDEX, MANIFEST, SIGNATURE, PUBLIC_KEY = "index.json", "manifest.json", "manifest.sig", "manifest.pub"
ARGS, CARD, NOTICE, SYSTEM = ".args", "README.md", "NOTICE", "system-prompt.txt"
ENGINE_LICENCE, WEIGHTS_LICENCE = "LICENSE.gemmafile", "LICENSE"

_DATE, _TIME = (1 << 5) | 1, 0  # 1980-01-01, the first that ZIP knows
_NONE32, _NONE16 = 0xFFFFFFFF, 0xFFFF
_UTF8 = 0x800


@dataclass
class Member:
    """A stored member: `offset` of its data, `crc` CRC-32 of it. The local header ends where the data begins."""

    name: str
    size: int
    offset: int = 0
    crc: int = 0
    is_executable: bool = False

    @property
    def header_bytes(self) -> int:
        return 30 + len(self.name.encode()) + (20 if self.is_large else 0)

    @property
    def is_large(self) -> bool:
        return self.size >= _NONE32

    @property
    def header_offset(self) -> int:
        return self.offset - self.header_bytes

    @property
    def end(self) -> int:
        return self.offset + self.size


def place(member: Member, at: int, alignment: int = 1) -> int:
    """Put a member's header at `at` or behind, its data at a multiple of `alignment`; returns where it ends."""
    member.offset = -(-(at + member.header_bytes) // alignment) * alignment
    return member.end


def local_header(member: Member) -> bytes:
    """What stands before a member's data."""
    name = member.name.encode()
    large = struct.pack("<HHQQ", 1, 16, member.size, member.size) if member.is_large else b""
    size = min(member.size, _NONE32)
    fields = (45 if member.is_large else 20, _UTF8, 0, _TIME, _DATE, member.crc, size, size, len(name), len(large))
    return struct.pack("<4sHHHHHIIIHH", b"PK\3\4", *fields) + name + large


def _directory_entry(member: Member) -> bytes:
    name = member.name.encode()
    wide = [n for n in (member.size, member.size, member.header_offset) if n >= _NONE32]
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    size, header = min(member.size, _NONE32), min(member.header_offset, _NONE32)
    mode = (0o100755 if member.is_executable else 0o100644) << 16
    needed = 45 if wide else 20
    fields = (
        45,
        3,
        needed,
        _UTF8,
        0,
        _TIME,
        _DATE,
        member.crc,
        size,
        size,
        len(name),
        len(extra),
        0,
        0,
        0,
        mode,
        header,
    )
    return struct.pack("<4sBBHHHHHIIIHHHHHII", b"PK\1\2", *fields) + name + extra


def directory(members: list[Member], end: int) -> bytes:
    """The central directory with its end records, for a place that ends at `end` of the file."""
    entries = b"".join(map(_directory_entry, members))
    count = len(members)
    start = end - len(entries) - 22
    if start < _NONE32 and count < _NONE16:
        return entries + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, len(entries), start, 0)
    start -= 76
    wide = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(entries), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(entries), 1)
    small = min(count, _NONE16)
    return entries + wide + locator + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, small, small, len(entries), _NONE32, 0)


def directory_end(members: list[Member], behind: int) -> int:
    """Where a file ends whose directory comes behind `behind`: the directory fills its last pages to the end.

    One page, for up to some 40 members: a system writes it in one piece.
    """
    n_bytes = len(directory(members, 1 << 60))
    return -(-behind // PAGE) * PAGE + -(-n_bytes // PAGE) * PAGE


def gaps(members: list[Member], start: int, end: int) -> list[tuple[int, int]]:
    """(offset, size) of what no member with its header covers between `start` and `end`."""
    found, at = [], start
    for member in sorted(members, key=lambda m: m.offset):
        if member.header_offset > at:
            found.append((at, member.header_offset - at))
        at = max(at, member.end)
    return [*found, (at, end - at)] if end > at else found
