"""Where a model's bytes lie changes no byte of it, and what cannot be had is said in one line."""

from __future__ import annotations

import ctypes
import errno
import mmap
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.errors import BadFile, BadSettings
from gemmafile.files import placement
from gemmafile.files.gguf import ModelFile
from gemmafile.files.open import open_model
from gemmafile.settings import ContextSettings
from tests.tiny import write_small


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("model") / "tiny.gguf")


def contents(file: ModelFile) -> dict[str, bytes]:
    return {name: file.data(name).tobytes() for name in file.tensors}


def is_mapped(file: ModelFile) -> bool:
    """A shard that is mapped is all of its map."""
    (shard,) = file.shards().values()
    root: Any = shard
    while isinstance(root, np.ndarray):
        root = root.base
    if isinstance(root, memoryview):
        root = root.obj
    return isinstance(root, mmap.mmap) and len(root) == shard.nbytes


@pytest.mark.parametrize(
    "fields",
    [
        {"mmap": False}, {"mmap": False, "huge_pages": "off"}, {"load_mode": "none"}, {"load_mode": "mmap+mlock"},
        {"load_mode": "mlock"}, {"huge_pages": "on"}, {"huge_pages": "off"}, {"mlock": True},
    ],
    ids=str,
)  # fmt: skip
def test_every_placement_holds_the_same_bytes(path: Path, fields: dict[str, Any]) -> None:
    expected = contents(open_model(path))
    file = open_model(path, ContextSettings(**fields), say=lambda line: None)
    assert contents(file) == expected
    is_read = fields.get("mmap") is False or fields.get("load_mode") in ("none", "mlock")
    assert is_mapped(file) != is_read
    assert not any(file.data(name).flags.writeable for name in file.tensors)
    assert all(file.address(name) % 8 == 0 for name in file.tensors)
    file.close()


def test_a_moved_model_outlives_its_file(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    file = open_model(copy, ContextSettings(mmap=False))
    expected = contents(open_model(path))
    with copy.open("r+b") as f:  # a map would be cut, too, and touching it would end the process
        f.truncate(file.n_bytes // 2)
    assert contents(file) == expected


def test_reading_takes_parts_in_order_and_all_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "PART_BYTES", 1000)
    content = np.random.default_rng(1).bytes(7777)
    (tmp_path / "file").write_bytes(content)
    memory, done = np.zeros(7777, np.uint8), []
    placement.read_file(tmp_path / "file", memory, done.append)
    assert memory.tobytes() == content
    assert done == [1000] * 7 + [777]


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    with pytest.raises(BadFile, match="ended after 100 of 150 bytes while it was being read"):
        placement.read_file(tmp_path / "file", np.zeros(150, np.uint8), lambda n: None)
    with pytest.raises(BadFile, match="cannot be read: No such file"):
        placement.read_file(tmp_path / "gone", np.zeros(150, np.uint8), lambda n: None)


def test_no_room_to_read_into(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_memory_bytes", lambda: 1000)
    with pytest.raises(BadSettings, match="leave out --no-mmap"):
        open_model(path, ContextSettings(mmap=False))

    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(placement, "free_memory_bytes", lambda: 0)
    monkeypatch.setattr(placement, "_allocate", refuse)
    with pytest.raises(BadSettings, match="gives no such block"):
        open_model(path, ContextSettings(mmap=False))


def test_huge_pages_that_are_not_to_be_had_are_second_best(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "huge_share", lambda file: 0.0)
    monkeypatch.setattr(placement, "ENOUGH", 2.0)
    monkeypatch.setattr(placement, "HUGE_BYTES", 4096)
    lines: list[str] = []
    assert not is_mapped(open_model(path, ContextSettings(huge_pages="on"), lines.append))
    monkeypatch.setattr(placement, "free_memory_bytes", lambda: 1000)
    assert is_mapped(open_model(path, ContextSettings(huge_pages="on"), lines.append))
    assert ["read into memory instead" in line for line in lines] == [True, False]
    assert lines[1].endswith("it stays as it is")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mlock as Linux has it")
def test_a_refused_lock_is_said_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, *arguments: object, **more: object):
            pass

        def madvise(self, *arguments: object) -> int:
            return -1

        def mlock(self, start: ctypes.c_void_p, n_bytes: ctypes.c_size_t) -> int:
            ctypes.set_errno(errno.ENOMEM)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", Refusing)
    lines: list[str] = []
    file = open_model(path, ContextSettings(mlock=True), lines.append)
    assert len(lines) == 1
    assert "are not held in memory: Cannot allocate memory" in lines[0]
    assert is_mapped(file)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_the_share_of_huge_pages_is_told(path: Path) -> None:
    file = open_model(path)
    contents(file)
    share = placement.huge_share(file)
    assert share is not None
    assert 0 <= share <= 1


def test_a_member_of_an_archive_is_copied(path: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(path, "aligned")  # a name that leaves the bytes at a multiple of 8, or not: both are copied
        archive.write(path, "model.gguf")
    file = open_model(tmp_path / "packed.zip@model.gguf", ContextSettings(mmap=False))
    assert contents(file) == contents(open_model(path))
