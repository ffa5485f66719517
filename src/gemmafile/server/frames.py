"""Frames: what crosses between the door and the engine's process. 4 bytes of length, little-endian, and JSON.

To the engine   {"op": "job", ...} {"op": "cancel", "id"} {"op": "slot", "id", "action", "slot", "filename"}
                {"op": "slots", "id"} {"op": "stop"}
From it         {"ev": "loading", "progress", "line"} {"ev": "ready", "info"} {"ev": "failed", "message", "exit_code"}
                {"ev": "events", "items": [[kind, id, ...], ...]} one frame a pass, for all jobs
                {"ev": "stats", ...} {"ev": "slots", "id", "slots"}
An event travels as its kind and its fields in order (engine/jobs.py): ["t", id, token_id, logprob, top].
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

from gemmafile.engine.jobs import Embedding, End, Event, Failed, Progress, Scores, SlotDone, Timings, Token

LENGTH = struct.Struct("<I")
MAX_BYTES = 256 << 20


def encode(value: dict[str, Any]) -> bytes:
    """A frame."""
    body = json.dumps(value, separators=(",", ":")).encode()
    return LENGTH.pack(len(body)) + body


def pack_event(event: Event) -> list[Any]:
    """An event as JSON can hold it."""
    match event:
        case Token():
            return ["t", event.id, event.token_id, event.logprob, event.top]
        case Progress():
            return ["p", event.id, event.done, event.total, event.cached]
        case End():
            t = event.timings
            timings = [t.cache_n, t.prompt_n, t.prompt_ms, t.predicted_n, t.predicted_ms]
            return ["e", event.id, event.reason, timings, event.slot, event.queued_ms]
        case Failed():
            return ["f", event.id, event.status, event.kind, event.message, event.retry_after_s, event.n_prompt,
                    event.n_context]  # fmt: skip
        case Scores():
            return ["s", event.id, event.first, event.items]
        case Embedding():
            return ["v", event.id, base64.b64encode(event.values).decode()]
        case SlotDone():
            return ["d", event.id, event.slot, event.action, event.n_tokens, event.n_bytes, event.ms]


def unpack_event(item: list[Any]) -> Event:
    """What `pack_event` packed."""
    return _UNPACK[item[0]](item)


_UNPACK: dict[str, Callable[[list[Any]], Event]] = {
    "t": lambda i: Token(i[1], i[2], i[3], i[4]),
    "p": lambda i: Progress(*i[1:]),
    "e": lambda i: End(i[1], i[2], Timings(*i[3]), i[4], i[5]),
    "f": lambda i: Failed(*i[1:]),
    "s": lambda i: Scores(*i[1:]),
    "v": lambda i: Embedding(i[1], base64.b64decode(i[2])),
    "d": lambda i: SlotDone(*i[1:]),
}
