"""The command `gemmafile`: finds the command in the words, runs it, and turns every error into one line.

A command is a module, imported when it is chosen. Its `main` takes the words behind its name, or, where it has
`add_arguments`, what argparse makes of them. This is the one place that catches everything.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO

from gemmafile import __version__
from gemmafile.errors import BadSettings, GemmafileError, nearest

COMMANDS = {
    "run": ("gemmafile.cli.run", "chat with a model, or let it go on from a text (the default command)"),
    "serve": ("gemmafile.cli.serve", "offer a chat page and the APIs of OpenAI, llama.cpp, ollama and Anthropic"),
    "chat": ("gemmafile.cli.chat", "chat with a model here, or with one that a server offers (--connect URL)"),
    "service": ("gemmafile.cli.service", "a unit for systemd or launchd that keeps a server running"),
    "inspect": ("gemmafile.cli.inspect", "what a model file holds"),
    "bench": ("gemmafile.cli.bench", "how fast a model runs here, beside the machine's limits"),
    "kernels": ("gemmafile.cli.kernels", "machine code: what there is, and compiling it for other CPUs"),
    "pull": ("gemmafile.cli.pull", "a model from the Hugging Face hub"),
    "convert": ("gemmafile.cli.convert", "a Hugging Face checkpoint as a GGUF file"),
    "export": ("gemmafile.cli.export", "a GGUF as a Hugging Face checkpoint, or a Modelfile for ollama"),
    "merge": ("gemmafile.cli.merge", "LoRA adapters baked into a model"),
    "split": ("gemmafile.cli.split", "a GGUF in parts"),
    "join": ("gemmafile.cli.join", "the parts of a GGUF as one file"),
    "pack": ("gemmafile.cli.pack", "a model, its engine and its licences as one executable file"),
    "edit": ("gemmafile.cli.edit", "change a packed file in place: arguments, card, licence, engine"),
    "verify": ("gemmafile.cli.verify", "is a packed file whole, and who signed it"),
    "extract": ("gemmafile.cli.extract", "the plain GGUF back out of a packed file"),
    "doctor": ("gemmafile.cli.doctor", "what runs on this machine, and what to do about what does not"),
    "imatrix": ("gemmafile.cli.imatrix", "where precision counts: an importance matrix for quantize"),
    "quantize": ("gemmafile.cli.quantize", "a model made smaller: llama.cpp's formats and mixtures"),
    "compare": ("gemmafile.cli.compare", "a model in several quantisations: size, quality, speed, a plot"),
    "perplexity": ("gemmafile.cli.perplexity", "how well a model predicts a text"),
}

EXIT_BUG, EXIT_INTERRUPTED, EXIT_PIPE = 70, 130, 141
"""Our own mistake; ctrl-c (128 + SIGINT); nobody reads stdout any more (128 + SIGPIPE)."""

NO_MEMORY = "out of memory: give a smaller context (-c), or a smaller model"


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None:
        from gemmafile.cli.confinement import own_process

        own_process()
    return guarded(lambda: run_command(words), lambda: words)


def guarded(run: Callable[[], int], words: Callable[[], list[str]]) -> int:
    """The exit code of `run`, every error turned into one line."""
    open_closed_streams()
    try:
        code = run()
        sys.stdout.flush()
        return code
    except GemmafileError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout)
        return EXIT_PIPE
    except OSError as error:
        discard(sys.stdout)
        return fail_of_system(error)
    except Exception as error:
        return fail_unexpectedly(error, words())


def main_of_packed(path: str, make: Callable[[], list[str] | str]) -> int:
    """Run what a packed file was asked for: `make` gives the words of a command, or a text to be shown."""
    made: list[list[str]] = []

    def run() -> int:
        wanted = make()
        if isinstance(wanted, str):
            sys.stdout.write(wanted)
            return 0
        made.append(wanted)
        return run_command(wanted)

    return guarded(run, lambda: made[0] if made else [])


def run_command(words: list[str]) -> int:
    """Find the command and run it. Raises BadSettings when there is no such command."""
    first = words[0] if words else "--help"
    if first in COMMANDS:
        return call(COMMANDS[first][0], first, words[1:])
    if first in ("--help", "-h", "help"):
        print(overview())
        return 0
    if first in ("--version", "version"):
        print(f"gemmafile {__version__}")
        return 0
    if first.startswith("-") or Path(first).suffix or Path(first).exists():
        return call(COMMANDS["run"][0], "run", words)
    raise BadSettings(f"there is no command {first!r}{nearest(first, COMMANDS)}; gemmafile --help lists them")


def call(module_name: str, command: str, words: list[str]) -> int:
    from importlib import import_module

    module: Any = import_module(module_name)
    if not hasattr(module, "add_arguments"):
        return int(module.main(words))
    from argparse import PARSER, ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            word = message.partition("unrecognized arguments: ")[2].partition(" ")[0]
            raise BadSettings(message + (nearest(word, self._option_string_actions) if word.startswith("-") else ""))

    parser = Parser(prog=f"gemmafile {command}", description=COMMANDS[command][1], allow_abbrev=False)
    module.add_arguments(parser)
    trailing = None
    if hasattr(module, "split_args"):
        words, trailing = module.split_args(words)
    # Flags may stand between the words; argparse can do that for all commands but those with commands of their own.
    has_actions = any(action.nargs == PARSER for action in parser._actions)
    args = parser.parse_args(words) if has_actions else parser.parse_intermixed_args(words)
    args.trailing = trailing
    return int(module.main(args))


def overview() -> str:
    """What `gemmafile --help` prints."""
    commands = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
    return f"""usage: gemmafile [COMMAND] ...

