"""How far a model is from another on the same text: Kullback-Leibler divergence, token by token.

The base's log-probabilities are kept in a file of llama.cpp's format, 16 bits each:

    "_logits_"  int32 n_context, n_vocab, n_chunks  int32[n_chunks][n_context] token ids
    for each chunk and each of its n_context - 1 - n_context // 2 scored rows:
        float32 scale, lowest  uint16[n_vocab] q (and one more if n_vocab is odd)   log p = scale q + lowest

Log-probabilities more than 16 below the likeliest token's are kept as that. Source: llama.cpp, perplexity.cpp,
`kl_divergence`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from gemmafile.errors import BadFile
from gemmafile.files.atomic import replace_file
from gemmafile.measure.perplexity import first_scored, negative_log_likelihoods

MAGIC = b"_logits_"
_HEAD = struct.Struct("<8siii")
DEPTH = np.float32(16)
"""Log-probabilities are kept down to so far below the largest."""
LEAST_FOR_STATISTICS = 100
"""Fewer tokens than these have no percentiles."""
ROWS = 16
"""Rows compared at once, so that what is made on the way stays small."""


def row_numbers(n_vocab: int) -> int:
    """uint16 numbers that a row takes."""
    return 4 + n_vocab + n_vocab % 2


class BaseWriter:
    """Writes a base's file; it takes its name when all went well.

    with BaseWriter(path, chunks, n_vocab) as base:
        base.add(logits)        # rows in order
    """

    def __init__(self, path: Path, chunks: Sequence[Sequence[int]], n_vocab: int):
        self._target: AbstractContextManager[BinaryIO] = replace_file(path)
        self._chunks, self._n_vocab = chunks, n_vocab
        self._file: BinaryIO | None = None

    def __enter__(self) -> BaseWriter:
        self._file = self._target.__enter__()
        n_context = len(self._chunks[0])
        self._file.write(_HEAD.pack(MAGIC, n_context, self._n_vocab, len(self._chunks)))
        self._file.write(np.array(self._chunks, "<i4").tobytes())
        return self

    def add(self, logits: np.ndarray) -> None:
        """float32[n, V]"""
        assert self._file is not None
        self._file.write(pack_rows(logits).tobytes())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._target.__exit__(kind, error, trace)


def pack_rows(logits: np.ndarray) -> np.ndarray:
    """float32[n, V] -> uint16[n, row_numbers(V)]"""
    n, n_vocab = logits.shape
    out = np.zeros((n, row_numbers(n_vocab)), "<u2")
    largest = logits.max(axis=1, keepdims=True)
    lowest = np.maximum(logits.min(axis=1, keepdims=True), largest - DEPTH)
    log_sums = np.log(np.exp(logits - largest).sum(axis=1, dtype=np.float64, keepdims=True)).astype(np.float32)
    scale = (largest - lowest) / np.float32(65535)
    out[:, :4] = np.concatenate([scale, lowest - largest - log_sums], axis=1).astype("<f4").view("<u2")
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    out[:, 4 : 4 + n_vocab] = np.rint(inverse * np.maximum(logits - lowest, np.float32(0)))
    return out


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """A base's file, mapped. `chunks` int32[n_chunks, n_context] · `rows` uint16[n_chunks, scored rows, row numbers]"""

    path: Path
    n_vocab: int
    chunks: np.ndarray
    rows: np.ndarray

    @property
    def n_context(self) -> int:
        return int(self.chunks.shape[1])


