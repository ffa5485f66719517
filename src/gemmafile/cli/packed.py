"""A packed file as a program: called by its boot code with the words behind the file's name.

On itself: --inspect, --verify, --license, --card, --extract DIR, --version, --doctor. With a prompt, or where a chat
in the terminal is asked for, it is `gemmafile run` with the file's own weights and default arguments; else, and so
without any arguments, it is `gemmafile serve`, and opens its page.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OWN = {
    "--inspect": ("inspect", "what is in this file"),
    "--verify": ("verify", "is every byte as it was packed"),
    "--extract": ("extract", "DIR: the plain GGUF back out"),
    "--doctor": ("doctor", "what runs on this machine"),
    "--license": ("license", "the licences of the weights and of the engine"),
    "--licence": ("license", ""),
    "--card": ("card", "the model card"),
    "--model-card": ("card", ""),
    "--service": ("service", "a unit for systemd or launchd that serves this file"),
    "--version": ("version", "versions of file, engine and Python"),
}
"""Flags that are about the file itself: flag -> (what is done, in words)"""


IN_TERMINAL = frozenset(
    "-p --prompt -f --file --cli --chat -cnv --conversation -no-cnv --no-conversation -st --single-turn -i "
    "--interactive -if --interactive-first --in-prefix --in-suffix -mli --multiline-input --verbose-prompt".split()
)
"""Flags that ask for an answer here, in the terminal, unless --server is among them."""


def main(path: str, index: dict[str, Any], words: list[str], cache: str, seal: Callable[[], None]) -> int:
    """Runs the file's own command line; returns the exit code.

    seal  to be called when nothing more is imported and writing is still possible: keeps the bytecode that was made
    """
    os.environ.setdefault("GEMMAFILE_CACHE", cache)
    start = Path(sys.executable or "").with_name("python3")
    if start.parent.name == "bin" and start.exists():
        sys.executable = str(start)  # a script that finds the loader: children start anywhere, as we did
    from gemmafile.cli import confinement

    confinement.own_process(before_the_end=seal)
    try:
        return run_words_or_own(path, index, words)
    finally:
        confinement.before_the_end()


def run_words_or_own(path: str, index: dict[str, Any], words: list[str]) -> int:
    """What is asked about the file itself, or else what its engine is asked."""
    from gemmafile.cli import main as command_line

    at = find_own(words)
    if at is None:
        return command_line.main_of_packed(path, lambda: run_words(path, index, words))
    action, rest = OWN[words[at]][0], words[:at] + words[at + 1 :]
    if action in ("inspect", "verify", "extract", "doctor"):
        return command_line.main_of_packed(path, lambda: [action, path, *rest])
    if action == "service":
        return command_line.main_of_packed(path, lambda: service(path, rest))
    show: dict[str, Callable[[str, dict[str, Any]], str]] = {"license": licences, "card": card, "version": version}
    return command_line.main_of_packed(path, lambda: show[action](path, index))


def find_own(words: list[str]) -> int | None:
    """Where a flag about the file stands among the words; not where one is the value of another flag: -p --license."""
    if not OWN.keys() & set(words):
        return None
    from gemmafile.cli.flags import flags_of
    from gemmafile.cli.foreign import FOREIGN
    from gemmafile.cli.serve import GROUPS

    flags = {name: flag for _, kind in GROUPS for flag in flags_of(kind) for name in flag.names}
    at = 0
    while at < len(words):
        word = words[at]
        if word in OWN:
            return at
        name = word.replace("_", "-") if word.startswith("--") else word
        takes_one = name in ("-m", "--model") or (name in flags and flags[name].convert and flags[name].bare is None)
        at += 2 if takes_one else 1 + (FOREIGN[name].n_values if name in FOREIGN else 0)
    return None


def run_words(path: str, index: dict[str, Any], words: list[str]) -> list[str]:
    """The words of a command for what the user typed: with the file's default arguments and its own weights."""
    raw = read_part(path, index, ".args")
    from gemmafile.cli import defaults
    from gemmafile.files.bundle import args_of

    lines = args_of(raw) if raw is not None else []

    if {"-h", "--help"} & set(words):
        own = "".join(f"  {flag:<12} {text}\n" for flag, (_, text) in OWN.items() if text)
        sys.stdout.write(f"{Path(path).name}: a model with its engine. About the file itself:\n{own}\n")
    defaults.applied.add(path)
    words = defaults.merge_args(defaults.without_foreign(lines)[0], words)
    first = [wanted_command(words), "-m", path]
    system = read_part(path, index, "system-prompt.txt")
    if system is not None and not {"-sys", "--system-prompt", "-sysf", "--system-prompt-file", "-spf"} & set(words):
        first += ["--system-prompt", system.decode()]
    return [*first, *words]


def wanted_command(words: list[str]) -> str:
    """ "run" where the words ask for an answer in the terminal, else "serve"."""
    names = {word.partition("=")[0].replace("_", "-") if word.startswith("--") else word for word in words}
    return "run" if names & IN_TERMINAL and not names & {"--server", "--v2"} else "serve"


def read_part(path: str, index: dict[str, Any], name: str) -> bytes | None:
    """A small member, if it is what the index says. Raises BadFile."""
    import hashlib

    from gemmafile.errors import BadFile

    if name not in index["members"]:
        return None
    if name in index.get("texts", {}):  # what boot.py has read and checked
        return bytes(index["texts"][name])
    offset, size, digest = index["members"][name]
    with open(path, "rb") as file:
        file.seek(offset)
        raw = file.read(size)
    if hashlib.sha256(raw).hexdigest() != digest:
        raise BadFile(path, f"{name} is not what was packed: the file is damaged")
    return raw


def licences(path: str, index: dict[str, Any]) -> str:
    parts = []
    for name, title in (
        ("NOTICE", "Notice"),
        ("LICENSE", "Licence of the weights"),
        ("LICENSE.gemmafile", "Licence of the engine"),
    ):
        raw = read_part(path, index, name)
        if raw is not None:
            parts.append(f"=== {title} ({name})\n\n{raw.decode().rstrip()}\n")
        elif name == "LICENSE":
            link = index["card"].get("license_link") or "the file does not say: ask whoever packed it"
            parts.append(f"=== {title}\n\n{link}\n")
    return "\n".join(parts)


def card(path: str, index: dict[str, Any]) -> str:
    raw = read_part(path, index, "README.md")
    return raw.decode() if raw is not None else "there is no model card in this file\n"


def service(path: str, words: list[str]) -> str:
    from gemmafile.cli.service import KINDS, absolute_paths, unit

    kind = next((word for word in words if word in KINDS), "--launchd" if sys.platform == "darwin" else "--systemd")
    file = os.path.abspath(path)
    return unit(kind, ["/bin/sh", file, *absolute_paths([word for word in words if word not in KINDS])])


def version(path: str, index: dict[str, Any]) -> str:
    import platform

    from gemmafile import __version__

    own = f"{platform.python_version()} from {sys.prefix}"
    return f"{Path(path).name}\npacked by {index['tool']}\nengine gemmafile {__version__}\nPython {own}\n"
