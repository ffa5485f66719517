"""`--override-kv KEY=TYPE:VALUE`: metadata replaced for one run. The file stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from gemmafile.errors import BadSettings, nearest

if TYPE_CHECKING:
    from gemmafile.files.gguf import ModelFile

Value = int | float | bool | str


def apply_overrides(file: ModelFile, entries: Iterable[str]) -> None:
    """Set keys of an open file's metadata. Raises BadSettings for an entry that cannot be read."""
    if not isinstance(entries, (list, tuple)) or not all(isinstance(entry, str) for entry in entries):
        raise BadSettings(f"override_kv is {entries!r}: give a list of texts such as gemma2.context_length=int:4096")
    for entry in entries:
        file.metadata.override(*parse_override(entry))


def parse_override(entry: str) -> tuple[str, Value]:
    """ "gemma2.context_length=int:4096" -> (key, 4096)."""
    key, equals, typed = entry.partition("=")
    kind, colon, word = typed.partition(":")
    if not (key and equals and colon):
        raise BadSettings(f"--override-kv {entry!r}: give KEY=TYPE:VALUE, as in gemma2.context_length=int:4096")
    if kind not in _READERS:
        near = nearest(kind, _READERS)
        raise BadSettings(f"--override-kv {entry!r}: there is no type {kind!r}{near}; known are {', '.join(_READERS)}")
    try:
        return key, _READERS[kind](word)
    except (ValueError, KeyError):
        raise BadSettings(f"--override-kv {entry!r}: {word!r} is no {kind}") from None


_READERS: dict[str, Callable[[str], Value]] = {
    "int": int,
    "float": float,
    "bool": lambda word: {"true": True, "false": False}[word],
    "str": str,
}
