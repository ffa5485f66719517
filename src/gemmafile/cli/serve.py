"""`gemmafile serve`: flags in, a server that runs until it is stopped.

All flags of `gemmafile run` are understood too: what they say about sampling, the context and the chat template is what
requests start from.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from gemmafile.cli.defaults import with_defaults
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
from gemmafile.cli.streams import Streams
from gemmafile.settings import ContextSettings, RunSettings, SamplingSettings, ServeSettings

GROUPS: tuple[tuple[str, type[Any]], ...] = (
    ("server", ServeSettings),
    ("defaults of requests", RunSettings),
    ("sampling", SamplingSettings),
    ("context and backend", ContextSettings),
)
USAGE = "gemmafile serve MODEL [flags]\n       gemmafile run MODEL --server [flags]"
DESCRIPTION = (
    "Offers a chat page and the APIs of OpenAI, llama.cpp, ollama and Anthropic on one port of this machine, and opens "
    "the page in a browser where there is one."
)


def main(words: list[str]) -> int:
    """Runs the words behind `gemmafile serve`; returns the exit code."""
    groups = [("model", [MODEL, *HUB, HELP]), *((title, flags_of(kind)) for title, kind in GROUPS)]
    flags: list[Flag] = [flag for _, members in groups for flag in members]
    given = read_words(words, flags)
    if given.values.get("help"):
        print(help_text(USAGE, DESCRIPTION, groups))
        return 0
    add_environment(given, flags)
    return serve(with_defaults(words, flags, given))


def serve(given: Given) -> int:
    """Serves what the flags say until it is stopped."""
    from gemmafile.cli import confinement
    from gemmafile.cli.run import check_gpu, make_plan
    from gemmafile.server.launch import run_server

    for name in ("prompt", "file"):
        if given.values.pop(name, None) is not None:
            given.notes.append(f"-{name[0]} is accepted and does nothing: requests bring their prompts")
    plan = make_plan(given)
    streams = Streams(quiet=plan.run.log_disable, verbose=plan.run.verbose)
    for note in given.notes:
        streams.say(note)
    check_gpu(plan.run, streams)
    if plan.run.private:
        sys.dont_write_bytecode = True
    show_traces = plan.run.verbose or bool(os.environ.get("GEMMAFILE_DEBUG"))
    run_server(
        plan.model_path, make_settings(ServeSettings, given), plan.context, plan.run, plan.sampling, plan.template,
        plan.system, streams.say, on_ready=confinement.before_the_end, show_traces=show_traces,
    )  # fmt: skip
    return 0
