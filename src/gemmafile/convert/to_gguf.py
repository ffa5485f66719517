"""A checkpoint's folder to a GGUF file: tensor for tensor and key for key what llama.cpp's converter writes.

Matrices stream through in pieces, so memory does not grow with the model. Vectors are always float32; a matrix whose
rows are no whole blocks of Q8_0 becomes F16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.convert.rows import NotFinite, encode_rows
from gemmafile.errors import BadFile, BadSettings, nearest
from gemmafile.files.formats import Format, format_by_name
from gemmafile.files.gguf_writer import Tensor, write_gguf
from gemmafile.files.huggingface.checkpoint import FILE_TYPES, Checkpoint, describe, main_format
from gemmafile.files.huggingface.sizes import FILE_TYPE
from gemmafile.files.huggingface.tensor_names import Source, read_source
from gemmafile.files.metadata import Typed

OUT_TYPES = ("f32", "f16", "bf16", "q8_0", "auto")


def choose_format(checkpoint: Checkpoint, out_type: str) -> str:
    """The format of the matrices: auto is their own where they have 16 bits, else F16. Raises BadSettings."""
    name = out_type.lower()
    if name not in OUT_TYPES:
        raise BadSettings(f"--outtype is {out_type!r}{nearest(name, OUT_TYPES)}: expected {', '.join(OUT_TYPES)}")
    own = main_format(checkpoint.sources)
    return ("F16" if own == "F32" else own) if name == "auto" else name.upper()


def converted_bytes(checkpoint: Checkpoint, name: str) -> int:
    """Bytes of all tensors after the conversion."""
    return sum(_bytes_in(source, _target(source, name)) for source in checkpoint.sources.values())


def write_converted(
    checkpoint: Checkpoint, out: Path, name: str, on_bytes: Callable[[int], None] = lambda n: None
) -> dict[str, Typed]:
    """Write the GGUF `out`, matrices in the format `name`; `on_bytes` hears of every piece. Returns the keys.

    Raises BadFile for a number that is infinite or NaN, or too large for F16, and where `out` cannot be written.
    """
    keys = describe(checkpoint.folder, checkpoint.sizes, checkpoint.sources)
    keys[FILE_TYPE] = Typed(FILE_TYPES[name], "uint32")
    tensors: list[Tensor] = []
    for source in checkpoint.sources.values():
        target = _target(source, name)
        tensors.append((source.name, target, source.shape, _reader(checkpoint, source, target, on_bytes)))
    write_gguf(out, keys, tensors)
    return keys


def _target(source: Source, name: str) -> Format:
    if len(source.shape) < 2:
        return format_by_name("F32")
    target = format_by_name(name)
    return format_by_name("F16") if source.shape[-1] % target.weights_per_block else target


def _bytes_in(source: Source, target: Format) -> int:
    return int(np.prod(source.shape[:-1], dtype=np.int64)) * target.row_bytes(source.shape[-1])


def _reader(
    checkpoint: Checkpoint, source: Source, target: Format, on_bytes: Callable[[int], None]
) -> Callable[[], Iterator[Any]]:
    def read() -> Iterator[Any]:
        raw = read_source(checkpoint.folder, source)
        try:
            for piece in encode_rows(raw, source.format.name, target, source.shape[-1]):
                yield piece
                on_bytes(piece.nbytes)
        except NotFinite as error:
            stored = source.stored
            path, field = (checkpoint.path, source.name) if stored is None else (stored.path, stored.name)
            what = f"number {error.number} is infinite, NaN, or too large for {target.name}"
            raise BadFile(path, what, field=f"tensor {field!r}") from None

    return read
