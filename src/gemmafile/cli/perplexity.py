"""`gemmafile perplexity`: how well a model predicts a text, and how far it is from another model.

Perplexity of a text by llama.cpp's method, number for number comparable (`measure/perplexity.py`). With
--kl-divergence-base the log-probabilities are kept in a file; with --kl-divergence as well, another model is compared
with them (`measure/divergence.py`). These figures are there to lay files beside each other and beside published tables,
which are llama.cpp's: so activations are rounded as it rounds them. --activations fine measures what `run` answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gemmafile.cli.flags import (
    HELP,
    HUB,
    MODEL,
    Flag,
    Given,
    add_environment,
    flags_of,
    help_text,
    make_settings,
    read_words,
)
from gemmafile.cli.run import model_path, read_text
from gemmafile.cli.streams import Streams
from gemmafile.errors import BadSettings
from gemmafile.settings import ContextSettings, option

if TYPE_CHECKING:
    from gemmafile.measure.divergence import Base
    from gemmafile.measure.perplexity import Score
    from gemmafile.model_api import Model

DEFAULT_CONTEXT, SHORTEST_CONTEXT = 512, 4
DEFAULT_ACTIVATIONS = "int8"
"""As llama.cpp: with finer ones a file of Q8_0 seems a quarter nearer its base than in every published table."""


@dataclass
class PerplexitySettings:
    """What to score, and how much is shown."""

    file: str | None = option(None, "--file", "-f", help="the text; -: stdin", metavar="FILE")
    n_chunks: int = option(-1, "--chunks", help="chunks to score at most; -1: all", metavar="N")
    base: str | None = option(
        None, "--kl-divergence-base", "--save-all-logits", metavar="FILE",
        help="keep the log-probabilities in this file; with --kl-divergence: compare with those of it",
    )  # fmt: skip
    divergence: bool = option(False, "--kl-divergence", help="how far the model is from the base, on the base's text")
    hellaswag: bool = option(False, "--hellaswag", help="score HellaSwag tasks: FILE has six lines a task")
    hellaswag_tasks: int = option(400, "--hellaswag-tasks", help="how many, drawn at random", metavar="N")
    winogrande: bool = option(False, "--winogrande", help="score Winogrande tasks: FILE is llama.cpp's CSV")
    winogrande_tasks: int = option(0, "--winogrande-tasks", help="how many, drawn at random; 0: all", metavar="N")
    multiple_choice: bool = option(
        False, "--multiple-choice", help="score multiple choices: FILE is llama.cpp's binary"
    )
    multiple_choice_tasks: int = option(0, "--multiple-choice-tasks", help="how many; 0: all", metavar="N")
    binary_file: str | None = option(None, "--binary-file", "-bf", help="FILE, for --multiple-choice", metavar="FILE")
    verbose: bool = option(False, "--verbose", "-v", help="show the model, the settings in force and the timings")
    log_disable: bool = option(False, "--log-disable", help="nothing on stderr but errors")


def main(words: list[str]) -> int:
    """Runs the words behind `gemmafile perplexity`; returns the exit code."""
    groups = [
        ("model and text", [MODEL, *HUB, *flags_of(PerplexitySettings), HELP]),
        ("context and backend", [_as_llamacpp(flag) for flag in flags_of(ContextSettings)]),
    ]
    flags = [flag for _, members in groups for flag in members]
    given = read_words(words, flags)
    if given.values.get("help"):
        print(help_text("gemmafile perplexity MODEL -f TEXT [flags]", __doc__.split("\n\n")[1], groups))
        return 0
    add_environment(given, flags)
    given.values.setdefault("activations", DEFAULT_ACTIVATIONS)
    settings, context = make_settings(PerplexitySettings, given), make_settings(ContextSettings, given)
    streams = Streams(quiet=settings.log_disable, verbose=settings.verbose)
    if settings.n_chunks == 0:
        raise BadSettings("--chunks is 0, expected 1 or more, or -1 for all")
    if context.activations == DEFAULT_ACTIVATIONS:
        streams.detail("activations are rounded to 8 bits, as llama.cpp does; --activations fine: as run does")
    if settings.divergence:
        return compare(given, settings, context, streams)
    if settings.hellaswag or settings.winogrande or settings.multiple_choice:
        return choose(given, settings, context, streams)
    path = model_path(given)
    if settings.file is None:
        raise BadSettings("which text? give a file: gemmafile perplexity MODEL -f text.txt")
    text = read_text(settings.file)
    n_context = DEFAULT_CONTEXT if context.context is None else context.context
    if n_context < SHORTEST_CONTEXT:
        raise BadSettings(f"-c is {n_context}, expected the length of a chunk, {SHORTEST_CONTEXT} or more")
    from gemmafile.model_api import Model

    with Model(path, replace(context, context=n_context), say=streams.say) as model:
        score = measure(model, text, n_context, settings.n_chunks, streams, settings.base)
    streams.write(f"\nFinal estimate: PPL = {score.perplexity:.4f} +/- {score.uncertainty:.5f}\n")
    return 0


def _as_llamacpp(flag: Flag) -> Flag:
    """The flag with this command's default in its help."""
    if flag.field != "activations":
        return flag
    return replace(flag, help=flag.help.replace("(default: fine)", f"(default here: {DEFAULT_ACTIVATIONS})"))


