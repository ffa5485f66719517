"""Keys and values in a file: tokens that need not be read again, after a restart either.

    byte 0    magic       "GMFKEYS1"
         8    n           uint32, bytes of the header
        12    header      JSON: model (its fingerprint), cache_k, cache_v, page, page_bytes, n_tokens
              tokens      int32[n_tokens]
              pages       for each page of 128 positions, for each layer: keys, values, as in memory (kernels/cache.py)
        -32   SHA-256     of all before it

All numbers are little-endian. A file is written under another name, then renamed: there is never half of one. What is
read is checked before any of it is used: that it is a file, that it was made by this model, with this kind of cache,
that it is as long as it says, and the sum over all of it. That tokens and numbers belong together nothing can check:
who can write these files can change answers that begin with their tokens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.engine.engine import Engine
from gemmafile.engine.pages import Sequence
from gemmafile.errors import BadFile, GemmafileError
from gemmafile.model.batch import PAGE

MAGIC = b"GMFKEYS1"
MAX_HEADER = 4096
SAMPLE_BYTES = 4096
"""Of each tensor, at its beginning, its middle and its end, that a fingerprint is made of."""


def fingerprint(engine: Engine) -> str:
    """What keys and values depend on beside tokens: weights (a sample of each tensor), adapters (all of them, with
    their scales), constants, and how products round. 32 hex digits."""
    seen = hashlib.blake2b(repr(engine.config).encode(), digest_size=16)
    if engine.settings.activations != "fine":
        seen.update(engine.settings.activations.encode())
    for name, tensor in engine.file.tensors.items():
        data = engine.file.data(name)
        seen.update(f"{name} {tensor.shape} {tensor.format.name} {data.size}".encode())
        for start in (0, data.size // 2, max(0, data.size - SAMPLE_BYTES)):
            seen.update(data[start : start + SAMPLE_BYTES].tobytes())
    for name, pairs in engine.adapters.items():
        for a, b in pairs:
            seen.update(f"{name} {a.shape} {b.shape}".encode() + a.data.tobytes() + b.data.tobytes())
    return seen.hexdigest()


def _expected(engine: Engine, model: str) -> dict[str, Any]:
    cache = engine.cache
    return {
        "model": model, "cache_k": cache.kind_k, "cache_v": cache.kind_v, "page": PAGE, "page_bytes": cache.page_bytes,
    }  # fmt: skip


def write_saved(path: Path, engine: Engine, model: str, token_ids: list[int], table: list[int]) -> int:
    """Write tokens and their pages; how many bytes that were. Nobody may write to the pages meanwhile.

    model  the engine's fingerprint. Raises GemmafileError if the file cannot be written.
    """
    header = json.dumps(_expected(engine, model) | {"n_tokens": len(token_ids)}).encode()
    parts = [MAGIC, struct.pack("<I", len(header)), header, np.array(token_ids, "<i4").tobytes()]
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        beside.unlink()  # of a process of this number that was ended while it wrote
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise GemmafileError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with open(fd, "wb") as file:
            digest = hashlib.sha256()
            for part in (*parts, *_pages(engine, table)):
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
            n_bytes = file.tell()
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise GemmafileError(f"{path}: cannot be written: {error.strerror}") from None
    return n_bytes


def _pages(engine: Engine, table: list[int]) -> Iterator[Any]:
    for page in table:
        for keys, values in zip(engine.cache.keys, engine.cache.values, strict=True):
            yield keys[page].data
            yield values[page].data


@dataclass(frozen=True)
class Saved:
    """An open file whose header and length are as they should be; its sum is checked by `read_pages`."""

    path: Path
    file: BufferedReader
    token_ids: list[int]
    n_bytes: int
    digest: Any

    def read_pages(self, engine: Engine, table: list[int]) -> None:
        """Fill the pages of `table`, all of the file's. Raises BadFile, with anything in them, for a wrong sum."""
        try:
            for page in table:
                for keys, values in zip(engine.cache.keys, engine.cache.values, strict=True):
                    for numbers in (keys[page], values[page]):
                        bytes_ = numbers.view(np.uint8).reshape(-1)
                        if self.file.readinto(bytes_.data) != bytes_.size:
                            raise BadFile(self.path, "became shorter while it was read")
                        self.digest.update(bytes_.data)
            if self.file.read() != self.digest.digest():
                raise BadFile(self.path, "is damaged: its checksum is another")
        except OSError as error:
            raise BadFile(self.path, f"cannot be read: {error.strerror}") from None

    def close(self) -> None:
        self.file.close()


def read_saved(path: Path, engine: Engine, model: str, sequence: Sequence) -> None:
    """Fill an empty sequence from a file, all of it at once. Raises BadFile; the sequence is empty then."""
    saved = open_saved(path, engine, model)
    try:
        sequence.extend(saved.token_ids)
        saved.read_pages(engine, sequence.table)
        if n := len(sequence) % PAGE:
            engine.cache.copy_page(sequence.table[-1], sequence.table[-1], n)
    except BaseException:
        sequence.truncate(0)
        raise
    finally:
        saved.close()


def open_saved(path: Path, engine: Engine, model: str) -> Saved:
    """Raises BadFile saying why a file is not one of this model's, GemmafileError if it cannot be opened."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe must not make us wait
        file = os.fdopen(fd, "rb")
    except OSError as error:
        raise BadFile(path, f"cannot be opened: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(path, "is no file")
        return _check(path, file, status.st_size, engine, model)
    except BaseException:
        file.close()
        raise


def _check(path: Path, file: BufferedReader, size: int, engine: Engine, model: str) -> Saved:
    digest = hashlib.sha256()

    def take(n: int) -> bytes:
        part = file.read(n)
        if len(part) != n:
            raise BadFile(path, "ends too early")
        digest.update(part)
        return part

    if take(8) != MAGIC:
        raise BadFile(path, "is no file of saved keys and values")
    (n_header,) = struct.unpack("<I", take(4))
    if n_header > MAX_HEADER:
        raise BadFile(path, f"its header would have {n_header} bytes")
    header = _read_header(path, take(n_header))
    for name, value in _expected(engine, model).items():
        if header.get(name) != value:
            what = "was made with another model" if name == "model" else f"{name} is {header.get(name)!r}, not {value}"
            raise BadFile(path, what)
    n_tokens = header.get("n_tokens")
    if type(n_tokens) is not int or not 0 < n_tokens <= engine.n_context:
        raise BadFile(path, f"holds {n_tokens!r} tokens, and the context has room for {engine.n_context}")
    n_pages = -(-n_tokens // PAGE)
    n_bytes = 12 + n_header + 4 * n_tokens + n_pages * engine.cache.page_bytes + 32
    if size != n_bytes:
        raise BadFile(path, f"has {size} bytes, expected {n_bytes}")
    token_ids = np.frombuffer(take(4 * n_tokens), "<i4").tolist()
    if not 0 <= min(token_ids) <= max(token_ids) < engine.config.n_vocab:
        raise BadFile(path, "holds tokens that the model does not have")
    return Saved(path, file, token_ids, n_bytes, digest)


def _read_header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise BadFile(path, "its header is no JSON object")
    return header
