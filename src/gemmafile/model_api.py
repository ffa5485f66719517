"""`Model`: the Python door. A model file in; token ids, logits, traces, text and chats out.

The command line uses the same class. What happens while an answer is made is in `completion.py`.
"""

from __future__ import annotations

import json
import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from gemmafile.completion import Answer, Piece
from gemmafile.engine.engine import Engine
from gemmafile.engine.sampler import Choice, Sampler
from gemmafile.engine.samplers import Samplers
from gemmafile.errors import BadFile, BadSettings
from gemmafile.files.gguf import Metadata, ModelFile
from gemmafile.files.open import open_model
from gemmafile.model.config import ModelConfig, read_config
from gemmafile.overrides import apply_overrides
from gemmafile.settings import ContextSettings, SamplingSettings, from_fields
from gemmafile.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from gemmafile.text.chat import ChatTemplate

Message = Mapping[str, Any]
TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    `text`           without the stop string and without control tokens
    `token_ids`      the chosen tokens, the one that ended the answer included
    `finish_reason`  "stop": the model ended its turn or a stop string came; "length": max_tokens or the context ran out
    `logprobs`       one Choice(token_id, logprob, top) a token, when n_probs was asked for
    `n_prompt`       tokens of the prompt
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    logprobs: list[Choice] | None
    n_prompt: int


class CompletionStream:
    """Iterate for pieces of text; `completion` is there once they have all been taken."""

    def __init__(self, pieces: Iterator[Piece], answer: Answer, n_probs: int):
        self._pieces, self._answer, self._n_probs = pieces, answer, n_probs
        self._taken: list[Piece] = []
        self.completion: Completion | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for piece in self._pieces:
            self._taken.append(piece)
            if piece.text:
                return piece.text
        if self.completion is None:
            self.completion = self._finish()
        raise StopIteration

    def close(self) -> None:
        """Stop the answer here, letting the model go."""
        closer = getattr(self._pieces, "close", None)
        if closer is not None:
            closer()

    def _finish(self) -> Completion:
        chosen = [Choice(p.token_id, p.logprob or 0.0, p.top) for p in self._taken if p.token_id is not None]
        return Completion(
            "".join(piece.text for piece in self._taken),
            self._answer.token_ids,
            "stop" if self._answer.ending in ("end of turn", "stop string") else "length",
            chosen if self._n_probs > 0 else None,
            len(self._answer.prompt_ids),
        )


