"""Bytes hashed as they are copied or checked: SHA-256, a tree of chunks, CRC-32, in as many threads as there are cores.

hashlib, zlib and the system's calls let go of Python's lock, so threads are enough. Memory is a few blocks, whatever
the size.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import BinaryIO

from gemmafile.pack.checksums import PartChecksums
from gemmafile.pack.layout import CHUNK_BYTES

BLOCK_BYTES = 8 << 20
STREAM_BYTES, STREAM_BLOCKS = 1 << 20, 24
"""Blocks of a stream fit in a processor's cache, and there are enough of them for a disk that pauses."""


class TreeHash:
    """SHA-256 of each 64 MiB of a stream, of the whole, and its CRC-32; `checksums` also those of `parts` of it."""

    def __init__(self, *, whole: bool = True, parts: Iterable[tuple[int, int]] = ()) -> None:
        self.chunks: list[str] = []
        self.checksums = PartChecksums(parts)
        self._whole = hashlib.sha256() if whole else None
        self._chunk = hashlib.sha256()
        self._in_chunk = 0

    def jobs(self) -> list[Callable[[memoryview], None]]:
        """What is to be done with each block, in order; the jobs may be in different blocks at the same time."""
        return [self._add_to_chunks, self.checksums.add, *([self._whole.update] if self._whole is not None else [])]

    @property
    def crc(self) -> int:
        return self.checksums.whole

    def _add_to_chunks(self, block: memoryview) -> None:
        while block:
            part = block[: CHUNK_BYTES - self._in_chunk]
            self._chunk.update(part)
            self._in_chunk += len(part)
            block = block[len(part) :]
            if self._in_chunk == CHUNK_BYTES:
                self._close_chunk()

    def _close_chunk(self) -> None:
        self.chunks.append(self._chunk.hexdigest())
        self._chunk, self._in_chunk = hashlib.sha256(), 0

    def finish(self) -> str:
        """The digest of the whole, in hex; "" where it was not asked for."""
        if self._in_chunk:
            self._close_chunk()
        return self._whole.hexdigest() if self._whole is not None else ""


def blocks_of(file: BinaryIO, offset: int, size: int) -> Iterator[memoryview]:
    """A region of a file in blocks; a file that is cut gives less."""
    done = 0
    while done < size:
        raw = read_at(file, min(BLOCK_BYTES, size - done), offset + done)
        if not raw:
            return
        yield memoryview(raw)
        done += len(raw)


def read_at(file: BinaryIO, size: int, offset: int) -> bytes:
    """Bytes of a file, for several threads at once; fewer at its end."""
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, offset)
    with open(file.name, "rb") as own:  # Windows has no such call: a place in the file of its own
        own.seek(offset)
        return own.read(size)


def read_into(file: BinaryIO, block: memoryview, offset: int) -> int:
    """Fill a block from a place in a file; returns how many bytes there were, fewer than asked for at its end."""
    done = 0
    while done < len(block):
        if hasattr(os, "preadv"):
            got = os.preadv(file.fileno(), [block[done:]], offset + done)
        else:
            raw = read_at(file, len(block) - done, offset + done)
            got = len(raw)
            block[done : done + got] = raw
        if not got:
            break
        done += got
    return done


def stream(
    file: BinaryIO, offset: int, size: int, tree: TreeHash, write: Callable[[memoryview, int], None] | None,
    on_bytes: Callable[[int], None],
) -> int:  # fmt: skip
    """Hash a region, and hand each block to `write(block, place in the region)`; returns the bytes that were there.

    Reading, writing and each hash have a thread of their own and go at their own pace, a few blocks apart.
    Raises what `write` raises, OSError.
    """
    jobs: list[Callable[[memoryview, int], None]] = [lambda block, at, job=job: job(block) for job in tree.jobs()]  # type: ignore[misc]
    workers = [_Worker(job) for job in [*jobs, *([write] if write is not None else [])]]
    free: SimpleQueue[bytearray] = SimpleQueue()
    for _ in range(min(STREAM_BLOCKS, -(-size // STREAM_BYTES))):
        free.put(bytearray(STREAM_BYTES))
    done = 0
    try:
        while done < size:
            buffer = free.get()
            block = memoryview(buffer)[: min(STREAM_BYTES, size - done)]
            got = read_into(file, block, offset + done)
            if not got or any(worker.error for worker in workers):
                break
            shared = _Shared(buffer, free, len(workers))
            for worker in workers:
                worker.give(block[:got], done, shared)
            done += got
            on_bytes(got)
    finally:
        for worker in workers:
            worker.finish()
    for worker in workers:
        if worker.error is not None:
            raise worker.error
    return done


class _Shared:
    """A block in the hands of several workers; the last to be done puts its buffer back."""

    def __init__(self, buffer: bytearray, free: SimpleQueue[bytearray], count: int):
        self._buffer, self._free, self._count, self._lock = buffer, free, count, threading.Lock()

    def let_go(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                self._free.put(self._buffer)


class _Worker:
    """A thread that does one job with block after block. `error`  what went wrong; later blocks are let go unseen."""

    def __init__(self, job: Callable[[memoryview, int], None]):
        self.error: BaseException | None = None
        self._job = job
        self._waiting: SimpleQueue[tuple[memoryview, int, _Shared] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def give(self, block: memoryview, at: int, shared: _Shared) -> None:
        self._waiting.put((block, at, shared))

    def finish(self) -> None:
        """Wait until all that was given is done."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (given := self._waiting.get()) is not None:
            block, at, shared = given
            try:
                if self.error is None:
                    self._job(block, at)
            except BaseException as error:
                self.error = error
            finally:
                shared.let_go()