{commands}
  {"version":<12} print the version

  gemmafile run model.gguf                      chat in the terminal
  gemmafile -m model.gguf -p "Once upon a"      go on from a text
  gemmafile run model.gguf -st -p "Why?"        one question, one answer
  gemmafile serve model.gguf                    chat in the browser, and APIs

gemmafile COMMAND --help lists the flags of a command."""


def fail(message: str, code: int) -> int:
    """One line on stderr, whatever the message holds; where it cannot be written, the exit code says it alone."""
    try:
        print(f"gemmafile: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)
    return code


def fail_of_system(error: OSError) -> int:
    """The system would not do something: no space on the disk, no memory, no such device."""
    if error.errno == errno.ENOMEM:
        return fail(NO_MEMORY, 1)
    where = error.filename if error.filename is not None else "reading or writing"
    return fail(f"{where}: {error.strerror or error}", 1)


def fail_unexpectedly(error: Exception, words: list[str]) -> int:
    """An error that no message was written for. Out of memory is the user's; the rest is a bug of ours."""
    if isinstance(error, MemoryError):
        return fail(NO_MEMORY, 1)
    if {"-v", "--verbose"} & set(words) or os.environ.get("GEMMAFILE_DEBUG"):
        import traceback

        traceback.print_exc()
    return fail(f"this is a bug in gemmafile: {type(error).__name__}: {error} (--verbose shows where)", EXIT_BUG)


_nowhere: list[int] = []
"""The null device, open for writing from the start: a confined process opens nothing for writing any more."""


def open_closed_streams() -> None:
    """A standard stream that was closed before we were started is None in Python; it becomes an empty one."""
    if not _nowhere:
        with contextlib.suppress(OSError):
            _nowhere.append(os.open(os.devnull, os.O_WRONLY))
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="surrogateescape")  # names of files that are no text go out as they came in
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  open to the end


def discard(stream: TextIO) -> None:
    """The interpreter flushes its streams once more when it ends: give this one somewhere to go."""
    with contextlib.suppress(OSError):  # a stream of another program's that has no number
        os.dup2(_nowhere[0] if _nowhere else os.open(os.devnull, os.O_WRONLY), stream.fileno())
