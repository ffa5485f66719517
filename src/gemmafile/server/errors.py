"""An error as a client of an API meets it: a true status, and a body in the shape that API's clients expect.

/v1/messages...   Anthropic   {"type": "error", "error": {"type", "message"}}
/api/...          ollama      {"error": "..."}
everything else   OpenAI      {"error": {"code", "message", "type", "param"}}, llama.cpp's too
"""

from __future__ import annotations

import math
from typing import Any

from gemmafile.errors import ContextOverflow, GemmafileError

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
"""Status -> llama.cpp's name of the kind, where it has one."""

CONTEXT_KIND = "exceed_context_size_error"

_ANTHROPIC_KINDS = {
    400: "invalid_request_error", 413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 501: "api_error",
    503: "overloaded_error",
}  # fmt: skip


class ApiError(GemmafileError):
    """A request cannot be answered.

    kind         llama.cpp's word for it · `param` the field that is wrong
    retry_after  seconds after which asking again makes sense · `extra` more fields for the error's body
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str | None = None,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        extra: dict[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status = self.http_status = status
        self.kind = kind or KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.param, self.retry_after, self.extra = param, retry_after, extra or {}

    @property
    def headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            found["WWW-Authenticate"] = 'Bearer realm="gemmafile"'
        return found


def bad_request(message: str, param: str | None = None) -> ApiError:
    return ApiError(400, message, param=param)


def loading(progress: float = 0.0) -> ApiError:
    """llama.cpp's words while the model is being loaded; clients wait for exactly these."""
    return ApiError(503, "Loading model", retry_after=1, extra={"progress": round(progress, 3)})


def context_overflow(n_prompt: int, n_context: int) -> ApiError:
    """llama.cpp's shape of it: clients read both counts."""
    return ApiError(
        400,
        str(ContextOverflow(n_prompt, n_context)),
        CONTEXT_KIND,
        extra={"n_prompt_tokens": n_prompt, "n_ctx": n_context},
    )


def as_api_error(error: Exception) -> ApiError:
    """Any error of ours as an ApiError; a bug of ours is a 500 that tells no more than its kind."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextOverflow):
        return context_overflow(error.n_prompt, error.n_context)
    if isinstance(error, GemmafileError):
        return ApiError(error.http_status, str(error))
    return ApiError(500, f"this is a bug in the server: {type(error).__name__}")


def error_body(error: ApiError, path: str = "/") -> dict[str, Any]:
    """The body of an error response; `path` of the request, without the server's prefix, tells the API."""
    message = str(error)
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_KINDS.get(error.status, error.kind)
        return {"type": "error", "error": {"type": kind, "message": message}}
    if path.startswith("/api/"):
        return {"error": message}
    return {
        "error": {
            "code": error.status,
            "message": message,
            "type": error.kind,
            "param": error.param,
            **error.extra,
        }
    }
