"""Which tokens an answer may go on with, so that it follows a grammar or a JSON schema.

In: GBNF (llama.cpp's notation, see gbnf.py) or a JSON schema, and the bytes of every token. Out: a mask of allowed
tokens, step by step. The parser is llguidance, imported when the first grammar is made.

The law: a token is allowed if and only if some answer of the grammar goes on with its bytes, whether or not a
tokenizer would have cut that answer so. That is what llama.cpp allows. (llguidance by itself would narrow the mask
to one way of cutting where the grammar leaves one text, and would need the tokenizer for it.) Control tokens are
never allowed, but for those that end an answer, and these only where the grammar may end.

Schemas mean what JSON Schema (2020-12) says: other properties are allowed unless `additionalProperties` is false,
and words that are no keywords are remarks. Keywords that llguidance cannot enforce are refused, never dropped.
Where whitespace may stand, one space or a line's end with indentation may, as in llama.cpp: a model that gets
stuck in whitespace would never end. An "x-guidance" key in the schema sets other rules.
"""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmafile.engine.gbnf import gbnf_to_lark
from gemmafile.errors import BackendUnavailable, BadSettings, GemmafileError

EXACT = '%llguidance {"no_forcing": true}\n'
"""Allow every way of cutting the text into tokens."""

LARK = "%llguidance"
"""What a grammar in llguidance's own notation begins with."""

JSON_RULES = {"whitespace_pattern": r"[ ]|\n{1,2}[ \t]{0,20}", "json_allow_general_unicode_escapes": True}
"""llguidance's options for JSON, where the schema has none: the whitespace of llama.cpp, and any \\u escape."""

MOST_ITEMS = 5_000_000
"""Parser items for one mask, some 250 ms: beyond it a grammar is too ambiguous to be followed."""


FREE_S, FREE_TOKEN_S = 1.0, 0.005
"""Seconds that following a grammar may take in all, and more for each token: some 20 times what schemas take. A grammar
beyond it (too many readings, a pattern with too many states) would hold up everybody's answers."""

MOST_SYMBOLS = 20_000
"""Of a compiled grammar: some 3,000 words to choose from. Time grows with their square: a schema of 8,000 properties
took half a minute. (Of one object some 500 properties can be followed: llguidance has 2,000 items in a row.)"""

LONGEST_TOKEN_BYTES = 1024
"""Of longer tokens llguidance cannot make its tree; they are never allowed."""


class GrammarVocabulary:
    """The tokens of a model, as grammars see them. Made once a model; the first grammar takes 0.5 s for 256k tokens.

    token_bytes  the bytes each token stands for
    eog_ids      tokens that end an answer
    control_ids  tokens that are no text, however they are spelled
    """

    def __init__(self, token_bytes: Sequence[bytes], eog_ids: Collection[int], control_ids: Collection[int]):
        self.n_vocab = len(token_bytes)
        # Without any, one beyond the vocabulary: masks end before it.
        self.eog_ids = sorted(eog_ids) or [self.n_vocab]
        too_long = {i for i, text in enumerate(token_bytes) if len(text) > LONGEST_TOKEN_BYTES}
        tokens = [b"" if i in too_long else text for i, text in enumerate(token_bytes)] if too_long else token_bytes
        self.tokens = [*tokens, *([] if eog_ids else [b"<end>"])]
        self.control_ids = sorted({*control_ids, *self.eog_ids, *too_long})

    def prepare(self) -> None:
        """Have ready what the first grammar needs, and no more: the tokens themselves, 16 MB of 262k, are let go of.
        Raises BackendUnavailable."""
        assert self.tokenizer is not None
        self.tokens = []

    @cached_property
    def tokenizer(self) -> Any:
        """llguidance's. Raises BackendUnavailable where the package is missing."""
        llguidance = _import_llguidance()
        tokens = _Tokens(self)
        wrapper = llguidance.TokenizerWrapper(tokens)
        # No slices: they would save 2 ms at the first masks and cost 0.4 s here.
        made = llguidance.LLTokenizer(wrapper, eos_token=self.eog_ids, slices=[])
        tokens.tokens = wrapper.tokens = []  # it keeps hold of the wrapper, and has bytes of its own
        return made


class _Tokens:
    """A vocabulary in the shape that llguidance asks for."""

    def __init__(self, vocabulary: GrammarVocabulary):
        self.tokens = vocabulary.tokens
        self.eos_token_id = vocabulary.eog_ids[0]
        self.bos_token_id = None
        self.special_token_ids = vocabulary.control_ids

    def __call__(self, text: str | bytes) -> list[int]:
        raise AssertionError("with no_forcing, llguidance never cuts text into tokens")


