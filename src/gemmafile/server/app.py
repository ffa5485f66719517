"""The application: routes of every API behind one guard. `create_app(door)` gives what uvicorn serves.

A module of routes has `routes(door) -> list[Route]` and is named in ROUTES; the first that matches a path answers it.
Errors of any route come out in the shape of the API that was asked (errors.py).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from gemmafile.errors import GemmafileError
from gemmafile.server.door import Door
from gemmafile.server.errors import ApiError, as_api_error
from gemmafile.server.json_response import error_response
from gemmafile.server.log import RequestLog
from gemmafile.server.security import Guard
from gemmafile.server.streaming import ClientGone

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


def create_app(
    door: Door,
    modules: Sequence[str] = ROUTES,
    on_error: Callable[[Exception], None] = lambda error: None,
    write_log: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Starlette:
    """The ASGI application.

    `write_log`  gets the lines of the request log · `on_error` what is a bug of ours, whose request gets a 500
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

    handlers: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        GemmafileError: show,
        HTTPException: show_http,
        ClientGone: gone,
    }
    routes = [route for name in modules for route in _routes_of(name, door)]
    if door.settings.path is not None:
        routes.append(Mount("/", StaticFiles(directory=door.settings.path, html=True)))
    around = [Middleware(RequestLog, door=door, write=write_log, on_error=on_error), Middleware(Guard, door=door)]
    app = Starlette(routes=routes, exception_handlers=handlers, middleware=around)
    door.client.on_event = door.metrics.meet_event
    app.router.redirect_slashes = False
    app.state.door = door
    return app


def _routes_of(name: str, door: Door) -> list[BaseRoute]:
    found: list[BaseRoute] = importlib.import_module(name).routes(door)
    return found
