"""Rotary angles: cos and sin tables for the rows of a pass, shared by both replays."""

from __future__ import annotations

import numpy as np

from gemmafile.model.config import Rope


def inverse_frequencies(rope: Rope, factors: np.ndarray | None) -> np.ndarray:
    """float32[dim / 2]: θ^(−2j/dim), divided by the linear factor and, for Llama 3, by `factors` float32[dim / 2].

    Exponent, power and reciprocal are each rounded to float32, as models are trained: a last bit more or less is an
    angle of 1e-3 at position 10,000. Source: transformers `modeling_rope_utils.py` (default, linear); llama.cpp's
    `rope_freqs.weight`.
    """
    exponent = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    with np.errstate(over="ignore", divide="ignore"):  # a base out of all bounds
        power = (rope.base ** exponent.astype(np.float64)).astype(np.float32)
        inv_freq = np.float32(1) / power / np.float32(rope.factor)
    return inv_freq if factors is None else inv_freq / factors.astype(np.float32)


def rotary_table(inv_freq: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos, sin float32[T, dim / 2] for positions int[T]."""
    angle = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