def measure(
    model: Model, text: str, n_context: int, n_chunks: int, streams: Streams, base_path: str | None = None
) -> Score:
    """Scores a text, writing the perplexity so far after each chunk. Raises GemmafileError for a text too short."""
    from contextlib import nullcontext

    from gemmafile.measure.divergence import BaseWriter
    from gemmafile.measure.perplexity import Score, cut_text, negative_log_likelihoods, read_chunk

    chunks = cut_text(model, text, n_context, n_chunks)
    streams.detail(f"{len(chunks)} chunks of {n_context} tokens")
    score = Score()
    with BaseWriter(Path(base_path), chunks, model.config.n_vocab) if base_path else nullcontext() as base:
        for i, chunk in enumerate(chunks):
            for logits, token_ids in read_chunk(model, chunk):
                score.add(negative_log_likelihoods(logits, token_ids))
                if base is not None:
                    base.add(logits)
            streams.write(f"[{i + 1}]{score.perplexity:.4f},")
    return score


def compare(given: Given, settings: PerplexitySettings, context: ContextSettings, streams: Streams) -> int:
    """How far a model is from the base of a file. Raises BadSettings, BadFile."""
    from gemmafile.measure.divergence import HEADINGS, LEAST_FOR_STATISTICS, Divergence, open_base
    from gemmafile.measure.perplexity import read_chunk
    from gemmafile.model_api import Model

    if settings.base is None:
        raise BadSettings("--kl-divergence compares with a base: give its file (--kl-divergence-base FILE)")
    base = open_base(Path(settings.base))
    found, n_chunks = Divergence(), len(base.chunks)
    if settings.n_chunks > 0:
        n_chunks = min(n_chunks, settings.n_chunks)
    with Model(model_path(given), replace(context, context=base.n_context), say=streams.say) as model:
        check_vocabulary(model, base)
        streams.write(f"{HEADINGS}\n")
        for i in range(n_chunks):
            done = 0
            for logits, token_ids in read_chunk(model, base.chunks[i].tolist()):
                found.add(logits, base.rows[i, done : done + len(logits)], token_ids)
                done += len(logits)
            streams.write(f"{found.summary().chunk_line(i + 1)}\n")
    summary = found.summary()
    if summary.n >= LEAST_FOR_STATISTICS:
        streams.write("\n" + "\n".join(summary.report()) + "\n")
    return 0


def choose(given: Given, settings: PerplexitySettings, context: ContextSettings, streams: Streams) -> int:
    """Score multiple choices. Raises BadSettings, GemmafileError."""
    from gemmafile.measure import choices
    from gemmafile.model_api import Model

    path, file = model_path(given), settings.file or settings.binary_file
    if settings.hellaswag + settings.winogrande + settings.multiple_choice > 1:
        raise BadSettings("--hellaswag, --winogrande and --multiple-choice are one at a time")
    if file is None:
        raise BadSettings("which tasks? give a file: gemmafile perplexity MODEL -f FILE --hellaswag")
    if settings.multiple_choice:
        tasks = choices.read_multiple_choice(_read_bytes(file), settings.multiple_choice_tasks)
        score = choices.multiple_choice_lines
    elif settings.winogrande:
        tasks, score = choices.read_winogrande(read_text(file), settings.winogrande_tasks), choices.winogrande_lines
    else:
        tasks, score = choices.read_hellaswag(read_text(file), settings.hellaswag_tasks), choices.hellaswag_lines
    n_context = DEFAULT_CONTEXT if context.context is None else context.context
    with Model(path, replace(context, context=n_context), say=streams.say) as model:
        for line in score(model, tasks):
            streams.write(f"{line}\n")
    return 0


def _read_bytes(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise BadSettings(f"{file} cannot be read: {error.strerror or error}") from None


def check_vocabulary(model: Model, base: Base) -> None:
    """Raises BadSettings where the base's probabilities are of other tokens."""
    if model.config.n_vocab != base.n_vocab:
        raise BadSettings(
            f"{base.path} has probabilities of {base.n_vocab} tokens, and the model has {model.config.n_vocab}"
        )
