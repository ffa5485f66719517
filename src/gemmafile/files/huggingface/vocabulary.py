"""The vocabulary of a checkpoint as keys of GGUF: from tokenizer.model, else from tokenizer.json.

tokenizer.model is what Gemma and Llama 2 were trained with; a tokenizer.json says the same in merges, from which the
scores follow. tokenizer.json with bytes as letters (Llama 3, SmolLM2) is byte-level BPE.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, count, repeat
from operator import contains
from pathlib import Path
from typing import Any, Final

from gemmafile.errors import BadFile, UnsupportedModel
from gemmafile.files.cursor import quote
from gemmafile.files.huggingface.folder import Folder
from gemmafile.files.huggingface.sentencepiece import read_pieces
from gemmafile.files.huggingface.sizes import Sizes
from gemmafile.files.huggingface.special import special_keys
from gemmafile.files.metadata import Typed

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""tokenizer.ggml.token_type."""

UNUSED_SCORE, ADDED_SCORE = -10000.0, -1000.0
_SPACE: Final = "▁"
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_LOOKS_SPECIAL: Final = re.compile(r"<pad>|<mask>|<2mass>|\[@BOS@\]|<\|.*\|>|<｜.*｜>|<unused.*>", re.DOTALL)


@dataclass
class _Tokens:
    """The arrays while they are filled: every id of the embedding has an entry from the start."""

    texts: list[str]
    scores: list[float]
    types: list[int]

    @classmethod
    def unused(cls, n: int) -> _Tokens:
        return cls([f"[PAD{i}]" for i in range(n)], [UNUSED_SCORE] * n, [UNUSED] * n)

    def put(self, i: int, text: str, score: float, kind: int) -> None:
        if i < len(self.texts):  # ids behind the embedding's rows have no use
            self.texts[i], self.scores[i], self.types[i] = text, score, kind

    def add(self, i: int, text: str, *, special: bool) -> None:
        """A token that was added to the model's own: found whole in texts, before anything else is."""
        if special or _LOOKS_SPECIAL.fullmatch(text):
            self.put(i, text, ADDED_SCORE, CONTROL)
        else:
            self.put(i, text.replace(_SPACE, " "), ADDED_SCORE, USER_DEFINED)


