"""Small vocabularies for small models: enough for a tokenizer to merge, fall back to bytes and meet control tokens.

In: how many tokens. Out: the `tokenizer.*` metadata of a GGUF file. Used by make_tiny.py.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from typing import Any

from gemmafile.files.metadata import Typed

NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6
"""Token types of a GGUF file."""

WORDS = (
    "the and of to in is that for was with as his on be at by had not are but from or have an they which one you were"
    " all her she there would their we him been has when who will no more if out so up said what its about than into"
    " them can only other time new some could these two may first then do any like my now over such our man me even"
    " most made after also did many off before must well back through years where much your way down should because"
    " long each just state those people too mr how little good world make very year still see own work men day get"
    " here old life both between being under three never know same last another while us might great go come since"
    " against right came take used himself few house use place during high without again home around small however"
    " found mrs part school thought went say general once upon war left every does got united number hand course"
).split()

GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def spm_vocabulary(n_vocab: int) -> dict[str, Any]:
    """A SentencePiece-like vocabulary: control tokens, 256 bytes, characters, then ever longer starts of words.

    `n_vocab`  at least 400; what the words do not fill is of type "unused"
    """
    controls = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    table = [(text, 0.0, UNKNOWN if text == "<unk>" else CONTROL) for text in controls]
    table += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    characters = ["▁", *string.ascii_lowercase, *string.ascii_uppercase, *string.digits, *".,;:!?'\"()-\n"]
    table += [(text, -float(rank), NORMAL) for rank, text in enumerate([*_word_starts("▁"), *characters])]
    if len(table) > n_vocab:
        # Characters must stay, so the rarest word starts go.
        n_cut = len(table) - n_vocab
        del table[-len(characters) - n_cut : -len(characters)]
    table += [(f"<unused{i}>", 0.0, UNUSED) for i in range(n_vocab - len(table))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": Typed([text for text, _, _ in table], "string"),
        "tokenizer.ggml.scores": Typed([score for _, score, _ in table], "float32"),
        "tokenizer.ggml.token_type": Typed([kind for _, _, kind in table], "int32"),
        "tokenizer.ggml.bos_token_id": Typed(2, "uint32"),
        "tokenizer.ggml.eos_token_id": Typed(1, "uint32"),
        "tokenizer.ggml.eot_token_id": Typed(5, "uint32"),
        "tokenizer.ggml.unknown_token_id": Typed(3, "uint32"),
        "tokenizer.ggml.padding_token_id": Typed(0, "uint32"),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": GEMMA_TEMPLATE,
    }


def bpe_vocabulary(n_vocab: int) -> dict[str, Any]:
    """A byte-level vocabulary as GPT-2's: control tokens, 256 bytes, then the merges that build the words.

    `n_vocab`  at least 300; what the words do not fill is of type "unused"
    """
    controls = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*controls, *_byte_characters()]
    merges: list[str] = []
    for word in _word_starts("Ġ"):
        if len(tokens) < n_vocab:
            merges.append(f"{word[:-1]} {word[-1]}")
            tokens.append(word)
    n_used = len(tokens)
    tokens += [f"<|unused{i}|>" for i in range(n_vocab - n_used)]
    kinds = [CONTROL] * len(controls) + [NORMAL] * (n_used - len(controls)) + [UNUSED] * (n_vocab - n_used)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": Typed(tokens, "string"),
        "tokenizer.ggml.token_type": Typed(kinds, "int32"),
        "tokenizer.ggml.merges": Typed(merges, "string"),
        "tokenizer.ggml.bos_token_id": Typed(1, "uint32"),
        "tokenizer.ggml.eos_token_id": Typed(2, "uint32"),
        "tokenizer.ggml.unknown_token_id": Typed(0, "uint32"),
        "tokenizer.ggml.padding_token_id": Typed(2, "uint32"),
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHATML_TEMPLATE,
    }


def _word_starts(space: str) -> Iterator[str]:
    """Every start of two or more characters of every word, each once, a word's shorter starts first."""
    seen = set()
    for word in WORDS:
        for end in range(2, len(word) + 2):
            start = (space + word)[:end]
            if start not in seen:
                seen.add(start)
                yield start


def _byte_characters() -> list[str]:
    """GPT-2's printable character for each byte value: itself where it is printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(stand_ins)) for byte in range(256)]
