"""How much each matrix of a model matters: what is lost when it alone is quantised, in what the model says.

Loss is the mean Kullback-Leibler divergence from the exact model over the tokens of a calibration text. It grows with
the square of the disturbance, so one probe a matrix, at PROBE, tells the loss at every format: it is in proportion to
the squared error of the weights, each counted by how large the numbers are that meet it (`collect.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gemmafile.engine.engine import Engine
from gemmafile.files.formats import Format, format_by_name
from gemmafile.files.gguf import ModelFile
from gemmafile.files.tensors import TensorInfo
from gemmafile.kernels.formats_on import FORMAT_MODULES
from gemmafile.kernels.quantizers.rows import widen
from gemmafile.model_api import Model
from gemmafile.quantize.collect import Collector
from gemmafile.quantize.importance import Entry, Importance
from gemmafile.quantize.mixture import in_order, is_quantised
from gemmafile.quantize.stream import Quantiser, read_rows
from gemmafile.settings import ContextSettings

PROBE = "Q4_0"
"""Coarse enough to be seen, fine enough that losses still add up; and it fits rows of 32."""
LEAST_COLUMNS = 32

CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "F16")
SKIPPED_ROWS = 8
"""The first tokens of a chunk say little of the rest of a text."""
ERROR_ROWS = 4096
"""Rows of a matrix that its error is taken from; a larger matrix gives every n-th."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A format that a matrix may get. `loss`  expected, in nats a token"""

    format: Format
    n_bytes: int
    loss: float


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """A matrix. `probed`  the divergence with it alone in PROBE · `choices` by size, each better than the last"""

    name: str
    n_weights: int
    probed: float
    choices: tuple[Choice, ...]


class ChangedFile(ModelFile):
    """A model with some tensors in another format; the rest is the file's."""

    def __init__(self, file: ModelFile, changed: Mapping[str, tuple[Format, np.ndarray]]):
        self._file, self._changed = file, changed
        self.path, self.version, self.metadata = file.path, file.version, file.metadata
        self.paths, self.n_bytes = file.paths, file.n_bytes
        self.tensors = {
            name: replace(info, format=changed[name][0], n_bytes=changed[name][1].nbytes) if name in changed else info
            for name, info in file.tensors.items()
        }

    def data(self, name: str) -> np.ndarray:
        if name in self._changed:
            return self._changed[name][1].reshape(-1)
        return self._file.data(name)

    def close(self) -> None:
        """The file is somebody else's."""


def measured(file: ModelFile) -> list[TensorInfo]:
    """The matrices that a mixture gives a format, in the order of the file."""
    return [t for t in in_order(file.tensors.values()) if is_quantised(t) and t.shape[-1] % LEAST_COLUMNS == 0]


def smallest_bytes(tensor: TensorInfo) -> int:
    """Bytes of a matrix in the smallest of CANDIDATES that its rows fit."""
    columns = tensor.shape[-1]
    formats = [format_by_name(name) for name in CANDIDATES]
    row_bytes = [fmt.row_bytes(columns) for fmt in formats if columns % fmt.weights_per_block == 0]
    return tensor.n_weights // columns * min(row_bytes)


def measure_sensitivities(
    model: Model,
    chunks: Sequence[Sequence[int]],
    settings: ContextSettings,
    *,
    importance: Importance | None = None,
    n_threads: int = 0,
    on_matrix: Callable[[str, int, int], None] = lambda name, number, total: None,
) -> list[Sensitivity]:
    """Probe every matrix that a file type would change, in the order of the file.

    model       the exact model, open · `settings` it was opened with · `chunks` of token ids of a calibration text
    importance  what the quantisers get
    on_matrix   called before each probe with its name and number
    """
    collector = Collector(model)
    exact = [_logits(model.engine, chunk, collector.take) for chunk in chunks]
    activations = collector.importance(len(chunks), max(map(len, chunks)), "")
    file = model.file
    tensors = measured(file)
    found = []
    with Quantiser(file, n_threads) as quantiser:
        for number, tensor in enumerate(tensors):
            on_matrix(tensor.name, number, len(tensors))
            columns = None if importance is None else importance.columns(tensor.name, tensor.shape[-1])
            probed = _probe(file, tensor, quantiser, columns, settings, chunks, exact)
            found.append(_sensitivity(file, tensor, quantiser, columns, activations.entries.get(tensor.name), probed))
    return found


