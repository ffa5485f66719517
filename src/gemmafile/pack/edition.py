"""An edition of a packed file: what it holds, where each member lies, and the bytes of all but the weights.

`compose` is used by build.py, for which all room is free, and by edit.py, where weights and other members stay put.
The index and the manifest tell places, theirs among them, so places are tried until their lengths have settled.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gemmafile.pack import head
from gemmafile.pack.layout import (
    ALIGNMENT,
    ARGS,
    HEAD_BYTES,
    INDEX,
    MANIFEST,
    PUBLIC_KEY,
    SIGNATURE,
    Member,
    directory,
    directory_end,
)
from gemmafile.pack.manifest import Manifest, WeightsEntry, head_digest

INDEX_FORMAT = 1
_ROOM = 4096
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Environment:
    """The packages of one platform and Python. `name`  "linux-x86_64-cp311" · `members` wheels · `unpacked_mb`"""

    name: str
    members: tuple[str, ...]
    unpacked_mb: int


@dataclass(frozen=True)
class PackedRuntime:
    """A Python that travels along: `member` its tarball · `system` what `uname -sm` says · the rest as head.Runtime"""

    member: str
    platform: str
    system: str
    python: str
    program: str
    loader: str
    megabytes: int
    origin: str


@dataclass
class Contents:
    """What a file is to hold.

    `files`     small members by name, in their order · `weights` the models · `public_key` PEM, when it is signed
    `card`      the card's front matter · `program` words for people: versions of what travels
    """

    tool: str
    name: str
    files: dict[str, bytes]
    weights: list[WeightsEntry]
    environments: list[Environment]
    runtimes: list[PackedRuntime]
    pythons: list[str]
    provenance: dict[str, Any]
    card: dict[str, Any] = field(default_factory=dict)
    public_key: bytes | None = None

    @property
    def is_private(self) -> bool:
        """Do the file's own arguments ask for --private? Then its unpacking must not write either."""
        return "--private" in self.files.get(ARGS, b"").decode().split()


@dataclass
class Edition:
    """A composed file. `slot` its head's · `head` page 0 and the slot's bytes · `members` as the directory lists them
    `content` the bytes of all members but the weights, the manifest and the signature · `end` bytes of the file"""

    slot: int
    page: bytes
    slot_bytes: bytes
    members: list[Member]
    content: dict[str, bytes]
    manifest: Manifest
    manifest_room: int
    end: int

    def member(self, name: str) -> Member:
        return next(m for m in self.members if m.name == name)

    def manifest_bytes(self) -> bytes:
        """The manifest as it stands, filled with spaces to the room it has."""
        raw = self.manifest.to_bytes()
        assert len(raw) <= self.manifest_room
        return raw.rstrip(b"\n").ljust(self.manifest_room - 1) + b"\n"

    def directory_bytes(self) -> bytes:
        return directory(self.members, self.end)


Place = Callable[[list[Member]], int]
"""Gives every member that has none (offset 0) a place; returns where the last thing before the directory ends."""


LeftOver = Callable[[list[Member], int], list[tuple[int, int]]]
"""From all members and the directory's place to the regions that an older edition used and this one does not."""


def place_in_order(members: list[Member]) -> int:
    """One behind the other, from the head on; runtimes and weights at multiples of 65,536."""
    at = HEAD_BYTES
    for member in members:
        at = _place(member, at)
    return at


def alignment_of(name: str) -> int:
    return ALIGNMENT if name.lower().endswith((".gguf", ".tar.gz")) else 1


def _place(member: Member, at: int) -> int:
    from gemmafile.pack.layout import place

    return place(member, at, alignment_of(member.name))


