"""Samplers for the answers of one model: settings in, a `Sampler` out, with the grammar it has to follow.

What is made once a model (the bytes of every token, the vocabulary as grammars see it) is made here when first wanted.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from gemmafile.engine.sampler import Sampler
from gemmafile.errors import BadSettings, GemmafileError
from gemmafile.settings import SamplingSettings

if TYPE_CHECKING:
    from gemmafile.engine.grammar import Grammar, GrammarVocabulary


class TokenTable(Protocol):
    """What is wanted of a tokenizer."""

    @property
    def n_tokens(self) -> int: ...

    @property
    def eog_ids(self) -> Collection[int]: ...

    def is_control(self, token_id: int) -> bool: ...

    def token_bytes(self) -> list[bytes]: ...


def has_grammar(settings: SamplingSettings) -> bool:
    """Do these settings hold a grammar, which takes a while to compile?"""
    return settings.grammar is not None or settings.json_schema is not None


class Samplers:
    """Makes samplers. May be asked from several threads."""

    def __init__(self, tokens: TokenTable, n_vocab: int, n_context: int):
        self._tokens, self._n_vocab, self._n_context = tokens, n_vocab, n_context
        self._making = threading.Lock()

    def make(self, settings: SamplingSettings, prompt_ids: Sequence[int], n_begun: int = 0) -> Sampler:
        """A sampler for one answer to a prompt, whose last `n_begun` tokens are the answer's beginning already.

        Raises BadSettings, also where the grammar does not allow that beginning.
        """
        sampler = Sampler(
            settings,
            self._n_vocab,
            eog_ids=self._tokens.eog_ids,
            n_context=self._n_context,
            token_bytes=self._token_bytes if settings.dry_multiplier > 0 else None,
            grammar=self._grammar(settings),
        )
        sampler.accept_prompt(prompt_ids)
        if sampler.grammar is not None:
            _follow(sampler.grammar, prompt_ids[len(prompt_ids) - n_begun :])
        return sampler

    def begin(self, settings: SamplingSettings, prompt_ids: Sequence[int], n_begun: int = 0) -> Future[Sampler]:
        """`make`, on another thread: a grammar takes milliseconds, the first of all half a second, a large one more."""
        return self._threads.submit(self.make, settings, prompt_ids, n_begun)

    def prepare(self) -> Future[None]:
        """Have ready what the first grammar needs, made on another thread. Where it cannot be had, the first grammar
        says so."""
        return self._threads.submit(self._prepare)

    def _prepare(self) -> None:
        with self._making, contextlib.suppress(GemmafileError):
            assert self._grammar_vocabulary is not None

    def rest(self) -> None:
        """Nobody asks for a while: what is quickly made again is let go of."""
        self.__dict__.pop("_token_bytes", None)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(2, "gemmafile-grammar")  # a slow one does not hold all others up

    def _grammar(self, settings: SamplingSettings) -> Grammar | None:
        """The grammar of an answer at its beginning. Raises BadSettings."""
        if not has_grammar(settings):
            return None
        if settings.grammar is not None and settings.json_schema is not None:
            raise BadSettings("a grammar and a JSON schema were both given: which one?")
        from gemmafile.engine.grammar import Grammar

        with self._making:  # the vocabulary is made once
            vocabulary = self._grammar_vocabulary
        if settings.grammar is not None:
            return Grammar.from_gbnf(settings.grammar, vocabulary)
        return Grammar.from_json_schema(settings.json_schema or "", vocabulary)

    @cached_property
    def _grammar_vocabulary(self) -> GrammarVocabulary:
        from gemmafile.engine.grammar import GrammarVocabulary

        control_ids = [i for i in range(self._tokens.n_tokens) if self._tokens.is_control(i)]
        vocabulary = GrammarVocabulary(self._tokens.token_bytes(), self._tokens.eog_ids, control_ids)
        vocabulary.prepare()  # half a second, while the lock is held
        return vocabulary

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        return self._tokens.token_bytes()


def _follow(grammar: Grammar, begun: Sequence[int]) -> None:
    """Take a grammar along the beginning of an answer. Raises BadSettings where it does not allow that."""
    for place, token_id in enumerate(begun, 1):
        try:
            grammar.accept(token_id)
        except BadSettings:
            raise
        except GemmafileError:
            raise BadSettings(
                f"the grammar does not allow an answer that begins so: token {place} of {len(begun)} cannot stand there"
            ) from None
