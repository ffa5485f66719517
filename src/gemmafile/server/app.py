"""The application: routes of every API behind one guard. `create_app(door)` gives what uvicorn serves.

A module of routes has `routes(door) -> list[Route]` and is named in ROUTES; the first that matches a path answers it.
Errors of any route come out in the shape of the API that was asked (errors.py).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from gemmafile.errors import GemmafileError
from gemmafile.server.answering import ClientGone
from gemmafile.server.door import Door
from gemmafile.server.errors import ApiError, as_api_error
from gemmafile.server.json_response import error_response
from gemmafile.server.security import Guard

ROUTES = (
    "gemmafile.server.llamacpp",
    "gemmafile.server.openai_chat",
    "gemmafile.server.openai_completions",
    "gemmafile.server.openai_embeddings",
    "gemmafile.server.anthropic",
    "gemmafile.server.responses",
    "gemmafile.server.ollama",
    "gemmafile.server.openapi",
    "gemmafile.web.routes",
)


def create_app(door: Door, modules: Sequence[str] = ROUTES, on_error: Callable[[Exception], None] | None = None) -> Any:
    """The ASGI application.

    `on_error`  gets what is no error of ours but a bug, once its response is sent
    """

    async def show(request: Request, error: Exception) -> Response:
        return error_response(as_api_error(error), request.url.path)

    async def show_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"there is nothing at {request.method} {request.url.path}" if error.status_code == 404 else None
        wrong = ApiError(error.status_code, message or f"{request.url.path}: {error.detail}")
        return error_response(wrong, request.url.path, error.headers)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)

    async def show_bug(request: Request, error: Exception) -> Response:
        if on_error is not None:
            on_error(error)
        return error_response(as_api_error(error), request.url.path)

    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        GemmafileError: show,
        HTTPException: show_http,
        ClientGone: gone,
        Exception: show_bug,
    }
    routes = [route for name in modules for route in _routes_of(name, door)]
    app = Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard, door=door)])
    app.router.redirect_slashes = False
    app.state.door = door
    return app


def _routes_of(name: str, door: Door) -> list[BaseRoute]:
    if importlib.util.find_spec(name.rpartition(".")[0]) is None or importlib.util.find_spec(name) is None:
        return []
    found: list[BaseRoute] = importlib.import_module(name).routes(door)
    return found
