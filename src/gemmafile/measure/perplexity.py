"""How well a model predicts a text, by llama.cpp's method, number for number comparable.

The text is cut into chunks of n_context tokens. Each chunk is read on its own, its first token replaced by BOS where
the model wants one, and only its second half is scored, so that every scored token has half a chunk before it.
Source: llama.cpp, tools/perplexity/perplexity.cpp, `perplexity`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gemmafile.errors import GemmafileError
from gemmafile.model_api import Model

SCORED_ROWS = 64
"""Rows of logits held at once: 64 MB with Gemma's vocabulary, where a whole chunk would take 500."""

SHORTEST_CONTEXT = 4
LARGEST_MEAN = math.log(sys.float_info.max)


@dataclass
class Score:
    """Sums over scored tokens of their negative log-likelihood and its square; in natural logarithms."""

    n: int = 0
    nll: float = 0.0
    nll_squared: float = 0.0
    chunks: list[float] = field(default_factory=list)

    def add(self, values: np.ndarray) -> None:
        """`values`  float64[n]"""
        self.n += len(values)
        self.nll += float(values.sum())
        self.nll_squared += float((values * values).sum())

    @property
    def perplexity(self) -> float:
        mean = self.nll / self.n
        return math.inf if mean >= LARGEST_MEAN else math.exp(mean)

    @property
    def uncertainty(self) -> float:
        """Standard error of the perplexity; NaN for a single token."""
        mean = self.nll / self.n
        variance = self.nll_squared / self.n - mean * mean
        return math.sqrt(max(variance, 0.0) / (self.n - 1)) * self.perplexity if self.n > 1 else math.nan


def cut_text(model: Model, text: str, n_context: int, n_chunks: int = -1) -> list[list[int]]:
    """A text's token ids in chunks of n_context, at most n_chunks of them (negative: all).

    Raises GemmafileError for a text too short.
    """
    token_ids = model.tokenize(text)
    if len(token_ids) < 2 * n_context:
        fitting = len(token_ids) // 2
        smaller = f" or a smaller context (-c {fitting})" if fitting >= SHORTEST_CONTEXT else ""
        raise GemmafileError(
            f"the text has {len(token_ids)} tokens, and a context of {n_context} needs {2 * n_context}: "
            f"give a longer text{smaller}"
        )
    n_all = len(token_ids) // n_context
    n_chunks = n_all if n_chunks < 0 else min(n_chunks, n_all)
    return [token_ids[i * n_context : (i + 1) * n_context] for i in range(n_chunks)]


def first_scored(n_context: int) -> int:
    """The first row of a chunk whose logits count."""
    return n_context // 2


def read_chunk(model: Model, chunk: list[int]) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Logits float32[n, V] of a chunk's second half, some rows at a time, and the tokens that come after them: token
    j + 1 for row j, for j from n // 2 to n - 2."""
    first, engine, tokenizer = first_scored(len(chunk)), model.engine, model.tokenizer
    read = [tokenizer.bos_id, *chunk[1:]] if tokenizer.add_bos and tokenizer.bos_id is not None else chunk
    model.sequence.truncate(0)
    engine.forward(model.sequence, read[:first], want="none")
    for start in range(first, len(chunk) - 1, SCORED_ROWS):
        end = min(start + SCORED_ROWS, len(chunk) - 1)
        yield engine.forward(model.sequence, read[start:end], want="all"), chunk[start + 1 : end + 1]


def negative_log_likelihoods(logits: np.ndarray, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """float64[n] for float32[n, V]: log of the sum of exp, less the token's logit; exp in float32, sums in float64."""
    maxima = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - maxima).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(token_ids)), token_ids].astype(np.float64) - maxima[:, 0]
    values: np.ndarray = np.log(sums) - chosen
    return values