class Model:
    """An open model. One call at a time: a second thread waits, a second call inside an unfinished stream is refused.

    `file`, `tokenizer`, `engine`  the parts · `metadata` the file's keys · `config` sizes and constants
    """

    def __init__(
        self,
        path: str | PathLike[str],
        settings: ContextSettings | None = None,
        say: Callable[[str], None] | None = None,
        *,
        n_sequences: int = 1,
        file: ModelFile | None = None,
    ):
        """Raises BadFile or UnsupportedModel for the file, BadSettings for the settings.

        say          gets notices: kernels are being compiled, the reference has to answer. Default: to stderr
        n_sequences  full contexts that the KV cache is to hold, as far as free memory goes: for a `Scheduler`
        file         the model, where it is open already; it is closed with this
        """
        settings = settings or ContextSettings()
        self.file: ModelFile = open_model(Path(path), settings, say or _to_stderr) if file is None else file
        apply_overrides(self.file, settings.override_kv)
        # Read here as well as by the engine: an architecture we do not run is said before anything else is looked at.
        self.config: ModelConfig = read_config(self.file, settings)
        if TOKENS in self.metadata:
            self.tokenizer  # noqa: B018  what is wrong with it is said now; a file without one still has logits
        self.engine = Engine(self.file, settings, say=say or _to_stderr, n_sequences=n_sequences)
        self.sequence = self.engine.new_sequence()
        self._lock = _Turn()
        self._templates: dict[tuple[str | None, str], ChatTemplate] = {}

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        backend: str = "cpu",
        threads: int | None = None,
        context: int | None = None,
        **settings: Any,
    ) -> Model:
        """Open a model file. `settings` are the other fields of ContextSettings.

        Raises BadFile or UnsupportedModel for the file; BadSettings, naming the nearest, for a setting.
        """
        values = {"backend": backend, "threads": threads, "context": context, **settings}
        return cls(path, from_fields(ContextSettings, values))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Raises BadFile for a file that has none."""
        tokenizer = load_tokenizer(self.metadata, self.file.path)
        if tokenizer.n_tokens != self.config.n_vocab:
            what = f"holds {tokenizer.n_tokens} tokens, and the embedding has {self.config.n_vocab} rows"
            raise BadFile(self.file.path, what, field=TOKENS)
        return tokenizer

    @property
    def metadata(self) -> Metadata:
        return self.file.metadata

    @property
    def n_context(self) -> int:
        """Positions a prompt and its answer have together."""
        return self.engine.n_context

    # --- tokens and numbers --------------------------------------------------------------------------------------

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text. `add_special`: with BOS where the model wants it · `parse_special`: control tokens
        spelled out in the text become those tokens (for trusted text only)."""
        return self.tokenizer.encode(text, add_special, parse_special)

    def detokenize(self, token_ids: Sequence[int], special: bool = False) -> str:
        """Text of token ids; `special`: control tokens are written out."""
        return self.tokenizer.decode(self._checked(token_ids), special)

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """float32[T, V]: for each position the logits of the token that follows it. Raises ContextOverflow."""
        ids = self._checked(token_ids)
        with self._lock:
            self.sequence.truncate(0)
            return self.engine.forward(self.sequence, ids, want="all")

    def trace(self, token_ids: Sequence[int]) -> list[tuple[str, np.ndarray]]:
        """Every intermediate value by name, in order of computation: copies, one row a position."""
        ids = self._checked(token_ids)
        passes: list[list[tuple[str, np.ndarray]]] = [[]]
        with self._lock:
            self.sequence.truncate(0)
            self.engine.forward(
                self.sequence, ids, want="all",
                trace=lambda name, value: passes[-1].append((name, value.copy())),
                on_progress=lambda n_done: passes.append([]),
            )  # fmt: skip
        passes.pop()
        return [(values[0][0], np.concatenate([v for _, v in values])) for values in zip(*passes, strict=True)]

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        try:
            if isinstance(token_ids, (bytes, bytearray)):
                raise TypeError
            ids = [operator.index(i) for i in token_ids]
        except TypeError:
            raise BadSettings(f"expected token ids, which are whole numbers, not {token_ids!r}") from None
        n_vocab = self.config.n_vocab
        for place, token_id in enumerate(ids):
            if not 0 <= token_id < n_vocab:
                raise BadSettings(f"token {place} is {token_id}: ids go from 0 to {n_vocab - 1}")
        return ids

    # --- answers -------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str | Sequence[int], *, stream: Literal[False] = False, **options: Any
    ) -> Completion: ...
    @overload
    def generate(self, prompt: str | Sequence[int], *, stream: Literal[True], **options: Any) -> CompletionStream: ...
    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        stream: bool = False,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        parse_special: bool = True,
        **sampling: Any,
    ) -> Completion | CompletionStream:
        """Go on from a prompt: text (BOS is added unless it is there) or token ids (taken as they are).

        max_tokens     negative: until the context is full
        stop           texts that end the answer
        parse_special  control tokens spelled out in a text prompt become those tokens; False for text of others
        sampling       fields of SamplingSettings: temperature, seed, top_k, n_probs, grammar ...
        Raises BadSettings for a setting, ContextOverflow when the prompt does not fit.
        """
        if isinstance(prompt, str):
            token_ids = self.encode_prompt(prompt, parse_special)
        else:
            token_ids = self._checked(prompt)
        settings = _sampling_settings(sampling)
        return self._answer(token_ids, settings, stream, max_tokens, stop)

    @overload
    def chat(self, messages: Sequence[Message], *, stream: Literal[False] = False, **options: Any) -> Completion: ...
    @overload
    def chat(self, messages: Sequence[Message], *, stream: Literal[True], **options: Any) -> CompletionStream: ...
    def chat(
        self,
        messages: Sequence[Message],
        *,
        stream: bool = False,
        max_tokens: int = 256,
        stop: str | Sequence[str] = (),
        chat_template: str | None = None,
        system_policy: str = "merge",
        **sampling: Any,
    ) -> Completion | CompletionStream:
        """Answer a chat: [{"role": "user", "content": "..."}, ...], rendered by the model's template.

        Text of messages never becomes a control token. The part that a longer chat shares with the one before
        it is not computed again. Arguments and errors as `generate`.
        """
        template = self.chat_template(chat_template, system_policy)
        settings = _sampling_settings(sampling)
        token_ids = template.encode(messages)
        return self._answer(token_ids, settings, stream, max_tokens, stop)

    def encode_prompt(self, text: str, parse_special: bool = True) -> list[int]:
        """Token ids of a prompt: BOS in front where the model wants it, and not twice."""
        doubled = parse_special and self.tokenizer.starts_with_bos(text)
        return self.tokenizer.encode(text, add_special=not doubled, parse_special=parse_special)

    def chat_template(self, name_or_source: str | None = None, system_policy: str = "merge") -> ChatTemplate:
        """The model's chat template, a built-in one by name, or one given as Jinja source."""
        from gemmafile.text.chat import ChatTemplate

        for name, value in (("chat_template", name_or_source or ""), ("system_policy", system_policy)):
            if not isinstance(value, str):
                raise BadSettings(f"{name} is {value!r}, expected text")
        key = (name_or_source, system_policy)
        if key not in self._templates:
            self._templates.clear()  # one is enough: compiling a template takes longer than rendering it
            self._templates[key] = ChatTemplate(name_or_source, self.config.architecture, self.tokenizer, system_policy)
        return self._templates[key]

    def make_sampler(self, settings: SamplingSettings, prompt_ids: Sequence[int]) -> Sampler:
        """A sampler for one answer to a prompt. Raises BadSettings."""
        return self._samplers.make(settings, prompt_ids)

    @cached_property
    def _samplers(self) -> Samplers:
        return Samplers(self.tokenizer, self.config.n_vocab, self.n_context)

    def _answer(
        self,
        token_ids: list[int],
        settings: SamplingSettings,
        stream: bool,
        max_tokens: int,
        stop: str | Sequence[str],
    ) -> Completion | CompletionStream:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, Sequence) or not all(isinstance(text, str) for text in stops):
            raise BadSettings(f"stop is {stop!r}, expected texts")
        if not isinstance(max_tokens, int):
            raise BadSettings(f"max_tokens is {max_tokens!r}, expected a whole number")
        sampler = self.make_sampler(settings, token_ids)
        answer = Answer(
            self.engine, self.sequence, self.tokenizer, token_ids, sampler, n_predict=max_tokens, stop=stops
        )
        pieces = CompletionStream(self._pieces(answer), answer, settings.n_probs)
        if stream:
            return pieces
        for _ in pieces:
            pass
        assert pieces.completion is not None
        return pieces.completion

    def _pieces(self, answer: Answer) -> Iterator[Piece]:
        with self._lock:
            yield from answer

    # --- end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the threads and the file."""
        self.engine.close()
        self.file.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Model {self.file.path}: {self.config.architecture}, context {self.n_context}>"


def _sampling_settings(values: dict[str, Any]) -> SamplingSettings:
    """SamplingSettings from keyword arguments; a JSON schema may be given as what its text stands for."""
    schema = values.get("json_schema")
    if isinstance(schema, (dict, bool)):
        try:
            values = {**values, "json_schema": json.dumps(schema)}
        except (TypeError, ValueError, RecursionError) as error:
            raise BadSettings(f"json_schema cannot be written as JSON: {error}") from None
    return from_fields(SamplingSettings, values)


def _to_stderr(line: str) -> None:
    print(f"gemmafile: {line}", file=sys.stderr)


class _Turn:
    """A lock that other threads wait for, and that its holder is told about instead of waiting for himself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def __enter__(self) -> None:
        if self._holder == threading.get_ident():
            raise BadSettings("the model is in the middle of an answer: take all of the stream, or close() it, first")
        self._lock.acquire()
        self._holder = threading.get_ident()

    def __exit__(self, *reason: object) -> None:
        self._holder = None
        self._lock.release()
