"""SentencePiece BPE: Gemma, Llama 2 and their kin.

Spaces become ▁ (U+2581); then, of all neighbours that together are a piece of the vocabulary, those whose piece has
the highest score are joined, until none are left. Characters without a piece become bytes, `<0xE2>` and so on.

Three facts make it fast in Python. Pieces hardly ever reach across a word's start, so the text is cut into words
and words are remembered; where the vocabulary has such a piece (Gemma 3: `>▁</`) the cut is left out there. Runs of
spaces are tokens by themselves in Gemma. And a dictionary of 256k pieces takes 30 ms to build, merges none at all:
they follow from the scores.
"""

from __future__ import annotations

import re
from array import array
from typing import Final

import numpy as np

from gemmafile.errors import BadFile
from gemmafile.text.merge import NEVER, merge_symbols
from gemmafile.text.tokenizer import Tokenizer
from gemmafile.text.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary

SPACE: Final = "▁"


class SpmTokenizer(Tokenizer):
    """See the head of this file. A literal ▁ in a text is read as a space: its ids are the same."""

    def __init__(self, vocabulary: Vocabulary):
        super().__init__(vocabulary)
        self.add_bos = vocabulary.add_bos is not False
        self._adds_space_prefix = vocabulary.add_space_prefix is not False
        self._pieces = vocabulary.take_index(NORMAL)
        self._ranks = array("i", np.unique(-vocabulary.scores, return_inverse=True)[1].astype(np.int32).tobytes())
        self._space_runs = _find_space_runs(vocabulary)
        self._word_pattern = _compile_words(self._pieces, self._space_runs)
        self._bytes = self._find_bytes()

    @property
    def adds_space_prefix(self) -> bool:
        return self._adds_space_prefix

    def _find_bytes(self) -> list[int]:
        """The token for each of the 256 bytes. Raises BadFile if one is missing and no token says "unknown"."""
        byte_ids = {self.vocabulary.tokens[i]: i for i in self.vocabulary.ids_of_type(BYTE)}
        found = [byte_ids.get(f"<0x{value:02X}>", self._pieces.get(chr(value), self.unk_id)) for value in range(256)]
        if None in found:
            what = f"no token for byte 0x{found.index(None):02X}, and none for unknown text; expected <0x00> to <0xFF>"
            raise BadFile(self.vocabulary.path, what, field="tokenizer.ggml.tokens")
        return [i for i in found if i is not None]

    def _matched_special_ids(self) -> dict[str, int]:
        """Runs of spaces are cut out later, with the words; spelled ▁▁ they are found here, as in HF tokenizers."""
        return {text: i for text, i in self._special_ids.items() if text.strip(f" {SPACE}")} | self._space_runs

    def _split_words(self, text: str, after_special: bool) -> list[str]:
        if self._adds_space_prefix and after_special:
            text = " " + text
        return self._word_pattern.findall(text.replace(" ", SPACE))

    def _encode_word(self, word: str) -> list[int]:
        if (run_id := self._space_runs.get(word)) is not None:
            return [run_id]
        pieces, ids = self._pieces, []
        for symbol in merge_symbols(list(word), self._rank):
            if (token_id := pieces.get(symbol)) is not None:
                ids.append(token_id)
            else:
                ids += [self._bytes[value] for value in symbol.encode()]
        return ids

    def _rank(self, left: str, right: str) -> int:
        token_id = self._pieces.get(left + right)
        return NEVER if token_id is None else self._ranks[token_id]

    def _token_bytes(self, token_id: int) -> bytes:
        text, token_type = self.vocabulary.tokens[token_id], self.vocabulary.types[token_id]
        if token_type == BYTE and re.fullmatch("<0x[0-9A-Fa-f]{2}>", text):
            return bytes([int(text[3:5], 16)])
        if token_type in (CONTROL, UNKNOWN) or (token_type == USER_DEFINED and text.strip(SPACE)):
            return text.encode()
        return text.replace(SPACE, " ").encode()


def _find_space_runs(vocabulary: Vocabulary) -> dict[str, int]:
    """The user-defined tokens that are two or more spaces, spelled ▁▁ (whatever the file has) -> id."""
    texts = {i: vocabulary.tokens[i].replace(" ", SPACE) for i in vocabulary.ids_of_type(USER_DEFINED)}
    return {text: i for i, text in texts.items() if len(text) > 1 and not text.strip(SPACE)}


def _compile_words(pieces: dict[str, int], space_runs: dict[str, int]) -> re.Pattern[str]:
    """A pattern that cuts text into stretches no piece can reach across.

    A word is a space and what follows it up to the next space. A piece with a space inside, such as `>▁</`, may
    glue two words: they stay together wherever its characters stand around the space.
    """
    crossing = [piece for piece in pieces if piece.find(SPACE, 1) > 0]
    inner = {(m[0][0], piece[m.end() :][:1]) for piece in crossing for m in _INNER_SPACE.finditer(piece)}
    most = min(map(len, space_runs)) - 1 if space_runs else ""  # spaces that stay together without being a run
    glue = ""
    if inner:
        before = "".join(sorted({re.escape(left) for left, _ in inner}))
        after = "".join(sorted({re.escape(right) for _, right in inner}))
        plain = all(right not in ("", SPACE) for _, right in inner)
        joint = f"{SPACE}(?=[{after}])" if plain else f"{SPACE}{{1,{most}}}(?!{SPACE})"
        glue = f"(?:(?<=[{before}]){joint}[^{SPACE}]*)*"
    runs = sorted(space_runs, key=len, reverse=True)
    return re.compile("|".join([*runs, f"{SPACE}{{0,{most}}}[^{SPACE}]+{glue}", f"{SPACE}{{1,{most}}}"]))


_INNER_SPACE: Final = re.compile(f"[^{SPACE}]{SPACE}")
