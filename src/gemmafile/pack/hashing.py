"""Bytes hashed as they are copied or checked: SHA-256, a tree of chunks, CRC-32, in as many threads as there are cores.

hashlib and zlib let go of Python's lock, so threads are enough. Memory is a few blocks, whatever the size.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from gemmafile.pack.layout import CHUNK_BYTES

BLOCK_BYTES = 8 << 20


class TreeHash:
    """SHA-256 of each 64 MiB of a stream, of the whole, and its CRC-32."""

    def __init__(self, *, whole: bool = True) -> None:
        self.chunks: list[str] = []
        self.crc = 0
        self._whole = hashlib.sha256() if whole else None
        self._chunk = hashlib.sha256()
        self._in_chunk = 0

    def jobs(self, block: memoryview) -> list[Callable[[], None]]:
        """What is to be done with the next block; the jobs of one block may run at the same time."""
        jobs = [lambda: self._add_to_chunks(block), lambda: self._add_to_crc(block)]
        if self._whole is not None:
            whole = self._whole
            jobs.append(lambda: whole.update(block))
        return jobs

    def _add_to_crc(self, block: memoryview) -> None:
        self.crc = zlib.crc32(block, self.crc)

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


def stream(
    file: BinaryIO, offset: int, size: int, tree: TreeHash, write: Callable[[memoryview, int], None] | None,
    on_bytes: Callable[[int], None],
) -> int:  # fmt: skip
    """Hash a region, and hand each block to `write(block, place in the region)`; returns the bytes that were there."""
    done = 0
    with ThreadPoolExecutor(4) as pool:
        waiting: list[Future[None]] = []
        for block in blocks_of(file, offset, size):
            for future in waiting:
                future.result()
            place = done
            waiting = [pool.submit(job) for job in tree.jobs(block)]
            if write is not None:
                waiting.append(pool.submit(write, block, place))
            done += len(block)
            on_bytes(len(block))
        for future in waiting:
            future.result()
    return done
