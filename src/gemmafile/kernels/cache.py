"""The KV cache: pages of 128 positions in one anonymous map a layer, touched only when used.

Layout of a page (K kv heads, D head size rounded up to 64, `t` bytes a number):

    keys    [K][2][D][64]    transposed in blocks of 64 positions: a dot product walks D with 64 positions
                             side by side, so every score is one chain of fma over d, whatever the batch
    values  [K][128][D]      row by row: the weighted sum walks positions with D side by side

Both replays, `replay.py` and `reference.py`, read and write this same memory.
"""

from __future__ import annotations

import mmap

import numpy as np

from gemmafile.errors import BadSettings
from gemmafile.model.batch import PAGE
from gemmafile.model.config import ModelConfig

KEY_BLOCK = 64
"""Positions in one transposed block of keys."""

CACHE_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


def padded(head_dim: int) -> int:
    """Head size as stored: rounded up to 64, the rest zeros."""
    return -(-head_dim // 64) * 64


def to_cache(x: np.ndarray, kind: str) -> np.ndarray:
    """float32 -> the stored numbers (float32, float16, or bfloat16 as uint16), rounded to nearest even."""
    if kind == "f32":
        return x.astype(np.float32)
    if kind == "f16":
        return x.astype(np.float16)
    return round_bf16(x)


def from_cache(x: np.ndarray, kind: str) -> np.ndarray:
    """The stored numbers -> float32, exact."""
    if kind == "bf16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def round_bf16(x: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16 bits (uint16), to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


class KVCache:
    """Keys and values of every layer, in `n_pages` pages.

    `keys[layer]`    [n_pages, K, 2, Dp, 64]   of float32, float16 or uint16 (bf16)
    `values[layer]`  [n_pages, K, 128, Dp]
    """

    def __init__(self, config: ModelConfig, n_pages: int, kind_k: str = "f16", kind_v: str = "f16"):
        self.config, self.n_pages, self.kind_k, self.kind_v = config, n_pages, kind_k, kind_v
        self.width = padded(config.head_dim)
        k, d = config.n_kv_heads, self.width
        shape_k, shape_v = (n_pages, k, PAGE // KEY_BLOCK, d, KEY_BLOCK), (n_pages, k, PAGE, d)
        try:
            self.keys = [_anonymous(shape_k, kind_k) for _ in range(config.n_layers)]
            self.values = [_anonymous(shape_v, kind_v) for _ in range(config.n_layers)]
        except (OSError, OverflowError, MemoryError):
            needed = n_pages * page_bytes(config, kind_k, kind_v) / (1 << 30)
            raise BadSettings(
                f"the KV cache of {n_pages * PAGE} tokens needs {needed:.1f} GiB, more than this system gives: "
                "use a smaller context (-c)"
            ) from None

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return page_bytes(self.config, self.kind_k, self.kind_v)

    def clear_page(self, page: int) -> None:
        """Zero a page that is used again: a masked position weighs 0, and 0 times an old infinity is not 0."""
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[page] = 0
            values[page] = 0

    def store(self, layer: int, page_table: np.ndarray, positions: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        """Write k, v float32[T, K, D] at `positions` int[T] of the sequence with `page_table` int[P]."""
        d = self.config.head_dim
        pages, inside = page_table[positions // PAGE], positions % PAGE
        self.keys[layer][pages, :, inside // KEY_BLOCK, :d, inside % KEY_BLOCK] = to_cache(k, self.kind_k)
        self.values[layer][pages, :, inside, :d] = to_cache(v, self.kind_v)

    def load(self, layer: int, page_table: np.ndarray, n_pages: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `n_pages` pages of a sequence as keys, values float32[K, n_pages * 128, D]."""
        pages, d, n_heads = page_table[:n_pages], self.config.head_dim, self.config.n_kv_heads
        keys = from_cache(self.keys[layer][pages, :, :, :d], self.kind_k)
        values = from_cache(self.values[layer][pages, :, :, :d], self.kind_v)
        return (
            keys.transpose(1, 0, 2, 4, 3).reshape(n_heads, n_pages * PAGE, d),
            values.transpose(1, 0, 2, 3).reshape(n_heads, n_pages * PAGE, d),
        )


def page_bytes(config: ModelConfig, kind_k: str, kind_v: str) -> int:
    """Bytes of one page over all layers."""
    numbers = config.n_layers * config.n_kv_heads * PAGE * padded(config.head_dim)
    return numbers * (CACHE_BYTES[kind_k] + CACHE_BYTES[kind_v])


def _anonymous(shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Zeros that cost no memory until they are touched."""
    dtype = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[kind]
    n = int(np.prod(shape))
    return np.frombuffer(mmap.mmap(-1, max(1, n) * np.dtype(dtype).itemsize), dtype, n).reshape(shape)
