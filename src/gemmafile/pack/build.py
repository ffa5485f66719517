"""Packing: what a file is to hold becomes the file. The weights are read once, hashed on the way, and written once.

It is written under another name beside its place, and renamed when it is whole: whoever looks sees the old file, or
none, or the new one. What a killed run leaves behind is removed by the next.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gemmafile.errors import BadFile, GemmafileError
from gemmafile.files.atomic import removed_if_ended
from gemmafile.files.ollama import PREFIX
from gemmafile.files.open import find_archive, open_model
from gemmafile.pack.edition import Contents, Edition, compose
from gemmafile.pack.hashing import STREAM_BYTES, TreeHash, stream
from gemmafile.pack.layout import HEAD_BYTES, MANIFEST, PAGE, PUBLIC_KEY, SIGNATURE, SLOTS, local_header
from gemmafile.pack.manifest import WeightsEntry

FLUSH_BYTES = 128 << 20

Sign = Callable[[bytes], bytes]
"""A manifest's bytes to the 64 bytes of its ed25519 signature."""


@dataclass(frozen=True)
class Source:
    """A GGUF to be packed: `size` bytes at `offset` of `path`; `name` of its member."""

    name: str
    path: Path
    offset: int
    size: int
    tensors: tuple[tuple[str, int, int], ...]

    @property
    def is_sparse(self) -> bool:
        status = self.path.stat()
        return hasattr(status, "st_blocks") and status.st_blocks * 512 < status.st_size // 2


def find_sources(path: Path) -> list[Source]:
    """The GGUF files that make up a model: one, or the parts of a split one, plain or in an archive. Raises BadFile."""
    bundle, _ = find_archive(path)
    sources = []
    with open_model(path) as model:
        for shard in model.paths:
            tensors = tuple((t.name, t.offset, t.n_bytes) for t in model.tensors.values() if t.path == shard)
            if bundle is None:
                sources.append(Source(member_name(path, shard), shard, 0, shard.stat().st_size, tensors))
                continue
            name = str(shard).removeprefix(f"{bundle.path}@")
            found = next(w for w in bundle.weights if w.name == name)
            assert found.offset is not None
            sources.append(Source(member_name(path, Path(name)), bundle.path, found.offset, found.n_bytes, tensors))
    return sources


def member_name(path: Path, shard: Path) -> str:
    """What a GGUF is called in the file: its own name, ending in .gguf, by which readers know it for a model.

    What ollama has is called by its model's name: "ollama:gemma2:2b" is gemma2-2b.gguf.
    """
    name = str(path).removeprefix(PREFIX).strip("/") if str(path).startswith(PREFIX) else shard.name
    plain = re.sub(r'[\0-\x1f\x7f/\\:*?"<>|]', "-", name.encode(errors="replace").decode())
    return plain if plain.lower().endswith(".gguf") else f"{plain}.gguf"


def weights_entries(sources: list[Source]) -> list[WeightsEntry]:
    return [WeightsEntry(s.name, s.size, tensors=list(s.tensors)) for s in sources]


def build(
    contents: Contents, sources: list[Source], out: Path, *, sign: Sign | None = None,
    on_bytes: Callable[[int], None] = lambda n: None,
) -> Edition:  # fmt: skip
    """Write the file `out`. Raises BadFile, GemmafileError (no room), OSError; `out` is then as it was."""
    edition = compose(contents)
    holes = sum(s.size for s in sources if s.is_sparse)
    check_room(out, edition.end - holes)
    with new_file(out) as file:
        file.truncate(edition.end)
        write_small(file, edition)
        for source, entry in zip(sources, contents.weights, strict=True):
            _copy(source, entry, file, edition, on_bytes)
        write_manifest(file, edition, sign, contents.public_key)
        raw = edition.directory_bytes()
        write_at(file, edition.end - len(raw), raw)
        write_at(file, SLOTS[edition.slot], edition.slot_bytes)
        write_at(file, SLOTS[1 - edition.slot], b"\n" * len(edition.slot_bytes))
        write_at(file, 0, edition.page)
    return edition


