"""A llamafile as Mozilla's tools make one: an executable of theirs in front, debug tables and time zones beside the
model, which is stored at a page of its own behind a gap, with the arguments of their server."""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path

import pytest

from gemmafile.files.open import open_model
from tests.cli.conftest import Runner

ARGS = "-m\ntiny.gguf\n--host\n0.0.0.0\n--port\n8080\n-ngl\n999\n--temp\n0\n-n\n3\n...\n"
FLAGS = ("-p", "one two", "--backend", "reference", "--no-display-prompt")


def executable() -> bytes:
    """The beginning of an Actually Portable Executable: a DOS header that a shell reads as a variable, a script that
    knows where an ELF header lies, machine code; in it, words that look like the records of an archive."""
    stub = b"MZqFpD='\n\n\0\x10\0\xf8\0\0\0\0\0\0\x01\0\x08@\0\0\0\0\0\0\0".ljust(60, b"\0") + struct.pack("<I", 0x2A0)
    script = b"' <<'@'\n@\n" + b'#\'"\n\no=$(command -v "$0")\n[ x"$1" != x--assimilate ] && exec ape "$o" "$@"\n'
    script += b"printf '\\177ELF\\2\\1\\1\\011\\0\\0\\0\\0\\0\\0\\0\\0\\2\\0\\076\\0' >&7\nexit 1\n"
    code = hashlib.shake_128(b"code").digest(40_000) + b"PK\5\6" + bytes(18) + b"PK\3\4" + bytes(26)
    return (stub + script).ljust(4096, b"\0") + b"\x7fELF\2\1\1\x09" + code.ljust(90_000, b"\x90")


def write_llamafile(path: Path, model: Path) -> None:
    entries = []
    with path.open("wb") as out:
        out.write(executable())

        def add(name: bytes, raw: bytes, *, deflate: bool, alignment: int = 1, extra: bytes = b"") -> None:
            packed = zlib.compress(raw, 9, wbits=-15) if deflate else raw
            out.write(bytes(-(out.tell() + 30 + len(name) + len(extra)) % alignment))
            fields = (20, 0, 8 if deflate else 0, 0x6000, 0x5700, zlib.crc32(raw), len(packed), len(raw), len(name))
            at = out.tell()
            out.write(struct.pack("<4sHHHHHIIIHH", b"PK\3\4", *fields, len(extra)) + name + extra + packed)
            entry = struct.pack("<4sBB", b"PK\1\2", 20, 3) + struct.pack("<HHHHHIIIH", *fields)
            entries.append(entry + struct.pack("<HHHHII", len(extra), 0, 0, 0, 0o100644 << 16, at) + name + extra)

        times = b"UT\x05\0\x03" + struct.pack("<I", 1_700_000_000)  # as Info-ZIP writes them
        add(b".cosmo", b"", deflate=False)
        add(b".symtab.amd64", bytes(range(256)) * 200, deflate=True, extra=times)
        add(b"usr/share/zoneinfo/UTC", b"TZif2" + bytes(100), deflate=True, extra=times)
        add(b"llamafile/default.args", b"not these\n", deflate=True)
        add(b"tiny.gguf", model.read_bytes(), deflate=False, alignment=65536)
        add(b".args", ARGS.encode(), deflate=True, extra=times)
        start = out.tell()
        out.write(b"".join(entries))
        size = out.tell() - start
        comment = b"made elsewhere"
        end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, len(entries), len(entries), size, start, len(comment))
        out.write(end + comment)


@pytest.fixture
def llamafile(tiny_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.llamafile"
    write_llamafile(path, tiny_path)
    return path


def test_it_runs_with_its_arguments(command: Runner, tiny_path: Path, llamafile: Path) -> None:
    done = command("run", llamafile, *FLAGS)
    assert done.code == 0, done.err
    assert done.out == command("-m", tiny_path, *FLAGS, "--temp", 0, "-n", 3).out
    assert command(f"{llamafile}@tiny.gguf", *FLAGS, "-n", 1).code == 0


def test_its_weights_are_mapped_where_they_lie(tiny_path: Path, llamafile: Path) -> None:
    with open_model(llamafile) as model, open_model(tiny_path) as plain:
        for name, tensor in model.tensors.items():
            assert model.address(name) % 4096 == (65536 + tensor.offset) % 4096
            assert (model.data(name) == plain.data(name)).all()


def test_it_is_taken_apart(command: Runner, tiny_path: Path, llamafile: Path, tmp_path: Path) -> None:
    done = command("extract", llamafile, tmp_path / "out", "--quiet")
    assert done.code == 0, done.err
    assert (tmp_path / "out/tiny.gguf").read_bytes() == tiny_path.read_bytes()
    assert "no manifest" in command("verify", llamafile).err
