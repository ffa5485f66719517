"""Importance matrices: for each matrix, how large the numbers are that meet each of its columns.

A column's importance is the mean of the squares of the activations that came to it while a text was read (`measure.py`
collects them). llama.cpp's two kinds of file are read and written:

    GGUF    tensors NAME.in_sum2 (sums of squares) and NAME.counts (how many rows), float32
            keys general.type = "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size
    .dat    int32 n, then n x (int32 length, name, int32 n_calls, int32 n_values, float32[n_values] mean * n_calls),
            then int32 chunks, int32 length, data set; all but the entries may be missing
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gemmafile.errors import BadFile, BadSettings
from gemmafile.files.atomic import replace_file
from gemmafile.files.gguf import ModelFile, open_gguf
from gemmafile.files.gguf_writer import write_gguf
from gemmafile.files.metadata import Typed

SUMS, COUNTS = ".in_sum2", ".counts"
MAX_ENTRIES, MAX_NAME_BYTES = 1 << 16, 255
DEFAULT_CHUNK = 512
"""Rows in a chunk, where a file does not say."""


@dataclass(slots=True, eq=False)
class Entry:
    """One matrix. `sums` float32[columns] of squares over `count` rows."""

    sums: np.ndarray
    count: int

    def mean(self) -> np.ndarray:
        """float32[columns]; ones where nothing was seen."""
        if self.count <= 0:
            return np.ones_like(self.sums)
        return self.sums / np.float32(self.count)


@dataclass(slots=True, eq=False)
class Importance:
    """An importance matrix. `entries` by the name of the matrix · `n_chunks` of `chunk_rows` rows each were read"""

    entries: dict[str, Entry]
    datasets: list[str] = field(default_factory=list)
    n_chunks: int = 0
    chunk_rows: int = DEFAULT_CHUNK
    path: str = ""

    def columns(self, name: str, n_columns: int) -> np.ndarray | None:
        """float32[n_columns] for a matrix; None for one that was not measured.

        Raises BadFile where the entry is of another size, or not finite.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if len(entry.sums) != n_columns:
            if name == "token_embd.weight":  # an embedding table is read by rows; such entries mean something else
                return None
            what = f"has {len(entry.sums)} values, the matrix has {n_columns} columns: it belongs to another model"
            raise BadFile(self.path, what, field=f"entry {name!r}")
        return entry.mean()

    def only(self, included: Iterable[str] = (), excluded: Iterable[str] = ()) -> Importance:
        """The entries with one of `included` in their names (all, where there are none) and none of `excluded`."""
        included, excluded = list(included), list(excluded)
        kept = {
            name: entry
            for name, entry in self.entries.items()
            if (not included or any(part in name for part in included)) and not any(part in name for part in excluded)
        }
        return Importance(kept, self.datasets, self.n_chunks, self.chunk_rows, self.path)

    def add(self, other: Importance) -> None:
        """Take in what was measured elsewhere. Raises BadFile where the sizes differ."""
        for name, entry in other.entries.items():
            mine = self.entries.setdefault(name, Entry(np.zeros_like(entry.sums), 0))
            if mine.sums.shape != entry.sums.shape:
                what = f"has {len(entry.sums)} values, another file {len(mine.sums)}"
                raise BadFile(other.path, what, field=f"entry {name!r}")
            mine.sums = mine.sums + entry.sums
            mine.count += entry.count
        self.datasets += [name for name in other.datasets if name not in self.datasets]
        self.n_chunks = max((entry.count for entry in self.entries.values()), default=0) // max(1, self.chunk_rows)


