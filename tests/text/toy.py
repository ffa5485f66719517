"""Small vocabularies, as GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemmafile.text.bpe import BYTE_ALPHABET

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SPECIAL = {"<unk>": UNKNOWN, "<bos>": CONTROL, "<eos>": CONTROL, "<start_of_turn>": CONTROL, "<end_of_turn>": CONTROL}
"""Ids 0 to 4 of both toys."""


def toy_spm(
    pieces: Mapping[str, float] | None = None, user_defined: tuple[str, ...] = (), **changes: Any
) -> dict[str, Any]:
    """SPM: the special tokens, 256 bytes, user-defined tokens, then `pieces` (text -> score).

    `changes`  keys without "tokenizer.ggml."; None takes a key away
    """
    pieces = {"▁": -9.0, "a": -1.0, "b": -2.0, "▁a": -3.0, "ab": -4.0, "▁ab": -5.0} if pieces is None else pieces
    entries = [(text, kind, -1000.0) for text, kind in SPECIAL.items()]
    entries += [(f"<0x{value:02X}>", BYTE, 0.0) for value in range(256)]
    entries += [(text, USER_DEFINED, -1000.0) for text in user_defined]
    entries += [(text, NORMAL, score) for text, score in pieces.items()]
    tokens, types, scores = map(list, zip(*entries, strict=True))
    return _metadata({"model": "llama", "tokens": tokens, "token_type": types, "scores": scores} | changes)


def toy_bpe(merges: tuple[str, ...] = ("h e", "l l", "he ll", "Ġ w"), **changes: Any) -> dict[str, Any]:
    """Byte-level BPE: the special tokens, the 256 letters of the alphabet, then what the merges make."""
    made = list(dict.fromkeys(merge.replace(" ", "") for merge in merges))
    tokens = [*SPECIAL, *BYTE_ALPHABET, *made]
    types = [*SPECIAL.values(), *[NORMAL] * (256 + len(made))]
    arrays = {"tokens": tokens, "token_type": types, "merges": list(merges)}
    return _metadata({"model": "gpt2", "pre": "gpt-2", "add_bos_token": False} | arrays | changes)


def _metadata(values: dict[str, Any]) -> dict[str, Any]:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": False}
    return {f"tokenizer.ggml.{key}": value for key, value in (ids | values).items() if value is not None}
