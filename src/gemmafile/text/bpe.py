"""Byte-level BPE: Llama 3, SmolLM2 and the other children of GPT-2.

Text is cut into words (`pretokenize.py`); a word's UTF-8 bytes are written as 256 printable characters (a space is
Ġ); then neighbours are joined in the order of the model's list of merges.
"""

from __future__ import annotations

from typing import Final

from gemmafile.errors import BadFile, UnsupportedModel, nearest
from gemmafile.text.merge import NEVER, merge_symbols
from gemmafile.text.pretokenize import KNOWN_NAMES, LLAMA3_NAMES, find_splitter
from gemmafile.text.tokenizer import Tokenizer
from gemmafile.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary


def _write_byte_alphabet() -> str:
    """256 characters: byte b is written as character b of this string. Printable Latin-1 stands for itself."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return "".join(chr(value if value in plain else next(others)) for value in range(256))


BYTE_ALPHABET: Final = _write_byte_alphabet()
_FROM_ALPHABET: Final = {ord(character): value for value, character in enumerate(BYTE_ALPHABET)}


class BpeTokenizer(Tokenizer):
    """See the head of this file."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__(vocabulary)
        pre = vocabulary.pre
        if pre not in KNOWN_NAMES:
            what = f"pre-tokenizer {pre!r} is not supported{nearest(pre, KNOWN_NAMES)}; known: {', '.join(KNOWN_NAMES)}"
            raise UnsupportedModel(vocabulary.path, what, field="tokenizer.ggml.pre")
        self._split = find_splitter(pre)
        self._takes_whole_words = pre in LLAMA3_NAMES
        self.add_bos = vocabulary.add_bos if vocabulary.add_bos is not None else pre in LLAMA3_NAMES
        if not all(" " in merge for merge in vocabulary.merges):
            raise BadFile(vocabulary.path, 'a merge is not "left right"', field="tokenizer.ggml.merges")
        self._merge_ranks = dict(zip(vocabulary.merges, range(len(vocabulary.merges)), strict=True))
        self._pieces = vocabulary.take_index(NORMAL, USER_DEFINED, UNUSED, BYTE)  # merging makes no control token
        # Bytes without a token are left out before merging, as HF tokenizers do; SmolLM2 has none for U+0004, say.
        self._alphabet = {value: char if char in self._pieces else None for value, char in enumerate(BYTE_ALPHABET)}
        self._written_out = frozenset(vocabulary.ids_of_type(CONTROL, UNKNOWN, USER_DEFINED))

    def _split_words(self, text: str, after_special: bool) -> list[str]:
        return self._split(text)

    def _encode_word(self, word: str) -> list[int]:
        written, pieces, ids = word.encode().decode("latin-1").translate(self._alphabet), self._pieces, []
        if self._takes_whole_words and (token_id := pieces.get(written)) is not None:
            return [token_id]
        for symbol in merge_symbols(list(written), self._rank):
            if (token_id := pieces.get(symbol)) is not None:
                ids.append(token_id)
            else:  # a merge made what is no token
                ids += [pieces[character] for character in symbol]
        return ids

    def _rank(self, left: str, right: str) -> int:
        return self._merge_ranks.get(f"{left} {right}", NEVER)

    def _token_bytes(self, token_id: int) -> bytes:
        text = self.vocabulary.tokens[token_id]
        if token_id in self._written_out:
            return text.encode()
        try:
            return text.translate(_FROM_ALPHABET).encode("latin-1")
        except UnicodeEncodeError:  # not written in the alphabet: stands for itself
            return text.encode()
