"""ollama's API: /api/chat, /api/generate, /api/embed, /api/embeddings, /api/tags, /api/ps, /api/show, /api/version.

In: a request's JSON; `options` hold the sampling settings. Out: one object, or lines of JSON (NDJSON), the last of them
with the counts and the times in nanoseconds. A model has the name the server gives it, with or without ":latest".
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile.server.answering import Ask, Finished, prompt_ids
from gemmafile.server.anthropic import parse_arguments
from gemmafile.server.body import Fields, read_json
from gemmafile.server.embedding import as_list
from gemmafile.server.errors import ApiError, bad_request
from gemmafile.server.json_response import Json, to_json
from gemmafile.server.ollama_requests import read_chat_turn, read_generate_turn, read_options, read_probs
from gemmafile.server.openai_completions import read_prompts
from gemmafile.server.openai_embeddings import unit_vectors
from gemmafile.server.openai_shapes import chat_logprobs
from gemmafile.server.streaming import begin, merge, stream_until_disconnect, until_disconnect
from gemmafile.server.turns import Call, Done, Prepared, Said, TurnEvent, Whole, prepare, take

if TYPE_CHECKING:
    from gemmafile.server.door import Door

VERSION: Final = "0.12.6"
"""The release of ollama whose API this is: clients ask what they may use."""
NDJSON: Final = "application/x-ndjson"
NEVER: Final = "2318-01-01T00:00:00Z"
"""The model is not unloaded."""


def routes(door: Door) -> list[BaseRoute]:
    async def chat(request: Request) -> Response:
        fields = await _read(request, door)
        turn = read_chat_turn(fields, door)
        if turn is None:
            return Json({**_head(door, fields), "message": _message(""), "done": True, "done_reason": "load"})
        return await _answer(request, door, fields, await prepare(door, turn), chat_line)

    async def generate(request: Request) -> Response:
        fields = await _read(request, door)
        if not fields.raw("prompt"):
            return Json({**_head(door, fields), "response": "", "done": True, "done_reason": "load"})
        turn = read_generate_turn(fields, door)
        if fields.flag("raw"):
            ids = await prompt_ids(door, fields.required_text("prompt"))
            ask = Ask(ids, turn.sampling, turn.max_tokens, turn.stop)
            prepared = Prepared(ask, None)
        else:
            prepared = await prepare(door, turn)
        return await _answer(request, door, fields, prepared, _generate_line)

    async def embed_all(request: Request) -> Response:
        return Json(await _embed(request, door, await _read(request, door), "input"))

    async def embed_one(request: Request) -> Response:
        fields = await _read(request, door)
        made = await _embed(request, door, Fields({**fields.values, "input": fields.raw("prompt", "")}), "input")
        return Json({"embedding": made["embeddings"][0] if made["embeddings"] else []})

    async def tags(request: Request) -> Response:
        return Json({"models": [describe(door)]})

    async def running(request: Request) -> Response:
        entry = describe(door)
        entry |= {"expires_at": NEVER, "size_vram": 0, "context_length": door.n_context}
        return Json({"models": [entry]})

    async def show(request: Request) -> Response:
        body = await read_json(request, door.limits)
        fields = Fields({**body, "model": body.get("model") or body.get("name")})
        _check_model(fields, door)
        return Json(await asyncio.to_thread(show_model, door, fields.flag("verbose")))

    async def version(request: Request) -> Response:
        return Json({"version": VERSION})

    return [
        Route("/api/chat", chat, methods=["POST"]),
        Route("/api/generate", generate, methods=["POST"]),
        Route("/api/embed", embed_all, methods=["POST"]),
        Route("/api/embeddings", embed_one, methods=["POST"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/tags", tags, methods=["GET"]),
        Route("/api/ps", running, methods=["GET"]),
        Route("/api/version", version, methods=["GET"]),
    ]


async def _read(request: Request, door: Door) -> Fields:
    fields = Fields(await read_json(request, door.limits))
    _check_model(fields, door)
    return fields


def _check_model(fields: Fields, door: Door) -> None:
    """Raises ApiError in ollama's words."""
    asked = fields.text("model")
    if not asked:
        raise bad_request("model is required", "model")
    if asked not in (door.model_name, f"{door.model_name}:latest"):
        raise ApiError(404, f"model '{asked[:200]}' not found", param="model")


# --- answers ----------------------------------------------------------------------------------------------------------

Line = Callable[[str, list[Call]], dict[str, Any]]


