"""Embeddings: one vector a text, from the engine; what every API that has them is made of."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmafile.engine.jobs import Embedding
from gemmafile.server.door import Door
from gemmafile.server.errors import ApiError, bad_request, context_overflow
from gemmafile.settings import SamplingSettings

Vector = NDArray[np.float32]

_POOLINGS = {1: "mean", 2: "cls", 3: "last"}
"""Values of ARCHITECTURE.pooling_type in a model file, as llama.cpp numbers them."""


def default_pooling(door: Door) -> str:
    """What --pooling says, else the model's own, else mean."""
    if door.settings.pooling is not None:
        return door.settings.pooling
    value = door.model.metadata.get(f"{door.model.config.architecture}.pooling_type")
    return _POOLINGS.get(value, "mean") if isinstance(value, int) else "mean"


async def embed(door: Door, prompts: list[list[int]], pooling: str | None = None) -> list[Vector]:
    """float32[E] of each prompt, not normalised. Raises ApiError; a cancelled call cancels what it asked for."""
    info = door.client.require_ready()
    for ids in prompts:
        if not ids:
            raise bad_request("the input is empty: there is nothing to embed", "input")
        if len(ids) > info.n_ctx:
            raise context_overflow(len(ids), info.n_ctx)
    kind = pooling or default_pooling(door)
    vectors: list[Vector] = []
    for first in range(0, len(prompts), info.n_slots):  # the rest of a long list leaves room for others
        group = prompts[first : first + info.n_slots]
        vectors += await asyncio.gather(*(_embed_one(door, ids, kind) for ids in group))
    return vectors


async def _embed_one(door: Door, ids: list[int], pooling: str) -> Vector:
    seconds = door.settings.max_seconds
    stream = door.client.submit(ids, SamplingSettings(), pooling=pooling, n_predict=0, deadline_s=seconds)
    try:
        async for event in stream:
            if isinstance(event, Embedding):
                return np.frombuffer(event.values, "<f4").astype(np.float32)
        raise ApiError(503, "the embedding was given up", retry_after=1)
    finally:
        await stream.aclose()


def normalize(vector: Vector, kind: int = 2) -> Vector:
    """The vector divided by a norm. -1: none · 0: the largest value, to fit int16 · 1: taxicab · 2: Euclidean · p"""
    wide = vector.astype(np.float64)
    if kind < 0:
        return vector
    if kind == 0:
        norm = float(np.abs(wide).max(initial=0.0)) / 32760.0
    else:
        largest = float(np.abs(wide).max(initial=0.0)) or 1.0  # powers of what is at most 1 do not overflow
        norm = largest * float(((np.abs(wide) / largest) ** kind).sum() ** (1.0 / kind))
    return (wide / norm).astype(np.float32) if norm > 0 else np.zeros_like(vector)


def as_list(vector: Vector) -> list[Any]:
    return [float(value) for value in vector]
