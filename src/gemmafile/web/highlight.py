"""Source code to HTML with a class for each kind of word."""

from __future__ import annotations

from functools import lru_cache
from html import escape
from typing import Any, Final

from gemmafile.web.clock import Clock

MAX_CHARS: Final = 60_000
"""Longer code is shown without colours."""

CLASSES: Final = (
    ("Comment", "c"), ("Keyword.Constant", "n"), ("Keyword", "k"), ("Name.Function", "f"), ("Name.Class", "f"),
    ("Name.Decorator", "f"), ("Name.Tag", "k"), ("Name.Attribute", "f"), ("Name.Builtin", "b"),
    ("Literal.String", "s"), ("Literal.Number", "n"), ("Operator.Word", "k"), ("Generic.Inserted", "i"),
    ("Generic.Deleted", "d"), ("Generic.Heading", "k"), ("Generic.Subheading", "k"), ("Generic.Prompt", "c"),
)  # fmt: skip
"""Kinds of token -> class, the first that fits; everything else is plain."""


def highlight(code: str, language: str, clock: Clock) -> str:
    """The inside of a `<code>` element. `language`  as a model writes it; an unknown one gives plain code."""
    lexer = _find_lexer(language.lower()) if language and len(code) <= MAX_CHARS else None
    if lexer is None:
        return escape(code, quote=False)
    parts: list[str] = []
    open_class, run = "", ""
    for kind, text in lexer.get_tokens(code):
        clock.check()
        name = _class_of(kind)
        if name != open_class and text.strip():
            parts.append(_span(open_class, run))
            open_class, run = name, ""
        run += text
    parts.append(_span(open_class, run))
    return "".join(parts)


def _span(name: str, text: str) -> str:
    inside = escape(text, quote=False)
    return f'<span class="{name}">{inside}</span>' if name and text else inside


@lru_cache(maxsize=256)
def _class_of(kind: Any) -> str:
    full = str(kind).removeprefix("Token.")
    return next((name for prefix, name in CLASSES if full == prefix or full.startswith(prefix + ".")), "")


@lru_cache(maxsize=64)
def _find_lexer(language: str) -> Any:
    """None for a language nobody knows, and for plain text."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    if language in ("text", "txt", "plain", "plaintext", "output", "none"):
        return None
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