def _message(text: str, calls: list[Call] | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if calls:
        functions = [{"name": call.name, "arguments": parse_arguments(call.arguments)} for call in calls]
        message["tool_calls"] = [
            {"id": call.id, "function": {"index": place, **function}}
            for place, (call, function) in enumerate(zip(calls, functions, strict=True))
        ]
    return message


def chat_line(text: str, calls: list[Call]) -> dict[str, Any]:
    return {"message": _message(text, calls)}


def _generate_line(text: str, calls: list[Call]) -> dict[str, Any]:
    return {"response": text}


async def _answer(request: Request, door: Door, fields: Fields, prepared: Prepared, line: Line) -> Response:
    n_top = read_probs(fields)
    if n_top is not None:
        sampling = dataclasses.replace(prepared.ask.sampling, n_probs=max(1, n_top))
        prepared = dataclasses.replace(prepared, ask=dataclasses.replace(prepared.ask, sampling=sampling))
    shape, is_stream = Shape(door, fields, n_top, line), fields.flag("stream", True)
    events = await until_disconnect(request.receive, begin(merge([take(door, prepared)])))
    if is_stream:
        return stream_until_disconnect(request, shape.stream(events), NDJSON, show_stream_error)
    return Json(await until_disconnect(request.receive, shape.whole(events)))


def show_stream_error(error: ApiError) -> bytes:
    return to_json({"error": str(error)}) + b"\n"


def _head(door: Door, fields: Fields) -> dict[str, Any]:
    return {"model": fields.text("model") or door.model_name, "created_at": _time()}


def _time(seconds: float | None = None) -> str:
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.isoformat().replace("+00:00", "Z")


class Shape:
    """How the answer to one request is written."""

    def __init__(self, door: Door, fields: Fields, n_top: int | None, line: Line):
        self.door, self.fields, self.n_top, self.line = door, fields, n_top, line
        self.started_ns = time.perf_counter_ns()

    async def whole(self, events: AsyncGenerator[tuple[int, TurnEvent], None]) -> dict[str, Any]:
        turn = Whole()
        try:
            async for _, item in events:
                turn.add(item)
        finally:
            await events.aclose()
        calls = [call for call in turn.calls if parse_arguments(call.arguments) or call.arguments.strip() == "{}"]
        said = Said(turn.text, turn.tokens)
        return {**self._line(said, calls), **self._end(turn.done)}

    async def stream(self, events: AsyncGenerator[tuple[int, TurnEvent], None]) -> AsyncGenerator[bytes, None]:
        turn = Whole()
        try:
            async for _, item in events:
                turn.add(item)
                if isinstance(item, Said) and (item.text or self.n_top is not None):
                    yield to_json({**self._line(item, []), "done": False}) + b"\n"
                elif getattr(item, "is_last", False):  # a call is told when it is whole
                    yield to_json({**self._line(Said("", []), [turn.calls[-1]]), "done": False}) + b"\n"
            yield to_json({**self._line(Said("", []), []), **self._end(turn.done)}) + b"\n"
        finally:
            await events.aclose()

    def _line(self, said: Said, calls: list[Call]) -> dict[str, Any]:
        found = {**_head(self.door, self.fields), **self.line(said.text, calls)}
        if self.n_top is not None and said.tokens:
            found["logprobs"] = chat_logprobs(self.door.tokenizer, said.tokens, self.n_top)["content"]
        return found

    def _end(self, done: Done) -> dict[str, Any]:
        finished = done.finished
        return {"done": True, "done_reason": "length" if done.reason == "length" else "stop", **self._times(finished)}

    def _times(self, finished: Finished) -> dict[str, Any]:
        timings = finished.timings
        return {
            "total_duration": time.perf_counter_ns() - self.started_ns,
            "load_duration": 0,
            "prompt_eval_count": finished.n_prompt,
            "prompt_eval_duration": int(1e6 * timings["prompt_ms"]),
            "eval_count": finished.n_predicted,
            "eval_duration": int(1e6 * timings["predicted_ms"]),
        }


async def _embed(request: Request, door: Door, fields: Fields, name: str) -> dict[str, Any]:
    """ollama cuts a text that does not fit, unless `truncate` is false."""
    started_ns = time.perf_counter_ns()
    read_options(fields, door)  # said to be wrong where they are, though an embedding has no use for them
    n_dims = fields.optional_whole("dimensions", 1)
    if not fields.raw(name):
        return {**_head(door, fields), "embeddings": []}
    ids = [each for _, each in await read_prompts(door, fields, name, parse_special=False)]
    if fields.flag("truncate", True):
        ids = [each[: door.n_context] for each in ids]
    vectors = await until_disconnect(request.receive, unit_vectors(door, fields, ids, n_dims))
    return {
        "model": fields.text("model"),
        "embeddings": [as_list(vector) for vector in vectors],
        "total_duration": time.perf_counter_ns() - started_ns,
        "load_duration": 0,
        "prompt_eval_count": sum(map(len, ids)),
    }


# --- the model --------------------------------------------------------------------------------------------------------


def describe(door: Door) -> dict[str, Any]:
    """An entry of /api/tags."""
    told = f"{door.model_name} {door.model.n_bytes} {door.model.n_params}"
    return {
        "name": f"{door.model_name}:latest",
        "model": f"{door.model_name}:latest",
        "modified_at": _time(door.started_s),
        "size": door.model.n_bytes,
        "digest": hashlib.sha256(told.encode()).hexdigest(),
        "details": _details(door),
    }


def _details(door: Door) -> dict[str, Any]:
    family, n = door.model.config.architecture, door.model.n_params
    size = f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.0f}M"
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": size,
        "quantization_level": door.model.file_type or "unknown",
    }


def _as_list(value: Any) -> list[Any]:
    """An array of the metadata as JSON has it: of strings, of numbers, or of arrays."""
    if isinstance(value, np.ndarray):
        numbers: list[Any] = value.tolist()
        return numbers
    return [item if isinstance(item, str) else _as_list(item) for item in value]


def show_model(door: Door, verbose: bool) -> dict[str, Any]:
    """/api/show. `verbose`: the vocabulary too."""
    metadata = door.model.metadata
    lists = {key: value for key in metadata if not isinstance(value := metadata[key], (str, int, float, bool))}
    info = {key: metadata[key] for key in metadata if key not in lists}
    info |= {key: _as_list(value) if verbose else None for key, value in lists.items()}
    defaults = door.sampling
    named = {"temperature": defaults.temperature, "top_k": defaults.top_k, "top_p": defaults.top_p}
    parameters = "\n".join(f"{name:<30} {value}" for name, value in named.items())
    return {
        "modelfile": f"FROM {door.model_name}\n",
        "parameters": parameters,
        "template": door.chat_template.source,
        "license": str(metadata.get("general.license", "")),
        "details": _details(door),
        "model_info": {**info, "general.parameter_count": door.model.n_params},
        "capabilities": ["completion", "tools", "embedding"],
        "modified_at": _time(door.started_s),
    }
