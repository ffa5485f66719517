"""`gemmafile run`: flags in, one of two modes out: a chat (`repl.py`) or a text that goes on (`continuation.py`).

This module reads flags, files and the environment; NumPy and the engine are imported after that, so that --help
and a mistyped flag answer at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmafile.cli.defaults import with_defaults
from gemmafile.cli.escapes import unescape
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
from gemmafile.errors import BackendUnavailable, BadFile, BadSettings
from gemmafile.settings import ContextSettings, RunSettings, SamplingSettings, ServeSettings

if TYPE_CHECKING:
    from gemmafile.model_api import Model

GROUPS: tuple[tuple[str, type[Any]], ...] = (
    ("prompt, mode and output", RunSettings),
    ("sampling", SamplingSettings),
    ("context and backend", ContextSettings),
)
USAGE = "gemmafile run MODEL [flags]\n       gemmafile -m MODEL [flags]"
DESCRIPTION = (
    "With -p or -f the model goes on from that text. Without, or with -cnv, -st or -sys, it chats by its chat "
    "template. With --server it serves: `gemmafile serve --help` has the flags for that."
)


@dataclass
class Plan:
    """Everything a run was asked for, with files read and escapes replaced.

    `prompt`  None: none was given · `system` system prompt · `template` name or source of a chat template
    """

    model_path: str
    run: RunSettings
    sampling: SamplingSettings
    context: ContextSettings
    prompt: str | None = None
    system: str | None = None
    template: str | None = None


def main(words: list[str]) -> int:
    """Runs the words behind `gemmafile run`; returns the exit code."""
    groups = [("model", [MODEL, *HUB, HELP]), *((title, flags_of(kind)) for title, kind in GROUPS)]
    of_server = flags_of(ServeSettings)
    flags: list[Flag] = [*(flag for _, members in groups for flag in members), *of_server]
    given = read_words(words, flags)
    if given.values.get("help"):
        print(help_text(USAGE, DESCRIPTION, groups))
        return 0
    typed = [flag for flag in of_server if flag.field in given.values and flag.field != "browser"]
    add_environment(given, flags)
    given = with_defaults(words, flags, given)
    if given.values.get("server"):
        from gemmafile.cli.serve import serve

        return serve(given)
    note_server_flags(given, typed)
    plan = make_plan(given)
    streams = Streams(quiet=plan.run.log_disable, verbose=plan.run.verbose)
    for note in given.notes:
        streams.say(note)
    check_gpu(plan.run, streams)
    return run(plan, streams)


def note_server_flags(given: Given, typed: list[Flag]) -> None:
    """Flags of a server change nothing where there is none."""
    for flag in typed:
        given.notes.append(f"{flag.names[0]} is accepted and does nothing: it is for a server (--server)")


def model_path(given: Given) -> str:
    """The model of a command line: -m, -hf, or the one word that belongs to no flag.

    Raises BadSettings; with -hf, what `pull_model` raises.
    """
    if "hf_repo" in given.values and not given.words and "model" not in given.values:
        given.values["model"] = fetch_model(given)
    elif "hf_repo" in given.values:
        raise BadSettings("-hf names the model: leave out the other one")
    paths = given.words if "model" not in given.values else [*given.words, given.values["model"]]
    if not any(paths):
        raise BadSettings("which model? give a GGUF file: gemmafile run model.gguf")
    if len(paths) > 1:
        raise BadSettings(f"one model, please: {paths[0]!r} and {paths[1]!r} were given; a prompt goes behind -p")
    path = str(paths[0])
    if "/" in path and not path.endswith(".gguf") and not os.path.exists(path):
        from gemmafile.files.hub import split_hub_name

        if split_hub_name(path):
            raise BadFile(path, f"there is no such file; a model of the hub is fetched by -hf {path}")
    return path


def fetch_model(given: Given) -> str:
    """The path of the hub's model that -hf names; the flag is then used up."""
    from gemmafile.files.hub import pull_model

    if token := given.values.get("hf_token"):
        os.environ["HF_TOKEN"] = token
    quiet = bool(given.values.get("log_disable"))
    say = Streams(quiet=quiet).say
    path = pull_model(given.values.pop("hf_repo"), file=given.values.get("hf_file"), quiet=quiet, say=say)
    return str(path)


def make_plan(given: Given) -> Plan:
    """Settings from flags; files read. Raises BadSettings or BadFile."""
    settings = make_settings(RunSettings, given)
    plan = Plan(model_path(given), settings, make_sampling(given, settings), make_settings(ContextSettings, given))
    plan.prompt = _one_of(settings.prompt, "-p", settings.file, "-f")
    plan.system = _one_of(settings.system_prompt, "-sys", settings.system_prompt_file, "-sysf")
    plan.template = _one_of(
        settings.chat_template, "--chat-template", settings.chat_template_file, "--chat-template-file"
    )
    _replace_escapes(plan)
    return plan


def make_sampling(given: Given, settings: RunSettings) -> SamplingSettings:
    """The sampling settings; some of their flags are words on a command line and something else in the settings."""
    from gemmafile.engine.sampling_options import parse_logit_bias, parse_samplers, parse_sampling_seq

    values = dict(given.values)
    if "samplers" in values:
        values["samplers"] = parse_samplers(values["samplers"])
    if settings.sampling_seq is not None:
        values["samplers"] = parse_sampling_seq(settings.sampling_seq)
    if "logit_bias" in values:
        values["logit_bias"] = parse_logit_bias(values["logit_bias"])
    values["grammar"] = _one_of(values.get("grammar"), "--grammar", settings.grammar_file, "--grammar-file")
    values["json_schema"] = _one_of(values.get("json_schema"), "-j", settings.json_schema_file, "-jf")
    return make_settings(SamplingSettings, replace(given, values=values))