def open_base(path: Path) -> Base:
    """Raises BadFile for anything but a whole file of log-probabilities."""
    try:
        raw = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:
        raise BadFile(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if raw.size < _HEAD.size or bytes(raw[:8]) != MAGIC:
        raise BadFile(path, "is no file of log-probabilities (--kl-divergence-base without --kl-divergence makes one)")
    _, n_context, n_vocab, n_chunks = _HEAD.unpack(bytes(raw[: _HEAD.size]))
    if min(n_context, n_vocab, n_chunks) < 1 or n_context < 4:
        raise BadFile(path, f"says it has {n_chunks} chunks of {n_context} tokens of {n_vocab}", byte=8)
    tokens_end = _HEAD.size + 4 * n_context * n_chunks
    n_rows, width = n_context - 1 - first_scored(n_context), row_numbers(n_vocab)
    if raw.size < tokens_end + 2 * n_chunks * n_rows * width:
        raise BadFile(path, f"ends after {raw.size} bytes, its {n_chunks} chunks take more: it was cut off")
    chunks = raw[_HEAD.size : tokens_end].view("<i4").reshape(n_chunks, n_context)
    if chunks.min() < 0 or chunks.max() >= n_vocab:
        raise BadFile(path, f"holds token ids outside 0 to {n_vocab - 1}", byte=_HEAD.size)
    rows = raw[tokens_end : tokens_end + 2 * n_chunks * n_rows * width].view("<u2").reshape(n_chunks, n_rows, width)
    return Base(path, n_vocab, np.array(chunks), rows)


@dataclass(slots=True, eq=False)
class Divergence:
    """What was measured, one number a scored token, in natural logarithms.

    nll, nll_base  negative log-likelihoods of the text · kld  divergences · p_diff  how much likelier the model takes
    the text's token to be · same_top  do both take the same token for the likeliest
    """

    nll: list[np.ndarray] = field(default_factory=list)
    nll_base: list[np.ndarray] = field(default_factory=list)
    kld: list[np.ndarray] = field(default_factory=list)
    p_diff: list[np.ndarray] = field(default_factory=list)
    same_top: list[np.ndarray] = field(default_factory=list)

    def add(self, logits: np.ndarray, base: np.ndarray, token_ids: Sequence[int]) -> None:
        """logits float32[n, V] and the base's rows uint16[n, row numbers]; the tokens that the text has after them."""
        for first in range(0, len(logits), ROWS):
            part = slice(first, first + ROWS)
            self._add(logits[part], base[part], np.asarray(token_ids[part]))

    def _add(self, logits: np.ndarray, base: np.ndarray, token_ids: np.ndarray) -> None:
        rows = np.arange(len(logits))
        largest = logits.max(axis=1, keepdims=True)
        sums = np.exp(logits - largest).sum(axis=1, dtype=np.float64, keepdims=True)
        log_p = logits - (largest + np.log(sums).astype(np.float32))
        head = np.ascontiguousarray(base[:, :4]).view("<f4")
        log_base = head[:, :1] * base[:, 4 : 4 + logits.shape[1]].astype(np.float32) + head[:, 1:]
        p_base = np.where(log_base > -DEPTH, np.exp(log_base), np.float32(0))
        self.kld.append((p_base * (log_base - log_p)).sum(axis=1, dtype=np.float64))
        nll, nll_base = negative_log_likelihoods(logits, token_ids), -log_base[rows, token_ids]
        self.nll.append(nll)
        self.nll_base.append(nll_base.astype(np.float64))
        self.p_diff.append(np.exp(-nll) - np.exp(-nll_base))
        self.same_top.append(logits.argmax(axis=1) == base[:, 4 : 4 + logits.shape[1]].argmax(axis=1))

    def summary(self) -> Summary:
        nll, nll_base, kld, p_diff, same_top = (
            np.concatenate(values) for values in (self.nll, self.nll_base, self.kld, self.p_diff, self.same_top)
        )
        return Summary(nll, nll_base, kld, p_diff, same_top.astype(np.float64))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error; 0 for ten values and fewer."""

    value: float
    error: float


def mean(x: np.ndarray) -> Estimate:
    variance = float((x * x).mean() - x.mean() ** 2)
    return Estimate(float(x.mean()), math.sqrt(variance / (len(x) - 1)) if variance > 0 and len(x) > 10 else 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """All values, float64[n] each, and what is made of them."""

    nll: np.ndarray
    nll_base: np.ndarray
    kld: np.ndarray
    p_diff: np.ndarray
    same_top: np.ndarray

    @property
    def n(self) -> int:
        return len(self.kld)

    def perplexity(self, values: np.ndarray | None = None) -> Estimate:
        m = mean(self.nll if values is None else values)
        try:
            value = math.exp(m.value)
        except OverflowError:
            value = math.inf
        return Estimate(value, value * m.error)

    def log_ratio(self) -> Estimate:
        """Of both perplexities: what both have in common does not count as an error."""
        q, base = mean(self.nll), mean(self.nll_base)
        variance = q.error**2 + base.error**2 - 2 * self._covariance()
        return Estimate(q.value - base.value, math.sqrt(max(variance, 0.0)))

    def _covariance(self) -> float:
        if self.n < 10:
            return 0.0
        return float(((self.nll * self.nll_base).mean() - self.nll.mean() * self.nll_base.mean()) / (self.n - 1))

    def divergence(self) -> Estimate:
        return mean(self.kld)

    def p_diff_rms(self) -> Estimate:
        squares = mean(self.p_diff**2)
        root = math.sqrt(squares.value)
        return Estimate(root, 0.5 / root * squares.error if root else 0.0)

    def top_agreement(self) -> Estimate:
        p = float(self.same_top.mean())
        return Estimate(p, math.sqrt(p * (1 - p) / (self.n - 1)) if self.n > 1 else 0.0)

    def chunk_line(self, number: int) -> str:
        """A line a chunk: perplexity, ln of the ratio, divergence, difference of probabilities, same top token."""
        ppl, ratio, kld, rms, top = (
            self.perplexity(), self.log_ratio(), self.divergence(), self.p_diff_rms(), self.top_agreement(),
        )  # fmt: skip
        return (
            f"{number:4d}    {ppl.value:9.4f} ± {ppl.error:9.4f}    {ratio.value:10.5f} ± {ratio.error:10.5f}"
            f"    {kld.value:10.5f} ± {kld.error:10.5f}    {100 * rms.value:6.3f} ± {100 * rms.error:6.3f} %"
            f"    {100 * top.value:6.3f} ± {100 * top.error:6.3f} %"
        )

    def report(self) -> Iterator[str]:
        """The lines that llama-perplexity ends with."""
        ppl, base, ratio = self.perplexity(), self.perplexity(self.nll_base), self.log_ratio()
        correlation = self._covariance() / max(mean(self.nll).error * mean(self.nll_base).error, 1e-300)
        relative = math.exp(ratio.value)
        difference_variance = ppl.error**2 + base.error**2 - 2 * ppl.value * base.value * self._covariance()
        yield "====== Perplexity statistics ======"
        yield _line("Mean PPL(Q)                   ", ppl)
        yield _line("Mean PPL(base)                ", base)
        yield f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * correlation:6.2f}%"
        yield _line("Mean ln(PPL(Q)/PPL(base))     ", ratio)
        yield _line("Mean PPL(Q)/PPL(base)         ", Estimate(relative, relative * ratio.error))
        difference = Estimate(ppl.value - base.value, math.sqrt(max(difference_variance, 0.0)))
        yield _line("Mean PPL(Q)-PPL(base)         ", difference)
        yield ""
        yield "====== KL divergence statistics ======"
        yield _line("Mean    KLD", self.divergence())
        for name, percent in _PERCENTILES:
            yield f"{name} KLD: {np.percentile(self.kld, percent):10.6f}"
        yield ""
        yield "====== Token probability statistics ======"
        p_diff, rms, top = mean(self.p_diff), self.p_diff_rms(), self.top_agreement()
        yield f"Mean    Δp: {100 * p_diff.value:6.3f} ± {100 * p_diff.error:5.3f} %"
        for name, percent in _PERCENTILES:
            yield f"{name} Δp: {100 * np.percentile(self.p_diff, percent):6.3f}%"
        yield f"RMS Δp    : {100 * rms.value:6.3f} ± {100 * rms.error:5.3f} %"
        yield f"Same top p: {100 * top.value:6.3f} ± {100 * top.error:5.3f} %"


_PERCENTILES = (
    ("Maximum", 100), ("99.9%  ", 99.9), ("99.0%  ", 99), ("95.0%  ", 95), ("90.0%  ", 90), ("Median ", 50),
    ("10.0%  ", 10), (" 5.0%  ", 5), (" 1.0%  ", 1), (" 0.1%  ", 0.1), ("Minimum", 0),
)  # fmt: skip

HEADINGS = (
    "chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Δp RMS"
    "            Same top p"
)


def _line(label: str, estimate: Estimate) -> str:
    return f"{label}: {estimate.value:10.6f} ± {estimate.error:10.6f}"
