"""The archive: prefixes that outlive the process, in files (saved.py).

Slots are saved to and restored from files that people name. Beside that, with a folder of its own, prompts that took
long to read are kept there under a hash of model and tokens, and are found again when a prompt begins like one of them.
Files are read and written by a thread: answers go on meanwhile, and `poll` does the rest between two passes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.engine.engine import Engine
from gemmafile.engine.prefixes import Lease, Prefixes
from gemmafile.engine.saved import Saved, fingerprint, open_saved, write_saved
from gemmafile.errors import BadSettings, GemmafileError
from gemmafile.model.batch import PAGE

LEAST_KEPT = 4
"""Pages that a prompt must have more than what the folder has of it already, to be worth a file."""

FOLDER_BYTES = 4 << 30
"""The folder's files that were used least lately go when it is larger."""

LEFT_S = 3600.0
"""A file that is still unfinished after so many seconds was left behind by a process that was ended."""

Done = Callable[[int, int, float, GemmafileError | None], None]
"""Called with tokens, bytes, milliseconds, and what went wrong."""


class Archive:
    """Reads and writes files of an engine's prefixes. `folder`  where prompts are kept by themselves; None: nowhere"""

    def __init__(self, engine: Engine, prefixes: Prefixes, folder: Path | None = None):
        self._engine, self._prefixes, self._folder = engine, prefixes, folder
        self._under_way: list[tuple[Future[int], Callable[[Future[int]], None]]] = []
        self._names = _names_in(folder)

    @property
    def is_idle(self) -> bool:
        return not self._under_way

    def poll(self, wait_s: float = 0.0) -> None:
        """Finish what the thread is through with; wait for that at most so long."""
        for entry in list(self._under_way):
            future, finish = entry
            if wait_s:
                with contextlib.suppress(TimeoutError, GemmafileError):
                    future.result(wait_s)
            if future.done():
                self._under_way.remove(entry)
                finish(future)

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "gemmafile-archive")

    @cached_property
    def _model(self) -> str:
        return fingerprint(self._engine)

    # --- files that people name ---------------------------------------------------------------------------------

    def save(self, path: Path, token_ids: Sequence[int], done: Done) -> None:
        """Write as much of these tokens as is in the cache."""
        start_s = time.perf_counter()
        lease = self._prefixes.lease(token_ids)
        kept = list(lease.sequence.token_ids)
        if not kept:
            self._prefixes.release(lease)
            done(0, 0, 0.0, BadSettings("there is nothing of this slot in the cache"))
            return
        table = list(lease.sequence.table)

        def finish(future: Future[int]) -> None:
            self._prefixes.release(lease)
            n_bytes, error = _outcome(future)
            done(0 if error else len(kept), n_bytes, 1e3 * (time.perf_counter() - start_s), error)

        self._begin(lambda: write_saved(path, self._engine, self._model, kept, table), finish)

    def restore(self, path: Path, done: Callable[[list[int], int, float, GemmafileError | None], None]) -> None:
        """Read a file into the cache. `done` gets its tokens."""
        start_s = time.perf_counter()
        try:
            saved = open_saved(path, self._engine, self._model)
        except GemmafileError as error:
            done([], 0, 0.0, error)
            return
        lease = self._prefixes.lease_private()
        try:
            lease.sequence.extend(saved.token_ids)
        except GemmafileError as error:
            saved.close()
            done([], 0, 0.0, error)
            return

        def finish(future: Future[int]) -> None:
            saved.close()
            n_bytes, error = _outcome(future)
            self._take_in(lease, bool(error))
            done([] if error else saved.token_ids, n_bytes, 1e3 * (time.perf_counter() - start_s), error)

        self._begin(lambda: _read(saved, self._engine, list(lease.sequence.table)), finish)

    def _take_in(self, lease: Lease, is_bad: bool) -> None:
        """What was read is for everyone, unless it is bad."""
        if not is_bad:
            n = len(lease) % PAGE
            if n:  # what lies behind the tokens of the last page is as if nothing had been written there
                self._engine.cache.copy_page(lease.sequence.table[-1], lease.sequence.table[-1], n)
            self._prefixes.publish(lease)
        self._prefixes.release(lease)

    # --- the folder ---------------------------------------------------------------------------------------------

    def keep(self, token_ids: Sequence[int]) -> None:
        """Keep the whole pages of a prompt that has been read, if the folder has much less of it."""
        if self._folder is None:
            return
        keys = self._keys(token_ids)
        n_known = max((i + 1 for i, key in enumerate(keys) if key in self._names), default=0)
        if len(keys) < n_known + LEAST_KEPT:
            return
        path = self._folder / keys[-1]
        self._names.add(path.name)

        def done(n_tokens: int, n_bytes: int, ms: float, error: GemmafileError | None) -> None:
            if error:
                self._names.discard(path.name)
            self._names -= _make_room(path.parent)

        self.save(path, list(token_ids[: len(keys) * PAGE]), done)

    def fetch(self, token_ids: Sequence[int], done: Callable[[], None]) -> bool:
        """Read the longest beginning of a prompt that the folder has and the cache has not. False: there is none;
        else `done` is called once it is there."""
        if self._folder is None or not self._names:
            return False
        keys = self._keys(token_ids[:-1])
        found = next((i for i in range(len(keys) - 1, -1, -1) if keys[i] in self._names), None)
        if found is None or self._prefixes.match(token_ids).n_tokens >= (found + 1) * PAGE:
            return False
        path = self._folder / keys[found]

        def finish(token_ids: list[int], n_bytes: int, ms: float, error: GemmafileError | None) -> None:
            if error:  # damaged, gone, or of no use for want of room
                self._names.discard(path.name)
            else:
                with contextlib.suppress(OSError):
                    os.utime(path)
            done()

        self.restore(path, finish)
        return True

    def _keys(self, token_ids: Sequence[int]) -> list[str]:
        """Names of the files of the first page of these tokens, of the first two, ..."""
        digest, ids = hashlib.blake2b(self._model.encode(), digest_size=20), np.array(token_ids, "<i4")
        cache = self._engine.cache
        digest.update(f"{cache.kind_k} {cache.kind_v}".encode())
        keys = []
        for end in range(PAGE, len(ids) + 1, PAGE):
            digest.update(ids[end - PAGE : end].tobytes())
            keys.append(f"{digest.hexdigest()}.keys")
        return keys

    def _begin(self, work: Callable[[], int], finish: Callable[[Future[int]], None]) -> None:
        self._under_way.append((self._thread.submit(work), finish))

    def close(self) -> None:
        """Wait for what is being written."""
        if "_thread" in self.__dict__:
            self._thread.shutdown()
            self.poll()


def _read(saved: Saved, engine: Engine, table: list[int]) -> int:
    saved.read_pages(engine, table)
    return saved.n_bytes


def _outcome(future: Future[int]) -> tuple[int, GemmafileError | None]:
    try:
        return future.result(), None
    except GemmafileError as error:
        return 0, error


def _names_in(folder: Path | None) -> set[str]:
    if folder is None:
        return set()
    names: set[str] = set()
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.endswith(".keys"):
                names.add(entry.name)
            elif entry.name.endswith(".part") and time.time() - entry.stat().st_mtime > LEFT_S:
                os.unlink(entry.path)
    return names


def _make_room(folder: Path) -> set[str]:
    """Remove files used least lately until the rest is within FOLDER_BYTES; their names."""
    gone: set[str] = set()
    with contextlib.suppress(OSError):
        found: list[tuple[float, int, str]] = []
        for entry in os.scandir(folder):
            if entry.name.endswith(".keys"):
                status: Any = entry.stat()
                found.append((status.st_mtime, status.st_size, entry.name))
        total = sum(size for _, size, _ in found)
        for _, size, name in sorted(found):
            if total <= FOLDER_BYTES:
                break
            (folder / name).unlink()
            gone.add(name)
            total -= size
    return gone