class Grammar:
    """How far an answer has followed a grammar. A new one stands at the beginning."""

    def __init__(self, lark: str, vocabulary: GrammarVocabulary):
        """Raises ValueError with what llguidance says about the grammar."""
        tokenizer = vocabulary.tokenizer
        llguidance = _import_llguidance()
        limits = llguidance.LLParserLimits(
            step_max_items=MOST_ITEMS, max_grammar_size=MOST_SYMBOLS, verbose_errors=False
        )
        grammar = llguidance.LLMatcher.grammar_from_lark(EXACT + lark)
        self._matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        self._vocabulary = vocabulary
        self._ended = False
        self._spent_s, self._n_accepted = 0.0, 0
        if self._matcher.is_error():
            raise ValueError(_plain_words(self._matcher.get_error()))

    @classmethod
    def from_gbnf(cls, text: str, vocabulary: GrammarVocabulary) -> Grammar:
        """GBNF, or llguidance's Lark where the text begins with %llguidance, as in llama.cpp.

        Raises BadSettings, for GBNF with line and column.
        """
        # EXACT once more at the end: no option of the text undoes it.
        lark = f"{text}\n{EXACT}" if text.lstrip().startswith(LARK) else gbnf_to_lark(text)
        try:
            return cls(lark, vocabulary)
        except ValueError as error:
            raise BadSettings(f"grammar: {error}") from None

    @classmethod
    def from_json_schema(cls, schema: str | dict[str, Any] | bool, vocabulary: GrammarVocabulary) -> Grammar:
        """`schema`  JSON text, or what it stands for. Raises BadSettings saying where it is wrong or unsupported."""
        try:
            parsed = _parse_json(schema) if isinstance(schema, str) else schema
            if not isinstance(parsed, (dict, bool)):
                raise BadSettings(f"json_schema: expected an object such as {{}} (any JSON), got {json.dumps(parsed)}")
            if isinstance(parsed, dict):
                parsed = {"x-guidance": JSON_RULES, **parsed}
            return cls(f"start: %json {json.dumps(parsed)}", vocabulary)
        except ValueError as error:
            words = str(error).replace("Unimplemented keys:", "there is no way to keep to")
            raise BadSettings(f"json_schema{_where(str(error), parsed)}: {words}") from None
        except RecursionError:
            raise BadSettings("json_schema: nested too deeply") from None

    @property
    def may_end(self) -> bool:
        """Is the answer complete as it stands?"""
        return bool(self._matcher.is_accepting())

    @property
    def is_finished(self) -> bool:
        """Can nothing follow but the end?"""
        return self._ended or bool(self._matcher.is_stopped())

    def allowed(self) -> NDArray[np.bool_]:
        """bool[n_vocab]. Raises BadSettings if the grammar turns out too ambiguous to be followed."""
        start_s = time.perf_counter()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._spent_s += time.perf_counter() - start_s
        if self._matcher.is_error():
            raise BadSettings(f"the grammar cannot be followed further: {_plain_words(self._matcher.get_error())}")
        self._check_spent()
        return np.unpackbits(bits, count=self._vocabulary.n_vocab, bitorder="little").view(np.bool_)

    def allows(self, token_id: int) -> bool:
        """Is this one token allowed? Far quicker than all of them."""
        if not 0 <= token_id < self._vocabulary.n_vocab:
            return False
        if token_id in self._vocabulary.eog_ids:
            return self.may_end
        start_s = time.perf_counter()
        is_allowed = bool(self._matcher.validate_tokens([token_id]) == 1)
        self._spent_s += time.perf_counter() - start_s
        return is_allowed

    def accept(self, token_id: int) -> None:
        """Goes on with a token. Raises GemmafileError if it is not allowed, and stays where it was; BadSettings once
        following the grammar has taken too long."""
        if not self.allows(token_id):
            raise GemmafileError(f"the grammar does not allow token {token_id} here")
        if token_id in self._vocabulary.eog_ids:
            self._ended = True
        else:
            start_s = time.perf_counter()
            self._matcher.consume_token(token_id)
            self._spent_s += time.perf_counter() - start_s
        self._n_accepted += 1
        self._check_spent()

    def _check_spent(self) -> None:
        if self._spent_s > FREE_S + FREE_TOKEN_S * self._n_accepted:
            raise BadSettings(
                f"the grammar is too ambiguous: following it took {self._spent_s:.1f} s for {self._n_accepted} tokens"
            )

    def copy(self) -> Grammar:
        """A grammar at the same place, independent of this one."""
        twin = copy.copy(self)
        twin._matcher = self._matcher.deep_copy()
        return twin


def _import_llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise BackendUnavailable(
            "grammars and JSON schemas need the package llguidance: pip install llguidance"
        ) from None
    return llguidance


def _parse_json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise BadSettings(f"json_schema: {constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise BadSettings(f"json_schema, line {error.lineno}, column {error.colno}: {error.msg}") from None


def _plain_words(error: str) -> str:
    """llguidance's message without its place in the grammar we wrote, in one line."""
    if error.startswith("panic:"):
        return "too large"
    text = re.sub(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?", "", error.strip())
    lines = [line.strip() for line in text.split("\n   1 | ")[0].splitlines()]
    joined = " ".join(line for line in lines if line)
    joined = joined.removesuffix(" <non-verbose/>")
    return "no text can come next" if joined.startswith("NoExtensionBias") else joined


def _where(error: str, schema: Any) -> str:
    """ " at /properties/a" for the first keyword that an error names, or ""."""
    match = re.match(r'Unimplemented keys: \["([^"]+)"', error)
    path = _path_of(match[1], schema) if match else None
    return "" if path is None else f" at {path or '/'}"


def _path_of(key: str, value: Any) -> str | None:
    """JSON pointer to the object that has `key`."""
    if isinstance(value, dict) and key in value:
        return ""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if (path := _path_of(key, item)) is not None:
            return f"/{name}{path}"
    return None
