"""OpenAI's /v1/embeddings and /v1/models."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile.engine.jobs import POOLINGS
from gemmafile.server.body import Fields, read_json
from gemmafile.server.embedding import Vector, as_list, embed, normalize
from gemmafile.server.errors import ApiError, bad_request
from gemmafile.server.json_response import Json
from gemmafile.server.openai_completions import read_prompts
from gemmafile.server.streaming import until_disconnect

if TYPE_CHECKING:
    from gemmafile.server.door import Door


def routes(door: Door) -> list[BaseRoute]:
    async def embeddings(request: Request) -> Response:
        fields = Fields(await read_json(request, door.limits))
        form = fields.choice("encoding_format", ("float", "base64"), "float")
        n_dims = fields.optional_whole("dimensions", 1)
        prompts = await read_prompts(door, fields, "input", parse_special=False)
        ids = [each for _, each in prompts]
        vectors = await until_disconnect(request.receive, unit_vectors(door, fields, ids, n_dims))
        n_tokens = sum(map(len, ids))
        data = [
            {"object": "embedding", "index": place, "embedding": to_base64(v) if form == "base64" else as_list(v)}
            for place, v in enumerate(vectors)
        ]
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        return Json({"object": "list", "data": data, "model": fields.text("model") or door.model_name, "usage": usage})

    async def models(request: Request) -> Response:
        return Json({"object": "list", "data": [describe_model(door)]})

    async def one_model(request: Request) -> Response:
        name = request.path_params["name"]
        if name != door.model_name:
            raise ApiError(404, f"there is no model {name[:80]!r} here: there is {door.model_name!r}", param="model")
        return Json(describe_model(door))

    return [
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", one_model, methods=["GET"]),
        Route("/models/{name:path}", one_model, methods=["GET"]),
    ]


async def unit_vectors(door: Door, fields: Fields, inputs: list[list[int]], n_dims: int | None) -> list[Vector]:
    """Pooled as the request's `pooling` says, cut to `n_dims` numbers, of length 1. Raises ApiError."""
    n_embd = door.model.config.embedding_dim
    if n_dims is not None and n_dims > n_embd:
        raise bad_request(f"dimensions is {n_dims}: this model's vectors have {n_embd}", "dimensions")
    pooling = fields.choice("pooling", POOLINGS)
    return [normalize(vector[:n_dims]) for vector in await embed(door, inputs, pooling)]


def to_base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def describe_model(door: Door) -> dict[str, Any]:
    """An entry of /v1/models; `meta` as llama.cpp has it."""
    model = door.model
    meta = {
        "vocab_type": 1 if model.metadata.get("tokenizer.ggml.model") == "llama" else 2,
        "n_vocab": model.config.n_vocab,
        "n_ctx": door.n_context,
        "n_ctx_train": model.config.n_context,
        "n_embd": model.config.embedding_dim,
        "n_params": model.n_params,
        "size": model.n_bytes,
    }
    return {
        "id": door.model_name,
        "object": "model",
        "created": int(door.started_s),
        "owned_by": "gemmafile",
        "aliases": [door.model_name],
        "meta": meta,
    }
