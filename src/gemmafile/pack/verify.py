"""Is a packed file what it was? Every byte is held against the manifest, and the manifest against its signature.

Every byte means: page 0 and the slot in use, each member with its header, the chunks of the weights, the central
directory, and the zeros between them. The first damage is named by member, and in weights by tensor.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gemmafile.errors import BadFile
from gemmafile.files.archive import Entry, data_offset, find_directory
from gemmafile.pack.hashing import BLOCK_BYTES, blocks_of, read_at
from gemmafile.pack.layout import (
    CHUNK_BYTES,
    HEAD_BYTES,
    MANIFEST,
    PUBLIC_KEY,
    SIGNATURE,
    SLOT_BYTES,
    SLOTS,
    Member,
    directory,
    gaps,
    local_header,
)
from gemmafile.pack.manifest import MAX_BYTES, Manifest, WeightsEntry, head_digest


@dataclass(frozen=True)
class Damage:
    """`member` that is damaged · `what` of it, with the tensor where there is one · `offset` in the file"""

    member: str
    what: str
    offset: int


@dataclass(frozen=True)
class Checked:
    """A packed file whose manifest was found. `raw` the manifest's bytes · `signature`, `public_key` or None
    `own` the manifest and its signature as members
    `unfinished` an edit was cut short: what it had begun is not part of this edition"""

    manifest: Manifest
    raw: bytes
    signature: bytes | None
    public_key: bytes | None
    own: list[Member]
    unfinished: bool


def is_packed(path: Path) -> bool:
    """Is this a file of our own making? (Any other archive has no manifest that could be checked.)"""
    try:
        with path.open("rb") as file:
            return file.read(2) == b"#!" and find_manifest(path, file) is not None
    except (OSError, BadFile):
        return False


def find_manifest(path: Path, file: BinaryIO) -> list[Entry] | None:
    """The directory's entries, where a manifest is among them. Raises BadFile."""
    found = find_directory(path, file)
    if found is None or not any(e.name == MANIFEST for e in found.entries):
        return None
    return found.entries


