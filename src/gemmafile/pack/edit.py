"""Editing a packed file in place, the weights untouched. At every instant the file is the old edition or the new one.

Nothing that the old edition uses is written over. New members go into room that an earlier edit gave up, or behind
the end; the head's other slot takes the new script and boot code. Then one write of 4,096 bytes, page 0, makes all of
it the file's content: the system writes a page in one piece, and a process that is killed has written it or not.

What ZIP readers see has its own order. A file that must grow first gets a copy of its directory at its new end, in
one write; the directory of the new members replaces that, in one write again, right after page 0. Between those two
writes the program is the new one and `unzip -l` lists the old members, which are still there. The next edit finishes
what a killed one began (`finish`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from gemmafile.errors import BadFile
from gemmafile.pack.build import Sign, check_room, write_at, write_manifest, write_small
from gemmafile.pack.edition import Contents, Edition, Environment, PackedRuntime, alignment_of, compose
from gemmafile.pack.layout import HEAD_BYTES, INDEX, PAGE, SLOT_BYTES, SLOTS, Member, directory, gaps, place
from gemmafile.pack.verify import Checked, find_order, read_index, read_manifest, replaced_digest


@dataclass
class Opened:
    """A packed file open for an edit. `order` its members as the directory lists them"""

    path: Path
    file: BinaryIO
    checked: Checked
    index: dict[str, Any]
    order: list[Member]


@contextlib.contextmanager
def open_for_edit(path: Path) -> Iterator[Opened]:
    """The file, locked against other edits, with whatever an earlier one left undone finished. Raises BadFile."""
    if not path.is_file():
        raise BadFile(path, "there is no such file")
    try:
        file = path.open("r+b", buffering=0)
    except OSError as error:
        raise BadFile(path, f"cannot be written: {error.strerror or error}") from None
    with file:
        _lock(path, file)
        yield finish(path, file)


def _lock(path: Path, file: Any) -> None:
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadFile(path, "is being edited by another process") from None
    except (ImportError, OSError):
        pass


def finish(path: Path, file: BinaryIO) -> Opened:
    """Undo an edit that was cut short before page 0, or finish one that was cut short behind it. Raises BadFile."""
    checked = read_manifest(path)
    manifest = checked.manifest
    file.seek(0)
    index = read_index(file, file.read(HEAD_BYTES))
    if index is None:
        raise BadFile(path, "its head is damaged: it cannot be edited (see gemmafile verify)")
    size = file.seek(0, 2)
    if size > manifest.size and not checked.unfinished:
        raise BadFile(path, "something was added behind its end: it is not edited (see gemmafile verify)")
    if size > manifest.size:
        write_at(file, SLOTS[1 - manifest.slot], b"\n" * SLOT_BYTES)
        _sync(file)
        file.truncate(manifest.size)
        _sync(file)
    members = [*checked.own, *manifest.members]
    order = find_order(file, members, manifest.size)
    if order is None and checked.unfinished:
        order = members
        _write_directory(file, order, manifest.size)
    if order is None:
        raise BadFile(path, "its central directory is damaged: it cannot be edited (see gemmafile verify)")
    _clear(file, manifest.left_over)
    return Opened(path, file, read_manifest(path), index, order)


def contents_of(opened: Opened) -> Contents:
    """What the file holds now. Raises BadFile for a member that is not what was packed."""
    index, manifest = opened.index, opened.checked.manifest
    by_name = {m.name: m for m in manifest.members}
    files = {}
    for name, (offset, size, digest) in index["members"].items():
        opened.file.seek(offset)
        raw = _read(opened.file, size)
        if hashlib.sha256(raw).hexdigest() != digest or by_name[name].crc != zlib.crc32(raw):
            raise BadFile(opened.path, f"{name} is not what was packed: the file is damaged and is not edited")
        files[name] = raw
    return Contents(
        tool=index["tool"], name=index["name"], files=files, weights=manifest.weights,
        environments=[Environment(n, tuple(e["members"]), e["unpacked_mb"]) for n, e in index["environments"].items()],
        runtimes=[PackedRuntime(platform=name, **values) for name, values in index["runtimes"].items()],
        pythons=index["pythons"], provenance=manifest.provenance, card=index["card"],
    )  # fmt: skip


def _read(file: BinaryIO, size: int) -> bytes:
    parts = []
    while size > 0 and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_edition(
    opened: Opened, contents: Contents, *, sign: Sign | None = None, public_key: bytes | None = None
) -> Edition:
    """Make `contents` the file's content. Raises GemmafileError (no room), OSError; the file is then the old one."""
    file, checked = opened.file, opened.checked
    manifest = checked.manifest
    contents = replace(contents, public_key=public_key)
    old = [*checked.own, *manifest.members]
    before = {name: raw for name, raw in contents.files.items() if _is_same(manifest.digests.get(name), raw)}
    weights = {w.name for w in contents.weights}
    fixed = {m.name: m for m in manifest.members if m.name in weights or m.name in before}
    edition = compose(
        contents, slot=1 - manifest.slot, fixed=fixed,
        place=_Room(manifest.left_over, manifest.size).place,
        left_over=lambda members, start: _given_up(members, start, old, manifest.left_over, manifest.directory),
        least_end=manifest.size, before="0" * 64,
    )  # fmt: skip
    if edition.end > manifest.size:
        check_room(opened.path.absolute(), edition.end - manifest.size)
        _write_directory(file, opened.order, edition.end)
    edition.manifest.before = replaced_digest(file, edition.members)
    write_small(file, edition, only={n for n in edition.content if n not in fixed or n == INDEX})
    write_manifest(file, edition, sign, public_key)
    write_at(file, SLOTS[edition.slot], edition.slot_bytes)
    _sync(file)
    write_at(file, 0, edition.page)
    _sync(file)
    _write_directory(file, edition.members, edition.end)
    _clear(file, edition.manifest.left_over)
    _sync(file)
    return edition


