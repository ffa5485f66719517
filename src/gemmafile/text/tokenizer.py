"""Text to token ids and back: what both kinds of tokenizer share.

In: the metadata of a model file (any mapping). Out: a `Tokenizer`. The two kinds differ in how a stretch of plain
text is cut into words and a word into tokens: `spm.py` (Gemma, Llama 2) and `bpe.py` (Llama 3, SmolLM2).
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Final

from gemmafile.errors import BadSettings, UnsupportedModel, nearest
from gemmafile.text.special import SpecialMatcher
from gemmafile.text.vocabulary import CONTROL, UNKNOWN, USER_DEFINED, Vocabulary, read_vocabulary

_CACHED_WORDS: Final = 1 << 14
_CACHED_WORD_CHARS: Final = 48
"""Longer words are not kept: 16,384 words of up to 48 characters bound the cache to some 5 MB."""


def load_tokenizer(metadata: Mapping[str, Any], path: object = "model") -> Tokenizer:
    """The tokenizer a model file describes. Raises BadFile, or UnsupportedModel for a kind we do not have."""
    from gemmafile.text.bpe import BpeTokenizer
    from gemmafile.text.spm import SpmTokenizer

    kinds: dict[str, type[Tokenizer]] = {"llama": SpmTokenizer, "gpt2": BpeTokenizer}
    vocabulary = read_vocabulary(metadata, path)
    if vocabulary.model not in kinds:
        what = f"tokenizer {vocabulary.model!r} is not supported{nearest(vocabulary.model, kinds)}; known: llama, gpt2"
        raise UnsupportedModel(path, what, field="tokenizer.ggml.model")
    return kinds[vocabulary.model](vocabulary)


class Tokenizer(ABC):
    """Encodes and decodes. May be shared by threads: only the word cache changes, and any state of it is right.

    `bos_id`, `eos_id`, `eot_id`, `unk_id`, `pad_id` are None where the model has no such token; `eog_ids` end an
    answer; `add_bos` and `add_eos` say what `add_special` adds.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.n_tokens = len(vocabulary.tokens)
        self.bos_id, self.eos_id, self.eot_id = vocabulary.bos_id, vocabulary.eos_id, vocabulary.eot_id
        self.unk_id, self.pad_id = vocabulary.unk_id, vocabulary.pad_id
        self.eog_ids = vocabulary.eog_ids
        self.add_bos, self.add_eos = bool(vocabulary.add_bos), bool(vocabulary.add_eos)
        self._control = frozenset(vocabulary.ids_of_type(CONTROL, UNKNOWN))
        self._words: dict[str, tuple[int, ...]] = {}

    # --- text to ids -------------------------------------------------------------------------------------------

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`. Raises BadSettings for text that holds half a character (a lone surrogate).

        `add_special`    put BOS before and EOS after where the model wants them
        `parse_special`  control tokens written out in the text (`<end_of_turn>`) become those tokens; for text of
                         our own only. User-defined tokens (HTML tags, runs of newlines) are always recognised.
        """
        if not isinstance(text, str):
            raise BadSettings(f"the text is {text!r}, expected a string")
        return self.encode_parts([(text, parse_special)], add_special)

    def encode_parts(self, parts: Sequence[tuple[str, bool]], add_special: bool = False) -> list[int]:
        """Token ids of the joined parts, encoded as ONE text: tokens form across the joints as anywhere else.

        `parts`  (text, trusted): a control token is recognised only whole inside one trusted part
        """
        text = "".join(part for part, _ in parts)
        _check_unicode(text)
        ends = list(accumulate(len(part) for part, _ in parts))
        trusted = [trust for _, trust in parts]
        matcher = self._control_matcher if any(trusted) else self._user_matcher
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        after_special = True
        for piece in matcher.split(text, zip(ends, trusted, strict=True)):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                self._encode_plain(piece, after_special, ids)
            after_special = isinstance(piece, int)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def starts_with_bos(self, text: str) -> bool:
        """Does the text spell the BOS token at its start? Encoding it with both flags on would give two."""
        return self.bos_id is not None and self.add_bos and text.startswith(self.token_text(self.bos_id))

    def _encode_plain(self, text: str, after_special: bool, ids: list[int]) -> None:
        """Appends the ids of text without special tokens; `after_special`: it begins the text or follows one."""
        words = self._words
        for word in self._split_words(text, after_special):
            found = words.get(word)
            if found is None:
                found = tuple(self._encode_word(word))
                if len(word) <= _CACHED_WORD_CHARS:
                    if len(words) >= _CACHED_WORDS:
                        words.clear()
                    words[word] = found
            ids += found

    @abstractmethod
    def _split_words(self, text: str, after_special: bool) -> list[str]:
        """Cuts text where no token can reach across."""

    @abstractmethod
    def _encode_word(self, word: str) -> list[int]: ...

    # --- ids to text -------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], special: bool = False, at_start: bool = True) -> str:
        """The text of `ids`; bytes that are no character become U+FFFD. `special`: control tokens are written out.

        `at_start`  the ids begin a text: the space that some tokenizers put before it is taken off again
        """
        stream = self.stream(special, at_start)
        return "".join([stream.push(i) for i in ids]) + stream.flush()

    def stream(self, special: bool = False, at_start: bool = True) -> StreamDecoder:
        """A decoder for ids that come one by one."""
        return StreamDecoder(self, special, at_start and self.adds_space_prefix)

    def piece_bytes(self, token_id: int, special: bool = False) -> bytes:
        """The bytes a token stands for; control tokens stand for nothing unless `special`."""
        if not 0 <= token_id < self.n_tokens:
            raise BadSettings(f"token id {token_id} is outside the vocabulary of {self.n_tokens}")
        if token_id in self._control and not special:
            return b""
        return self._token_bytes(token_id)

    @abstractmethod
    def _token_bytes(self, token_id: int) -> bytes:
        """Bytes of any token; control tokens spelled out."""

    def token_bytes(self) -> list[bytes]:
        """The bytes of every token, control tokens spelled out (for grammar engines)."""
        return [self._token_bytes(i) for i in range(self.n_tokens)]

    def token_text(self, token_id: int) -> str:
        """How the vocabulary spells a token, e.g. "▁the" or "<0x0A>"."""
        if not 0 <= token_id < self.n_tokens:
            raise BadSettings(f"token id {token_id} is outside the vocabulary of {self.n_tokens}")
        return self.vocabulary.tokens[token_id]

    def is_control(self, token_id: int) -> bool:
        """A token that carries structure, not text."""
        return token_id in self._control

    def find_token(self, text: str) -> int | None:
        """The id of the control or user-defined token that is spelled `text`, or None."""
        return self._special_ids.get(text)

    def control_texts(self) -> list[str]:
        """How the control tokens are spelled."""
        return [self.vocabulary.tokens[i] for i in sorted(self._control)]

    def split_control(self, text: str) -> list[str | int]:
        """The text cut at the control tokens it spells: their ids, and what lies between."""
        return list(self._spelled_matcher.split(text, [(len(text), True)]))

    def has_control(self, text: str) -> bool:
        """Does the text spell a control token anywhere?"""
        return any(isinstance(piece, int) for piece in self.split_control(text))

    @property
    def adds_space_prefix(self) -> bool:
        """Is a space put before text that begins or follows a special token?"""
        return False

    # --- special tokens ----------------------------------------------------------------------------------------

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        ids = self.vocabulary.ids_of_type(USER_DEFINED, CONTROL, UNKNOWN)
        return {self.vocabulary.tokens[i]: i for i in ids}

    def _matched_special_ids(self) -> dict[str, int]:
        """Texts to look for before words are cut -> ids."""
        return self._special_ids

    @cached_property
    def _user_matcher(self) -> SpecialMatcher:
        texts = {text: i for text, i in self._matched_special_ids().items() if i not in self._control}
        return SpecialMatcher(texts, control=())

    @cached_property
    def _control_matcher(self) -> SpecialMatcher:
        return SpecialMatcher(self._matched_special_ids(), self._control)

    @cached_property
    def _spelled_matcher(self) -> SpecialMatcher:
        texts = {text: i for text, i in self._special_ids.items() if i in self._control}
        return SpecialMatcher(texts, self._control)


class StreamDecoder:
    """Turns ids into text as they come; half a character waits for its other half."""

    def __init__(self, tokenizer: Tokenizer, special: bool, strip_space: bool):
        self._tokenizer, self._special, self._strip_space = tokenizer, special, strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that are complete with this token; bytes that cannot become one give U+FFFD."""
        piece = self._tokenizer.piece_bytes(token_id, self._special)
        if piece and self._strip_space:
            self._strip_space = False
            piece = piece.removeprefix(b" ")
        return self._utf8.decode(piece)

    def flush(self) -> str:
        """What was held back: "" or U+FFFD. The decoder can be used again for text that follows."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X}"
        raise BadSettings(f"the text holds half a character ({half} at {error.start}): send valid Unicode") from None
