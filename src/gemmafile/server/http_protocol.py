"""uvicorn's HTTP protocol, with bounds on clients that are slow, or many.

A request's head has to arrive within HEAD_SECONDS; connections beyond `most_connections` are told so and closed. What
is no HTTP gets a 400 in the shape of the other errors.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gemmafile.server.errors import ApiError, error_body

HEAD_SECONDS = 20.0
MAX_HEAD_BYTES = 64 * 1024

_REASONS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class BoundedProtocol(H11Protocol):
    """One connection."""

    most_connections = 1024
    head_seconds = HEAD_SECONDS

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self._refuse(503, "there are too many connections: try again later")
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None and self._is_between_requests:
            self._wait_for_head()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_is_here()

    @property
    def _is_between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)

    def _wait_for_head(self) -> None:
        self._waiting = self.loop.call_later(self.head_seconds, self._give_up_waiting)

    def _head_is_here(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up_waiting(self) -> None:
        self._waiting = None
        if self._is_between_requests and not self.transport.is_closing():
            self._refuse(408, f"the head of the request took more than {self.head_seconds:g} s to arrive")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no valid HTTP request")

    def _refuse(self, status: int, message: str) -> None:
        """An answer outside of any request; the connection is closed behind it."""
        body = json.dumps(error_body(ApiError(status, message))).encode()
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()


def bounded(most_connections: int, **values: Any) -> type[BoundedProtocol]:
    """The protocol with bounds of its own."""
    return type("Bounded", (BoundedProtocol,), {"most_connections": most_connections, **values})
