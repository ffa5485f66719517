"""A checkpoint's folder as a `ModelFile`: GGUF's keys, GGUF's tensors, the matrices mapped from the safetensors.

Nothing is converted but what GGUF stores differently: norms (small), and Llama's q and k, which are put in order when
they are first asked for. A model answers from the folder as from the file that `gemmafile convert` makes, to the bit.
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.errors import BadFile
from gemmafile.files.gguf import ModelFile
from gemmafile.files.huggingface.folder import Folder
from gemmafile.files.huggingface.provenance import provenance_keys
from gemmafile.files.huggingface.sizes import FILE_TYPE, Sizes, read_sizes
from gemmafile.files.huggingface.tensor_names import Source, find_sources, read_source
from gemmafile.files.huggingface.vocabulary import vocabulary_keys
from gemmafile.files.metadata import DTYPES, Field, Metadata, StringArray, Typed
from gemmafile.files.tensors import TensorInfo

FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""general.file_type of a model whose matrices have a format."""

QUANTIZATION_VERSION = 2

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Checkpoint(ModelFile):
    """An open checkpoint. `folder`, `sizes`, `sources` are its parts · `notes`  what a GGUF of it could not say"""

    def __init__(self, path: Path):
        """Raises BadFile for a folder that is no checkpoint or is damaged, UnsupportedModel for one we do not run."""
        self.folder = Folder(path)
        self.sizes: Sizes = read_sizes(path / "config.json", self.folder.config)
        self.sources: dict[str, Source] = {s.name: s for s in find_sources(self.folder, self.sizes)}
        _check_shapes(path, self.sizes, self.sources)
        self.path, self.version = path, 0
        self.notes = self.sizes.notes
        self.metadata = to_metadata(path, describe(self.folder, self.sizes, self.sources))
        self.tensors = {source.name: self._info(source) for source in self.sources.values()}
        self.paths = tuple(self.folder.maps)
        self._bytes = dict(self.folder.maps)
        self.n_bytes = sum(part.size for part in self._bytes.values())
        self._changed: dict[str, Bytes] = {}
        self._lock = threading.Lock()

    def _info(self, source: Source) -> TensorInfo:
        stored = source.stored
        path, offset = (self.path, 0) if stored is None else (stored.path, stored.offset)
        return TensorInfo(source.name, source.shape, source.format, path, offset, source.n_bytes)

    def data(self, name: str) -> Bytes:
        """The bytes of a tensor in GGUF's layout: uint8[n_bytes], read-only. Raises BadFile."""
        self.tensor(name)
        assert self._bytes, "the model is closed"
        source = self.sources[name]
        # A kernel reads numbers at whole addresses: where a file has them at odd ones, they are copied.
        if source.stored is not None and not source.change:
            view = self._bytes[source.stored.path][source.stored.offset : source.stored.offset + source.stored.n_bytes]
            if view.__array_interface__["data"][0] % source.format.bytes_per_block == 0:
                return view
        with self._lock:
            if name not in self._changed:
                self.folder.maps = self._bytes
                made = np.array(read_source(self.folder, source))
                made.flags.writeable = False
                self._changed[name] = made
            return self._changed[name]

    def close(self) -> None:
        super().close()
        self._changed = {}
        self.folder.maps = {}

    def __enter__(self) -> Checkpoint:
        return self


def describe(folder: Folder, sizes: Sizes, sources: dict[str, Source]) -> dict[str, Typed]:
    """All keys of a GGUF of this checkpoint, in the order of llama.cpp's converter; the file type is the matrices'."""
    architecture = sizes.architecture
    n_weights = sum(int(np.prod(source.shape)) for source in sources.values())
    keys = {"general.architecture": Typed(architecture, "string"), "general.type": Typed("model", "string")}
    keys |= provenance_keys(folder, n_weights)
    for name, value in sizes.keys.items():
        keys[name if name == FILE_TYPE else f"{architecture}.{name}"] = value
    keys[FILE_TYPE] = Typed(FILE_TYPES[main_format(sources)], "uint32")
    keys["general.quantization_version"] = Typed(QUANTIZATION_VERSION, "uint32")
    return keys | vocabulary_keys(folder, sizes)


def main_format(sources: dict[str, Source]) -> str:
    """The format of the first matrix of 16 bits, in the order of names, as the converter guesses; else F32."""
    for source in sources.values():
        if len(source.shape) == 2 and source.format.name in ("BF16", "F16"):
            return source.format.name
    return "F32"


def _check_shapes(path: Path, sizes: Sizes, sources: dict[str, Source]) -> None:
    """That the embedding has a row for each token, before a text is made for each; other shapes are checked when the
    weights are taken."""
    embedding = sources.get("token_embd.weight")
    if embedding is None:
        raise BadFile(path, "the tensor is missing", field="tensor 'model.embed_tokens.weight'")
    if embedding.shape[0] != sizes.n_vocab:
        what = f"has {embedding.shape[0]} rows, and config.json says vocab_size is {sizes.n_vocab}"
        raise BadFile(path, what, field="tensor 'model.embed_tokens.weight'")
    if not sizes.tied and "output.weight" not in sources:
        what = "is missing, and config.json says that tie_word_embeddings is false"
        raise BadFile(path, what, field="tensor 'lm_head.weight'")


def to_metadata(path: Path, keys: dict[str, Typed]) -> Metadata:
    """Keys as a `Metadata`, as if they had been read from a file."""
    return Metadata(path, {key: Field(_stored(path, key, typed), typed.type, None) for key, typed in keys.items()})


def _stored(path: Path, key: str, typed: Typed) -> Any:
    value = typed.value
    if not isinstance(value, list):
        return float(np.float32(value)) if typed.type == "float32" else value
    if typed.type != "string":
        array = np.array(value, DTYPES[typed.type])
        array.flags.writeable = False
        return array
    encode = struct.Struct("<Q").pack
    try:
        blob = b"".join(encode(len(raw)) + raw for raw in map(str.encode, value))
    except UnicodeEncodeError:
        raise BadFile(path, "holds half a character", field=f"key {key!r}") from None
    return StringArray(path, f"key {key!r}", blob, 0, len(blob), len(value))
