"""The request log: a line, or a JSON object, for each request; nothing of what was asked or answered unless wanted.

`RequestLog` stands around the application. What an answer took is put into the record of its request by answering.py,
which finds it in `current`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemmafile.server.door import Door
from gemmafile.server.errors import as_api_error
from gemmafile.server.json_response import error_response


@dataclass
class Record:
    """One request. Tokens are sums over its answers; `first_s` seconds until the first piece of one"""

    start_s: float = field(default_factory=time.perf_counter)
    status: int = 0
    n_bytes: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    n_predicted: int = 0
    first_s: float | None = None
    ends: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)


current: ContextVar[Record | None] = ContextVar("request_record", default=None)


class RequestLog:
    """Notes every response in the metrics, and writes the log where one is wanted."""

    def __init__(self, app: ASGIApp, door: Door, write: Callable[[str], None], on_error: Callable[[Exception], None]):
        self.app, self.door, self.write, self.on_error = app, door, write, on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record()
        token = current.set(record)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            else:
                record.n_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception as error:
            self.on_error(error)
            if record.status:  # the response has begun: all that is left is to break it off
                raise
            await error_response(as_api_error(error), scope["path"])(scope, receive, noting)
        finally:
            current.reset(token)
            route = scope.get("route")
            self.door.metrics.meet_response(getattr(route, "path", "other"), record.status)
            if self.door.settings.log_requests != "off":
                self.write(self._line(scope, record))

    def _line(self, scope: Scope, record: Record) -> str:
        ms = round(1000 * (time.perf_counter() - record.start_s), 1)
        client = scope["client"][0] if scope.get("client") else "-"
        shown: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "client": client, "method": scope["method"],
            "path": scope["path"], "status": record.status, "ms": ms, "bytes": record.n_bytes,
        }  # fmt: skip
        if record.ends:
            first_ms = None if record.first_s is None else round(1000 * (record.first_s - record.start_s), 1)
            shown |= {
                "first_ms": first_ms, "prompt_tokens": record.n_prompt, "cached_tokens": record.n_cached,
                "tokens": record.n_predicted, "ends": record.ends,
            }  # fmt: skip
        if self.door.settings.log_text:
            shown |= {"prompts": record.prompts, "answers": record.answers}
        if self.door.settings.log_requests == "json":
            return json.dumps(shown, ensure_ascii=False)
        return " ".join(f"{name}={_plain(value)}" for name, value in shown.items() if value is not None)


def _plain(value: Any) -> str:
    """A value in one word of a line, or quoted."""
    if isinstance(value, list) and all(isinstance(item, str) and item.replace(" ", "").isalnum() for item in value):
        value = ",".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    is_word = text.isprintable() and not set(text) & set(' "=')
    return text if is_word else json.dumps(text, ensure_ascii=False)
