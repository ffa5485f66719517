"""Where a model's bytes lie: mapped from the file or read into memory, in huge pages or small ones, held or not.

In: an open `ModelFile` and the settings --no-mmap, --mlock and --huge-pages. Out: the same file, placed. Nothing
that is asked for here changes an answer; what the system will not give is said in one line, and the model is mapped.

Huge pages spare the processor the walk through page tables: making a token took 6 to 14% less time. A file comes into
the system's cache in huge pages when its pages are first read through a map that asks for them. So asking is the
default and costs nothing; pages that are in the cache already stay as they are, unless --huge-pages on.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.errors import BadFile, BadSettings
from gemmafile.files.gguf import ModelFile
from gemmafile.progress import Progress
from gemmafile.settings import ContextSettings

HUGE_BYTES = 2 << 20
PART_BYTES = 16 << 20
"""One read; a thread reads one part after the other."""

READERS = 2
ENOUGH = 0.9
"""Of the whole huge pages that a model's bytes could fill: more would not be felt."""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Say = Callable[[str], None]


def place_model(file: ModelFile, settings: ContextSettings, say: Say) -> None:
    """Do what the settings say. Raises BadFile when reading fails, BadSettings when there is no room to read into.

    `say`  gets a line for what cannot be had, and for reading that takes a while
    """
    mode = settings.load_mode
    if settings.mmap and mode not in ("none", "mlock", "dio"):
        if settings.huge_pages != "off":
            _advise(file)
        if settings.huge_pages == "on" and not _renew_cache(file):
            _move(file, settings, say, "--huge-pages on: the system does not cache this file in huge pages")
    else:
        _move(file, settings, say)
    if settings.mlock or "mlock" in mode:
        _lock(file, say)


