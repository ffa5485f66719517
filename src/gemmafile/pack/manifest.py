"""The manifest: one SHA-256 for every member, and for the weights a tree of 64 MiB chunks that names tensors.

A JSON document, the member `manifest.json`:

    format       "gemmafile manifest 1"
    tool         what packed the file
    head         {"slot", "sha256"} of page 0 and that slot together
    size         bytes of the whole file · `directory` where its central directory begins
    members      [{"name", "offset", "size", "crc32", "sha256"}]; the manifest and the signature are not among them
    weights      [{"name", "size", "sha256", "root", "chunks": [sha256 ...],
                   "tensors": [[name, offset, size, crc32] ...]}]
    left_over    [[offset, size] ...]: room that an edit gave up, whose bytes mean nothing
    before       SHA-256 of the central directory before that edit, which a cut-short edit leaves in place, and behind
                 it of each member, header first, that only that directory lists
    provenance   where all this comes from

`root` is the SHA-256 of the chunks' digests one behind the other. Lengths do not depend on hashes, so the manifest's
place is known before the weights have been read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from gemmafile.errors import BadFile
from gemmafile.pack.layout import CHUNK_BYTES, HEAD_BYTES, PAGE, SLOT_BYTES, SLOTS, Member

FORMAT = "gemmafile manifest 1"
NO_DIGEST = "0" * 64
MAX_BYTES = 64 << 20


@dataclass
class WeightsEntry:
    """A GGUF member. `tensors`  (name, offset in the member, bytes) · `checksums` CRC-32 of each, or none"""

    name: str
    size: int
    sha256: str = NO_DIGEST
    chunks: list[str] = field(default_factory=list)
    tensors: list[tuple[str, int, int]] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)

    @property
    def root(self) -> str:
        return hashlib.sha256(bytes.fromhex("".join(self.chunks))).hexdigest()

    def to_json(self) -> dict[str, Any]:
        chunks = self.chunks or [NO_DIGEST] * -(-self.size // CHUNK_BYTES)
        checksums = self.checksums or [0] * len(self.tensors)
        return {
            "name": self.name, "size": self.size, "sha256": self.sha256,
            "root": self.root if self.chunks else NO_DIGEST, "chunks": chunks,
            "tensors": [[*t, f"{crc:08x}"] for t, crc in zip(self.tensors, checksums, strict=True)],
        }  # fmt: skip


@dataclass
class Manifest:
    """`members` all but the manifest and its signature, the weights included · `digests` by name, in hex"""

    tool: str
    slot: int
    head: str
    size: int
    directory: int
    members: list[Member]
    digests: dict[str, str]
    weights: list[WeightsEntry]
    left_over: list[tuple[int, int]]
    provenance: dict[str, Any]
    before: str = ""

    def to_bytes(self) -> bytes:
        roots = {entry.name: entry.to_json()["root"] for entry in self.weights}
        members = [
            {
                "name": m.name, "offset": m.offset, "size": m.size, "crc32": f"{m.crc:08x}",
                "sha256": roots.get(m.name) or self.digests.get(m.name, NO_DIGEST),
                "executable": m.is_executable,
            }
            for m in self.members
        ]  # fmt: skip
        for entry in members:
            if entry["name"] in roots:
                entry["tree"] = entry.pop("sha256")
        document = {
            "format": FORMAT, "tool": self.tool, "head": {"slot": self.slot, "sha256": self.head}, "size": self.size,
            "directory": self.directory, "members": members, "weights": [w.to_json() for w in self.weights],
            "left_over": [list(pair) for pair in self.left_over], "before": self.before, "provenance": self.provenance,
        }  # fmt: skip
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, path: object, raw: bytes) -> Manifest:
        """Raises BadFile for what is no manifest."""
        try:
            document = json.loads(raw)
            if document["format"] != FORMAT:
                raise BadFile(path, f"has a manifest of another format: {document['format']!r}")
            members = [
                Member(str(m["name"]), int(m["size"]), int(m["offset"]), int(m["crc32"], 16), bool(m["executable"]))
                for m in document["members"]
            ]
            weights = [
                WeightsEntry(
                    str(w["name"]), int(w["size"]), str(w["sha256"]), [str(c) for c in w["chunks"]],
                    [(str(name), int(offset), int(size)) for name, offset, size, _ in w["tensors"]],
                    [int(crc, 16) for _, _, _, crc in w["tensors"]],
                )
                for w in document["weights"]
            ]  # fmt: skip
            slot = int(document["head"]["slot"])
            sane = all(m.offset >= HEAD_BYTES and m.size >= 0 for m in members) and slot in (0, 1)
            sane = sane and all(len(c) == 64 for w in weights for c in (*w.chunks, w.sha256))
            if not sane or any(len(w.chunks) != -(-w.size // CHUNK_BYTES) for w in weights):
                raise ValueError("a number is out of its range")
            bytes.fromhex("".join(c for w in weights for c in w.chunks))
            return cls(
                str(document["tool"]), slot, str(document["head"]["sha256"]), int(document["size"]),
                int(document["directory"]), members, {m["name"]: str(m.get("sha256", "")) for m in document["members"]},
                weights, [(int(a), int(b)) for a, b in document["left_over"]], dict(document["provenance"]),
                str(document["before"]),
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadFile(path, f"its manifest is damaged: {error}") from None


def head_digest(head: bytes, slot: int) -> str:
    """SHA-256 of page 0 and a slot, of the first 64 KiB of a file."""
    start = SLOTS[slot]
    return hashlib.sha256(head[:PAGE] + head[start : start + SLOT_BYTES]).hexdigest()
