"""A new file that takes its name when it is whole: whoever looks sees the old file, or none, or the new one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gemmafile.errors import BadFile


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when all went well, and goes when not. Raises BadFile."""
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            try:
                yield file
                file.close()
                part.replace(path)
            except BaseException:
                part.unlink()
                raise
    except OSError as error:
        raise BadFile(path, f"cannot be written: {error.strerror or error}") from error