def free_memory_bytes() -> int:
    """Memory that can be taken without swapping; 0 where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as f:
            for line in f:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def huge_share(file: ModelFile) -> float | None:
    """How much of the model lies in huge pages, of what has been touched; None where the system does not say."""
    places = [(start, start + size) for start, size in map(_pages_of, file.shards().values())]
    resident = huge = 0
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as f:
            inside = False
            for line in f:
                if found := _MAP_LINE.match(line):
                    start, end = (int(word, 16) for word in found.groups())
                    inside = any(first < end and start < last for first, last in places)
                elif inside and (found := _SIZE_LINE.match(line)):
                    size = int(found[2])
                    resident, huge = (resident + size, huge) if found[1] == "Rss" else (resident, huge + size)
    except OSError:
        return None
    return huge / resident if resident else None


_MAP_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_SIZE_LINE = re.compile(r"(Rss|AnonHugePages|FilePmdMapped|ShmemPmdMapped):\s+(\d+) kB")


# --- the file's own pages ---------------------------------------------------------------------------------------------


def _advise(file: ModelFile) -> None:
    """Ask for huge pages wherever the file is not in the cache yet."""
    for shard in file.shards().values():
        _madvise(shard, "MADV_HUGEPAGE")


def _renew_cache(file: ModelFile) -> bool:
    """Is the file in huge pages in the system's cache, if need be after it has been read again?

    What other programs have mapped stays as it is; so does what has not reached the disk yet.
    """
    possible = sum(shard.nbytes // HUGE_BYTES * HUGE_BYTES for shard in file.shards().values()) / file.n_bytes
    for renewed in (False, True):
        for path, shard in file.shards().items():
            if renewed:
                _forget(path, shard)
            _madvise(shard, "MADV_HUGEPAGE")
            _madvise(shard, "MADV_POPULATE_READ")
        if (huge_share(file) or 0.0) >= ENOUGH * possible:
            return True
    return False


def _forget(path: Path, shard: Bytes) -> None:
    """Drop a file from the cache: what is clean, and mapped by nobody."""
    from gemmafile.files.open import split_member

    let_go(shard)
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        handle = os.open(split_member(path)[0], os.O_RDONLY)
    except OSError:
        return
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def let_go(shard: Bytes) -> None:
    """Unmap the pages of a mapped file; they come back when they are touched. (Memory of our own would be emptied.)"""
    start, _ = _pages_of(shard)
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as f:
            words = next((line.split() for line in f if _holds(line, start)), [])
    except OSError:
        return
    if len(words) > 4 and words[4] != "0" and words[5].startswith("/") and not words[5].startswith("/dev/"):
        _madvise(shard, "MADV_DONTNEED")


def _holds(line: str, address: int) -> bool:
    found = _MAP_LINE.match(line)
    return found is not None and int(found[1], 16) <= address < int(found[2], 16)


_ADVICE = {"MADV_DONTNEED": 4, "MADV_HUGEPAGE": 14, "MADV_NOHUGEPAGE": 15, "MADV_POPULATE_READ": 22}
"""Linux, include/uapi/asm-generic/mman-common.h."""


def _madvise(memory: Bytes, advice: str) -> None:
    """Advise about the whole pages under some bytes. A system or a file system that knows no such advice goes on."""
    if sys.platform.startswith("linux"):
        start, size = _pages_of(memory)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _ADVICE[advice])


def _pages_of(memory: Bytes) -> tuple[int, int]:
    """(address, bytes) of the pages that hold some bytes."""
    start = int(memory.__array_interface__["data"][0])
    first = start - start % mmap.PAGESIZE
    return first, start + memory.nbytes - first


# --- memory of our own ------------------------------------------------------------------------------------------------


def _move(file: ModelFile, settings: ContextSettings, say: Say, why: str = "") -> None:
    """Read all of a model into memory. With a reason, it is a second best: where there is no room the map stays."""
    free = free_memory_bytes()
    needed = f"reading the model into memory takes {file.n_bytes / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
    if free and file.n_bytes > free:
        if not why:
            raise BadSettings(f"{needed}: leave out --no-mmap and it is mapped")
        say(f"{why}; {needed}: it stays as it is")
        return
    if why:
        say(f"{why}: it is read into memory instead")
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not is_terminal and file.n_bytes > 1 << 30:
        say(f"reading {file.n_bytes / 1e6:.0f} MB into memory")
    with Progress("reading the model", file.n_bytes, bytes=True, quiet=not is_terminal) as progress:
        for path, shard in file.shards().items():
            try:
                memory = _allocate(shard.nbytes, huge=settings.huge_pages != "off")
            except (OSError, MemoryError):
                raise BadSettings(f"{needed}, but the system gives no such block: leave out --no-mmap") from None
            if path.is_file():
                read_file(path, memory, progress.advance)
            else:  # in an archive
                copy_bytes(shard, memory, progress.advance)
            file.move(path, memory)


def _allocate(n_bytes: int, *, huge: bool) -> Bytes:
    """uint8[n_bytes] from the start of a huge page on, not touched yet. Raises OSError."""
    if sys.platform == "win32":
        memory = mmap.mmap(-1, n_bytes + HUGE_BYTES)
    else:
        memory = mmap.mmap(-1, n_bytes + HUGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(memory, np.uint8)
    _madvise(whole, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE")
    skipped = -int(whole.__array_interface__["data"][0]) % HUGE_BYTES
    return whole[skipped : skipped + n_bytes]


def read_file(path: Path, memory: Bytes, on_bytes: Callable[[int], None]) -> None:
    """Fill `memory` with the first bytes of a file, by several threads. Raises BadFile, for a file too short as well.

    `on_bytes`  called with the size of each part that is done, in this thread
    """
    view = memoryview(memory)  # type: ignore[arg-type]
    try:
        with path.open("rb", buffering=0) as source, ThreadPoolExecutor(READERS) as readers:
            for n in readers.map(lambda part: _read_part(source.fileno(), view, *part), _parts(len(view))):
                on_bytes(n)
    except _TooShort as error:
        what = f"ended after {error.args[0]} of {len(view)} bytes while it was being read: was it cut just now?"
        raise BadFile(path, what) from None
    except OSError as error:
        raise BadFile(path, f"cannot be read: {error.strerror or error}") from None


def copy_bytes(source: Bytes, memory: Bytes, on_bytes: Callable[[int], None]) -> None:
    """The same from a map, letting go of what has been read."""

    def copy_part(part: tuple[int, int]) -> int:
        start, end = part
        memory[start:end] = source[start:end]
        return end - start

    with ThreadPoolExecutor(READERS) as readers:
        for n in readers.map(copy_part, _parts(memory.nbytes)):
            on_bytes(n)
    let_go(source)


class _TooShort(Exception):
    """How many bytes there were."""


def _parts(n_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, n_bytes, PART_BYTES):
        yield start, min(start + PART_BYTES, n_bytes)


def _read_part(handle: int, view: memoryview, start: int, end: int) -> int:
    done = start
    while done < end:
        if hasattr(os, "preadv"):
            n = os.preadv(handle, [view[done:end]], done)
        else:
            part = os.pread(handle, end - done, done)
            n = len(part)
            view[done : done + n] = part
        if n == 0:
            raise _TooShort(done)
        done += n
    return end - start


# --- held in memory ---------------------------------------------------------------------------------------------------


def _lock(file: ModelFile, say: Say) -> None:
    """Let the system neither swap the model out nor drop it; going on without when it refuses, as llama.cpp does."""
    for shard in file.shards().values():
        reason = _lock_memory(*_pages_of(shard))
        if reason is not None:
            say(f"--mlock: the model's {shard.nbytes / 1e6:.0f} MB are not held in memory: {reason}")
            return


def _lock_memory(start: int, n_bytes: int) -> str | None:
    """None, or why not."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        lock = ctypes.CDLL(None, use_errno=True).mlock
    except (ImportError, AttributeError, OSError, TypeError):
        return "this system has no mlock"
    if lock(ctypes.c_void_p(start), ctypes.c_size_t(n_bytes)) == 0:
        return None
    limit = "" if hard == resource.RLIM_INFINITY else f"; the limit is {hard / 1e6:.1f} MB (ulimit -l)"
    return f"{os.strerror(ctypes.get_errno())}{limit}"
