"""Rows of a format with random bits: every bit pattern of the weights, scales of the size asked for."""

from __future__ import annotations

import numpy as np

from gemmafile.kernels.cache import round_bf16
from gemmafile.kernels.formats_on import format_module

HALVES: dict[str, dict[int, float]] = {
    "Q8_0": {0: 1 / 74},
    "Q6_K": {208: 1 / 1369},
    "Q5_K": {0: 1 / 528, 2: 15.5 / 528},
    "Q5_1": {0: 1 / 9.2, 2: -15.5 / 9.2},
    "Q5_0": {0: 1 / 9.2},
    "Q4_K": {0: 1 / 190, 2: 7.5 / 190},
    "Q4_1": {0: 1 / 4.6, 2: -7.5 / 4.6},
    "Q4_0": {0: 1 / 4.6},
    "IQ4_NL": {0: 1 / 67},
    "IQ4_XS": {0: 1 / 1248},
    "Q3_K": {108: 1 / 43},
    "Q2_K": {80: 1 / 13.9, 82: 1.5 / 13.9},
}
"""Where a block has its float16 numbers, and what they are for weights of standard deviation 1 and mean about 0."""


def random_rows(name: str, rng: np.random.Generator, n_rows: int, n_columns: int, std: float = 1.0) -> np.ndarray:
    """uint8[n_rows, row bytes] of weights with standard deviation about `std`."""
    if name not in HALVES:
        x = rng.standard_normal((n_rows, n_columns), np.float32) * np.float32(std)
        bits = {"F32": x, "F16": x.astype(np.float16), "BF16": round_bf16(x)}[name]
        return bits.view(np.uint8).reshape(n_rows, -1)
    module = format_module(name)
    n_blocks = n_columns // module.BLOCK
    blocks = rng.integers(0, 256, (n_rows, n_blocks, module.BYTES), np.uint8)
    sizes = rng.uniform(0.5, 1.5, (n_rows, n_blocks, 1)) * std
    for byte, half in HALVES[name].items():
        blocks[..., byte : byte + 2] = (sizes * half).astype("<f2").view(np.uint8)
    return blocks.reshape(n_rows, -1)
