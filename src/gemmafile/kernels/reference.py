"""The reference backend: a tape replayed in NumPy, slow and obvious, in the float order of docs/numerics.md.

The compiled replay agrees with it bit for bit. Loops run along the order of a sum, everything else is side by side:
rows, heads and columns. Shape letters: T rows, H heads, K kv heads, G = H / K, D head dim, S positions.
"""

from __future__ import annotations

import numpy as np

from gemmafile.kernels.activations import remainder
from gemmafile.kernels.backend import Told, Trace
from gemmafile.kernels.cache import KVCache
from gemmafile.kernels.float32 import LANES, exp, fma, tanh, tree
from gemmafile.kernels.formats_on import format_module
from gemmafile.kernels.rotary import inverse_frequencies, rotary_table
from gemmafile.model.batch import PAGE, Batch
from gemmafile.model.config import ModelConfig, Rope
from gemmafile.model.tape import (
    Add,
    Attention,
    Embed,
    Gate,
    Join,
    MatMul,
    Norm,
    Op,
    Rotate,
    SoftCap,
    Split,
    TakeOutputs,
    Tape,
    Value,
    hidden_value,
    reads,
    writes,
)
from gemmafile.model.weights import ModelWeights, Weight

SEGMENT = 256
"""Positions that attention takes together: they have one maximum."""

_CHUNK_NUMBERS = 1 << 18  # held at once for a segment's scores, or for the weighted sums

_ONE, _LOWEST = np.float32(1), np.float32(-1e30)
_GELU_CUBIC, _GELU_SCALE = np.float32(0.044715), np.float32(-1.5957691216057308)  # the latter -2 sqrt(2 / pi)


