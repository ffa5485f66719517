"""The body of a request: bytes from whoever sends them in, a dict out, or an ApiError that says what is wrong.

`read_json` bounds size, time and depth, and lets nothing through that is no JSON or no Unicode. `Fields` takes values
out of the dict with their types and ranges checked; an error names the field. Fields nobody asks for are ignored, as
by the servers whose APIs these are.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from gemmafile.errors import nearest
from gemmafile.server.errors import ApiError, bad_request

T = TypeVar("T")

MAX_INT = 2**63 - 1
_MAX_BITS = 512
LARGE_BYTES = 200_000
"""A larger body is parsed on another thread, so that streams of others go on."""
MOST_SHOWN = 60
"""Characters of a wrong value that an error repeats."""


class Pool:
    """Bytes of all bodies that are being read at one time."""

    def __init__(self, most: int = 256_000_000):
        self.most, self.used = most, 0


@dataclass(frozen=True)
class Limits:
    """What a request may cost before it is understood.

    `seconds`  in which all of the body has to arrive · `drain_bytes`  read and dropped of a body that is too large:
    a client that is still sending would not see the answer otherwise · `pool`  what all requests take together
    """

    max_bytes: int = 16_000_000
    seconds: float = 60.0
    depth: int = 64
    drain_bytes: int = 512_000_000
    pool: Pool = field(default_factory=Pool)


async def read_body(request: Request, limits: Limits) -> bytes:
    """All bytes of the body.

    Raises ApiError: 413 where they are too many, 408 where they come too slowly, 503 where too many others come too.
    """
    declared = request.headers.get("content-length", "")
    too_large = declared.isdigit() and int(declared) > limits.max_bytes
    parts: list[bytes] = []
    n = n_kept = 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                n += len(part)
                if n > limits.max_bytes:
                    too_large = True
                    parts.clear()
                if too_large and n > limits.drain_bytes:
                    break
                if not too_large:
                    parts.append(part)
                    limits.pool.used += len(part)
                    n_kept += len(part)
                    if limits.pool.used > limits.pool.most:
                        raise ApiError(503, "the server is reading too many large requests", retry_after=5)
    except TimeoutError:
        raise ApiError(408, f"the request took more than {limits.seconds:g} s to arrive") from None
    except ClientDisconnect:
        raise ApiError(400, "the client went away in the middle of its request") from None
    finally:
        limits.pool.used -= n_kept
    if too_large:
        raise ApiError(413, f"the request has more than {limits.max_bytes} bytes")
    return b"".join(parts)


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The body as a JSON object. Raises ApiError."""
    raw = await read_body(request, limits)
    if len(raw) > LARGE_BYTES:
        return await asyncio.to_thread(json_object, raw, limits)
    return json_object(raw, limits)


def json_object(raw: bytes, limits: Limits) -> dict[str, Any]:
    """A body as the JSON object it has to be. Raises ApiError."""
    value = parse_json(raw, limits.depth)
    if not isinstance(value, dict):
        raise bad_request(f"the request's body has to be a JSON object, not {_name(value)}")
    return value


def parse_json(raw: bytes, depth: int) -> Any:
    """JSON of at most so many levels. Raises ApiError 400."""
    if not raw.strip():
        raise bad_request("the request has no body: a JSON object is expected")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise bad_request(f"the body is not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise bad_request(f"the body is not valid JSON: {error.msg}, {where}") from None
    except RecursionError:
        raise bad_request(f"the JSON is nested more than {depth} deep") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise bad_request(f"the body is not valid JSON: {error}") from None
    _check_value(value, depth)
    return value


def _refuse_constant(name: str) -> None:
    raise bad_request(f"{name} is no JSON")


def _check_value(value: Any, depth: int) -> None:
    """No more levels than `depth`, no infinite numbers, no halves of characters."""
    level: list[Any] = [value]
    for _ in range(depth + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                if not item.isascii():
                    _check_text(item)
            elif (isinstance(item, float) and not math.isfinite(item)) or (
                isinstance(item, int) and item.bit_length() > _MAX_BITS
            ):
                raise bad_request("a number in the body is too large")
        if not below:
            return
        level = below
    raise bad_request(f"the JSON is nested more than {depth} deep")


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad_request(f"a text in the body holds half a character, \\u{ord(text[error.start]):04x}") from None


def _name(value: Any) -> str:
    """What kind of JSON a value is, in words."""
    if value is None:
        return "null"
    kinds: tuple[tuple[type[Any], str], ...] = (
        (bool, "true or false"), (int, "a number"), (float, "a number"), (str, "a string"), (list, "a list"),
        (dict, "an object"),
    )  # fmt: skip
    return next((name for kind, name in kinds if isinstance(value, kind)), type(value).__name__)


def show(value: Any) -> str:
    """A value as an error repeats it."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


class Fields:
    """The fields of a request, by name, checked as they are taken. null is the same as absence."""

    def __init__(self, values: dict[str, Any], where: str = ""):
        self.values, self.where = values, where

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def raw(self, name: str, default: Any = None) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def wrong(self, name: str, expected: str) -> ApiError:
        """The error for a field whose value will not do."""
        return bad_request(f"{self.where}{name} is {show(self.values.get(name))}: expected {expected}", name)

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "a string")
        return value

    def required_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            raise bad_request(f"{self.where}{name} is missing: a string is expected", name)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def whole(self, name: str, default: int, low: int = -MAX_INT, high: int = MAX_INT) -> int:
        """A whole number; 5.0 is one."""
        value = self.raw(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(name, f"a whole number{_range(low, high)}")
        return value

    def optional_whole(self, name: str, low: int = -MAX_INT, high: int = MAX_INT) -> int | None:
        return self.whole(name, 0, low, high) if name in self else None

    def number(self, name: str, default: float, low: float = -math.inf, high: float = math.inf) -> float:
        value = self.raw(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(name, f"a number{_range(low, high)}")
        return float(value)

    def optional_number(self, name: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        return self.number(name, 0.0, low, high) if name in self else None

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str | None:
        value = self.text(name, default)
        if value is not None and value not in choices:
            raise self.wrong(name, f"one of {', '.join(choices)}{nearest(value, choices)}")
        return value

    def texts(self, name: str, most: int | None = None) -> list[str]:
        """A string, or a list of strings."""
        value = self.raw(name, [])
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise self.wrong(name, "a string or a list of strings")
        if most is not None and len(found) > most:
            raise self.wrong(name, f"at most {most} strings")
        return found

    def items(self, name: str, most: int | None = None) -> list[Any]:
        value = self.raw(name, [])
        if not isinstance(value, list) or (most is not None and len(value) > most):
            raise self.wrong(name, "a list" if most is None else f"a list of at most {most}")
        return value

    def object(self, name: str) -> dict[str, Any] | None:
        value = self.raw(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return value

    def take(self, name: str, read: Callable[[Any], T], expected: str) -> T | None:
        """What `read` makes of a value that is there; its ValueError, TypeError or KeyError names the field."""
        value = self.raw(name)
        if value is None:
            return None
        try:
            return read(value)
        except (ValueError, TypeError, KeyError):
            raise self.wrong(name, expected) from None


def _range(low: float, high: float) -> str:
    has_low, has_high = low > -MAX_INT, high < MAX_INT
    if has_low and has_high:
        return f" from {low} to {high}"
    return f" not below {low}" if has_low else f" not above {high}" if has_high else ""
