"""An importance matrix from a text: the squares of what comes to each column of each matrix, summed over its rows.

Method: llama.cpp, tools/imatrix/imatrix.cpp. The text is read in chunks, each on its own, as for the perplexity.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gemmafile.errors import GemmafileError
from gemmafile.measure.perplexity import Score, negative_log_likelihoods
from gemmafile.model.record import record
from gemmafile.model.tape import MatMul
from gemmafile.model_api import Model
from gemmafile.quantize.importance import Entry, Importance
from gemmafile.quantize.mixture import OUTPUT


class Collector:
    """Adds up what the matrices of a model read."""

    def __init__(self, model: Model, *, with_output: bool = False):
        """with_output  of output.weight too"""
        tape = record(model.config, model.engine.weights)
        self.sums: dict[str, np.ndarray] = {}
        self.counts: dict[str, int] = {}
        self._reads: dict[str, list[tuple[str, int]]] = {}
        for op in tape.ops:
            if isinstance(op, MatMul):
                names = [w.name for w in op.weights if w.name.startswith("blk.")]
                names += [w.name for w in op.weights if with_output and w.name == OUTPUT]
                self._reads.setdefault(op.x.name, []).extend((name, op.x.parts) for name in names)

    def take(self, name: str, value: np.ndarray) -> None:
        """A value of a pass: float32[rows, width]. Where it is in two parts, the second is no row of its own."""
        for matrix, parts in self._reads.get(name, ()):
            rows = value[::parts]
            squares = np.einsum("ij,ij->j", rows, rows, dtype=np.float64)
            self.sums[matrix] = self.sums.get(matrix, 0) + squares
            self.counts[matrix] = self.counts.get(matrix, 0) + len(rows)

    def importance(self, n_chunks: int, chunk_rows: int, dataset: str) -> Importance:
        """Raises GemmafileError where a sum is not finite."""
        for name, sums in self.sums.items():
            if not np.isfinite(sums).all():
                raise GemmafileError(f"what comes to {name} is not finite: this model cannot be measured")
        entries = {name: Entry(sums.astype(np.float32), self.counts[name]) for name, sums in self.sums.items()}
        return Importance(entries, [dataset] if dataset else [], n_chunks, chunk_rows)


def collect(
    model: Model,
    chunks: list[list[int]],
    *,
    dataset: str = "",
    with_output: bool = False,
    on_chunk: Callable[[int, Score], None] = lambda number, score: None,
) -> Importance:
    """Read the chunks and sum. `on_chunk`  gets the chunk's number and the perplexity so far. Raises GemmafileError."""
    collector, score, tokenizer = Collector(model, with_output=with_output), Score(), model.tokenizer
    for number, chunk in enumerate(chunks, 1):
        read = [tokenizer.bos_id, *chunk[1:]] if tokenizer.add_bos and tokenizer.bos_id is not None else chunk
        model.sequence.truncate(0)
        logits = model.engine.forward(model.sequence, read, want="all", trace=collector.take)
        first = len(chunk) // 2
        score.add(negative_log_likelihoods(logits[first:-1], chunk[first + 1 :]))
        on_chunk(number, score)
    return collector.importance(len(chunks), len(chunks[0]), dataset)
