"""ZIP archives, as far as a model in one needs them: the central directory, and where a stored member's bytes lie.

Only the end of the file and one header are read, so it takes as long for 20 GB as for 20 kB. Anything may stand in
front of the archive (a shell script, an executable): where offsets in the directory count from the archive's own
beginning, they are shifted. Nothing is believed before it is held against the size of the file.
Source: PKWARE's APPNOTE.TXT, sections 4.3.7, 4.3.12 to 4.3.16, 4.5.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

from gemmafile.errors import BadFile

STORED, DEFLATED = 0, 8

MAX_DIRECTORY_BYTES = 64 << 20
MAX_ENTRIES = 1 << 20

_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_ENTRY = struct.Struct("<4sBBHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_MAX_COMMENT = 0xFFFF
_NONE32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Entry:
    """A member as the central directory has it. `n_bytes` unpacked, `n_packed` in the file."""

    name: str
    method: int
    flags: int
    crc: int
    n_packed: int
    n_bytes: int
    header: int

    @property
    def is_stored(self) -> bool:
        """Its bytes lie in the file as they are."""
        return self.method == STORED and not self.flags & 1 and self.n_packed == self.n_bytes


@dataclass(frozen=True, slots=True)
class Directory:
    """`entries` in the directory's order · `start`, `end` where it stands in the file, its end records included"""

    entries: list[Entry]
    start: int
    end: int


def find_directory(path: object, file: BinaryIO) -> Directory | None:
    """The central directory of an archive, wherever it begins; None where the file does not end in one.

    Raises BadFile for one that does not hold.
    """
    size = file.seek(0, 2)
    tail_start = max(0, size - _END.size - _MAX_COMMENT)
    file.seek(tail_start)
    tail = file.read()
    at = _find_end(tail)
    if at is None:
        return None
    end = tail_start + at
    _, disk, _, _, count, n_bytes, offset, _ = _END.unpack_from(tail, at)
    start_of_ends = end
    wide = _read_end64(file, end)
    if wide is not None:
        start_of_ends, count, n_bytes, offset = wide
    elif disk != 0:
        raise BadFile(path, "is one part of a ZIP archive in several files", byte=end)
    start = start_of_ends - n_bytes
    if start < 0 or offset > start or n_bytes > MAX_DIRECTORY_BYTES or count > MAX_ENTRIES:
        raise BadFile(path, "the ZIP directory does not fit in the file: it is cut or damaged", byte=end)
    file.seek(start)
    entries = _read_entries(path, file.read(n_bytes), count, shift=start - offset, start=start)
    return Directory(entries, start, end + _END.size)


def _find_end(tail: bytes) -> int | None:
    """Where the end record begins: the last whose comment ends with the file."""
    at = len(tail)
    while (at := tail.rfind(b"PK\5\6", 0, at)) >= 0:
        if at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[7] == len(tail):
            return at
    return None


def _read_end64(file: BinaryIO, end: int) -> tuple[int, int, int, int] | None:
    """(its place, entries, bytes and offset of the directory) of the ZIP64 record, where there is one."""
    if end < _LOCATOR.size:
        return None
    file.seek(end - _LOCATOR.size)
    magic, _, at, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
    if magic != b"PK\6\7":
        return None
    # Where something was put in front without telling the archive, the record still ends where the locator begins.
    for place in (at, end - _LOCATOR.size - _END64.size):
        if 0 <= place <= end - _LOCATOR.size - _END64.size:
            file.seek(place)
            record = _END64.unpack(file.read(_END64.size))
            if record[0] == b"PK\6\6":
                return place, record[7], record[8], record[9]
    return None


def _read_entries(path: object, raw: bytes, count: int, *, shift: int, start: int) -> list[Entry]:
    entries: list[Entry] = []
    names: set[str] = set()
    at = 0
    for number in range(count):
        where = f"ZIP entry {number + 1} of {count}"
        if at + _ENTRY.size > len(raw) or raw[at : at + 4] != b"PK\1\2":
            raise BadFile(path, "the ZIP directory is damaged", field=where, byte=start + at)
        fields = _ENTRY.unpack_from(raw, at)
        flags, method, crc, n_packed, n_bytes = fields[4], fields[5], fields[8], fields[9], fields[10]
        n_name, n_extra, n_comment, header = fields[11], fields[12], fields[13], fields[17]
        name_at, at = at + _ENTRY.size, at + _ENTRY.size + n_name + n_extra + n_comment
        if at > len(raw):
            raise BadFile(path, "the ZIP directory is damaged", field=where, byte=start + name_at)
        name = raw[name_at : name_at + n_name].decode("utf-8" if flags & 0x800 else "cp437", "replace")
        extra = raw[name_at + n_name : name_at + n_name + n_extra]
        n_bytes, n_packed, header = _widen(extra, n_bytes, n_packed, header)
        if header + shift + _LOCAL.size + n_packed > start:
            raise BadFile(path, f"{name!r} ends behind the archive", field=where, byte=start + name_at)
        if name in names:
            raise BadFile(path, f"{name!r} is in the archive twice", field=where, byte=start + name_at)
        names.add(name)
        entries.append(Entry(name, method, flags, crc, n_packed, n_bytes, header + shift))
    return entries


def _widen(extra: bytes, n_bytes: int, n_packed: int, header: int) -> tuple[int, int, int]:
    """The three numbers, with those that did not fit in 32 bits read from the ZIP64 field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + length]
            values = [struct.unpack_from("<Q", wide, i)[0] for i in range(0, len(wide) - 7, 8)]
            taken = iter(values)
            n_bytes, n_packed, header = (
                next(taken, number) if number == _NONE32 else number for number in (n_bytes, n_packed, header)
            )
            break
        at += 4 + length
    return n_bytes, n_packed, header


def data_offset(path: object, file: BinaryIO, entry: Entry) -> int:
    """Where a member's bytes begin. Raises BadFile."""
    file.seek(entry.header)
    raw = file.read(_LOCAL.size)
    if len(raw) < _LOCAL.size or raw[:4] != b"PK\3\4":
        raise BadFile(path, f"{entry.name!r} does not begin where the ZIP directory says", byte=entry.header)
    n_name, n_extra = _LOCAL.unpack(raw)[9:]
    return entry.header + _LOCAL.size + int(n_name) + int(n_extra)


def read_member(path: object, file: BinaryIO, entry: Entry, limit: int) -> bytes:
    """A small member's bytes, unpacked; at most `limit`. Raises BadFile."""
    import zlib

    if entry.n_bytes > limit or entry.n_packed > limit:
        raise BadFile(path, f"{entry.name!r} has {entry.n_bytes} bytes, at most {limit} were expected")
    file.seek(data_offset(path, file, entry))
    raw = file.read(entry.n_packed)
    if entry.method == DEFLATED and not entry.flags & 1:
        try:
            raw = zlib.decompressobj(-15).decompress(raw, entry.n_bytes + 1)
        except zlib.error as error:
            raise BadFile(path, f"{entry.name!r} is damaged: {error}") from None
    elif not entry.is_stored:
        raise BadFile(path, f"{entry.name!r} is packed in a way that is not read here (method {entry.method})")
    if len(raw) != entry.n_bytes or zlib.crc32(raw) != entry.crc:
        raise BadFile(path, f"{entry.name!r} is damaged: its CRC-32 does not match")
    return raw
