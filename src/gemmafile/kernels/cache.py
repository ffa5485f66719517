"""The KV cache: pages of 128 positions in one anonymous map a layer, touched only when used.

Layout of a page (K kv heads, D head size rounded up to 64, numbers of 4, 2 or 1 bytes):

    keys    [K][2][D][64]    transposed in blocks of 64 positions: a dot product walks D with 64 positions
                             side by side, so every score is one chain of fma over d, whatever the batch
    values  [K][128][D]      row by row: the weighted sum walks positions with D side by side

q8_0 is int8 with a float16 scale for 32 dimensions of a head at a position; number = scale * q, exact in float32.
The scales stand behind the numbers they belong to:

    keys    [K][2] of  int8 [D][64], float16 [D / 32][64]
    values  [K]    of  int8 [128][D], float16 [128][D / 32]

Both replays, `replay.py` and `reference.py`, read and write this same memory.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np

from gemmafile.errors import BadSettings
from gemmafile.model.batch import PAGE
from gemmafile.model.config import ModelConfig

KEY_BLOCK = 64
"""Positions in one transposed block of keys."""

CAN_DROP = hasattr(mmap, "MADV_REMOVE")
"""Does the system take back memory that processes might share, as Python's anonymous maps are?"""

Q8_0_BLOCK = 32
"""Dimensions that share a scale."""


