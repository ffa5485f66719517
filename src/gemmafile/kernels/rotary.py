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
    return inv_freq if factors is None else _divided(inv_freq, factors.astype(np.float32))


def _divided(inv_freq: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """float32[dim / 2]: inv_freq / factors; in the band that Llama 3 blends, rounded as it was trained.

    A file holds the blend as a float32 to divide by, transformers adds two products: in the last bit they differ, and
    at position 1,000 some logits show it. So where the factors are those of an original context of L positions, with
    Llama 3's bands of 1 and 4 turns, the blend is made anew from L. Any other factors are divided by as they stand.
    Source: transformers `_compute_llama3_parameters`.
    """
    one, divisor = np.float32(1), factors.max()
    blended = (factors > 1) & (factors < divisor)
    divided: np.ndarray = inv_freq / factors
    if not blended.any():
        return divided
    inv, low, high = inv_freq[blended], np.float32(1), np.float32(4)
    share = (1 / factors[blended].astype(np.float64) - 1 / float(divisor)) / (1 - 1 / float(divisor))
    lengths = (1 + 3 * share) * 2 * np.pi / inv
    length = np.float32(np.round(np.median(lengths)))
    wavelength = one / inv * np.float32(2 * np.pi)  # torch divides a number by a tensor so
    smooth = (one / wavelength * length - low) / (high - low)
    blend = (one - smooth) * inv / divisor + smooth * inv
    if np.allclose(blend, divided[blended], rtol=1e-5, atol=0):
        divided[blended] = blend
    return divided


def rotary_table(inv_freq: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos, sin float32[T, dim / 2] for positions int[T]."""
    angle = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
