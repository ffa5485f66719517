"""A server that has OpenAI's API, as a chat in the terminal needs it: its models, and answers piece by piece."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from gemmafile.errors import BadSettings, GemmafileError

MOST_ERROR_BYTES = 100_000


@dataclass
class Answered:
    """What became of an answer. `usage`  the server's counts of tokens"""

    text: str = ""
    ending: str = ""
    usage: Mapping[str, Any] = field(default_factory=dict)
    start_s: float = field(default_factory=time.perf_counter)
    first_s: float = 0.0
    end_s: float = 0.0

    def describe(self) -> str:
        """ "prompt: 12 tokens, first word after 0.21 s; answer: 40 tokens, 9.8 tokens/s"."""
        n_prompt, n = self.usage.get("prompt_tokens", "?"), self.usage.get("completion_tokens", "?")
        parts = [f"prompt: {n_prompt} tokens, first word after {max(0.0, self.first_s - self.start_s):.2f} s"]
        seconds = self.end_s - self.first_s
        speed = f", {(n - 1) / seconds:.1f} tokens/s" if isinstance(n, int) and n > 1 and seconds > 0 else ""
        return "; ".join([*parts, f"answer: {n} tokens{speed}"])


class Remote:
    """One server. `address`  as the user gave it, without a path"""

    def __init__(self, url: str, key: str, model: str, timeout_s: float):
        """Raises BadSettings for what is no address."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host, self._port = "", None
        if parts.scheme not in ("http", "https") or not self._host:
            raise BadSettings(f"--connect {url!r}: expected an address such as http://127.0.0.1:8080")
        self.address = f"{parts.scheme}://{parts.netloc}"
        path = parts.path.rstrip("/")
        self._base = path if path.endswith("/v1") else f"{path}/v1"
        self._kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._timeout_s, self.model = timeout_s, model
        self._headers: dict[str, str | bytes] = {"Content-Type": "application/json", "Accept": "*/*"}
        if not key.isprintable():
            raise BadSettings("the API key holds a line break or another control character")
        if key:
            self._headers["Authorization"] = f"Bearer {key}".encode()

    def find_model(self) -> str:
        """The model that was named, else the first one that the server lists."""
        if not self.model:
            with self._ask("GET", "/models") as response:
                listed = self._parse(response.read())
            try:
                self.model = str(listed["data"][0]["id"])
            except (KeyError, IndexError, TypeError):
                raise GemmafileError(f"{self.address} lists no models: name one with -m") from None
        return self.model

    def answer(
        self, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], answered: Answered
    ) -> Iterator[str]:
        """The pieces of an answer to a chat; `answered` is filled as they come. Raises GemmafileError."""
        body = {"model": self.model, "messages": list(messages), "stream": True, **fields}
        body["stream_options"] = {"include_usage": True}
        with self._ask("POST", "/chat/completions", body) as response:
            for chunk in self._chunks(response):
                for choice in chunk.get("choices") or ():
                    answered.ending = choice.get("finish_reason") or answered.ending
                    piece = (choice.get("delta") or {}).get("content")
                    if piece:
                        answered.first_s = answered.first_s or time.perf_counter()
                        answered.text += piece
                        yield piece
                answered.usage = chunk.get("usage") or answered.usage
                answered.end_s = time.perf_counter()

    def _chunks(self, response: HTTPResponse) -> Iterator[dict[str, Any]]:
        """The values of a stream of events. Raises GemmafileError where it says so, or breaks off."""
        try:
            for line in response:
                name, _, text = line.partition(b":")
                if name != b"data" or not text.strip():
                    continue
                if text.strip() == b"[DONE]":
                    return
                chunk = self._parse(text)
                if "error" in chunk:
                    raise GemmafileError(f"{self.address}: {_message(chunk)}")
                yield chunk
        except (OSError, HTTPException) as error:
            raise GemmafileError(f"{self.address}: the answer broke off: {error or type(error).__name__}") from None

    def _ask(self, method: str, path: str, body: Any = None) -> _Response:
        connection = self._kind(self._host, self._port, timeout=self._timeout_s)
        try:
            raw = None if body is None else json.dumps(body).encode()
            connection.request(method, self._base + path, raw, self._headers)
            response = connection.getresponse()
        except (OSError, HTTPException) as error:
            connection.close()
            what = getattr(error, "strerror", None) or error or type(error).__name__
            raise GemmafileError(f"{self.address} does not answer: {what}") from None
        if response.status != 200:
            said = response.read(MOST_ERROR_BYTES)
            connection.close()
            raise GemmafileError(f"{self.address}: {response.status} {response.reason}: {_message_of(said)}")
        return _Response(connection, response)

    def _parse(self, raw: bytes) -> dict[str, Any]:
        try:
            value = json.loads(raw)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise GemmafileError(f"{self.address} does not speak OpenAI's API: {raw[:60]!r}")
        return value


class _Response:
    """A response, and the connection that ends with it."""

    def __init__(self, connection: HTTPConnection, response: HTTPResponse):
        self._connection, self._response = connection, response

    def __enter__(self) -> HTTPResponse:
        return self._response

    def __exit__(self, *reason: object) -> None:
        self._response.close()
        self._connection.close()


def _message(value: Mapping[str, Any]) -> str:
    error = value.get("error")
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _message_of(raw: bytes) -> str:
    try:
        return _message(json.loads(raw))
    except (ValueError, AttributeError):
        return raw[:200].decode("utf-8", "replace").strip() or "no more is said"