def _logits(engine: Engine, chunk: Sequence[int], trace: Callable[[str, np.ndarray], None] | None = None) -> np.ndarray:
    sequence = engine.new_sequence()
    try:
        return engine.forward(sequence, list(chunk), want="all", trace=trace)[min(SKIPPED_ROWS, len(chunk) // 2) :]
    finally:
        sequence.truncate(0)


def _probe(
    file: ModelFile, tensor: TensorInfo, quantiser: Quantiser, columns: np.ndarray | None,
    settings: ContextSettings, chunks: Sequence[Sequence[int]], exact: Sequence[np.ndarray],
) -> float:  # fmt: skip
    fmt = format_by_name(PROBE)
    blocks = np.concatenate(list(quantiser.slabs(tensor, fmt, columns)))
    blocks.flags.writeable = False
    engine = Engine(ChangedFile(file, {tensor.name: (fmt, blocks)}), settings, say=lambda line: None)
    try:
        losses = [divergence(base, _logits(engine, chunk)) for chunk, base in zip(chunks, exact, strict=True)]
    finally:
        engine.close()
    return float(np.concatenate(losses).mean())


def divergence(base: np.ndarray, logits: np.ndarray, rows: int = 16) -> np.ndarray:
    """float64[n]: Kullback-Leibler divergence of softmax(logits) from softmax(base), row by row."""
    out = np.empty(len(base))
    for first in range(0, len(base), rows):
        part = slice(first, first + rows)
        log_p, log_q = _log_softmax(base[part]), _log_softmax(logits[part])
        out[part] = (np.exp(log_p) * (log_p - log_q)).sum(axis=1, dtype=np.float64)
    return out


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    sums = np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)
    result: np.ndarray = shifted - np.log(sums).astype(np.float32)
    return result


def _sensitivity(
    file: ModelFile, tensor: TensorInfo, quantiser: Quantiser, columns: np.ndarray | None,
    activations: Entry | None, probed: float,
) -> Sensitivity:  # fmt: skip
    n_columns = tensor.shape[-1]
    n_rows = tensor.n_weights // n_columns
    exact = widen(read_rows(file, tensor, 0, n_rows)[:: -(-n_rows // ERROR_ROWS)])
    weight = np.ones(n_columns, np.float32) if activations is None else activations.mean()
    formats = [format_by_name(name) for name in CANDIDATES]
    formats = [fmt for fmt in formats if n_columns % fmt.weights_per_block == 0]
    errors = {fmt.name: _error(exact, fmt, quantiser, columns, weight) for fmt in formats}
    scale = max(probed, 0.0) / max(errors[PROBE], 1e-300)
    choices = [Choice(fmt, n_rows * fmt.row_bytes(n_columns), scale * errors[fmt.name]) for fmt in formats]
    return Sensitivity(tensor.name, tensor.n_weights, probed, tuple(worth_having(choices)))


def _error(
    exact: np.ndarray, fmt: Format, quantiser: Quantiser, columns: np.ndarray | None, weight: np.ndarray
) -> float:
    blocks = quantiser.rows(exact, fmt, columns)
    made = FORMAT_MODULES[fmt.name].dequantize(blocks)
    difference = made - exact
    return float(np.einsum("ij,ij,j->", difference, difference, weight, dtype=np.float64))


def worth_having(choices: Sequence[Choice]) -> list[Choice]:
    """The choices on the lower hull of loss over size, by size: each step up gains less a byte than the one before."""
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.n_bytes, c.loss)):
        if hull and (choice.n_bytes == hull[-1].n_bytes or choice.loss >= hull[-1].loss):
            continue
        while len(hull) > 1 and gain(hull[-2], hull[-1]) <= gain(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def gain(small: Choice, large: Choice) -> float:
    """Loss that a byte more saves."""
    return (small.loss - large.loss) / (large.n_bytes - small.n_bytes)