def read_manifest(path: Path) -> Checked:
    """The manifest that belongs to the head. Raises BadFile where there is none that could be believed."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(HEAD_BYTES)
        entries = None
        try:
            entries = find_manifest(path, file)
        except BadFile as error:
            raise BadFile(path, f"central directory: {error.what}") from None
        if entries is None:
            raise BadFile(path, "has no manifest: it was not packed by gemmafile, or its end is cut or damaged")
        place = _manifest_of_head(path, file, head) or _place(path, file, entries, MANIFEST)
        raw = _read(path, file, *place)
        manifest = Manifest.from_bytes(path, raw)
        index = read_index(file, head)
        signed = (
            [(m[0], m[1]) for m in index["signed"]]
            if index is not None
            else [_place(path, file, entries, n) for n in (SIGNATURE, PUBLIC_KEY) if any(e.name == n for e in entries)]
        )
        own = [Member(MANIFEST, len(raw), place[0], zlib.crc32(raw))]
        parts: list[bytes | None] = [None, None]
        for i, (name, (offset, length)) in enumerate(zip((SIGNATURE, PUBLIC_KEY), signed, strict=False)):
            part = _read(path, file, offset, min(length, 1 << 16))
            parts[i] = part
            own.append(Member(name, length, offset, zlib.crc32(part)))
        members = [*own, *manifest.members]
        cut_short = _is_cut_short(file, members, manifest, size)
    return Checked(manifest, raw, parts[0], parts[1], own, cut_short)


def _is_cut_short(file: BinaryIO, members: list[Member], manifest: Manifest, size: int) -> bool:
    """Was an edit killed? Two things can be left of it, and whatever else a file ends with is damage.

    Before page 0: the file is longer, and ends with a directory of the same members. After page 0: it ends with the
    directory that the manifest says was replaced, whose members are all still there.
    """
    fits = find_order(file, members, size) is not None
    if size > manifest.size:
        return fits
    return not fits and bool(manifest.before) and replaced_digest(file, members) == manifest.before


def _manifest_of_head(path: Path, file: BinaryIO, head: bytes) -> tuple[int, int] | None:
    """(offset, bytes) of the manifest as the index says that page 0 names; None where page 0 cannot be read."""
    index = read_index(file, head)
    return (index["manifest"][0], index["manifest"][1]) if index is not None else None


def read_index(file: BinaryIO, head: bytes) -> dict | None:  # type: ignore[type-arg]
    """The index that page 0 names, if it is whole."""
    import json
    import re

    match = re.search(rb"I=\((\d+),(\d+),'([0-9a-f]{64})'\)", head[:4096])
    if match is None or int(match[2]) > MAX_BYTES:
        return None
    file.seek(int(match[1]))
    raw = file.read(int(match[2]))
    if hashlib.sha256(raw).hexdigest() != match[3].decode():
        return None
    try:
        index = json.loads(raw)
        offset, size = index["manifest"]
        return index if isinstance(offset, int) and isinstance(size, int) and 0 < size <= MAX_BYTES else None
    except (ValueError, KeyError, TypeError):
        return None


def _place(path: Path, file: BinaryIO, entries: list[Entry], name: str) -> tuple[int, int]:
    entry = next(e for e in entries if e.name == name)
    if not entry.is_stored or entry.n_bytes > MAX_BYTES:
        raise BadFile(path, f"{name} is not stored as it should be")
    return data_offset(path, file, entry), entry.n_bytes


def _read(path: Path, file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    raw = file.read(size)
    if len(raw) != size:
        raise BadFile(path, "is cut: its manifest is not all there")
    return raw


def find_damage(path: Path, checked: Checked, on_bytes: Callable[[int], None], threads: int = 0) -> list[Damage]:
    """Everything that is not as the manifest says, in the order of the file. Raises OSError."""
    manifest = checked.manifest
    with path.open("rb") as file:
        size = file.seek(0, 2)
        found = [*_check_head(file, checked), *_check_rest(file, checked, size)]
        jobs: list[Callable[[], list[Damage]]] = []
        trees = {w.name: w for w in manifest.weights}
        for member in manifest.members:
            if member.name in trees:
                jobs += _weights_jobs(file, member, trees[member.name], on_bytes)
            else:
                jobs.append(_member_job(file, member, manifest.digests[member.name], on_bytes))
        with ThreadPoolExecutor(threads or _n_cores()) as pool:
            for damages in pool.map(lambda job: job(), jobs):
                found += damages
    return sorted(found, key=lambda damage: damage.offset)


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_head(file: BinaryIO, checked: Checked) -> list[Damage]:
    manifest = checked.manifest
    file.seek(0)
    head = file.read(HEAD_BYTES)
    found = []
    if head_digest(head, manifest.slot) != manifest.head:
        found.append(Damage("head", "the first 64 KiB are not what was packed", 0))
    other = SLOTS[1 - manifest.slot]
    spare = head[other : other + SLOT_BYTES]
    if not manifest.left_over and not checked.unfinished and spare != b"\n" * SLOT_BYTES:
        found.append(Damage("head", "its spare slot is not empty", other))
    return found


def _check_rest(file: BinaryIO, checked: Checked, size: int) -> list[Damage]:
    """Headers, the directory, and the zeros between members."""
    manifest = checked.manifest
    found = []
    members = [*checked.own, *manifest.members]
    for member in members:
        file.seek(max(0, member.header_offset))
        if file.read(member.header_bytes) != local_header(member):
            found.append(Damage(member.name, "its ZIP header is damaged", member.header_offset))
    end = size if checked.unfinished else manifest.size
    if size < manifest.size or (size > manifest.size and not checked.unfinished):
        found.append(Damage("file", f"has {size:,} bytes, expected {manifest.size:,}", min(size, manifest.size)))
    start = end
    if checked.unfinished:
        start = min(manifest.directory, end)
    elif find_order(file, members, end) is None:
        found.append(Damage("central directory", "is damaged, or lists other members", end - 22))
    else:
        start = end - len(directory(members, end))
    unused = manifest.left_over
    for offset, length in gaps(members, HEAD_BYTES, min(start, end)):
        for piece_at, piece in _outside(offset, length, unused):
            at = _first_nonzero(file, piece_at, piece)
            if at is not None:
                found.append(Damage("file", "bytes between members are not zero", at))
                break
    return found


def find_order(file: BinaryIO, members: list[Member], end: int) -> list[Member] | None:
    """The members in the order of the directory that the file ends with, if it is theirs to the byte."""
    by_name = {m.name: m for m in members}
    try:
        found = find_directory("", file)
        listed = [by_name[e.name] for e in found.entries] if found is not None else []
    except (BadFile, KeyError):
        return None
    raw = directory(listed, end)
    file.seek(max(0, end - len(raw)))
    return listed if len(listed) == len(members) and file.read(len(raw)) == raw else None


def replaced_digest(file: BinaryIO, members: list[Member]) -> str:
    """What the manifest's `before` must be for the directory at the file's end to count: SHA-256 of that directory, and
    of all that it lists beside `members`. "" where it cannot be read."""
    try:
        found = find_directory("", file)
        if found is None:
            return ""
        kept = {(m.name, m.header_offset, m.size) for m in members}
        others = [e for e in found.entries if (e.name, e.header, e.n_bytes) not in kept]
        file.seek(found.start)
        digest = hashlib.sha256(file.read())
        room = found.start
        for entry in others:
            size = data_offset("", file, entry) - entry.header + entry.n_bytes
            room -= size
            if room < 0 or not entry.is_stored:  # more than the file has: parts of it several times
                return ""
            for block in blocks_of(file, entry.header, size):
                digest.update(block)
        return digest.hexdigest()
    except BadFile:
        return ""


def _outside(offset: int, length: int, areas: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The parts of a region that lie in none of some areas."""
    pieces = [(offset, offset + length)]
    for start, size in areas:
        cut = []
        for a, b in pieces:
            cut += [(a, min(b, start)), (max(a, start + size), b)]
        pieces = [(a, b) for a, b in cut if a < b]
    return [(a, b - a) for a, b in pieces]


