"""Every error a user can meet.

An exception class knows its exit code and its HTTP status; its text says what went wrong,
where, what was expected and what to do. Anything else that escapes is our own bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_TEXT = 800
"""Characters of a message that are shown."""


class GemmafileError(Exception):
    """The root. One line of text, ready to be shown; never a traceback.

    Names out of a hostile file end up in messages: control characters are escaped, and a text is cut at MAX_TEXT.
    """

    exit_code = 1
    http_status = 500

    def __init__(self, message: str):
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__(line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]} ...")


class BadFile(GemmafileError):
    """A file is not what it should be: names the file, the field and the byte where it shows.

    `path`  as the user gave it · `field` e.g. "tensor 'blk.0.attn_q.weight': offset" · `byte` file offset
    """

    http_status = 422

    def __init__(self, path: object, what: str, *, field: str | None = None, byte: int | None = None):
        where = "".join((f", {field}" if field else "", f", byte {byte}" if byte is not None else ""))
        super().__init__(f"{path}{where}: {what}")
        self.path, self.what, self.field, self.byte = path, what, field, byte


class UnsupportedModel(BadFile):
    """A sound file that holds what this engine does not run: architecture, tensor format, tokenizer."""

    http_status = 501


class BadSettings(GemmafileError):
    """A flag, an argument or a request field has a value that cannot be used."""

    exit_code = 2
    http_status = 400


class ContextOverflow(GemmafileError):
    """The prompt does not fit in the context; carries both counts."""

    http_status = 400

    def __init__(self, n_prompt: int, n_context: int):
        super().__init__(
            f"the prompt has {n_prompt} tokens and the context holds {n_context}: "
            f"shorten the prompt or give a larger context (-c {n_prompt + 256}, or -c 0 for the model's maximum)"
        )
        self.n_prompt, self.n_context = n_prompt, n_context


class BackendUnavailable(GemmafileError):
    """The asked-for backend cannot run on this machine; says why."""

    http_status = 503


def nearest(name: str, known: Iterable[str]) -> str:
    """ " (did you mean X?)" for the known name closest to `name`, or "" when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