def load_importance(path: str | Path) -> Importance:
    """Read a file of either kind. Raises BadFile."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == b"GGUF"
        raw = b"" if is_gguf else path.read_bytes()
    except OSError as error:
        raise BadFile(path, f"cannot be read: {error.strerror or error}") from None
    if is_gguf:
        with open_gguf(path) as opened:
            importance = _read_gguf(opened)
    else:
        importance = _read_legacy(path, raw)
    importance.path = str(path)
    for name, entry in importance.entries.items():
        if not np.isfinite(entry.sums).all() or (entry.sums < 0).any():
            raise BadFile(path, "holds a number that is negative, infinite or NaN", field=f"entry {name!r}")
    return importance


def _read_gguf(file: ModelFile) -> Importance:
    metadata, entries = file.metadata, {}
    for name, tensor in file.tensors.items():
        if not name.endswith(SUMS):
            continue
        matrix = name.removesuffix(SUMS)
        counts = file.tensors.get(matrix + COUNTS)
        if counts is None or counts.format.name != "F32" or tensor.format.name != "F32":
            raise BadFile(
                file.path, f"has no {COUNTS} beside it, or one of the two is not F32", field=f"tensor {name!r}"
            )
        if counts.n_weights != 1:
            raise BadFile(file.path, "is of experts, which are not supported", field=f"tensor {name!r}")
        sums = file.data(name).view("<f4").astype(np.float32)
        count = float(file.data(counts.name).view("<f4")[0])
        if not 0 <= count < 2**53:
            raise BadFile(file.path, f"is {count}, expected a count", field=f"tensor {counts.name!r}")
        entries[matrix] = Entry(sums, round(count))
    if not entries:
        raise BadFile(file.path, "is a GGUF file, and no importance matrix: it has no tensor NAME.in_sum2")
    datasets = list(metadata.get_strings("imatrix.datasets", ()))
    chunk_rows, n_chunks = (
        metadata.get_int("imatrix.chunk_size", DEFAULT_CHUNK),
        metadata.get_int("imatrix.chunk_count", 0),
    )
    if not 0 < chunk_rows < 2**31 or not 0 <= n_chunks < 2**31:
        raise BadFile(file.path, f"says that it has {n_chunks} chunks of {chunk_rows} rows", field="imatrix.chunk_size")
    return Importance(entries, datasets, n_chunks, chunk_rows)


class _Reader:
    def __init__(self, path: Path, raw: bytes):
        self._path, self._raw, self._at = path, raw, 0

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._raw)

    def take(self, n: int) -> bytes:
        if not 0 <= n <= len(self._raw) - self._at:
            raise BadFile(self._path, "ends in the middle of an importance matrix, or is none", byte=self._at)
        self._at += n
        return self._raw[self._at - n : self._at]

    def number(self, most: int) -> int:
        at = self._at
        value: int = struct.unpack("<i", self.take(4))[0]
        if not 0 <= value <= most:
            raise BadFile(self._path, f"is no importance matrix: {value} where a count should be", byte=at)
        return value


def _read_legacy(path: Path, raw: bytes) -> Importance:
    """Sums are as if each call had seen one chunk of rows: only their proportions are known."""
    reader, entries = _Reader(path, raw), {}
    n_entries = reader.number(MAX_ENTRIES)
    if n_entries == 0:
        raise BadFile(path, "is empty, or no importance matrix")
    for _ in range(n_entries):
        name = reader.take(reader.number(MAX_NAME_BYTES)).decode("utf-8", "replace")
        n_calls, n_values = reader.number(2**31 - 1), reader.number(len(raw) // 4)
        sums = np.frombuffer(reader.take(4 * n_values), "<f4").astype(np.float32)
        entries[name] = Entry(sums * np.float32(DEFAULT_CHUNK), n_calls * DEFAULT_CHUNK)
        if n_calls == 0:
            entries[name] = Entry(sums, 1)
    importance = Importance(entries)
    if not reader.is_at_end:
        importance.n_chunks = reader.number(2**31 - 1)
        if not reader.is_at_end:
            importance.datasets = [reader.take(reader.number(len(raw))).decode("utf-8", "replace")]
    return importance


def save_importance(path: str | Path, importance: Importance, *, legacy: bool = False) -> None:
    """Write a file that llama.cpp reads too. Raises BadFile where it cannot be written."""
    if legacy:
        with replace_file(Path(path)) as file:
            file.write(_legacy_bytes(importance))
        return
    tensors = []
    for name, entry in sorted(importance.entries.items()):
        sums = np.ascontiguousarray(entry.sums, np.float32)
        tensors.append((name + SUMS, "F32", sums.shape, sums))
        tensors.append((name + COUNTS, "F32", (1,), np.array([entry.count], np.float32)))
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": Typed(importance.datasets, "string"),
        "imatrix.chunk_count": Typed(importance.n_chunks, "uint32"),
        "imatrix.chunk_size": Typed(importance.chunk_rows, "uint32"),
    }
    write_gguf(path, metadata, tensors)


def _legacy_bytes(importance: Importance) -> bytes:
    entries = [(name, entry) for name, entry in sorted(importance.entries.items()) if entry.count]
    parts = [struct.pack("<i", len(entries))]
    for name, entry in entries:
        n_calls = -(-entry.count // importance.chunk_rows)
        values = entry.mean() * np.float32(n_calls)
        raw = name.encode()
        parts += [
            struct.pack("<i", len(raw)),
            raw,
            struct.pack("<ii", n_calls, len(values)),
            values.astype("<f4").tobytes(),
        ]
    dataset = importance.datasets[-1].encode() if importance.datasets else b""
    parts += [struct.pack("<ii", importance.n_chunks, len(dataset)), dataset]
    return b"".join(parts)


def check_entries(importance: Importance, names: Iterable[str]) -> None:
    """Raises BadSettings where an importance matrix has none of these matrices: it is of another model."""
    if not any(name in importance.entries for name in names):
        raise BadSettings(f"{importance.path or 'the importance matrix'} names no matrix of this model")