def _first_nonzero(file: BinaryIO, offset: int, length: int) -> int | None:
    done = 0
    for block in blocks_of(file, offset, length):
        raw = bytes(block)
        if raw.count(0) != len(raw):
            return offset + done + next(i for i, byte in enumerate(raw) if byte)
        done += len(raw)
    return None


def _member_job(
    file: BinaryIO, member: Member, digest: str, on_bytes: Callable[[int], None]
) -> Callable[[], list[Damage]]:
    def check() -> list[Damage]:
        if _digest(file, member.offset, member.size, on_bytes) == digest:
            return []
        return [Damage(member.name, "is not what was packed", member.offset)]

    return check


def _weights_jobs(
    file: BinaryIO, member: Member, entry: WeightsEntry, on_bytes: Callable[[int], None]
) -> list[Callable[[], list[Damage]]]:
    def check(number: int) -> list[Damage]:
        start = number * CHUNK_BYTES
        size = min(CHUNK_BYTES, member.size - start)
        if _digest(file, member.offset + start, size, on_bytes) == entry.chunks[number]:
            return []
        return [Damage(member.name, _describe_chunk(file, member, entry, start, size), member.offset + start)]

    return [lambda number=number: check(number) for number in range(len(entry.chunks))]  # type: ignore[misc]


def _describe_chunk(file: BinaryIO, member: Member, entry: WeightsEntry, start: int, size: int) -> str:
    """Which tensors of a damaged chunk are not what they were, by their CRC-32; else what lies there."""
    inside = [
        (tensor, crc)
        for tensor, crc in zip(entry.tensors, entry.checksums, strict=True)
        if tensor[1] < start + size and tensor[1] + tensor[2] > start
    ]
    names = [name for (name, offset, n), crc in inside if _crc(file, member.offset + offset, n) != crc]
    if not names:
        first = min((offset for _, offset, _ in entry.tensors), default=0)
        names = ["its header"] if start < first else ["no tensor, but between them"]
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"damaged in bytes {start:,} to {start + size:,}: {names[0]}{more}"


def _crc(file: BinaryIO, offset: int, size: int) -> int:
    crc = 0
    for block in blocks_of(file, offset, size):
        crc = zlib.crc32(block, crc)
    return crc


def _digest(file: BinaryIO, offset: int, size: int, on_bytes: Callable[[int], None]) -> str:
    """Of a region; blocks are small, so that threads share the cache."""
    digest = hashlib.sha256()
    done = 0
    while done < size:
        raw = read_at(file, min(BLOCK_BYTES >> 2, size - done), offset + done)
        if not raw:
            break
        digest.update(raw)
        done += len(raw)
        on_bytes(len(raw))
    return digest.hexdigest()