def vocabulary_keys(folder: Folder, sizes: Sizes) -> dict[str, Typed]:
    """`tokenizer.*` in the converter's order; {} for a folder without a tokenizer.

    Raises BadFile, UnsupportedModel for a kind of tokenizer that we do not have.
    """
    tables = {name: folder.json(name) for name in ("tokenizer.json", "tokenizer_config.json")}
    config = tables["tokenizer_config.json"] or {}
    raw = folder.read("tokenizer.model")
    keys: dict[str, Typed] = {}
    if sizes.architecture == "llama" and isinstance(config.get("add_prefix_space"), bool):
        keys["tokenizer.ggml.add_space_prefix"] = Typed(config["add_prefix_space"], "bool")
    if raw is not None:
        tokens = _from_sentencepiece(folder, sizes.n_vocab, raw, tables)
    elif tables["tokenizer.json"] is not None:
        model = _check_model(folder.path / "tokenizer.json", tables["tokenizer.json"])
        if _is_byte_level(tables["tokenizer.json"]):
            keys |= _byte_level_keys(folder, sizes.n_vocab, tables["tokenizer.json"], model)
            keys |= special_keys(folder, tables, None)
            if sizes.n_vocab == 49152:  # SmolLM2, Granite: their configurations say otherwise
                keys["tokenizer.ggml.add_bos_token"] = Typed(False, "bool")
            return keys
        tokens = _from_json(folder, sizes.n_vocab, tables["tokenizer.json"], model)
    else:
        return {}
    keys |= {
        "tokenizer.ggml.model": Typed("llama", "string"),
        "tokenizer.ggml.pre": Typed("default", "string"),
        "tokenizer.ggml.tokens": Typed(tokens.texts, "string"),
        "tokenizer.ggml.scores": Typed(tokens.scores, "float32"),
        "tokenizer.ggml.token_type": Typed(tokens.types, "int32"),
    }
    keys |= special_keys(folder, tables, len(tokens.texts))
    if sizes.architecture == "gemma" and sizes.n_vocab > 107:
        keys["tokenizer.ggml.eot_token_id"] = Typed(107, "uint32")
    if sizes.architecture != "llama":
        keys["tokenizer.ggml.add_space_prefix"] = Typed(False, "bool")
    return keys


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def _from_sentencepiece(folder: Folder, n_vocab: int, raw: bytes, tables: dict[str, dict[str, Any] | None]) -> _Tokens:
    config = tables["tokenizer_config.json"]
    tokens = _Tokens.unused(n_vocab)
    for i, piece in enumerate(read_pieces(folder.path / "tokenizer.model", raw)):
        # What SentencePiece calls user-defined is listed in tokenizer_config.json, with more that is to be known of it.
        kind = NORMAL if piece.type == USER_DEFINED and config is not None else piece.type
        tokens.put(i, piece.text, piece.score, kind)
    for text, i in (folder.json("added_tokens.json") or {}).items():
        tokens.put(_check_id(folder.path / "added_tokens.json", i), text, ADDED_SCORE, USER_DEFINED)
    decoder = (config or {}).get("added_tokens_decoder")
    if decoder is None:
        _add_listed(folder, tokens, tables["tokenizer.json"])
        return tokens
    path = folder.path / "tokenizer_config.json"
    if not isinstance(decoder, dict):
        raise BadFile(path, "is no table", field="added_tokens_decoder")
    for number, entry in decoder.items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not number.isascii() or not number.isdecimal() or len(number) > 9 or not isinstance(content, str):
            raise BadFile(path, f"entry {quote(number)} is no token", field="added_tokens_decoder")
        tokens.add(int(number), content, special=bool(entry.get("special")))
    return tokens


def _add_listed(folder: Folder, tokens: _Tokens, table: dict[str, Any] | None) -> None:
    """The added tokens of tokenizer.json."""
    path = folder.path / "tokenizer.json"
    entries = (table or {}).get("added_tokens") or []
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
            raise BadFile(path, "holds what is no token", field="added_tokens")
        tokens.add(_check_id(path, entry.get("id")), entry["content"], special=bool(entry.get("special")))


