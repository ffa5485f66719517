"""A new file that takes its name when it is whole: whoever looks sees the old file, or none, or the new one.

Until then it lies beside it as .HASH-RANDOM.part, where HASH is the name's, and its writer holds a lock on it. A writer
that was killed holds none: the next one of the same name removes what it left.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from gemmafile.errors import BadFile


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when all went well, and goes when not. Raises BadFile.

    Where `path` is a link, what it points to is replaced. A device is not: it would become an ordinary file.
    """
    try:
        real = Path(os.path.realpath(path))
        check_ordinary(path)
        mark = f".{hashlib.sha256(os.fsencode(real.name)).hexdigest()[:16]}-"
        _remove_abandoned(real.parent, mark)
        part, file = _open_part(real.parent, mark)
        # The lock outlives the closing: a whole file that has not got its name yet would else look abandoned.
        held = os.dup(file.fileno()) if _lock(file) else None
        with removed_if_ended(part), file:
            try:
                yield file
                file.close()
                part.replace(real)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            finally:
                if held is not None:
                    os.close(held)
    except OSError as error:
        raise BadFile(path, f"cannot be written: {error.strerror or error}") from error


def _open_part(folder: Path, mark: str) -> tuple[Path, BinaryIO]:
    """A new file and its lock, where there are locks."""
    while True:
        part = folder / f"{mark}{uuid.uuid4().hex}.part"
        file = part.open("xb")
        _lock(file, wait=True)
        if os.fstat(file.fileno()).st_nlink:
            return part, file
        file.close()  # another process took it for abandoned, between the opening and the lock


def _lock(file: BinaryIO, *, wait: bool = False) -> bool:
    """Is the file this process's own? False also where the system, or the disk, has no such locks."""
    try:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def _remove_abandoned(folder: Path, mark: str) -> None:
    """Remove what killed writers of a name left: such files that nobody holds."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(mark) and entry.name.endswith(".part"):
                with suppress(OSError), open(entry.path, "rb") as file:
                    if _lock(file):
                        os.unlink(entry.path)


_unfinished: list[Path] = []
"""What `_end` removes."""


@contextmanager
def removed_if_ended(path: Path) -> Iterator[None]:
    """A process that is asked to end (SIGTERM, a terminal that was closed) takes a file or folder with it.

    It ends by the signal all the same. Where a signal has a handler already, that one decides.
    """
    ours = []
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
        ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _end)
    _unfinished.append(path)
    try:
        yield
    finally:
        _unfinished.remove(path)
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    import shutil

    for path in _unfinished:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def check_ordinary(path: Path) -> None:
    """Raises BadFile for what is there and could not be replaced by a file: a folder, a device, a pipe."""
    if path.is_dir():
        raise BadFile(path, "cannot be written: Is a directory")
    if path.exists() and not path.is_file():
        raise BadFile(path, "is there already, and is no ordinary file")


def check_writable(path: Path) -> None:
    """Raises BadFile where `replace_file` would fail: said before long work, not behind it."""
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise BadFile(path, f"cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK):
        raise BadFile(path, f"cannot be written: {folder} may not be written to")
    check_ordinary(path)
