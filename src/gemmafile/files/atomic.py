"""A new file that takes its name when it is whole: whoever looks sees the old file, or none, or the new one."""

from __future__ import annotations

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
        part = real.with_name(f".{uuid.uuid4().hex}.part")
        with removed_if_ended(part), part.open("xb") as file:
            try:
                yield file
                file.close()
                part.replace(real)
            except BaseException:
                part.unlink()
                raise
    except OSError as error:
        raise BadFile(path, f"cannot be written: {error.strerror or error}") from error


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
