"""Reading GGUF, versions 2 and 3, whole or split: from a path to a `ModelFile`.

The file is mapped: tensors, numeric arrays and strings are views of the map (`placement.py` may move the tensors).
Nothing in a header is believed before it is checked (`header.py`, read that next); what cannot be checked
is a file that shrinks while it is mapped: the system then ends the process with SIGBUS.
"""

from __future__ import annotations

import mmap
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from gemmafile.errors import BadFile, nearest
from gemmafile.files.header import DEFAULT_ALIGNMENT, Header, read_header
from gemmafile.files.identify import HEAD_BYTES, describe_content
from gemmafile.files.metadata import Metadata, StringArray
from gemmafile.files.tensors import TensorInfo

__all__ = ["Metadata", "ModelFile", "StringArray", "TensorInfo", "open_gguf"]

_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Shard:
    """One mapped file: `bytes` is all of it, uint8, read-only."""

    path: Path
    bytes: np.ndarray[Any, np.dtype[np.uint8]]
    header: Header


class ModelFile:
    """An open model: its metadata and its tensors, mapped.

    `tensors`  by name, in file order, those of all shards
    `paths`    the shards, the first first
    `n_bytes`  of all shards together

    Views handed out keep their map alive: closing the model only lets go of it.
    """

    def __init__(self, shards: list[_Shard]):
        first = shards[0]
        self.path, self.version = first.path, first.header.version
        self.metadata: Metadata = first.header.metadata
        self.tensors: dict[str, TensorInfo] = {t.name: t for shard in shards for t in shard.header.tensors}
        self.paths = tuple(shard.path for shard in shards)
        self.n_bytes = sum(shard.bytes.size for shard in shards)
        self._bytes = {shard.path: shard.bytes for shard in shards}

    def data(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The bytes of a tensor: uint8[n_bytes], read-only, a view. Raises BadFile if there is no such tensor."""
        info = self.tensor(name)
        assert self._bytes, "the model is closed"
        return self._bytes[info.path][info.offset : info.offset + info.n_bytes]

    def address(self, name: str) -> int:
        """Where those bytes lie in memory; a multiple of 8, at least. Valid while the model or a view is held."""
        address: int = self.data(name).__array_interface__["data"][0]
        return address

    def tensor(self, name: str) -> TensorInfo:
        """The entry of a tensor. Raises BadFile, with the nearest name, if there is none."""
        try:
            return self.tensors[name]
        except KeyError:
            raise BadFile(self.path, f"has no tensor {name!r}{nearest(name, self.tensors)}") from None

    def shards(self) -> dict[Path, np.ndarray[Any, np.dtype[np.uint8]]]:
        """All bytes of each shard, by path."""
        return dict(self._bytes)

    def move(self, path: Path, content: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Take the tensors of a shard from `content`, which holds all its bytes, from now on; metadata stays mapped."""
        assert content.nbytes == self._bytes[path].nbytes
        content.flags.writeable = False
        self._bytes[path] = content

    def close(self) -> None:
        """Let go of the maps; each goes when the last view of it does. May be called twice."""
        self._bytes = {}

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ModelFile {self.path}: {len(self.tensors)} tensors, {self.n_bytes / 1e6:.0f} MB>"


def open_gguf(path: str | Path, map_bytes: Callable[[Path], Any] | None = None) -> ModelFile:
    """Open a GGUF file; the first part of a split model opens all parts.

    map_bytes  a path's bytes, for paths that are no files (a member of an archive); raises BadFile. None: map_file
    Raises BadFile for anything else: no such file, not a GGUF, a header that does not hold, a part missing.
    """
    mapper = map_bytes or map_file
    first = _open_shard(Path(path), mapper)
    n_shards = first.header.metadata.get_int("split.count", 0)
    if n_shards <= 1:
        return ModelFile([first])
    shards = [first]
    for shard_path in _shard_paths(first, n_shards)[1:]:
        shards.append(_open_next(shard_path, shards, n_shards, mapper))
    _check_split(shards)
    return ModelFile(shards)


def _open_shard(path: Path, map_bytes: Callable[[Path], Any], alignment_before: int = DEFAULT_ALIGNMENT) -> _Shard:
    """`alignment_before`  of the parts of the model before this one."""
    buffer = map_bytes(path)
    content = np.frombuffer(buffer, np.uint8)
    if buffer[:4] != b"GGUF"[: len(buffer)]:
        raise BadFile(path, f"{describe_content(bytes(buffer[:HEAD_BYTES]), len(buffer))}; expected a GGUF model")
    header = read_header(path, buffer)
    # llama.cpp aligns a part that does not say to 32, the gguf package as the first part: the file's size tells.
    if header.alignment != alignment_before and not _ends_with_its_tensors(header, len(buffer)):
        with suppress(BadFile):
            other = read_header(path, buffer, alignment_before)
            header = other if _ends_with_its_tensors(other, len(buffer)) else header
    return _Shard(path, content, header)


def _ends_with_its_tensors(header: Header, n_bytes: int) -> bool:
    """Nothing but the last tensor's padding lies behind the tensors."""
    end = max((tensor.offset + tensor.n_bytes for tensor in header.tensors), default=n_bytes)
    return n_bytes - end < header.alignment


def map_file(path: Path) -> mmap.mmap:
    """All of a regular, non-empty file, mapped read-only. Raises BadFile, in one line, for anything else."""
    try:
        kind = path.stat().st_mode  # before opening: to open a FIFO is to wait for a writer
        if not stat.S_ISREG(kind):
            raise BadFile(path, f"{_describe_kind(kind)}; expected a GGUF model file")
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise BadFile(path, "is empty (an unfinished download?)")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise BadFile(path, "there is no such file") from None
    except OSError as error:
        raise BadFile(path, f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path; a file emptied since
        raise BadFile(repr(str(path)), f"cannot be read: {error}") from None


def _describe_kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "is a directory"
    if stat.S_ISFIFO(mode):
        return "is a pipe, which cannot be mapped into memory: save it to a file first"
    if stat.S_ISSOCK(mode):
        return "is a socket"
    return "is a device"


def _shard_paths(first: _Shard, n_shards: int) -> list[Path]:
    """The paths of all parts, from the first part's name and its metadata, which must agree."""
    path, metadata = first.path, first.header.metadata
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != n_shards:
        what = f"is part of a model split in {n_shards}: such a file must be called NAME-00001-of-{n_shards:05d}.gguf"
        raise BadFile(path, what, field="key 'split.count'")
    paths = [path.with_name(f"{match[1]}-{i + 1:05d}-of-{n_shards:05d}.gguf") for i in range(n_shards)]
    number = metadata.get_int("split.no")
    if number != 0:
        what = f"is part {number + 1} of {n_shards}: open the first part, {paths[0]}"
        raise BadFile(path, what, field="key 'split.no'")
    if int(match[2]) != 1:
        what = f"says it is the first part, its name says part {int(match[2])}: it was renamed"
        raise BadFile(path, what, field="key 'split.no'")
    return paths


def _open_next(path: Path, before: list[_Shard], n_shards: int, map_bytes: Callable[[Path], Any]) -> _Shard:
    number = len(before)
    if map_bytes is map_file and not path.exists():
        raise BadFile(before[0].path, f"part {number + 1} of {n_shards} is missing: there is no {path}")
    shard = _open_shard(path, map_bytes, before[0].header.alignment)
    metadata = shard.header.metadata
    for key, expected in (("split.no", number), ("split.count", n_shards)):
        if metadata.get_int(key) != expected:
            what = f"is {metadata[key]}, expected {expected}: this file is not part {number + 1} of {before[0].path}"
            raise BadFile(path, what, field=f"key {key!r}")
    return shard


def _check_split(shards: list[_Shard]) -> None:
    """No tensor twice, none missing."""
    first = shards[0]
    seen: dict[str, Path] = {}
    for shard in shards:
        for tensor in shard.header.tensors:
            if tensor.name in seen:
                raise BadFile(shard.path, f"tensor {tensor.name!r} is in {seen[tensor.name]} as well")
            seen[tensor.name] = shard.path
    expected = first.header.metadata.get_int("split.tensors.count")
    if expected != len(seen):
        what = f"is {expected}, the {len(shards)} parts hold {len(seen)} tensors"
        raise BadFile(first.path, what, field="key 'split.tensors.count'")