def compose(
    contents: Contents, *, slot: int = 0, place: Place = place_in_order, fixed: dict[str, Member] | None = None,
    left_over: LeftOver = lambda members, end: [], least_end: int = 0, before: str = "",
) -> Edition:  # fmt: skip
    """Places for everything, and the head, the index and the manifest that tell them.

    fixed      members that stay where they are · `left_over` room given up, for members and the directory's place
    least_end  the file does not get shorter than this · `before` SHA-256 of the directory that is replaced
    """
    index_room = manifest_room = _ROOM
    while True:
        members = _members(contents, index_room, manifest_room, fixed or {})
        end = max(directory_end(members, place(members)), least_end)
        by_name = {m.name: m for m in members}
        digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in contents.files.items()}
        runtimes = [_for_head(r, by_name[r.member], digests[r.member]) for r in contents.runtimes]
        laid_out = head.lay_out(slot, runtimes, contents.pythons, contents.is_private)
        index = _index(contents, by_name, digests, laid_out.unpack)
        index_raw = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()
        entry = by_name[INDEX]
        index_padded = index_raw.ljust(index_room - 1) + b"\n"
        index_part = (entry.offset, entry.size, hashlib.sha256(index_padded).hexdigest())
        page, script = head.fill(laid_out, index_part)
        content = {**contents.files, INDEX: index_padded}
        for member in members:
            if member.name in content:
                member.crc = zlib.crc32(content[member.name])
        directory_start = end - len(directory(members, end))
        told = [m for m in members if m.name not in (MANIFEST, SIGNATURE, PUBLIC_KEY)]
        first = bytes(HEAD_BYTES)
        first = page + first[len(page) :]
        at = len(page) + slot * len(script)
        first = first[:at] + script + first[at + len(script) :]
        manifest = Manifest(
            contents.tool, slot, head_digest(first, slot), end, directory_start, told,
            {**digests, INDEX: index_part[2]}, contents.weights, left_over(members, directory_start),
            contents.provenance, before,
        )  # fmt: skip
        needed = len(index_raw) + 1, len(manifest.to_bytes())
        if needed[0] <= index_room and needed[1] <= manifest_room:
            return Edition(slot, page, script, members, content, manifest, manifest_room, end)
        index_room, manifest_room = (
            max(room, -(-n // _ROOM) * _ROOM) for room, n in zip((index_room, manifest_room), needed, strict=True)
        )


def _members(contents: Contents, index_room: int, manifest_room: int, fixed: dict[str, Member]) -> list[Member]:
    sizes = {name: len(raw) for name, raw in contents.files.items()}
    sizes |= {INDEX: index_room, MANIFEST: manifest_room}
    if contents.public_key is not None:
        sizes |= {SIGNATURE: SIGNATURE_BYTES, PUBLIC_KEY: len(contents.public_key)}
    members = []
    for name, size in [*sizes.items(), *((w.name, w.size) for w in contents.weights)]:
        stays = fixed.get(name)
        if stays is not None and stays.size == size and name not in (INDEX, MANIFEST, SIGNATURE, PUBLIC_KEY):
            members.append(Member(name, size, stays.offset, stays.crc, stays.is_executable))
        else:
            members.append(Member(name, size))
    return members


def _for_head(runtime: PackedRuntime, member: Member, digest: str) -> head.Runtime:
    part = (member.offset, member.size, digest)
    return head.Runtime(runtime.system, digest[:16], part, runtime.program, runtime.loader, runtime.megabytes)


def _index(
    contents: Contents, members: dict[str, Member], digests: dict[str, str], unpack: head.Part
) -> dict[str, Any]:
    environments = {}
    for e in contents.environments:
        wheels = "".join(f"{digests[name]} {name}\n" for name in e.members)
        key = hashlib.sha256(wheels.encode()).hexdigest()[:16]
        environments[e.name] = {"key": key, "members": list(e.members), "unpacked_mb": e.unpacked_mb}
    return {
        "format": INDEX_FORMAT,
        "tool": contents.tool,
        "name": contents.name,
        "members": {n: [members[n].offset, members[n].size, digests[n]] for n in contents.files},
        "environments": environments,
        "runtimes": {
            r.platform: {
                "member": r.member, "system": r.system, "python": r.python, "program": r.program, "loader": r.loader,
                "megabytes": r.megabytes, "origin": r.origin,
            }
            for r in contents.runtimes
        },
        "pythons": contents.pythons,
        "weights": [[w.name, members[w.name].offset, w.size] for w in contents.weights],
        "manifest": [members[MANIFEST].offset, members[MANIFEST].size],
        "signed": [[members[n].offset, members[n].size] for n in (SIGNATURE, PUBLIC_KEY) if n in members],
        "unpack": list(unpack),
        "card": contents.card,
        "private": contents.is_private,
    }  # fmt: skip