@dataclass(frozen=True, slots=True)
class CacheType:
    """How a number is stored: its bytes, its NumPy type, bytes of scales a block of Q8_0_BLOCK numbers has."""

    n_bytes: int
    dtype: type[np.generic]
    scale_bytes: int = 0

    def size(self, numbers: int) -> int:
        """Bytes of so many numbers, a multiple of Q8_0_BLOCK, and their scales."""
        return self.n_bytes * numbers + self.scale_bytes * (numbers // Q8_0_BLOCK)


CACHE_TYPES = {
    "f32": CacheType(4, np.float32), "f16": CacheType(2, np.float16), "bf16": CacheType(2, np.uint16),
    "q8_0": CacheType(1, np.int8, 2),
}  # fmt: skip


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


def quantize_q8_0(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32[..., D] -> int8[..., D], float16[..., D / 32], D a multiple of 32.

    scale = float16(max|x| / 127), q = rint(x / scale) held within [-127, 127]; q = 0 where the scale is 0 or not
    finite. An infinity or a NaN in a block makes its scale, and so all its numbers, infinite or NaN.
    """
    blocks = x.reshape(*x.shape[:-1], -1, Q8_0_BLOCK)
    scales = (np.max(np.abs(blocks), axis=-1) / np.float32(127)).astype(np.float16)
    wide = scales.astype(np.float32)[..., None]
    usable = np.isfinite(wide) & (wide != 0)
    q = np.where(usable, np.rint(blocks / np.where(usable, wide, np.float32(1))), np.float32(0))
    return np.clip(q, -127, 127).astype(np.int8).reshape(x.shape), scales


class KVCache:
    """Keys and values of every layer, in `n_pages` pages.

    `keys[layer]`    [n_pages, K, 2, Dp, 64]   of float32, float16, uint16 (bf16); q8_0: uint8 [n_pages, K, 2, bytes]
    `values[layer]`  [n_pages, K, 128, Dp]; q8_0: uint8 [n_pages, K, bytes]
    """

    def __init__(self, config: ModelConfig, n_pages: int, kind_k: str = "f16", kind_v: str = "f16"):
        self.config, self.n_pages, self.kind_k, self.kind_v = config, n_pages, kind_k, kind_v
        self.width = padded(config.head_dim)
        k, d = config.n_kv_heads, self.width
        lead_k, lead_v = (n_pages, k, PAGE // KEY_BLOCK), (n_pages, k)
        self._maps: list[tuple[mmap.mmap, int]] = []  # each layer's, with the bytes that a page has in it
        try:
            self.keys = [self._anonymous(lead_k, (d, KEY_BLOCK), kind_k) for _ in range(config.n_layers)]
            self.values = [self._anonymous(lead_v, (PAGE, d), kind_v) for _ in range(config.n_layers)]
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

    def drop_pages(self, first: int, n: int) -> None:
        """Make zeros of n pages from `first` on by giving their memory back to the system, where it takes it."""
        for layer, page_bytes in self._maps:
            begin, end = first * page_bytes, (first + n) * page_bytes
            inner, outer = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
            try:
                if not CAN_DROP or inner >= outer:
                    raise OSError
                layer.madvise(mmap.MADV_REMOVE, inner, outer - inner)
            except OSError:  # a system that keeps it gets zeros
                inner = outer = end
            layer[begin:inner] = bytes(inner - begin)
            layer[outer:end] = bytes(end - outer)

    def copy_page(self, source: int, target: int, n: int) -> None:
        """The first n positions of a page; what is behind them in `target` is zeroed."""
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            keys[target] = keys[source]
            values[target] = values[source]
            for numbers in self._columns(layer, target):
                for half in range(PAGE // KEY_BLOCK):
                    numbers[:, half, :, max(0, n - half * KEY_BLOCK) :] = 0
            for numbers in self._rows(layer, target):
                numbers[:, n:] = 0

    def _columns(self, layer: int, page: int) -> tuple[np.ndarray, ...]:
        """Views of a page's keys [K, 2, ..., 64], and of their scales."""
        keys = self.keys[layer][page]
        return self._key_parts(keys) if self.kind_k == "q8_0" else (keys,)

    def _rows(self, layer: int, page: int) -> tuple[np.ndarray, ...]:
        """Views of a page's values [K, 128, ...], and of their scales."""
        values = self.values[layer][page]
        return self._value_parts(values) if self.kind_v == "q8_0" else (values,)

    def store(self, layer: int, page_table: np.ndarray, positions: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
        """Write k, v float32[T, K, D] at `positions` int[T] of the sequence with `page_table` int[P]."""
        d = self.config.head_dim
        pages, inside = page_table[positions // PAGE], positions % PAGE
        half, column = inside // KEY_BLOCK, inside % KEY_BLOCK
        if self.kind_k == "q8_0":
            numbers, scales = self._key_parts(self.keys[layer])
            numbers[pages, :, half, :, column], scales[pages, :, half, :, column] = quantize_q8_0(self._pad(k))
        else:
            self.keys[layer][pages, :, half, :d, column] = to_cache(k, self.kind_k)
        if self.kind_v == "q8_0":
            numbers, scales = self._value_parts(self.values[layer])
            numbers[pages, :, inside], scales[pages, :, inside] = quantize_q8_0(self._pad(v))
        else:
            self.values[layer][pages, :, inside, :d] = to_cache(v, self.kind_v)

    def load(self, layer: int, page_table: np.ndarray, n_pages: int) -> tuple[np.ndarray, np.ndarray]:
        """The first `n_pages` pages of a sequence as keys, values float32[K, n_pages * 128, D]."""
        pages, d, n_heads = page_table[:n_pages], self.config.head_dim, self.config.n_kv_heads
        keys, values = self.keys[layer][pages], self.values[layer][pages]
        if self.kind_k == "q8_0":
            numbers, scales = self._key_parts(keys)
            keys = numbers * np.repeat(scales.astype(np.float32), Q8_0_BLOCK, axis=-2)
        else:
            keys = from_cache(keys, self.kind_k)
        if self.kind_v == "q8_0":
            numbers, scales = self._value_parts(values)
            values = numbers * np.repeat(scales.astype(np.float32), Q8_0_BLOCK, axis=-1)
        else:
            values = from_cache(values, self.kind_v)
        return (
            keys[..., :d, :].transpose(1, 0, 2, 4, 3).reshape(n_heads, n_pages * PAGE, d),
            values[..., :d].transpose(1, 0, 2, 3).reshape(n_heads, n_pages * PAGE, d),
        )

    def _key_parts(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Views of q8_0 keys uint8[..., bytes]: int8[..., Dp, 64] and float16[..., Dp / 32, 64]."""
        return _parts(keys, (self.width, KEY_BLOCK), (self.width // Q8_0_BLOCK, KEY_BLOCK))

    def _value_parts(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Views of q8_0 values uint8[..., bytes]: int8[..., 128, Dp] and float16[..., 128, Dp / 32]."""
        return _parts(values, (PAGE, self.width), (PAGE, self.width // Q8_0_BLOCK))

    def _pad(self, x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, 0), (0, self.width - self.config.head_dim)))

    def _anonymous(self, lead: tuple[int, ...], shape: tuple[int, int], kind: str) -> np.ndarray:
        """Zeros that cost no memory until they are touched: [*lead, *shape], for q8_0 uint8 [*lead, bytes of shape]."""
        stored = CACHE_TYPES[kind]
        quantised = ((stored.size(shape[0] * shape[1]),), np.uint8)
        tail, dtype = quantised if stored.scale_bytes else (shape, stored.dtype)
        n = int(np.prod(lead + tail))
        n_bytes = max(1, n) * np.dtype(dtype).itemsize
        self._maps.append((mmap.mmap(-1, n_bytes), n_bytes // max(1, lead[0])))
        return np.frombuffer(self._maps[-1][0], dtype, n).reshape(*lead, *tail)


def _parts(array: np.ndarray, shape: tuple[int, int], scale_shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    n, lead = shape[0] * shape[1], array.shape[:-1]
    numbers, scales = array[..., :n].view(np.int8), array[..., n:].view(np.float16)
    return numbers.reshape(*lead, *shape), scales.reshape(*lead, *scale_shape)


def page_bytes(config: ModelConfig, kind_k: str, kind_v: str) -> int:
    """Bytes of one page over all layers."""
    numbers = config.n_kv_heads * PAGE * padded(config.head_dim)
    return config.n_layers * (CACHE_TYPES[kind_k].size(numbers) + CACHE_TYPES[kind_v].size(numbers))
