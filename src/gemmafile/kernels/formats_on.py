"""The formats with kernels: GGUF name -> what knows its blocks. Adding a format is adding its file and a line here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Protocol

import numpy as np

from gemmafile.errors import UnsupportedModel
from gemmafile.kernels import iq4_nl, iq4_xs, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0
from gemmafile.kernels.floats import BF16, F16, F32
from gemmafile.model.weights import ModelWeights, Weight


class FormatModule(Protocol):
    """What the file of a format gives.

    `BLOCK`  weights in a block · `BYTES`  bytes of a block · `ACTIVATIONS`  block of the int8 activations, or None
    """

    @property
    def BLOCK(self) -> int: ...
    @property
    def BYTES(self) -> int: ...
    @property
    def ACTIVATIONS(self) -> int | None: ...

    def dequantize(self, data: np.ndarray, /) -> np.ndarray:
        """uint8[..., n * BYTES] -> float32[..., n * BLOCK]"""

    def quantize_activations(self, x: np.ndarray, /) -> Any:
        """float32[T, K] -> what the kernels read: (int8[T, K], float32[T, K / ACTIVATIONS]), or x rounded."""

    def multiply(self, x: np.ndarray, rows: np.ndarray, /) -> np.ndarray:
        """float32[T, K] times rows uint8[N, K / BLOCK * BYTES]: float32[T, N], in NumPy."""


FORMAT_MODULES: dict[str, FormatModule] = {
    "F32": F32(),
    "F16": F16(),
    "BF16": BF16(),
    "Q8_0": q8_0,
    "Q6_K": q6_k,
    "Q5_K": q5_k,
    "Q5_1": q5_1,
    "Q5_0": q5_0,
    "Q4_K": q4_k,
    "Q4_1": q4_1,
    "Q4_0": q4_0,
    "IQ4_NL": iq4_nl,
    "IQ4_XS": iq4_xs,
    "Q3_K": q3_k,
    "Q2_K": q2_k,
}


def format_module(name: str) -> FormatModule:
    """The module of a format that `check_formats` has let through."""
    return FORMAT_MODULES[name]


def check_formats(weights: ModelWeights) -> None:
    """Raises UnsupportedModel, naming the tensor, for a matrix in a format without kernels."""
    for weight in _matrices(weights):
        if weight.format.name not in FORMAT_MODULES:
            raise UnsupportedModel(
                "the model",
                f"has format {weight.format.name}, which is not supported; supported: {', '.join(FORMAT_MODULES)}",
                field=f"tensor {weight.name!r}",
            )


def _matrices(weights: ModelWeights) -> Iterator[Weight]:
    yield weights.token_embd
    yield weights.output
    for layer in weights.layers:
        tensors = (getattr(layer, field.name) for field in fields(layer))
        yield from (w for w in tensors if w is not None and len(w.shape) == 2)
