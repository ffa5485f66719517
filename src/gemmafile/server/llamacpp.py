"""llama.cpp's own API: /health, /completion, /tokenize, /detokenize, /apply-template, /embedding, /props, /slots."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile.server.door import Door
from gemmafile.server.json_response import Json
from gemmafile.server.native_completion import completion


def routes(door: Door) -> list[BaseRoute]:
    async def health(request: Request) -> Response:
        """200 when there is an engine; 503 in llama.cpp's words while there is none."""
        door.client.require_ready()
        return Json({"status": "ok"})

    async def complete(request: Request) -> Response:
        return await completion(request, door)

    return [
        Route("/health", health),
        Route("/v1/health", health),
        Route("/completion", complete, methods=["POST"]),
        Route("/completions", complete, methods=["POST"]),
    ]
