"""Texts to vectors, for every API that has embeddings: pooled by the engine, made a unit vector here.

Models with weights for writing are not trained for this; the mean of their last layer still tells like from unlike.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from gemmafile.engine.jobs import POOLINGS, Embedding
from gemmafile.server.answering import Ask, check_ask
from gemmafile.server.errors import ApiError, bad_request

if TYPE_CHECKING:
    from gemmafile.server.body import Fields
    from gemmafile.server.door import Door

MOST_INPUTS: Final = 2048


@dataclasses.dataclass(frozen=True)
class Vector:
    """`values` float32[E]"""

    values: NDArray[np.float32]
    n_tokens: int

    def as_base64(self) -> str:
        return base64.b64encode(self.values.astype("<f4").tobytes()).decode()


def read_pooling(door: Door, fields: Fields) -> str:
    """The request's `pooling`, else the server's, else the mean."""
    return fields.choice("pooling", POOLINGS) or door.settings.pooling or "mean"


async def embed(door: Door, inputs: list[list[int]], pooling: str, n_dims: int | None = None) -> list[Vector]:
    """A unit vector for each input's token ids, cut to `n_dims` first. Raises ApiError; none of them is made then."""
    n_embd = door.model.config.embedding_dim
    if n_dims is not None and not 1 <= n_dims <= n_embd:
        raise bad_request(f"dimensions is {n_dims}: this model's vectors have {n_embd}", "dimensions")
    if len(inputs) > MOST_INPUTS:
        raise bad_request(f"{len(inputs)} inputs in one request: at most {MOST_INPUTS} are taken", "input")
    for ids in inputs:
        check_ask(door, Ask(ids, door.sampling))
    tasks = [asyncio.ensure_future(_embed_one(door, ids, pooling, n_dims)) for ids in inputs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _embed_one(door: Door, ids: list[int], pooling: str, n_dims: int | None) -> Vector:
    stream = door.client.submit(ids, door.sampling, n_predict=0, pooling=pooling)
    try:
        async for event in stream:
            if isinstance(event, Embedding):
                values = np.frombuffer(event.values, "<f4").astype(np.float64)[:n_dims]
                length = float(np.linalg.norm(values))
                return Vector((values / (length or 1.0)).astype(np.float32), len(ids))
    finally:
        await stream.aclose()
    raise ApiError(500, "the engine gave no embedding")
