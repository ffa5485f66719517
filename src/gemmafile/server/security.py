"""Who may ask: the guard in front of all routes.

Host     has to be a name of this server, or a page that points its own name at this address could read everything
Origin   a page of another origin is refused unless it is on the list (--cors-origins)
key      where there are keys, everything but /health needs one: Authorization: Bearer, X-Api-Key, or the cookie
         that /?key=... sets, so that a browser can open the page
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemmafile.server.door import Door
from gemmafile.server.errors import ApiError
from gemmafile.server.json_response import error_response

OPEN_PATHS = ("/health", "/v1/health")
COOKIE = "gemmafile_key"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")

METHODS = "GET, POST, DELETE, OPTIONS"
SAFE_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


def is_loopback(host: str) -> bool:
    """Does an address reach this machine only?"""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def cookie_of(key: bytes) -> bytes:
    """What a browser keeps of a key: the key itself cannot be had from it."""
    return hashlib.sha256(b"gemmafile cookie " + key).hexdigest().encode()


def _is_among(given: bytes, secrets: Sequence[bytes]) -> bool:
    """Compared with each of them, in a time that does not tell how much of one is right."""
    return sum(hmac.compare_digest(given, secret) for secret in secrets) > 0


class Guard:
    """Checks each request before any route sees it."""

    def __init__(self, app: ASGIApp, door: Door):
        self.app, self.door = app, door
        settings = door.settings
        self.prefix = settings.prefix.rstrip("/")
        self.keys = [key.encode() for key in settings.api_keys]
        self.cookies = [cookie_of(key) for key in self.keys]
        self.any_address = not is_loopback(settings.host)
        self.names = {*LOCAL_NAMES, settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        if self.any_address:
            own = socket.gethostname().lower()
            self.names |= {own, f"{own}.local", own.partition(".")[0]}
        self.origins = _split(settings.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        allowed_origin = self._foreign_origin(headers)
        response = self._check(scope, headers, allowed_origin)
        out = self._with_headers(send, allowed_origin)
        if response is not None:
            await response(scope, receive, out)
        else:
            await self.app(scope, receive, out)

    def _check(self, scope: Scope, headers: Headers, foreign: str | None) -> Response | None:
        """A response that ends it here; None: go on."""
        try:
            if self.prefix and scope["path"] == self.prefix and scope["method"] == "GET":
                query = scope["query_string"].decode("latin-1")  # it may hold the key
                return RedirectResponse(f"{quote(self.prefix)}/" + (f"?{query}" if query else ""), 308)
            self._strip_prefix(scope)
            self._check_host(headers)
            self._check_origin(headers, foreign)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                return Response(status_code=204)
            return self._check_key(scope, headers)
        except ApiError as error:
            return error_response(error, scope["path"])

    def _strip_prefix(self, scope: Scope) -> None:
        if not self.prefix:
            return
        path: str = scope["path"]
        if path != self.prefix and not path.startswith(self.prefix + "/"):
            raise ApiError(404, f"there is nothing at {path}: this server is at {self.prefix}/")
        scope["path"] = path[len(self.prefix) :] or "/"
        scope["raw_path"] = quote(scope["path"]).encode()

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if not host or "*" in self.names:
            return
        name = _name_of(host)
        if name in self.names or name.strip("[]") in self.names or name.endswith(".localhost"):
            return
        if self.any_address and _is_address(name):
            return
        raise ApiError(403, f"this server is not known as {name!r}: --allow-host {name} would make it so")

    def _foreign_origin(self, headers: Headers) -> str | None:
        """The origin of a page of another origin that may ask; None: there is none, or it may not."""
        origin = headers.get("origin")
        if origin is None or self._is_own(origin, headers):
            return None
        return origin if "*" in self.origins or origin in self.origins else None

    def _is_own(self, origin: str, headers: Headers) -> bool:
        scheme, separator, rest = origin.partition("://")
        return bool(separator) and scheme in ("http", "https") and rest.lower() == headers.get("host", "").lower()

    def _check_origin(self, headers: Headers, foreign: str | None) -> None:
        origin = headers.get("origin")
        if origin is not None and foreign is None and not self._is_own(origin, headers):
            raise ApiError(403, f"pages of {origin[:200]} may not ask this server: --cors-origins would let them")

    def _check_key(self, scope: Scope, headers: Headers) -> Response | None:
        if not self.keys or scope["path"] in OPEN_PATHS:
            return None
        asked = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("key")
        if asked is not None and scope["method"] == "GET" and _is_among(asked.encode(), self.keys):
            return self._remember(scope, asked.encode())
        given = [_bearer(headers), headers.get("x-api-key", "")]
        if any(_is_among(key.encode("latin-1"), self.keys) for key in given):
            return None
        if _is_among(_cookie(headers).encode("utf-8", "replace"), self.cookies):
            return None
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return HTMLResponse(_ASK_FOR_KEY, 401)
        raise ApiError(401, "Invalid API Key")

    def _remember(self, scope: Scope, key: bytes) -> Response:
        """Set the cookie and take the key out of the address, where histories and logs would keep it."""
        rest = [(name, value) for name, value in parse_qsl(scope["query_string"].decode("latin-1")) if name != "key"]
        target = quote(self.prefix + scope["path"]) + (f"?{urlencode(rest)}" if rest else "")
        # "//name" would be another server's address.
        response = RedirectResponse("/" + target.lstrip("/"), 303)
        secure = scope.get("scheme") == "https"
        response.set_cookie(
            COOKIE, cookie_of(key).decode(), httponly=True, samesite="strict", secure=secure, path=self.prefix or "/"
        )
        return response

    def _with_headers(self, send: Send, origin: str | None) -> Send:
        added = [(name.lower().encode(), value.encode()) for name, value in SAFE_HEADERS.items()]
        if origin is not None:
            added = [header for header in added if header[0] != b"cross-origin-resource-policy"]
            added += [
                (b"access-control-allow-origin", origin.encode()),
                (b"access-control-allow-methods", METHODS.encode()),
                (b"access-control-allow-headers", b"Authorization, Content-Type, X-Api-Key, *"),
                (b"access-control-max-age", b"600"),
                (b"vary", b"Origin"),
            ]

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in added if h[0] not in present)]
            await send(message)

        return with_headers


def _split(lists: Sequence[str]) -> set[str]:
    return {item.strip().rstrip("/") for text in lists for item in text.split(",") if item.strip()}


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def _bearer(headers: Headers) -> str:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else ""


def _cookie(headers: Headers) -> str:
    return cookie_parser(headers.get("cookie", "")).get(COOKIE, "")  # whatever the cookies of others hold


_ASK_FOR_KEY = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Key</title>
<form><p><label>This server asks for its API key, which it printed when it was started:
<input name="key" type="password" autofocus></label> <button>Enter</button></form></html>
"""
