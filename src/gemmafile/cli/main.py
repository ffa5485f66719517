"""The command `gemmafile`: finds the command in the words, runs it, and turns every error into one line.

A command is a module, imported when it is chosen. Its `main` takes the words behind its name, or, where it has
`add_arguments`, what argparse makes of them. This is the one place that catches everything.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from gemmafile import __version__
from gemmafile.errors import BadSettings, GemmafileError, nearest

COMMANDS = {
    "run": ("gemmafile.cli.run", "chat with a model, or let it go on from a text (the default command)"),
    "inspect": ("gemmafile.cli.inspect", "what a model file holds"),
    "perplexity": ("gemmafile.cli.perplexity", "how well a model predicts a text"),
}

EXIT_BUG, EXIT_INTERRUPTED, EXIT_PIPE = 70, 130, 141
"""Our own mistake; ctrl-c (128 + SIGINT); nobody reads stdout any more (128 + SIGPIPE)."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        code = run_command(words)
        sys.stdout.flush()
        return code
    except GemmafileError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_PIPE
    except Exception as error:
        return fail_unexpectedly(error, words)


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
    from argparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise BadSettings(message)

    parser = Parser(prog=f"gemmafile {command}", description=COMMANDS[command][1], allow_abbrev=False)
    module.add_arguments(parser)
    return int(module.main(parser.parse_args(words)))


def overview() -> str:
    """What `gemmafile --help` prints."""
    commands = "\n".join(f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items())
    return f"""usage: gemmafile [COMMAND] ...

{commands}
  {"version":<12} print the version

  gemmafile run model.gguf                      chat in the terminal
  gemmafile -m model.gguf -p "Once upon a"      go on from a text
  gemmafile run model.gguf -st -p "Why?"        one question, one answer

gemmafile COMMAND --help lists the flags of a command."""


def fail(message: str, code: int) -> int:
    """One line on stderr, whatever the message holds."""
    print(f"gemmafile: {' '.join(message.splitlines())}", file=sys.stderr)
    return code


def fail_unexpectedly(error: Exception, words: list[str]) -> int:
    """An error that no message was written for. Out of memory is the user's; the rest is a bug of ours."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return fail("out of memory: give a smaller context (-c), or a smaller model", 1)
    if {"-v", "--verbose"} & set(words) or os.environ.get("GEMMAFILE_DEBUG"):
        import traceback

        traceback.print_exc()
    return fail(f"this is a bug in gemmafile: {type(error).__name__}: {error} (--verbose shows where)", EXIT_BUG)
