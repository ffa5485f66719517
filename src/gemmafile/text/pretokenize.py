"""How byte-level BPE cuts text into words before it merges: the patterns the models were trained with.

The models' own patterns say \\p{L} and \\p{N}, which Python's `re` does not know: `unicode_ranges.py` has them as
ranges. Source of the patterns: the models' tokenizer.json; of their names in GGUF: llama.cpp, src/llama-vocab.cpp.
No pattern can run away: each matches at every character, and only the trailing spaces of a match are tried twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Final, TypeAlias

from gemmafile.text import unicode_ranges

Splitter: TypeAlias = Callable[[str], list[str]]

_BEYOND_BMP: Final = re.compile("[\U00010000-\U0010ffff]")

WHITESPACE: Final = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""The Unicode property White_Space; `re`'s own \\s has four control characters more."""

_GPT2 = r"'(?:[stmd]|ll|ve|re)| ?[{L}]+| ?[{N}]+| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}])|[{S}]+"
_DIGITS_ALONE = r"'(?:[stmd]|ll|ve|re)| ?[{L}]+|[{N}]| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}{N}])|[{S}]+"
_LLAMA3 = (
    r"(?i:'(?:[stmd]|ll|ve|re))|[^\r\n{L}{N}]?[{L}]+|[{N}]{{1,3}}| ?[^{S}{L}{N}]+[\r\n]*"
    r"|[{S}]*[\r\n]+|[{S}]+(?![^{S}])|[{S}]+"
)
_QWEN2 = _LLAMA3.replace("{{1,3}}", "")
_DEFAULT = (r"[{P}$+<=>^~|]+", _GPT2, r"[{N}]+", r"[0-9]{{3}}")

_PATTERNS: Final = {
    "gpt-2": (_GPT2,),
    "smollm": (_DIGITS_ALONE,),
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "default": _DEFAULT,
}
"""Name -> patterns, each applied to the words of the one before; what lies between matches is a word too.
In "smollm" a number ends the stretch that the other rules see, so spaces before it are not shared out."""

_ALIASES: Final = {
    "gpt-2": "phi-2 mpt olmo jais jina-es jina-de gigachat mellum modern-bert exaone4 trillion",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe",
    "qwen2": "stablelm2 deepseek-r1-qwen hunyuan",
}
_NAMES: Final = {alias: name for name, aliases in _ALIASES.items() for alias in [name, *aliases.split()]} | {
    "default": "default"
}

LLAMA3_NAMES: Final = frozenset(name for name, group in _NAMES.items() if group == "llama-bpe") - {"dbrx", "smaug-bpe"}
"""These take a word that is a token as it stands, without merging, and put BOS first unless told otherwise."""

KNOWN_NAMES: Final = tuple(_NAMES)


def find_splitter(name: str) -> Splitter:
    """The function that cuts text as the pre-tokenizer `name` (one of KNOWN_NAMES) does."""
    group = _NAMES[name]

    def split(text: str) -> list[str]:
        patterns = _compile_patterns(group, beyond_bmp=_BEYOND_BMP.search(text) is not None)
        return patterns[0].findall(text) if len(patterns) == 1 else _split_in_stages(text, patterns)

    return split


@cache
def _compile_patterns(group: str, beyond_bmp: bool) -> list[re.Pattern[str]]:
    """Most texts have no character past U+FFFF; without those ranges `re` is six times as fast."""
    return [_compile(pattern, beyond_bmp) for pattern in _PATTERNS[group]]


def _split_in_stages(text: str, patterns: list[re.Pattern[str]]) -> list[str]:
    words = [text]
    for pattern in patterns:
        words = [part for word in words for part in _split_once(word, pattern)]
    return words


def _split_once(word: str, pattern: re.Pattern[str]) -> list[str]:
    """The matches in `word` and what lies between them, in order."""
    parts, position = [], 0
    for match in pattern.finditer(word):
        parts += [word[position : match.start()], match[0]]
        position = match.end()
    return [part for part in [*parts, word[position:]] if part]


def _compile(pattern: str, beyond_bmp: bool) -> re.Pattern[str]:
    kinds = {"L": unicode_ranges.LETTER, "N": unicode_ranges.NUMBER, "P": unicode_ranges.PUNCTUATION}
    classes = {kind: _write_class(ranges, beyond_bmp) for kind, ranges in kinds.items() if f"{{{kind}}}" in pattern}
    return re.compile(pattern.format(S=WHITESPACE, **classes))


def _write_class(ranges: str, beyond_bmp: bool) -> str:
    """ "41-5A AA" as the inside of a character class."""
    entries = [entry.split("-") for entry in ranges.split()]
    return "".join("-".join(f"\\U{end:0>8}" for end in ends) for ends in entries if beyond_bmp or len(ends[0]) <= 4)