def _one_of(text: str | None, flag: str, path: str | None, file_flag: str) -> str | None:
    """A text given directly or in a file."""
    if text is not None and path is not None:
        raise BadSettings(f"{flag} and {file_flag} were both given: which one?")
    return read_text(path) if path is not None else text


def read_text(path: str) -> str:
    """A file's text, or stdin's for "-"; one newline at the end is dropped, as in llama.cpp. Raises BadFile."""
    try:
        raw = sys.stdin.buffer.read() if path in ("-", "/dev/stdin") else Path(path).read_bytes()
    except OSError as error:
        raise BadFile(path, f"cannot be read: {error.strerror or error}") from None
    try:
        return raw.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise BadFile(path, "is not UTF-8 text", byte=error.start) from None


def _replace_escapes(plan: Plan) -> None:
    """A text in a file is taken as it is unless -e says otherwise: it may well be a program."""
    settings = plan.run
    if settings.escape is False:
        return
    if plan.prompt is not None and (settings.file is None or settings.escape):
        plan.prompt = unescape(plan.prompt, "-p")
    settings.in_prefix = unescape(settings.in_prefix, "--in-prefix")
    settings.in_suffix = unescape(settings.in_suffix, "--in-suffix")
    settings.reverse_prompts = [unescape(text, "-r") for text in settings.reverse_prompts]
    breakers = [unescape(text, "--dry-sequence-breaker") for text in plan.sampling.dry_sequence_breakers]
    plan.sampling = replace(plan.sampling, dry_sequence_breakers=breakers)


def check_gpu(settings: RunSettings, streams: Streams) -> None:
    """There is no GPU backend: say so once, or refuse where one was asked for by name."""
    layers = settings.gpu_layers
    if not (layers in ("auto", "all") or layers.lstrip("-").isdigit()):
        raise BadSettings(f"-ngl is {layers!r}, expected a number, auto or all")
    if settings.gpu in ("disable", "disabled"):
        return
    if settings.gpu not in (None, "auto"):
        raise BackendUnavailable(f"--gpu {settings.gpu}: there is no GPU backend yet; without the flag the CPU answers")
    if settings.gpu == "auto" or layers == "all" or (layers.isdigit() and int(layers) > 0):
        streams.say("there is no GPU backend yet: the CPU answers")


def run(plan: Plan, streams: Streams) -> int:
    """Opens the model and hands over to the mode that was asked for."""
    from gemmafile.cli import confinement

    confinement.begin(plan, streams)
    from gemmafile.cli.details import show_details
    from gemmafile.model_api import Model

    with Model(plan.model_path, plan.context, say=streams.say) as model:
        is_chat = wants_chat(plan, model)
        model.make_sampler(plan.sampling, [])  # what is wrong with the sampling flags is said before anything is shown
        show_details(model, plan, streams)
        start = find_mode(is_chat)
        with kept_prompts(plan, model, streams):
            confinement.complete(plan, model, streams)
            return start(model, plan, streams)


@contextlib.contextmanager
def kept_prompts(plan: Plan, model: Model, streams: Streams) -> Iterator[None]:
    """--prompt-cache: the sequence begins with what the file holds, and the file then holds what the sequence does."""
    settings = plan.run
    if settings.prompt_cache is None:
        yield
        return
    if settings.private and not settings.prompt_cache_ro:
        raise BadSettings("--private writes nothing anywhere: --prompt-cache goes with it as --prompt-cache-ro only")
    from gemmafile.engine.saved import fingerprint, read_saved, write_saved

    path, fingerprint_ = Path(settings.prompt_cache), fingerprint(model.engine)
    if path.exists():
        read_saved(path, model.engine, fingerprint_, model.sequence)
        streams.detail(f"prompt cache  {path}: {len(model.sequence)} tokens")
    elif settings.prompt_cache_ro:
        raise BadFile(path, "there is no such prompt cache to read")
    before = list(model.sequence.token_ids)
    yield
    sequence = model.sequence
    if not settings.prompt_cache_ro and sequence.token_ids and sequence.token_ids != before:
        write_saved(path, model.engine, fingerprint_, sequence.token_ids, sequence.table)


def find_mode(is_chat: bool) -> Callable[[Model, Plan, Streams], int]:
    """The mode, imported: afterwards nothing more is to be."""
    if is_chat:
        from gemmafile.cli.repl import run_chat

        return run_chat
    from gemmafile.cli.continuation import run_continuation

    return run_continuation


def wants_chat(plan: Plan, model: Model) -> bool:
    """Chat, or go on from a text? Raises BadSettings for a mode that lacks something."""
    settings = plan.run
    if settings.conversation is not None:
        return settings.conversation
    if settings.interactive or settings.interactive_first or settings.in_prefix or settings.in_suffix:
        return False
    has_template = plan.template is not None or "tokenizer.chat_template" in model.metadata
    asks_for_chat = plan.prompt is None or settings.single_turn or plan.system is not None
    return has_template and asks_for_chat
