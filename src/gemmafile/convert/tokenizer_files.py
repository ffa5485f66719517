"""The vocabulary of a GGUF as the files that Hugging Face and SentencePiece read: tokenizer.json, tokenizer.model,
tokenizer_config.json.

In: the tokenizer keys of a model. The pipelines are those of Gemma (SentencePiece BPE with byte fallback) and of
byte-level BPE; another pre-tokenizer than those known here is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gemmafile.errors import BadSettings, nearest
from gemmafile.files.huggingface.vocabulary import BYTE, CONTROL, LLAMA3_PATTERN, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

SPACE: Final = "▁"
_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def tokenizer_json(
    model: str, pre: str, tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], merges: Sequence[str],
    bos: int | None,
) -> dict[str, Any]:  # fmt: skip
    """The document of a tokenizer.json. `bos`  the token put before texts, None: none. Raises BadSettings."""
    added: list[dict[str, Any]] = [
        {
            "id": i,
            "content": token.replace(" ", SPACE) if model == "llama" else token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[i] in (UNKNOWN, CONTROL),
        }
        for i, token in enumerate(tokens)
        if types[i] in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    vocab |= {entry["content"]: entry["id"] for entry in added}
    document: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added}
    first = {} if bos is None else {"post_processor": template_processor(tokens[bos], bos)}
    if model == "llama":
        return document | spm_pipeline(vocab, spm_merges(tokens, types, scores)) | first
    return document | byte_level_pipeline(pre, vocab, merges) | first


def template_processor(bos: str, bos_id: int) -> dict[str, Any]:
    """The begin token before each text."""
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    second = {"SpecialToken": {"id": bos, "type_id": 1}}
    tokens = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    pair = [special, a, second, b]
    return {"type": "TemplateProcessing", "single": [special, a], "pair": pair, "special_tokens": tokens}


def spm_merges(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[list[str]]:
    """All ways to make a piece of two others, those of the best piece first."""
    pieces = {token: scores[i] for i, token in enumerate(tokens) if types[i] == NORMAL}
    merges = []
    for text in sorted(pieces, key=lambda piece: -pieces[piece]):
        merges += [[text[:i], text[i:]] for i in range(1, len(text)) if text[:i] in pieces and text[i:] in pieces]
    return merges


def spm_pipeline(vocab: Mapping[str, int], merges: list[list[str]]) -> dict[str, Any]:
    space = {"String": " "}
    decoders = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    return {
        "normalizer": {"type": "Replace", "pattern": space, "content": SPACE},
        "pre_tokenizer": {"type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": False},
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*decoders, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": _bpe(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
    }


def byte_level_pipeline(pre: str, vocab: Mapping[str, int], merges: Sequence[str]) -> dict[str, Any]:
    """Raises BadSettings for a pre-tokenizer whose steps are not known here."""
    with_regex, without = _LEVEL | {"use_regex": True}, _LEVEL | {"use_regex": False}
    llama3 = {"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}, "behavior": "Isolated", "invert": False}
    qwen2 = llama3 | {"pattern": {"Regex": LLAMA3_PATTERN.replace("{1,3}", "")}}
    steps = {
        "gpt-2": [with_regex],
        "smollm": [{"type": "Digits", "individual_digits": True}, with_regex],
        "llama-bpe": [llama3, without],
        "qwen2": [qwen2, without],
    }
    if pre not in steps:
        known = ", ".join(steps)
        raise BadSettings(f"a tokenizer.json for the pre-tokenizer {pre!r} is not known{nearest(pre, steps)}: {known}")
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps[pre]} if len(steps[pre]) > 1 else steps[pre][0],
        "post_processor": None,
        "decoder": with_regex,
        "model": _bpe(vocab, [merge.split(" ") for merge in merges], ignore_merges=pre == "llama-bpe"),
    }


def _bpe(vocab: Mapping[str, int], merges: list[list[str]], **changes: Any) -> dict[str, Any]:
    names = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    flags = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    return {"type": "BPE", **dict.fromkeys(names), **flags, **changes, "vocab": vocab, "merges": merges}


def tokenizer_config(
    tokens: Sequence[str], types: Sequence[int], ids: Mapping[str, int | None], template: str | None, *, adds_bos: bool
) -> dict[str, Any]:
    """tokenizer_config.json. `ids`  bos, eos, unk, pad."""
    added = {
        str(i): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": types[i] in (UNKNOWN, CONTROL),
        }
        for i, token in enumerate(tokens)
        if types[i] in (UNKNOWN, CONTROL, USER_DEFINED)
    }
    table: dict[str, Any] = {"add_bos_token": adds_bos, "add_eos_token": False, "added_tokens_decoder": added}
    table |= {f"{name}_token": tokens[i] for name, i in ids.items() if i is not None}
    table |= {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    return table | ({"chat_template": template} if template is not None else {})


def sentencepiece_model(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float], ids: Mapping[str, int | None]
) -> bytes:
    """tokenizer.model: SentencePiece's protocol buffer, BPE with byte fallback. `ids`  unk, bos, eos, pad."""
    out = []
    for text, kind, score in zip(tokens, types, scores, strict=True):
        out.append(_field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])))
    places = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
    numbers = {3: 2, 4: len(tokens), 35: int(BYTE in types)}  # BPE, size, byte fallback
    numbers |= {number: -1 if ids.get(name) is None else ids[name] or 0 for number, name in places.items()}
    trainer = b"".join(_varint(number << 3) + _varint(value) for number, value in numbers.items())
    flags = {3: 0, 4: 0, 5: 1}  # no space put in front, spaces kept, spaces escaped
    normalizer = _field(1, b"identity") + b"".join(_varint(n << 3) + _varint(value) for n, value in flags.items())
    return b"".join(out) + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, raw: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative number takes ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))