class ReferenceReplay:
    """A `Backend` of plain NumPy."""

    name = "reference"

    def __init__(self, tape: Tape, config: ModelConfig, weights: ModelWeights, cache: KVCache):
        self._tape, self._cache = tape, cache
        self._width_out = writes(tape.ops[-1])[0].width
        factors = None if weights.rope_freqs is None else _vector(weights.rope_freqs)
        ropes = {op.rope for op in tape.ops if isinstance(op, Rotate)}
        self._inv_freq = {rope: inverse_frequencies(rope, factors if rope.use_factors else None) for rope in ropes}
        self._n_walked = 0
        self._last_read = {value.id: i for i, op in enumerate(tape.ops) for value in reads(op)}

    def run(self, batch: Batch, trace: Trace | None = None) -> np.ndarray:
        """Store the rows' keys and values; logits float32[n_outputs, V]. `trace` gets every value of the tape, those
        of the outputs only where there are any."""
        return self._replay(self._tape.ops, self._width_out, batch, trace)

    def run_hidden(self, batch: Batch) -> np.ndarray:
        """Store the rows' keys and values; the hidden state after the last norm, float32[n_outputs, E]."""
        hidden = hidden_value(self._tape)
        end = next(i for i, op in enumerate(self._tape.ops) if hidden in writes(op)) + 1
        return self._replay(self._tape.ops[:end], hidden.width, batch, None)

    def peaks(self, n_outputs: int) -> np.ndarray | None:
        """They only spare time: whoever wants the largest logits can look for them."""
        return None

    def _replay(self, ops: list[Op], width_out: int, batch: Batch, trace: Trace | None) -> np.ndarray:
        values: dict[int, np.ndarray] = {}
        for i, op in enumerate(ops):
            if isinstance(op, TakeOutputs) and not len(batch.outputs):
                return np.empty((0, width_out), np.float32)
            with np.errstate(all="ignore"):  # infinities and NaN go their way, as in a compiled kernel
                results = self._compute(op, [values[value.id] for value in reads(op)], batch)
            self._n_walked += 1
            for value, result in zip(writes(op), results, strict=True):
                values[value.id] = result
                if trace is not None:
                    trace(value.name, result)
            self._forget(values, reads(op), i)
        return results[0]

    def prepare(self, told: Told | None = None) -> None:
        """There is nothing to be compiled."""

    def rest(self) -> None:
        """There is nothing to be given back."""

    def n_walked(self) -> int:
        return self._n_walked

    def close(self) -> None:
        """Nothing to give back."""

    def _forget(self, values: dict[int, np.ndarray], used: tuple[Value, ...], i: int) -> None:
        for value in used:
            if self._last_read[value.id] == i:
                values.pop(value.id, None)

    def _compute(self, op: Op, inputs: list[np.ndarray], batch: Batch) -> tuple[np.ndarray, ...]:
        match op:
            case Embed():
                return (embed(op, batch.token_ids),)
            case Norm():
                return (norm(inputs[0], _vector(op.weight), op.eps),)
            case MatMul():
                return tuple(format_module(w.format.name).multiply(inputs[0], _rows(w)) for w in op.weights)
            case Rotate():
                cos, sin = rotary_table(self._inv_freq[op.rope], batch.positions)
                return (rotate(inputs[0], cos, sin, op.rope, op.head_dim),)
            case Attention():
                return (self._attend(op, inputs, batch),)
            case Gate():
                return (gate(inputs[0], inputs[1], op.activation),)
            case Add():
                return (inputs[0] + inputs[1],)
            case TakeOutputs():
                return (inputs[0][batch.outputs],)
            case Split():
                block = format_module(op.weight.format.name).ACTIVATIONS
                assert block is not None, "only int8 activations are split"
                return (split(inputs[0], block),)
            case Join():
                return (inputs[0][0::2] + inputs[0][1::2],)
            case SoftCap():
                return (soft_cap(inputs[0], op.cap),)

    def _attend(self, op: Attention, inputs: list[np.ndarray], batch: Batch) -> np.ndarray:
        """Store every row's k and v, then attend, one sequence after the other: float32[T, H * D]."""
        q, k, v = (x.reshape(batch.n_rows, -1, op.head_dim) for x in inputs)
        out = np.empty_like(q)
        for first, n in batch.runs():
            rows, page_table = slice(first, first + n), batch.page_tables[batch.sequences[first]]
            positions = batch.positions[rows]
            self._cache.store(op.layer, page_table, positions, k[rows], v[rows])
            keys, values = self._cache.load(op.layer, page_table, int(positions[-1]) // PAGE + 1)
            out[rows] = attend(op, q[rows], keys, values, positions)
        return out.reshape(batch.n_rows, -1)


def _rows(weight: Weight) -> np.ndarray:
    """uint8[rows out, row_bytes]"""
    return weight.data.reshape(weight.shape[0], weight.row_bytes)


def _vector(weight: Weight) -> np.ndarray:
    return weight.data.view("<f4").astype(np.float32)


def embed(op: Embed, token_ids: np.ndarray) -> np.ndarray:
    """int32[T] -> float32[T, E]"""
    return format_module(op.table.format.name).dequantize(_rows(op.table)[token_ids]) * np.float32(op.scale)


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """RMS norm of each group of n: x float32[T, groups * n], weight float32[n]."""
    n = len(weight)
    groups = x.reshape(len(x), -1, n)
    padded = np.pad(groups, ((0, 0), (0, 0), (0, -n % LANES)))
    acc = np.zeros((*groups.shape[:2], LANES), np.float32)
    for i in range(0, n, LANES):
        lanes = padded[..., i : i + LANES]
        acc = fma(lanes, lanes, acc)
    r = _ONE / np.sqrt(tree(acc) / np.float32(n) + np.float32(eps))
    return ((groups * r[..., None]) * weight).reshape(x.shape)


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, rope: Rope, head_dim: int) -> np.ndarray:
    """Rotate the first `rope.dim` numbers of each head: x float32[T, H * D], cos, sin float32[T, dim / 2]."""
    heads = x.reshape(len(x), -1, head_dim)
    out = heads.copy()
    half, dim = rope.dim // 2, rope.dim
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if rope.interleaved else (slice(half), slice(half, dim))
    x1, x2, cos, sin = heads[..., first], heads[..., second], cos[:, None], sin[:, None]
    out[..., first] = fma(x1, cos, -(x2 * sin))
    out[..., second] = fma(x2, cos, x1 * sin)
    return out.reshape(x.shape)


