"""Model cards: Markdown with YAML front matter.

The front matter is read here, leniently: cards that went through a web page have lost the indentation of their block
texts (`prompt_template: |`), and are still understood.
"""

from __future__ import annotations

import re

_KEY = re.compile(r"([A-Za-z_][\w-]*):(?:[ \t]+(.*))?$")
_MAX_PREFACE = 40


def read_front_matter(card: str) -> dict[str, str | list[str]]:
    """The keys of a card's front matter, texts and lists of texts; {} where there is none."""
    lines = card.splitlines()
    start = next((i for i, line in enumerate(lines[:_MAX_PREFACE]) if line.strip() == "---"), None)
    if start is None:
        return {}
    end = next((i for i in range(start + 1, len(lines)) if lines[i].strip() == "---"), None)
    return _read_keys(lines[start + 1 : end]) if end is not None else {}


def _read_keys(lines: list[str]) -> dict[str, str | list[str]]:
    found: dict[str, str | list[str]] = {}
    at = 0
    while at < len(lines):
        match = _KEY.match(lines[at])
        at += 1
        if match is None:
            continue
        key, value = match[1], (match[2] or "").strip()
        stop = at
        while stop < len(lines) and not _KEY.match(lines[stop]):
            stop += 1
        below = lines[at:stop]
        if value[:1] in ("|", ">"):
            found[key] = _block(below, folded=value[0] == ">", keep_end=not value.endswith("-"))
        elif value:
            found[key] = _unquote(value)
        else:
            items = [_unquote(line.strip()[1:].strip()) for line in below if line.strip().startswith("-")]
            found[key] = items if items else " ".join(line.strip() for line in below if line.strip())
        at = stop
    return found


def _block(lines: list[str], *, folded: bool, keep_end: bool) -> str:
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    indents = [len(line) - len(line.lstrip(" ")) for line in lines if line.strip()]
    cut = min(indents, default=0)
    text = (" " if folded else "\n").join(line[cut:] for line in lines)
    return text + "\n" if keep_end and text else text


def _unquote(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value.partition(" #")[0].rstrip()