def _is_same(digest: str | None, raw: bytes) -> bool:
    return digest is not None and hashlib.sha256(raw).hexdigest() == digest


class _Room:
    """Places for new members: room given up before, then behind the end."""

    def __init__(self, free: list[tuple[int, int]], end: int):
        self._free, self._end = free, end

    def place(self, members: list[Member]) -> int:
        free, end = [(a, a + n) for a, n in self._free], self._end
        last = HEAD_BYTES
        for member in members:
            if not member.offset:
                free, end = self._put(member, free, end)
            last = max(last, member.end)
        return last

    def _put(self, member: Member, free: list[tuple[int, int]], end: int) -> tuple[list[tuple[int, int]], int]:
        alignment = alignment_of(member.name)
        for i, (start, stop) in enumerate(free):
            if place(member, start, alignment) <= stop:
                return [*free[:i], (start, member.header_offset), (member.end, stop), *free[i + 1 :]], end
        return free, place(member, end, alignment)


def _given_up(
    members: list[Member], start: int, old: list[Member], left_over: list[tuple[int, int]], old_directory: int
) -> list[tuple[int, int]]:
    """Gaps of the new edition, but those that were gaps in the old one too, and zero."""
    still_zero = [
        gap
        for gap in gaps(old, HEAD_BYTES, old_directory)
        if not any(a < sum(gap) and gap[0] < a + n for a, n in left_over)
    ]
    return [
        (at, size)
        for at, size in gaps(members, HEAD_BYTES, start)
        if not any(a <= at and at + size <= a + n for a, n in still_zero)
    ]


def _write_directory(file: BinaryIO, order: list[Member], end: int) -> None:
    """The directory's pages at the end of the file, in one write."""
    raw = directory(order, end)
    pages = raw.rjust(-(-len(raw) // PAGE) * PAGE, b"\0")
    write_at(file, end - len(pages), pages)
    _sync(file)


def _sync(file: BinaryIO) -> None:
    os.fsync(file.fileno())


_PUNCH_HOLE, _KEEP_SIZE = 2, 1


def _clear(file: BinaryIO, regions: list[tuple[int, int]]) -> None:
    """Zeros where nothing is any more; the disk gets the space back where it can be given back."""
    for offset, size in regions:
        if not _punch(file.fileno(), offset, size):
            for at in range(offset, offset + size, 1 << 20):
                write_at(file, at, bytes(min(1 << 20, offset + size - at)))


def _punch(handle: int, offset: int, size: int) -> bool:
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fallocate: Callable[..., int] = libc.fallocate
        mode = ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE)
        return fallocate(ctypes.c_int(handle), mode, ctypes.c_int64(offset), ctypes.c_int64(size)) == 0
    except (OSError, AttributeError, TypeError):
        return False
