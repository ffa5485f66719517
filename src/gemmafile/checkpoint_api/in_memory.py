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
from gemmafile.files.formats import Format, format_by_name
from gemmafile.files.gguf import ModelFile
from gemmafile.files.placement import let_go
from gemmafile.files.tensors import TensorInfo
from gemmafile.quantize.stream import Quantiser

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
FLOATS = ("F32", "F16", "BF16")
Choose = Callable[[TensorInfo], Format | None]
"""A format for a matrix; None: as it is."""

FINEST_SHARE = 0.3
"""Of 16-bit weights, that 4 bits may take with a finer embedding."""
LARGE = ("token_embd.weight", "output.weight")
LARGE_FORMATS = (("Q6_K", "Q8_0"), ("Q5_K", "Q5_0"), ("Q4_K", "IQ4_NL"))
"""Finest first; each for rows of whole super-blocks of 256, and for others."""


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


def four_bits(file: ModelFile) -> Choose:
    """Q4_K, or IQ4_NL for rows that are no whole super-blocks: 4.5 bits a weight.

    Every answer goes through the embedding (and the output, if there is one): it gets six, five or four bits, the most
    with which all matrices together stay within FINEST_SHARE of 16 bits.
    """
    n_weights = sum(info.n_weights for info in _matrices(file))

    def choose(large: tuple[str, str]) -> Choose:
        def choose_one(info: TensorInfo) -> Format:
            return format_by_name((large if info.name in LARGE else LARGE_FORMATS[-1])[info.shape[-1] % 256 > 0])

        return choose_one

    choices = [choose(large) for large in LARGE_FORMATS]
    fitting = (c for c in choices if reformatted_bytes(file, c) <= FINEST_SHARE * 2 * n_weights)
    return next(fitting, choices[-1])


def reformatted_bytes(file: ModelFile, choose: Choose) -> int:
    """Bytes of what `reformat` makes."""
    wanted = ((info, _target(info, choose)) for info in _matrices(file))
    return sum(info.shape[0] * fmt.row_bytes(info.shape[1]) for info, fmt in wanted if fmt is not None)


def _matrices(file: ModelFile) -> list[TensorInfo]:
    return [info for info in file.tensors.values() if len(info.shape) == 2 and info.format.name in FLOATS]


def _target(info: TensorInfo, choose: Choose) -> Format | None:
    """None for what stays as it is."""
    target = choose(info)
    fits = target is not None and target != info.format and info.shape[-1] % target.weights_per_block == 0
    return target if fits else None


def reformat(file: ModelFile, choose: Choose, on_bytes: Callable[[int], None] = lambda n: None) -> ModelFile:
    """The model with each float matrix in the format that `choose` gives; None: as it is. Quantised ones stay.

    Raises BadFile for a number that is infinite or NaN, or too large for the format.
    """
    made: dict[str, tuple[Format, Bytes]] = {}
    for info in _matrices(file):
        target = _target(info, choose)
        if target is None:
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
