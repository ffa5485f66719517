"""What is no sound GGUF file gives one line that names the file, the field and the byte; never more."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from gemmafile.errors import BadFile
from gemmafile.files import cursor, header
from gemmafile.files.open import open_model
from tests.files.handmade import (
    ARRAY,
    BOOL,
    F32,
    FLOAT32,
    INT32,
    Q4_K,
    Q8_0,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    array,
    gguf,
    key,
    tensor,
    text,
    u32,
    u64,
)


def nested(depth: int) -> bytes:
    payload = array(UINT8, 1, b"\1")
    for _ in range(depth):
        payload = array(ARRAY, 1, payload)
    return payload


def one(name: str, type_id: int, payload: bytes) -> bytes:
    return gguf([key(name, type_id, payload)])


HOSTILE = {
    "version 0": (gguf(version=0), r"version, byte 4: is 0, expected 2 or 3"),
    "version 1": (gguf(version=1), r"GGUF version 1, which is no longer read"),
    "version 4": (gguf(version=4), r"is 4, expected 2 or 3"),
    "big-endian": (gguf(version=3 << 24), r"is a big-endian GGUF"),
    "too many tensors": (gguf(n_tensors=1 << 60), r"number of tensors, byte 8: is 1152921504606846976, expected"),
    "more tensors than room": (gguf(n_tensors=9), r"number of tensors, byte 8: is 9: there is no room"),
    "too many keys": (gguf(n_keys=2**64 - 1), r"number of metadata keys, byte 16: is 18446744073709551615"),
    "more keys than room": (gguf(n_keys=100), r"is 100: there is no room for them in the 8 bytes left"),
    "empty key": (one("", UINT8, b"\1"), r"metadata key 1 of 1, byte 24: is 0 bytes long"),
    "long key": (one("k" * 65536, UINT8, b"\1"), r"is 65536 bytes long, expected 1 to 65535"),
    "endless key": (gguf([u64(2**64 - 1) + bytes(64)]), r"is 18446744073709551615 bytes long"),
    "key not UTF-8": (gguf([key(b"ab\xff", UINT8, b"\1")]), r"metadata key 1 of 1, byte 34: is not UTF-8"),
    "key twice": (gguf([key("a", UINT8, b"\1"), key("a", UINT8, b"\2")]), r"key 'a', byte 38: is there twice"),
    "value type": (one("a", 13, b"\1"), r"key 'a', byte 33: has value type 13, expected 0 to 12"),
    "item type": (one("a", ARRAY, array(99, 1, b"\1")), r"key 'a', byte 37: has value type 99"),
    "bool 2": (one("a", BOOL, b"\2"), r"key 'a', byte 37: is 2, expected 0 \(false\) or 1 \(true\)"),
    "bool 2 in array": (one("a", ARRAY, array(BOOL, 3, b"\0\1\2")), r"key 'a', byte 51: item 2 is 2, expected 0 or 1"),
    "string not UTF-8": (one("a", STRING, text(b"ok\xc3(")), r"key 'a', byte 47: is not UTF-8"),
    "endless string": (one("a", STRING, u64(1 << 62)), r"key 'a', byte 45: takes 4611686018427387904 bytes"),
    "endless array": (one("a", ARRAY, array(UINT64, 1 << 61, b"")), r"key 'a': length, byte 41: is 23058"),
    "endless strings": (one("a", ARRAY, array(STRING, 1 << 60, b"")), r"key 'a': length, byte 41: is 1152921"),
    "cut strings": (one("a", ARRAY, array(STRING, 2, text("x") + u64(99))), r"key 'a', byte 58: item 1 does not fit"),
    "first string": (one("a", ARRAY, array(STRING, 3, u64(2**64 - 1) + bytes(64))), r"byte 49: item 0 does not fit"),
    "deep arrays": (one("a", ARRAY, nested(8)), r"has arrays nested more than 8 deep"),
    "many arrays": (one("a", ARRAY, array(ARRAY, 20000, array(UINT8, 0, b"") * 20000)), r"more than 16384 arrays"),
    "alignment 0": (one("general.alignment", UINT32, u32(0)), r"'general.alignment', byte 53: is 0, expected a power"),
    "alignment 4": (one("general.alignment", UINT32, u32(4)), r"is 4, expected a power of two from 8"),
    "alignment 48": (one("general.alignment", UINT32, u32(48)), r"is 48, expected a power of two"),
    "alignment huge": (one("general.alignment", UINT32, u32(1 << 31)), r"is 2147483648, expected a power of two"),
    "alignment negative": (one("general.alignment", INT32, u32(2**32 - 32)), r"is -32, expected a power of two"),
    "alignment a string": (one("general.alignment", STRING, text("32")), r"is a string, expected a power of two"),
    "alignment true": (one("general.alignment", BOOL, b"\1"), r"is a bool, expected a power of two"),
    "alignment array": (one("general.alignment", ARRAY, array(FLOAT32, 1, bytes(4))), r"is an array of 1 float32"),
    "empty tensor name": (gguf([], [tensor("", [1])], bytes(4)), r"name of tensor 1 of 1, byte 24: is 0 bytes long"),
    "long tensor name": (gguf([], [tensor("n" * 256, [1])], bytes(4)), r"is 256 bytes long, expected 1 to 255"),
    "name not UTF-8": (gguf([], [tensor(b"\xff", [1])], bytes(4)), r"name of tensor 1 of 1, byte 32: is not UTF-8"),
    "tensor twice": (gguf([], [tensor("t", [1]), tensor("t", [1], F32, 32)], bytes(64)), r"tensor 't'.*is there twice"),
    "no dimensions": (
        gguf([], [tensor("t", [])], bytes(32)),
        r"tensor 't', byte 33: has 0 dimensions, expected 1 to 4",
    ),
    "five dimensions": (gguf([], [tensor("t", [1] * 5)], bytes(4)), r"has 5 dimensions"),
    "billions of dimensions": (gguf([], [text("t") + u32(2**32 - 1) + bytes(99)]), r"has 4294967295 dimensions"),
    "dimension 0": (gguf([], [tensor("t", [4, 0])], bytes(4)), r"has dimensions \(4, 0\), none may be 0"),
    "dimensions overflow": (gguf([], [tensor("t", [2**63, 2**63, 2**63, 2**63])], bytes(4)), r"do not fit in the file"),
    "wrap to zero": (gguf([], [tensor("t", [2**62, 4])], bytes(4)), r"its 73786976294838206464 bytes"),
    "half a block": (
        gguf([], [tensor("t", [48], Q8_0)], bytes(64)),
        r"rows of 48 weights, Q8_0 needs a multiple of 32",
    ),
    "rows, not product": (gguf([], [tensor("t", [128, 2], Q4_K)], bytes(144)), r"rows of 128 weights, Q4_K needs"),
    "removed format": (gguf([], [tensor("t", [1], 4)], bytes(4)), r"tensor 't', byte 45: has tensor type 4 \(Q4_2\)"),
    "repacked format": (gguf([], [tensor("t", [1], 31)], bytes(4)), r"tensor type 31 \(Q4_0_4_4\), which ggml gave up"),
    "unknown format": (gguf([], [tensor("t", [1], 43)], bytes(4)), r"has the unknown tensor type 43"),
    "crooked offset": (
        gguf([], [tensor("t", [1], F32, 4)], bytes(8)),
        r"offset, byte 49: is 4, expected a multiple of 32",
    ),
    "offset outside": (gguf([], [tensor("t", [1], F32, 1 << 40)], bytes(4)), r"offset, byte 49: its 4 bytes from byte"),
    "offset wraps": (gguf([], [tensor("t", [1], F32, 2**64 - 32)], bytes(4)), r"do not fit in the file of 68"),
    "data cut": (gguf([], [tensor("t", [8])], bytes(31)), r"its 32 bytes from byte 64 do not fit in the file of 95"),
    "overlap": (
        gguf([], [tensor("t", [9]), tensor("u", [1], F32, 32)], bytes(64)),
        r"tensor 'u', byte 128: overlaps tensor 't'",
    ),
    "same place": (
        gguf([], [tensor("t", [1]), tensor("u", [1])], bytes(64)),
        r"tensor 'u', byte \d+: overlaps tensor 't'",
    ),
    "terminal escape": (gguf([key("\x1b[2J\n", 99, b"")]), r"key '\\x1b\[2J\\n'"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def refusal(path: Path) -> str:
    with pytest.raises(BadFile) as caught:
        open_model(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused(path: Path, case: str, request: pytest.FixtureRequest):
    data, message = HOSTILE[case]
    path.write_bytes(data)
    refusal(path)
    with pytest.raises(BadFile, match=message):
        open_model(path)


def test_every_truncation_is_refused(path: Path):
    keys = [key("a", STRING, text("bc")), key("d", ARRAY, array(STRING, 2, text("x") + text("y")))]
    whole = gguf([*keys, key("e", ARRAY, array(UINT32, 2, bytes(8)))], [tensor("t", [4, 2])], bytes(32))
    path.write_bytes(whole)
    open_model(path)
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        refusal(path)


def test_a_header_over_the_limit_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cursor, "HEADER_BYTES", 100)
    path.write_bytes(gguf([key("a", STRING, text("x" * 200))]))
    assert "the header would be over" in refusal(path)
    path.write_bytes(gguf([key("a", ARRAY, array(STRING, 5, text("x" * 20) * 5))]))
    assert "item 1 does not fit in the 23 bytes the header may have left" in refusal(path)


def test_counts_are_bounded_whatever_the_size_of_the_file(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(header, "MAX_KEYS", 2)
    path.write_bytes(gguf([key(name, UINT8, b"\1") for name in "abc"]))
    assert "number of metadata keys, byte 16: is 3, expected 2 at most" in refusal(path)


CONTENTS = [
    (b"\x89PNG\r\n\x1a\n", "is a PNG image"),
    (b"\xff\xd8\xff\xe0", "is a JPEG image"),
    (b"PK\x03\x04zip", "is a ZIP archive"),
    (b"MZqFpD='\n", "is an Actually Portable Executable"),
    (b"MZ\x90\0", "is a Windows program"),
    (b"\x7fELF\2\1\1", "is an ELF program"),
    (b"\x1f\x8b\x08", "is a gzip archive"),
    (b"\n<!DOCTYPE html>\n<html>", "is HTML"),
    (b"<?xml version", "is XML"),
    (b'{"a": 1}', "is JSON text"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a Git LFS pointer"),
    (b"%PDF-1.7", "is a PDF document"),
    (b"tjgg\3\0\0\0", "is a GGJT file from before GGUF"),
    (u64(60) + b'{"__metadata__":{}}' + bytes(90), "is a safetensors file"),
    (bytes(257) + b"ustar\x0000", "is a tar archive"),
    (bytes(4096), "starts with zeros"),
    ("Ein Gedicht über Kätzchen. ".encode() * 40, "is a text file"),
    (b"\xfe\xed\xfa\xce\x01\x02\x03\x04", r"starts with b'\\xfe\\xed"),
    (b"#!/bin/sh\n", "is a script"),
    (b"gguf", "is a text file"),
    (b"GG", "magic, byte 0: takes 4 bytes"),
    (b"GGUF", "version, byte 4: takes 4 bytes"),
]


@pytest.mark.parametrize(("content", "message"), CONTENTS)
def test_another_kind_of_file_is_called_by_its_name(path: Path, content: bytes, message: str):
    path.write_bytes(content)
    refusal(path)
    with pytest.raises(BadFile, match=message):
        open_model(path)


def test_files_that_are_not_there_or_not_files(tmp_path: Path):
    assert "there is no such file" in refusal(tmp_path / "none.gguf")
    assert "is a directory" in refusal(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    assert "is empty" in refusal(tmp_path / "empty")
    assert "cannot be read: Not a directory" in refusal(tmp_path / "empty" / "x")
    assert "cannot be read: File name too long" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "loop")
    assert "is a device" in refusal(Path("/dev/null"))


def test_a_path_with_a_nul(tmp_path: Path):
    with pytest.raises(BadFile, match="cannot be read: embedded null byte"):
        open_model(f"{tmp_path}/a\0b")


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe, which cannot be mapped" in refusal(tmp_path / "pipe")


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert "is a socket" in refusal(Path("s"))


def test_an_unreadable_file(path: Path, monkeypatch: pytest.MonkeyPatch):
    path.write_bytes(gguf())
    path.chmod(0)
    if os.access(path, os.R_OK):  # as root: nothing is unreadable

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied" in refusal(path)
    path.chmod(stat.S_IRUSR)


def test_a_string_of_an_array_is_checked_when_read(path: Path):
    path.write_bytes(gguf([key("a", ARRAY, array(STRING, 3, text("x") + text(b"y\xff") + text("z")))]))
    strings = open_model(path).metadata.get_strings("a")
    assert strings.to_bytes() == [b"x", b"y\xff", b"z"]
    assert strings[2] == "z"
    for read in (strings.to_list, lambda: strings[1], lambda: strings[0:2]):
        with pytest.raises(BadFile, match=r"model.gguf, key 'a', byte 67: item 1 is not UTF-8"):
            read()
