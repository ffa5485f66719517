"""How far two answers are apart: numbers for tensors, and for logits what a user would notice.

Logits are float32[T, V] of the same T positions. Sums are made in float64, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class TensorDistance:
    """`max_abs`  largest difference of two elements · `relative`  that, over the largest element · `cosine`"""

    max_abs: float
    relative: float
    cosine: float

    def __str__(self) -> str:
        return f"max abs {self.max_abs:.3g}, relative {self.relative:.2g}, cosine {self.cosine:.8f}"


@dataclass(frozen=True)
class LogitDistance:
    """`kl`  mean over positions of KL(b ‖ a), nats · `kl_max` · `top1`  share of positions with the same best token
    · `top10`  mean overlap of the ten likeliest"""

    max_abs: float
    kl: float
    kl_max: float
    top1: float
    top10: float

    def __str__(self) -> str:
        return (
            f"logits: max abs {self.max_abs:.3g}, KL mean {self.kl:.3g} max {self.kl_max:.3g}, "
            f"same top-1 {self.top1:.2%}, top-10 overlap {self.top10:.2%}"
        )


def tensor_distance(a: np.ndarray, b: np.ndarray) -> TensorDistance:
    """Of two arrays of one shape. A NaN anywhere makes max_abs NaN, which is within no tolerance."""
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    max_abs, largest = float(np.max(np.abs(x - y), initial=0)), float(np.max(np.abs(y), initial=0))
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    cosine = float(x @ y) / norms if norms else float(max_abs == 0)
    return TensorDistance(max_abs, max_abs / largest if largest else max_abs, cosine)


def logit_distance(a: np.ndarray, b: np.ndarray) -> LogitDistance:
    """Of the logits `a` from those of the judge, `b`."""
    max_abs, kls, same, overlap = 0.0, [], [], []
    for x, y in _row_blocks(a, b):
        max_abs = float(np.maximum(max_abs, np.abs(x - y).max()))  # NaN stays NaN
        log_p, log_q = log_softmax(y), log_softmax(x)
        kls.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
        same.append(x.argmax(axis=1) == y.argmax(axis=1))
        tops = zip(_top(x, 10), _top(y, 10), strict=True)
        overlap += [len(set(p) & set(q)) / len(q) for p, q in tops]
    kl = np.concatenate(kls)
    return LogitDistance(
        max_abs, float(kl.mean()), float(kl.max()), float(np.concatenate(same).mean()), float(np.mean(overlap))
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64[T, V]"""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def negative_log_likelihood(logits: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    """float64[T - 1], nats: how surprised each position was by the token that came next.

    exp of the mean is the perplexity."""
    parts = []
    for start in range(0, len(token_ids) - 1, ROWS_AT_ONCE):
        rows = logits[start : min(start + ROWS_AT_ONCE, len(token_ids) - 1)]
        following = token_ids[start + 1 : start + 1 + len(rows)]
        parts.append(-log_softmax(rows)[np.arange(len(rows)), following])
    return np.concatenate(parts)


def same_choice(a: np.ndarray, b: np.ndarray, tolerance: float) -> np.ndarray:
    """bool[T]: do both choose the same token, or is the judge `b` within `tolerance` of a tie there?"""
    chosen = a.argmax(axis=1)
    best = b.max(axis=1)
    result: np.ndarray = best - b[np.arange(len(b)), chosen] <= tolerance
    return result


def _row_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(a), ROWS_AT_ONCE):
        yield a[start : start + ROWS_AT_ONCE], b[start : start + ROWS_AT_ONCE]


def _top(logits: np.ndarray, n: int) -> np.ndarray:
    n = min(n, logits.shape[1])
    return np.argpartition(logits, -n, axis=1)[:, -n:]