def _check_id(path: Path, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 24:
        raise BadFile(path, f"{str(value)[:40]} is no token id")
    return value


# --- tokenizer.json ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """`tokens`  id -> text · `merges`  pairs, best first, as texts "left right" or lists · `merged`  what they make"""

    tokens: dict[int, str]
    merges: list[Any]
    merged: list[str]


def _check_model(path: Path, table: dict[str, Any]) -> _Model:
    model = table.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = str(model.get("type"))[:40] if isinstance(model, dict) else "nothing"
        raise UnsupportedModel(path, f"is {kind!r}, and only BPE is supported", field="model, type")
    vocab, merges = model.get("vocab"), model.get("merges", [])
    if not isinstance(vocab, dict) or not vocab or not isinstance(merges, list):
        raise BadFile(path, "has no vocabulary", field="model")
    tokens = {_check_id(path, i): text for text, i in vocab.items()}
    if len(tokens) < len(vocab):
        raise BadFile(path, "has two tokens of one id", field="model, vocab")
    return _Model(tokens, merges, _join_merges(path, merges))


def _join_merges(path: Path, merges: list[Any]) -> list[str]:
    """What each merge makes. Half a million of them: no step of Python for each. Raises BadFile."""
    kinds = set(map(type, merges))
    if kinds <= {str}:
        joined = [merge.replace(" ", "", 1) for merge in merges]
        if sum(map(len, merges)) == sum(map(len, joined)) + len(merges) and not any(map(contains, joined, repeat(" "))):
            return joined
    elif kinds == {list} and set(map(len, merges)) == {2} and set(map(type, chain.from_iterable(merges))) == {str}:
        return list(map("".join, merges))
    raise BadFile(path, "holds what is no pair of texts", field="model, merges")


def _from_json(folder: Folder, n_vocab: int, table: dict[str, Any], model: _Model) -> _Tokens:
    """A piece scores by its first merge; one that no merge makes is a letter, and scores as high as any."""
    tokens = _Tokens.unused(n_vocab)
    ranks = dict(zip(dict.fromkeys(model.merged), map(float, count()), strict=False))
    texts, scores, types = tokens.texts, tokens.scores, tokens.types
    for i, text in model.tokens.items():
        if i < n_vocab:
            texts[i], scores[i] = text, -ranks.get(text, 0.0)
            types[i] = BYTE if text.startswith("<0x") and _BYTE.fullmatch(text) else NORMAL
    unknown = _model_table(table).get("unk_token")
    for i, text in model.tokens.items():
        if text == unknown:
            tokens.put(i, text, 0.0, UNKNOWN)
    _add_listed(folder, tokens, table)
    return tokens


def _model_table(table: dict[str, Any]) -> dict[str, Any]:
    model = table.get("model")
    return model if isinstance(model, dict) else {}


def _steps(table: Any) -> list[dict[str, Any]]:
    """A step of the tokenizer's pipeline, or the steps of a sequence."""
    if not isinstance(table, dict):
        return []
    for name in ("pretokenizers", "decoders", "normalizers"):
        if isinstance(table.get(name), list):
            return [step for item in table[name] for step in _steps(item)]
    return [table]


def _is_byte_level(table: dict[str, Any]) -> bool:
    return any(
        step.get("type") == "ByteLevel" for name in ("pre_tokenizer", "decoder") for step in _steps(table.get(name))
    )


def _byte_level_keys(folder: Folder, n_vocab: int, table: dict[str, Any], model: _Model) -> dict[str, Typed]:
    path = folder.path / "tokenizer.json"
    tokens = _Tokens.unused(n_vocab)
    for i, text in model.tokens.items():
        tokens.put(i, text, 0.0, NORMAL)
    _add_listed(folder, tokens, table)
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model.merges]
    merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in pairs]
    return {
        "tokenizer.ggml.model": Typed("gpt2", "string"),
        "tokenizer.ggml.pre": Typed(find_pre_tokenizer(path, table), "string"),
        "tokenizer.ggml.tokens": Typed(tokens.texts, "string"),
        "tokenizer.ggml.token_type": Typed(tokens.types, "int32"),
    } | ({"tokenizer.ggml.merges": Typed(merges, "string")} if merges else {})


_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
LLAMA3_PATTERN: Final = (
    _CONTRACTIONS + r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS: Final = {LLAMA3_PATTERN: "llama-bpe", LLAMA3_PATTERN.replace("{1,3}", ""): "qwen2"}


def find_pre_tokenizer(path: Path, table: dict[str, Any]) -> str:
    """llama.cpp's name of how a tokenizer.json cuts text into words. Raises UnsupportedModel for a way we do not know.

    llama.cpp's converter knows a tokenizer by a hash of what it makes of one text; here the steps are looked at.
    """
    steps = _steps(table.get("pre_tokenizer"))
    kinds = [step.get("type") for step in steps]
    if any(step.get("add_prefix_space") for step in steps):
        raise UnsupportedModel(path, "puts a space before texts, which is not supported", field="pre_tokenizer")
    if table.get("normalizer") is not None and [s.get("type") for s in _steps(table["normalizer"])] not in (
        [],
        ["NFC"],
    ):
        raise UnsupportedModel(path, "is not supported for byte-level BPE", field="normalizer")
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        pattern = steps[0].get("pattern")
        name = _PATTERNS.get(pattern.get("Regex", "") if isinstance(pattern, dict) else "")
        if name is not None:
            return name
    raise UnsupportedModel(path, f"cuts text by {kinds}, in a way that is not known here", field="pre_tokenizer")
