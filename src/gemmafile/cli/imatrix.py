"""`gemmafile imatrix`: an importance matrix, which tells `gemmafile quantize` where precision counts.

Reads a text with a model and notes how large the numbers are that meet each column of each matrix. Files are
llama.cpp's, GGUF or the older .dat; several can be put together with --in-file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gemmafile.cli.flags import HELP, HUB, MODEL, Given, add_environment, flags_of, help_text, make_settings, read_words
from gemmafile.cli.run import model_path, read_text
from gemmafile.cli.streams import Streams
from gemmafile.errors import BadSettings
from gemmafile.settings import ContextSettings, option

if TYPE_CHECKING:
    from gemmafile.quantize.importance import Importance

DEFAULT_CONTEXT, SHORTEST_CONTEXT = 512, 4


@dataclass
class ImatrixSettings:
    """What is read, and where it goes."""

    file: str | None = option(None, "--file", "-f", help="the text; -: stdin", metavar="FILE")
    out: str = option("imatrix.gguf", "--output-file", "--output", "-o", help="the importance matrix", metavar="FILE")
    format: str | None = option(
        None, "--output-format", help="default: dat for a name that ends in .dat, else gguf", choices=("gguf", "dat")
    )
    in_files: list[str] = option(
        [], "--in-file", help="an importance matrix to add to (repeatable)", metavar="FILE", action="append"
    )
    n_chunks: int = option(-1, "--chunks", help="chunks to read at most; -1: all", metavar="N")
    skipped: int = option(0, "--chunk", "--from-chunk", help="chunks to leave out at the beginning", metavar="N")
    process_output: bool = option(False, "--process-output", help="measure output.weight too")
    verbose: bool = option(False, "--verbose", "-v", help="show the model, the settings in force and the timings")
    log_disable: bool = option(False, "--log-disable", help="nothing on stderr but errors")


def main(words: list[str]) -> int:
    """Runs the words behind `gemmafile imatrix`; returns the exit code."""
    groups = [
        ("model and text", [MODEL, *HUB, *flags_of(ImatrixSettings), HELP]),
        ("context and backend", flags_of(ContextSettings)),
    ]
    flags = [flag for _, members in groups for flag in members]
    given = read_words(words, flags)
    if given.values.get("help"):
        print(help_text("gemmafile imatrix MODEL -f TEXT [flags]", __doc__.split("\n\n")[1], groups))
        return 0
    add_environment(given, flags)
    settings, context = make_settings(ImatrixSettings, given), make_settings(ContextSettings, given)
    streams = Streams(quiet=settings.log_disable, verbose=settings.verbose)
    if settings.file is None and not settings.in_files:
        raise BadSettings("which text? give a file: gemmafile imatrix MODEL -f text.txt")
    from gemmafile.files.atomic import check_writable
    from gemmafile.quantize.importance import load_importance, save_importance

    check_writable(Path(settings.out))
    before = [load_importance(path) for path in settings.in_files]
    found = _read(given, settings, context, streams) if settings.file is not None else before.pop(0)
    for importance in before:
        found.add(importance)
    legacy = settings.format == "dat" or (settings.format is None and settings.out.endswith(".dat"))
    save_importance(settings.out, found, legacy=legacy)
    streams.say(f"{settings.out}: {len(found.entries)} matrices, {found.n_chunks} chunks of {found.chunk_rows}")
    return 0


def _read(given: Given, settings: ImatrixSettings, context: ContextSettings, streams: Streams) -> Importance:
    from gemmafile.measure.perplexity import cut_text
    from gemmafile.model_api import Model
    from gemmafile.quantize.collect import collect

    assert settings.file is not None
    text = read_text(settings.file)
    n_context = DEFAULT_CONTEXT if context.context is None else context.context
    if n_context < SHORTEST_CONTEXT:
        raise BadSettings(f"-c is {n_context}, expected the length of a chunk, {SHORTEST_CONTEXT} or more")
    if settings.skipped < 0 or settings.n_chunks == 0:
        raise BadSettings("--chunks is 1 or more, or -1 for all, and --chunk is 0 or more")
    name = os.fsencode(settings.file).decode(errors="replace")
    with Model(model_path(given), replace(context, context=n_context), say=streams.say) as model:
        chunks = cut_text(model, text, n_context)[settings.skipped :]
        chunks = chunks if settings.n_chunks < 0 else chunks[: settings.n_chunks]
        if not chunks:
            raise BadSettings(f"--chunk {settings.skipped} leaves nothing of the text")
        found = collect(
            model, chunks, dataset=name, with_output=settings.process_output,
            on_chunk=lambda number, score: streams.write(f"[{number}]{score.perplexity:.4f},"),
        )  # fmt: skip
    streams.write("\n")
    return found