def gate(x: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
    """float32[T, F]: gelu (its tanh form, as x times a logistic) or silu of x, times `up`."""
    if activation == "gelu":
        u = (x * fma(x * x, _GELU_CUBIC, _ONE)) * _GELU_SCALE
    else:
        u = -x
    return (x / (_ONE + exp(u))) * up


def split(x: np.ndarray, block: int) -> np.ndarray:
    """float32[T, K] -> float32[2T, K]: each row, and behind it what rounding it as activations loses."""
    return np.stack((x, remainder(x, block)), axis=1).reshape(-1, x.shape[1])


def soft_cap(x: np.ndarray, cap: float) -> np.ndarray:
    """cap * tanh(x / cap)"""
    return np.float32(cap) * tanh(x * np.float32(1 / cap))


def attend(op: Attention, q: np.ndarray, keys: np.ndarray, values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Attention of the rows of one sequence.

    q float32[T, H, D] · keys, values float32[K, S, D], S a multiple of 128 · positions int[T], ascending by one
    Returns float32[T, H, D]. Rows are taken in chunks, so that what is held on the way stays in the cache.
    """
    out = np.empty_like(q)
    n_rows = max(1, _CHUNK_NUMBERS // (op.n_heads * max(SEGMENT, op.head_dim)))
    grouped = q.reshape(len(q), op.n_kv_heads, -1, op.head_dim).transpose(1, 2, 0, 3)  # [K, G, T, D]
    for first in range(0, len(q), n_rows):
        rows = slice(first, first + n_rows)
        chunk = _attend_chunk(op, grouped[:, :, rows], keys, values, positions[rows])
        out[rows] = chunk.transpose(2, 0, 1, 3).reshape(-1, op.n_heads, op.head_dim)
    return out


def _attend_chunk(
    op: Attention, q: np.ndarray, keys: np.ndarray, values: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """q float32[K, G, T, D] -> float32[K, G, T, D], over the segments of positions that any of the rows sees."""
    lowest = positions - op.window + 1 if op.window else np.zeros_like(positions)
    m = np.full(q.shape[:3], _LOWEST)
    l, acc, started = np.zeros_like(m), np.zeros_like(q), np.zeros(len(positions), bool)
    n_stored = int(positions[-1]) + 1
    for first in range(max(0, int(lowest[0])) // SEGMENT * SEGMENT, n_stored, SEGMENT):
        here = np.arange(first, min(first + SEGMENT, n_stored))
        sees = (here >= lowest[:, None]) & (here <= positions[:, None])  # [T, positions]
        sees_any: np.ndarray = np.logical_or.reduce(sees, axis=1)
        m_here, l_here, acc_here = _attend_segment(op, q, keys[:, here], values[:, here], sees)
        m_both = np.maximum(m, m_here)
        old, new = exp(m - m_both), exp(m_here - m_both)
        joined = sees_any & started
        l_both, acc_both = fma(l_here, new, l * old), fma(acc_here, new[..., None], acc * old[..., None])
        m = np.where(joined, m_both, np.where(sees_any, m_here, m))
        l = np.where(joined, l_both, np.where(sees_any, l_here, l))
        acc = np.where(joined[:, None], acc_both, np.where(sees_any[:, None], acc_here, acc))
        started |= sees_any
    return acc * (_ONE / l)[..., None]


def _attend_segment(
    op: Attention, q: np.ndarray, keys: np.ndarray, values: np.ndarray, sees: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One segment by itself: keys, values float32[K, n, D], sees bool[T, n]. Maximum and sum of the weights
    float32[K, G, T], sums of the values float32[K, G, T, D]."""
    s = np.where(sees, _scores(op, q, keys), np.float32(-np.inf))
    m = np.maximum(_LOWEST, s.max(axis=-1))
    p = exp(s - m[..., None])
    lanes = np.zeros((*m.shape, LANES), np.float32)
    for i in range(0, p.shape[-1], LANES):
        part = p[..., i : i + LANES]
        lanes[..., : part.shape[-1]] += part
    acc = np.zeros_like(q)
    for j in range(p.shape[-1]):
        added = fma(p[..., j, None], values[:, None, None, j], acc)
        acc = np.where(sees[:, j, None], added, acc)
    return m, tree(lanes), acc


def _scores(op: Attention, q: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """q float32[K, G, T, D], keys float32[K, n, D] -> float32[K, G, T, n], scaled and capped."""
    s = np.zeros((*q.shape[:3], keys.shape[1]), np.float32)
    for d in range(op.head_dim):
        s = fma(q[..., d, None], keys[:, None, None, :, d], s)
    s = s * np.float32(op.scale)
    return soft_cap(s, op.softcap) if op.softcap else s
