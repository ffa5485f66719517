"""An open model with its matrices in other formats, in memory: what `torch_dtype` and 8 and 4 bits ask for at load.

The source stays mapped and is read once, its pages let go of as soon as a matrix has been read; what is made lies in
anonymous memory, as large as the new formats are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gemmafile.convert.rows import NotFinite, encode_rows
from gemmafile.errors import BadFile
from gemmafile.files.formats import Format
from gemmafile.files.gguf import ModelFile
from gemmafile.files.placement import let_go
from gemmafile.files.tensors import TensorInfo
from gemmafile.quantize.stream import Quantiser

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
FLOATS = ("F32", "F16", "BF16")


class Reformatted(ModelFile):
    """`source` with some tensors made anew. It owns the source: closing it closes that."""

    def __init__(self, source: ModelFile, made: dict[str, tuple[Format, Bytes]]):
        self.source, self._made = source, {name: data for name, (_, data) in made.items()}
        self.path, self.version, self.metadata = source.path, source.version, source.metadata
        self.paths, self.n_bytes = source.paths, source.n_bytes
        self.tensors = dict(source.tensors)
        for name, (fmt, data) in made.items():
            old = source.tensors[name]
            self.tensors[name] = TensorInfo(name, old.shape, fmt, old.path, old.offset, data.nbytes)

    def data(self, name: str) -> Bytes:
        made = self._made.get(name)
        return self.source.data(name) if made is None else made

    def shards(self) -> dict[Any, Bytes]:
        return self.source.shards()

    def close(self) -> None:
        self.source.close()
        self._made = {}

    @property
    def made_bytes(self) -> int:
        """Anonymous memory that the new tensors take."""
        return sum(data.nbytes for data in self._made.values())


def reformat(
    file: ModelFile, choose: Callable[[TensorInfo], Format | None], on_bytes: Callable[[int], None] = lambda n: None
) -> ModelFile:
    """The model with each float matrix in the format that `choose` gives; None: as it is. Quantised ones stay.

    Raises BadFile for a number that is infinite or NaN, or too large for the format.
    """
    made: dict[str, tuple[Format, Bytes]] = {}
    for info in file.tensors.values():
        target = choose(info) if len(info.shape) == 2 and info.format.name in FLOATS else None
        if target is None or target == info.format or info.shape[-1] % target.weights_per_block:
            continue
        out = np.empty(info.shape[0] * target.row_bytes(info.shape[1]), np.uint8)
        at = 0
        for piece in _pieces(file, info, target):
            raw = piece.reshape(-1).view(np.uint8)
            out[at : at + raw.nbytes] = raw
            at += raw.nbytes
            on_bytes(raw.nbytes)
        assert at == out.nbytes
        out.flags.writeable = False
        made[info.name] = target, out
        let_go(file.data(info.name))
    return Reformatted(file, made) if made else file


def _pieces(file: ModelFile, info: TensorInfo, target: Format) -> Iterator[np.ndarray]:
    if target.name not in FLOATS:
        with Quantiser(file) as quantiser:
            yield from quantiser.slabs(info, target, None)
        return
    try:
        yield from encode_rows(file.data(info.name), info.format.name, target, info.shape[1])
    except NotFinite as error:
        what = f"number {error.number} is infinite, NaN, or too large for {target.name}"
        raise BadFile(info.path, what, field=f"tensor {info.name!r}") from None