def check_room(out: Path, n_bytes: int) -> None:
    """Raises GemmafileError where the disk has not so many bytes left."""
    if not hasattr(os, "statvfs"):
        return
    status = os.statvfs(out.parent)
    free = status.f_bavail * status.f_frsize
    if free < n_bytes:
        what = f"needs {n_bytes / 1e6:,.0f} MB, and {out.parent} has {free / 1e6:,.0f} MB left"
        raise GemmafileError(f"{out}: {what}")


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `out` when it has been written, and vanishes when that fails."""
    out = Path(os.path.realpath(out))  # a link stays one
    if out.exists() and not out.is_file():  # a device, say: it would be replaced by a file
        raise GemmafileError(f"{out}: is there already, and is no ordinary file")
    _sweep(out)
    partial = out.with_name(f".{out.name}.part-{os.getpid()}")
    try:
        handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    except OSError as error:
        raise GemmafileError(f"{out}: cannot be written: {error.strerror}") from None
    try:
        with removed_if_ended(partial), os.fdopen(handle, "r+b", buffering=0) as file:
            _lock(handle)
            yield file
            os.fsync(handle)
            if hasattr(os, "fchmod"):
                os.fchmod(handle, 0o777 & ~_umask())
            os.replace(partial, out)
        _sync_folder(out.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _lock(handle: int) -> bool:
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return False
    except OSError:
        return False
    return True


def _sweep(out: Path) -> None:
    """What a killed run left: such files that nobody holds any more."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.part-*"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            if _lock(file.fileno()):
                path.unlink()


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_small(file: BinaryIO, edition: Edition, only: set[str] | None = None) -> None:
    """All members whose bytes are known, each behind its header."""
    for name, raw in edition.content.items():
        member = edition.member(name)
        if only is None or name in only:
            write_at(file, member.header_offset, local_header(member) + raw)


_place = threading.Lock()


def write_at(file: BinaryIO, offset: int, raw: bytes | memoryview) -> None:
    """All of `raw` at a place in a file; in one call to the system, where that takes it all."""
    view = memoryview(raw)
    while view:
        if hasattr(os, "pwrite"):
            done = os.pwrite(file.fileno(), view, offset)
        else:
            with _place:
                file.seek(offset)
                done = file.write(view)
        view, offset = view[done:], offset + done


def _copy(
    source: Source, entry: WeightsEntry, file: BinaryIO, edition: Edition, on_bytes: Callable[[int], None]
) -> None:
    member = edition.member(source.name)
    places = [(offset, size) for _, offset, size in entry.tensors]
    tree, is_sparse = TreeHash(parts=places), source.is_sparse
    zeros = bytes(STREAM_BYTES)

    with source.path.open("rb") as original, _Flusher(file) as flusher:

        def write(block: memoryview, place: int) -> None:
            if not (is_sparse and block.tobytes() == zeros[: len(block)]):
                write_at(file, member.offset + place, block)
                flusher.written(len(block))

        done = stream(original, source.offset, source.size, tree, write, on_bytes)
    if done != source.size:
        raise BadFile(source.path, f"became shorter while it was packed: {done} bytes of {source.size}")
    entry.sha256 = tree.finish()
    entry.chunks, member.crc = tree.chunks, tree.crc
    entry.checksums = [tree.checksums.of(*place) for place in places]
    write_at(file, member.header_offset, local_header(member))


class _Flusher:
    """Has the disk write while the rest is still being hashed: a system may keep gigabytes back until it is asked."""

    def __init__(self, file: BinaryIO):
        self._file, self._pool, self._waiting = file, ThreadPoolExecutor(1), 0
        self._running: Future[None] | None = None

    def __enter__(self) -> _Flusher:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown()

    def written(self, n_bytes: int) -> None:
        self._waiting += n_bytes
        if self._waiting >= FLUSH_BYTES and (self._running is None or self._running.done()):
            if self._running is not None:
                self._running.result()
            self._running, self._waiting = self._pool.submit(os.fsync, self._file.fileno()), 0


def write_manifest(file: BinaryIO, edition: Edition, sign: Sign | None, public_key: bytes | None) -> None:
    """The manifest, now that all hashes are known, and its signature."""
    small = {MANIFEST: edition.manifest_bytes()}
    if sign is not None and public_key is not None:
        small |= {SIGNATURE: sign(small[MANIFEST]), PUBLIC_KEY: public_key}
    for name, raw in small.items():
        member = edition.member(name)
        assert len(raw) == member.size
        member.crc = zlib.crc32(raw)
        write_at(file, member.header_offset, local_header(member) + raw)


assert PAGE + 2 * (SLOTS[1] - SLOTS[0]) == HEAD_BYTES
