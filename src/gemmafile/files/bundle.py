"""Models inside an archive: our own packed file, a llamafile, any ZIP with a stored GGUF in it.

    bundle = find_bundle(path)           None where the file is no archive
    bundle.weights                       its GGUF members, in the archive's order
    open_bundle(bundle, "name.gguf")     one of them as a ModelFile, mapped where it lies

A member is mapped in place when it is stored (not compressed) at a multiple of 8 bytes; stored anywhere else, it is
read into memory. `files/archive.py` reads the ZIP itself.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmafile.errors import BadFile, nearest
from gemmafile.files.archive import Entry, data_offset, find_directory, read_member
from gemmafile.files.gguf import ModelFile, open_gguf

ARGS = ".args"
MAX_ARGS_BYTES = 1 << 20
MAPPED_ALIGNMENT = 8
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class Weights:
    """A GGUF in an archive. `offset` of its bytes in the file; None where it is compressed"""

    name: str
    offset: int | None
    n_bytes: int


@dataclass(frozen=True)
class Bundle:
    """An archive that was found. `entries` of all members by name"""

    path: Path
    entries: dict[str, Entry]
    weights: list[Weights]

    def read(self, name: str, limit: int = MAX_ARGS_BYTES) -> bytes | None:
        """A member's bytes; None where there is none of that name. Raises BadFile."""
        entry = self.entries.get(name)
        if entry is None:
            return None
        with self.path.open("rb") as file:
            return read_member(self.path, file, entry, limit)

    def default_args(self) -> list[str] | None:
        """The lines of `.args`; None where there are none. Raises BadFile."""
        raw = self.read(ARGS)
        if raw is None:
            return None
        try:
            return args_of(raw)
        except UnicodeDecodeError:
            raise BadFile(self.path, ".args is not UTF-8 text") from None


def args_of(raw: bytes) -> list[str]:
    """The arguments of an `.args`: its lines, whatever else is in them, but empty ones. Raises UnicodeDecodeError."""
    lines = (line.removesuffix("\r") for line in raw.decode().split("\n"))
    return [line for line in lines if line]


def find_bundle(path: Path) -> Bundle | None:
    """The archive at the end of a file; None for a file that has none. Raises BadFile, OSError."""
    with path.open("rb") as file:
        directory = find_directory(path, file)
        if directory is None:
            return None
        entries = {entry.name: entry for entry in directory.entries}
        weights = [
            Weights(e.name, data_offset(path, file, e) if e.is_stored else None, e.n_bytes)
            for e in directory.entries
            if e.name.lower().endswith(".gguf")
        ]
        for found in weights:
            if found.offset is not None and found.offset + found.n_bytes > directory.start:
                raise BadFile(path, f"{found.name!r} ends behind the archive")
    return Bundle(path, entries, weights)


def choose_weights(bundle: Bundle, name: str | None = None) -> Weights:
    """The member of a name (its last part will do), or the only model there is. Raises BadFile."""
    if name is not None:
        wanted = name.removeprefix("/zip/").removeprefix("./")
        for found in bundle.weights:
            if wanted in (found.name, Path(found.name).name):
                return found
        known = [found.name for found in bundle.weights]
        raise BadFile(
            bundle.path, f"has no model {name!r}{nearest(name, known)}; it holds {', '.join(known) or 'none'}"
        )
    firsts = [w for w in bundle.weights if not _LATER_PART.search(w.name)]
    if not firsts:
        raise BadFile(bundle.path, "is an archive without a GGUF model in it")
    if len(firsts) > 1:
        names = ", ".join(found.name for found in firsts)
        raise BadFile(bundle.path, f"holds several models: say which, {bundle.path}@NAME, with one of {names}")
    return firsts[0]


def map_weights(bundle: Bundle, weights: Weights) -> Any:
    """The bytes of a member, a buffer: mapped, or read where they could not be used in place. Raises BadFile."""
    if weights.offset is None:
        what = f"{weights.name!r} is compressed in the archive: unpack it (unzip {bundle.path.name}) and open the file"
        raise BadFile(bundle.path, what)
    if weights.n_bytes == 0:
        raise BadFile(bundle.path, f"{weights.name!r} is empty")
    with bundle.path.open("rb") as file:
        shift = weights.offset % mmap.ALLOCATIONGRANULARITY
        if weights.offset % MAPPED_ALIGNMENT == 0:
            return _map(file, weights.offset - shift, shift, weights.n_bytes)
        file.seek(weights.offset)
        pages = mmap.mmap(-1, weights.n_bytes)
        view, done = memoryview(pages), 0
        while done < weights.n_bytes:
            got = file.readinto(view[done : done + (64 << 20)])
            if not got:
                raise BadFile(bundle.path, f"{weights.name!r} is cut: the file ends in it")
            done += got
        return view.toreadonly()


def _map(file: Any, start: int, shift: int, n_bytes: int) -> Any:
    mapped = mmap.mmap(file.fileno(), shift + n_bytes, access=mmap.ACCESS_READ, offset=start)
    return mapped if shift == 0 else memoryview(mapped)[shift:]


def open_bundle(bundle: Bundle, name: str | None = None) -> ModelFile:
    """A model in an archive; of a split one, all parts. Raises BadFile."""
    first = choose_weights(bundle, name)

    def map_member(path: Path) -> Any:
        return map_weights(bundle, choose_weights(bundle, str(path).removeprefix(f"{bundle.path}@")))

    return open_gguf(Path(f"{bundle.path}@{first.name}"), map_member)
