"""Jobs and what becomes of them: the words that cross between the scheduler and whoever serves people.

In: a `Job`, which is token ids and how to go on from them. Out: `Event`s, each naming its job. Token ids only, no text,
no arrays: both sides of a pipe can import this. Next: scheduler.py.
"""

from __future__ import annotations

import dataclasses
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from gemmafile.errors import BadFile, BadSettings, ContextOverflow, GemmafileError
from gemmafile.settings import SamplingSettings, changed, from_fields

POOLINGS = ("mean", "last", "cls")

Reason = Literal["stop", "limit", "context full", "cancelled", "deadline"]
"""Why an answer ended; `stop`: the model chose a token that ends answers. What failed is a `Failed`, not an `End`."""

Top: TypeAlias = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Job:
    """One answer to be made, or one embedding.

    n_predict     tokens to choose; negative: until the model ends or the context is full; 0: the prompt is only read
    cache_prompt  what others computed may be taken over, and what is computed here is kept for others
    slot          the slot it has to run in; -1: any
    deadline_s    seconds after `submit` when the answer ends, wherever it is
    pooling       "mean", "last" or "cls": an embedding of the tokens; none is chosen
    score_prompt  say how likely each token of the prompt was (`Scores`)
    n_begun       tokens at the end of the prompt that the answer itself begins with: its grammar meets them too
    """

    id: int
    token_ids: Sequence[int]
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    n_predict: int = -1
    cache_prompt: bool = True
    slot: int = -1
    deadline_s: float | None = None
    pooling: str | None = None
    score_prompt: bool = False
    n_begun: int = 0

    def to_fields(self) -> dict[str, Any]:
        """As JSON can hold it: the fields that differ from their defaults."""
        fields: dict[str, Any] = {"id": self.id, "token_ids": list(self.token_ids)}
        fields |= {f.name: v for f in _PLAIN if (v := getattr(self, f.name)) != f.default}
        if sampling := changed(self.sampling):
            fields["sampling"] = sampling
        return fields

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Job:
        """From what `to_fields` gave, through JSON or not. Raises BadSettings for what is no job."""
        try:
            values = dict(fields)
            sampling = dict(values.pop("sampling", {}))
            if "logit_bias" in sampling:  # JSON has no keys but texts
                sampling["logit_bias"] = {int(token_id): bias for token_id, bias in sampling["logit_bias"].items()}
            if "samplers" in sampling:
                sampling["samplers"] = tuple(sampling["samplers"])
            return cls(**values, sampling=from_fields(SamplingSettings, sampling))
        except (TypeError, ValueError, AttributeError) as error:
            raise BadSettings(f"this is no job: {error}") from None


_PLAIN = [f for f in dataclasses.fields(Job) if f.name not in ("id", "token_ids", "sampling")]


@dataclass(frozen=True, slots=True)
class Progress:
    """So many tokens of the prompt are in the cache, `cached` of them from before."""

    id: int
    done: int
    total: int
    cached: int


@dataclass(frozen=True, slots=True)
class Token:
    """A chosen token, the one that ends the answer included.

    `logprob`, `top`  None unless n_probs was asked for: its log-probability under the model, and the likeliest tokens
    """

    id: int
    token_id: int
    logprob: float | None = None
    top: Top | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely the tokens of the prompt were, from place `first` on: (token id, log-probability, the n_probs
    likeliest there). None for the first token of all, which nothing foretells."""

    id: int
    first: int
    items: Sequence[tuple[int, float | None, Top | None]]


@dataclass(frozen=True, slots=True)
class Embedding:
    """`values`  float32, little-endian: the pooled hidden state after the last norm, not normalised."""

    id: int
    values: bytes


@dataclass(frozen=True, slots=True)
class Timings:
    """Under llama.cpp's names: tokens taken from the cache, computed of the prompt, and chosen; milliseconds."""

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class End:
    """The job is over. `slot`  where it ran, -1: nowhere · `queued_ms`  how long it waited for its turn"""

    id: int
    reason: Reason
    timings: Timings
    slot: int = -1
    queued_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """The job (or slot action) was refused or broke off: HTTP status, llama.cpp's kind of error, one line of text.

    `n_prompt`, `n_context`  both counts, where a prompt does not fit
    """

    id: int
    status: int
    kind: str
    message: str
    retry_after_s: float | None = None
    n_prompt: int | None = None
    n_context: int | None = None


@dataclass(frozen=True, slots=True)
class SlotDone:
    """A slot's action is done. `n_tokens` saved, restored or erased · `n_bytes` of the file"""

    id: int
    slot: int
    action: str
    n_tokens: int
    n_bytes: int = 0
    ms: float = 0.0


Event: TypeAlias = Progress | Token | Scores | Embedding | End | Failed | SlotDone

KINDS = {
    400: "invalid_request_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
    500: "server_error", 501: "not_supported_error", 503: "unavailable_error",
}  # fmt: skip
"""llama.cpp's name for each status."""


def failed(number: int, error: Exception) -> Failed:
    """What an error makes of a job, or of a slot's action. A file that people name is their own. What is no error of
    ours to be met is a bug: it costs this job its answer and is logged, but for its message, which may quote a text."""
    if not isinstance(error, GemmafileError):
        frames = "".join(traceback.format_tb(error.__traceback__))
        print(f"gemmafile: a bug in the engine: {type(error).__name__}\n{frames}", file=sys.stderr, flush=True)
        error = GemmafileError(f"a bug in the engine ends this answer ({type(error).__name__}); its log says where")
    status = 400 if isinstance(error, BadFile) else error.http_status
    kind = KINDS.get(status, "server_error")
    if isinstance(error, ContextOverflow):
        return Failed(number, status, "exceed_context_size_error", str(error), None, error.n_prompt, error.n_context)
    return Failed(number, status, kind, str(error))
