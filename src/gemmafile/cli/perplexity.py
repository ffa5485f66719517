"""`gemmafile perplexity`: how well a model predicts a text, by llama.cpp's method, number for number comparable.

The text is cut into chunks of n_ctx tokens. Each chunk is read on its own, its first token replaced by BOS where
the model wants one, and only its second half is scored, so that every scored token has half a chunk before it.
Source: llama.cpp, tools/perplexity/perplexity.cpp, `perplexity`.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gemmafile.cli.flags import HELP, MODEL, add_environment, flags_of, help_text, make_settings, read_words
from gemmafile.cli.run import model_path, read_text
from gemmafile.cli.streams import Streams
from gemmafile.errors import BadSettings, GemmafileError
from gemmafile.settings import ContextSettings, option

if TYPE_CHECKING:
    import numpy as np

    from gemmafile.model_api import Model

SCORED_ROWS = 64
"""Rows of logits held at once: 64 MB with Gemma's vocabulary, where a whole chunk would take 500."""

DEFAULT_CONTEXT, SHORTEST_CONTEXT = 512, 4
LARGEST_MEAN = math.log(sys.float_info.max)


@dataclass
class PerplexitySettings:
    """What to score, and how much is shown."""

    file: str | None = option(None, "--file", "-f", help="the text; -: stdin", metavar="FILE")
    n_chunks: int = option(-1, "--chunks", help="chunks to score at most; -1: all", metavar="N")
    verbose: bool = option(False, "--verbose", "-v", help="show the model, the settings in force and the timings")
    log_disable: bool = option(False, "--log-disable", help="nothing on stderr but errors")


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


def main(words: list[str]) -> int:
    """Runs the words behind `gemmafile perplexity`; returns the exit code."""
    groups = [
        ("model and text", [MODEL, *flags_of(PerplexitySettings), HELP]),
        ("context and backend", flags_of(ContextSettings)),
    ]
    flags = [flag for _, members in groups for flag in members]
    given = read_words(words, flags)
    if given.values.get("help"):
        print(help_text("gemmafile perplexity MODEL -f TEXT [flags]", __doc__.split("\n\n")[1], groups))
        return 0
    add_environment(given, flags)
    settings, context = make_settings(PerplexitySettings, given), make_settings(ContextSettings, given)
    streams = Streams(quiet=settings.log_disable, verbose=settings.verbose)
    path = model_path(given)
    if settings.file is None:
        raise BadSettings("which text? give a file: gemmafile perplexity MODEL -f text.txt")
    text = read_text(settings.file)
    n_context = DEFAULT_CONTEXT if context.context is None else context.context
    if n_context < SHORTEST_CONTEXT:
        raise BadSettings(f"-c is {n_context}, expected the length of a chunk, {SHORTEST_CONTEXT} or more")
    if settings.n_chunks == 0:
        raise BadSettings("--chunks is 0, expected 1 or more, or -1 for all")
    from gemmafile.model_api import Model

    with Model(path, replace(context, context=n_context), say=streams.say) as model:
        score = measure(model, text, n_context, settings.n_chunks, streams)
    streams.write(f"\nFinal estimate: PPL = {score.perplexity:.4f} +/- {score.uncertainty:.5f}\n")
    return 0


def measure(model: Model, text: str, n_context: int, n_chunks: int, streams: Streams) -> Score:
    """Scores a text, writing the perplexity so far after each chunk. Raises GemmafileError for a text too short."""
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
    streams.detail(f"{len(token_ids)} tokens, {n_chunks} chunks of {n_context}")
    score = Score()
    for i in range(n_chunks):
        chunk = token_ids[i * n_context : (i + 1) * n_context]
        score_chunk(model, chunk, score)
        streams.write(f"[{i + 1}]{score.perplexity:.4f},")
    return score


def score_chunk(model: Model, chunk: list[int], score: Score) -> None:
    """Adds the second half of a chunk: token j + 1 by the logits of row j, for j from n // 2 to n - 2."""
    first, engine, tokenizer = len(chunk) // 2, model.engine, model.tokenizer
    read = [tokenizer.bos_id, *chunk[1:]] if tokenizer.add_bos and tokenizer.bos_id is not None else chunk
    model.sequence.truncate(0)
    engine.forward(model.sequence, read[:first], want="none")
    for start in range(first, len(chunk) - 1, SCORED_ROWS):
        end = min(start + SCORED_ROWS, len(chunk) - 1)
        logits = engine.forward(model.sequence, read[start:end], want="all")
        score.add(negative_log_likelihoods(logits, chunk[start + 1 : end + 1]))


def negative_log_likelihoods(logits: np.ndarray, token_ids: list[int]) -> np.ndarray:
    """float64[n] for float32[n, V]: log of the sum of exp, less the token's logit; exp in float32, sums in float64."""
    import numpy as np

    maxima = logits.max(axis=1, keepdims=True)
    sums = np.exp(logits - maxima).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(token_ids)), token_ids].astype(np.float64) - maxima[:, 0]
    values: np.ndarray = np.log(sums) - chosen
    return values
