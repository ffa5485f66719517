"""What transformers said of the tiny models, kept so that `make test` needs no torch.

A golden is an .npz in goldens/: `logits` float32[T, ceil(V / STRIDE)] (every STRIDE-th token), `best` int32[T] the
likeliest token, `margin` float32[T] its lead over the second, `weights` the SHA-256 of the model's weights.
Made by tests/oracles/make_goldens.py.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.make_tiny import PRESETS, TinyModel, make_tiny, tiny_tokens

FOLDER = Path(__file__).parent / "goldens"
SEED = 20
N_TOKENS = 48
"""Longer than every window."""

STRIDE = 8


@dataclass(frozen=True, eq=False)
class Golden:
    logits: np.ndarray
    best: np.ndarray
    margin: np.ndarray
    weights: str

    @classmethod
    def of(cls, logits: np.ndarray, model: TinyModel) -> Golden:
        top = np.partition(logits, -2, axis=1)[:, -2:]
        best = logits.argmax(axis=1).astype(np.int32)
        return cls(logits[:, ::STRIDE], best, top[:, 1] - top[:, 0], weights_digest(model))

    @classmethod
    def load(cls, name: str) -> Golden:
        with np.load(FOLDER / f"{name}.npz") as kept:
            return cls(kept["logits"], kept["best"], kept["margin"], str(kept["weights"]))

    def save(self, name: str) -> None:
        FOLDER.mkdir(exist_ok=True)
        np.savez_compressed(FOLDER / f"{name}.npz", **vars(self))


def golden_model(name: str) -> tuple[TinyModel, np.ndarray]:
    """The model and the token ids of a golden, made anew from their seed."""
    config = PRESETS[name]
    return make_tiny(config, SEED), tiny_tokens(config, SEED, N_TOKENS)


def weights_digest(model: TinyModel) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(model.weights.items()):
        digest.update(name.encode())
        digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()
