"""Escapes in flags: `-p "one\\ntwo"` is two lines, as in llama.cpp."""

from __future__ import annotations

import re

from gemmafile.errors import BadSettings

_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|([nrt'\"\\]))")
_CHARACTERS = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def unescape(text: str, flag: str) -> str:
    r"""\n \r \t \' \" \\ and \x41 become characters; any other backslash stays. \x writes bytes of UTF-8.

    Raises BadSettings, naming `flag`, when those bytes are none. Source: llama.cpp, string_process_escapes.
    """
    if "\\" not in text:
        return text
    raw = _ESCAPE.sub(_replace, text.encode("utf-8", "surrogatepass"))
    try:
        return raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise BadSettings(f"{flag}: the \\x escapes are not UTF-8 (--no-escape leaves backslashes alone)") from None


def _replace(match: re.Match[bytes]) -> bytes:
    if match[1]:
        return bytes([int(match[1], 16)])
    return _CHARACTERS.get(match[2], match[2])
