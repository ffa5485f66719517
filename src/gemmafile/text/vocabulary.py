"""The vocabulary of a model: GGUF metadata (any mapping) in, a checked `Vocabulary` out.

Nothing in the file is trusted: every array, length, type and id is looked at here, once.
`tokenizer.py` builds a tokenizer from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gemmafile.errors import BadFile

NORMAL: Final = 1
UNKNOWN: Final = 2
CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5
BYTE: Final = 6
"""tokenizer.ggml.token_type, as sentencepiece numbers them; 0 (undefined) is read as NORMAL."""

END_OF_TURN: Final = (
    "<end_of_turn>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<turn|>",
    "<end_of_utterance>",
    "<EOT>",
    "[EOT]",
    "<|endoftext|>",
    "<|end_of_text|>",
)
"""Texts that end a turn in the models we know, best first: the end-of-turn token where the file names none."""

END_OF_GENERATION: Final = (
    *END_OF_TURN,
    *("<eos>", "</s>", "[EOS]", "<|eom_id|>", "<|return|>", "<|call|>", "<reponame>", "<|repo_name|>", "<|file_sep|>"),
)
"""Texts after which no model goes on. They count only as control tokens: in Gemma `</s>` is a piece of HTML.
Source: llama.cpp, src/llama-vocab.cpp, `special_eog_ids`."""

TURN_MARKERS: Final = (
    *("<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>"),
)
"""Control tokens whatever the file says: some conversions list them as user-defined, and then anybody's text
that spells them would open and close turns."""

_MAX_SPECIAL_CHARS: Final = 1024
_MODEL_KEY, _TOKENS_KEY = "tokenizer.ggml.model", "tokenizer.ggml.tokens"


@dataclass
class Vocabulary:
    """Tokens and what is known of each; an id is the place in `tokens`. All ids lie in range, or are None."""

    path: object
    model: str
    """How text is cut: "llama" (sentencepiece) or "gpt2" (byte-level BPE)."""
    pre: str
    """Pre-tokenizer of byte-level BPE, e.g. "smollm"."""
    tokens: list[str]
    index: dict[str, int]
    """Token -> id; of two that are spelled alike, the later. Empty once a tokenizer has taken it."""
    types: NDArray[np.int32]
    scores: NDArray[np.float32]
    """float32[V]; zeros where the file has none."""
    merges: list[str]
    """Pairs "left right" of byte-level BPE, best first."""
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    unk_id: int | None
    pad_id: int | None
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None
    """The three flags are None where the file is silent; what that means depends on the model."""
    chat_template: str | None
    """Jinja source, as the file has it."""
    eog_ids: frozenset[int] = field(default_factory=frozenset)

    def ids_of_type(self, *types: int) -> list[int]:
        """Ids of all tokens of these types, ascending."""
        return np.flatnonzero(np.isin(self.types, types)).tolist()

    def take_index(self, *types: int) -> dict[str, int]:
        """`index`, which is given away, without the tokens of all other types: of 256k tokens a copy is 10 MB."""
        index, self.index = self.index, {}
        for i in self.ids_of_type(*({UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE, NORMAL} - {*types})):
            if index.get(self.tokens[i]) == i:
                del index[self.tokens[i]]
        return index


def read_vocabulary(metadata: Mapping[str, Any], path: object) -> Vocabulary:
    """The checked vocabulary. Raises BadFile naming the field that is missing, mistyped or out of range."""
    reader = _Reader(metadata, path)
    tokens = reader.strings(_TOKENS_KEY)
    if not tokens:
        raise BadFile(path, "the file has no vocabulary; a model with a tokenizer is needed", field=_TOKENS_KEY)
    n = len(tokens)
    types = reader.numbers("tokenizer.ggml.token_type", n, np.int32, default=NORMAL)
    if ((types < 0) | (types > BYTE)).any():
        wrong = int(np.flatnonzero((types < 0) | (types > BYTE))[0])
        raise BadFile(path, f"item {wrong} is {types[wrong]}; expected 1 to 6", field="tokenizer.ggml.token_type")
    types[types == 0] = NORMAL
    scores = reader.numbers("tokenizer.ggml.scores", n, np.float32, default=0)
    if not np.isfinite(scores).all():
        raise BadFile(path, "a score is infinite or not a number", field="tokenizer.ggml.scores")
    vocabulary = Vocabulary(
        path=path,
        model=reader.text(_MODEL_KEY) or "",
        pre=reader.text("tokenizer.ggml.pre") or "default",
        tokens=tokens,
        index=dict(zip(tokens, range(n), strict=True)),
        types=types,
        scores=scores,
        merges=reader.strings("tokenizer.ggml.merges"),
        bos_id=reader.token_id("bos", n),
        eos_id=reader.token_id("eos", n),
        eot_id=reader.token_id("eot", n),
        unk_id=reader.token_id("unknown", n),
        pad_id=reader.token_id("padding", n),
        add_bos=reader.flag("tokenizer.ggml.add_bos_token"),
        add_eos=reader.flag("tokenizer.ggml.add_eos_token"),
        add_space_prefix=reader.flag("tokenizer.ggml.add_space_prefix"),
        chat_template=reader.text("tokenizer.chat_template"),
    )
    _settle_special_tokens(vocabulary)
    return vocabulary


def _settle_special_tokens(vocabulary: Vocabulary) -> None:
    """Turn markers become control tokens; end-of-turn and end-of-generation ids are found by their texts."""
    known = set(END_OF_GENERATION) | set(TURN_MARKERS)
    ids = {token: vocabulary.index[token] for token in known & vocabulary.index.keys()}
    types = vocabulary.types
    for text in TURN_MARKERS:
        if text in ids:
            types[ids[text]] = CONTROL
    for i in vocabulary.ids_of_type(CONTROL, UNKNOWN, USER_DEFINED):
        if len(vocabulary.tokens[i]) > _MAX_SPECIAL_CHARS:
            what = (
                f"special token {i} has {len(vocabulary.tokens[i])} characters; expected at most {_MAX_SPECIAL_CHARS}"
            )
            raise BadFile(vocabulary.path, what, field=_TOKENS_KEY)
    control = {text: i for text, i in ids.items() if types[i] == CONTROL}
    if vocabulary.eot_id is None:
        vocabulary.eot_id = next((control[text] for text in END_OF_TURN if text in control), None)
    named = {vocabulary.eos_id, vocabulary.eot_id} - {None}
    found = {i for text, i in control.items() if text in END_OF_GENERATION}
    vocabulary.eog_ids = frozenset(i for i in named | found if i is not None)


class _Reader:
    """Takes values out of metadata; one of the wrong kind raises BadFile."""

    def __init__(self, metadata: Mapping[str, Any], path: object):
        self.metadata, self.path = metadata, path

    def text(self, key: str) -> str | None:
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise BadFile(self.path, f"a {type(value).__name__}; expected a string", field=key)
        return value

    def flag(self, key: str) -> bool | None:
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, (bool, np.bool_)):
            raise BadFile(self.path, f"a {type(value).__name__}; expected true or false", field=key)
        return None if value is None else bool(value)

    def token_id(self, name: str, n_tokens: int) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.metadata.get(key)
        if value is None:
            return None
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise BadFile(self.path, f"a {type(value).__name__}; expected a token id", field=key)
        if not 0 <= value < n_tokens:
            raise BadFile(self.path, f"token id {value} is outside the vocabulary of {n_tokens}", field=key)
        return int(value)

    def strings(self, key: str) -> list[str]:
        """list[str]; empty where the key is missing."""
        value = self.metadata.get(key, [])
        if isinstance(value, (str, bytes)) or not (hasattr(value, "to_list") or isinstance(value, Sequence)):
            raise BadFile(self.path, f"a {type(value).__name__}; expected an array of strings", field=key)
        strings = value.to_list() if hasattr(value, "to_list") else list(value)
        if not set(map(type, strings)) <= {str}:
            raise BadFile(self.path, "holds something that is not a string", field=key)
        try:
            "".join(strings).encode()
        except UnicodeEncodeError:
            raise BadFile(self.path, "holds text that is not valid Unicode", field=key) from None
        return strings

    def numbers(self, key: str, n: int, dtype: type, default: float) -> NDArray[Any]:
        """dtype[n], a copy; filled with `default` where the key is missing."""
        if key not in self.metadata:
            return np.full(n, default, dtype)
        try:
            array = np.asarray(self.metadata[key])
        except (ValueError, TypeError):  # ragged or foreign objects
            array = np.empty(0, object)
        kinds = "iu" if dtype is np.int32 else "iuf"
        if array.ndim != 1 or (array.dtype.kind not in kinds and array.size):
            raise BadFile(self.path, "expected an array of numbers", field=key)
        if len(array) != n:
            raise BadFile(self.path, f"{len(array)} items for {n} tokens; the two must be equal", field=key)
        with np.errstate(over="ignore"):  # becomes infinite, which is looked for
            return array.astype(dtype)
