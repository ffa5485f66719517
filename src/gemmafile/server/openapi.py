"""/openapi.json: an OpenAPI 3.1 document of every route there is.

What the server was started without is not in it. The paths are described in openapi_openai.py and its siblings;
a test holds them against the routes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gemmafile.server import openapi_anthropic, openapi_llamacpp, openapi_ollama, openapi_openai, openapi_page
from gemmafile.server.json_response import Json
from gemmafile.server.openapi_shapes import ANY_OBJECT, operation

if TYPE_CHECKING:
    from gemmafile.server.door import Door


def routes(door: Door) -> list[BaseRoute]:
    kept: dict[str, Any] = {}

    async def openapi(request: Request) -> Response:
        if not kept:
            kept.update(document(door))
        return Json(kept)

    return [Route("/openapi.json", openapi, methods=["GET"])]


def document(door: Door) -> dict[str, Any]:
    """The document, with the name of this server's model in it."""
    paths = {**openapi_openai.paths(), **openapi_anthropic.paths()}
    paths |= {**openapi_llamacpp.paths(door.settings), **openapi_ollama.paths(door.model_name)}
    paths |= openapi_page.paths(door.settings)
    paths["/openapi.json"] = {"get": operation("This document", "server", ANY_OBJECT)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gemmafile",
            "version": "1",
            "summary": "One model, by the APIs of OpenAI, llama.cpp, Anthropic and ollama.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": door.settings.prefix or "/"}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": {**openapi_openai.schemas(), **openapi_anthropic.schemas(), **openapi_ollama.schemas()},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "security": [{}, {"key": []}, {"header": []}],
    }
