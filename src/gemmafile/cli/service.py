"""`gemmafile service`: the unit by which a service manager keeps a server running. Nothing is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gemmafile.errors import BadSettings

if TYPE_CHECKING:
    from gemmafile.cli.flags import Flag

HELP = """usage: gemmafile service [--systemd | --launchd] MODEL [flags of gemmafile serve]

Prints a unit for systemd (Linux) or a property list for launchd (macOS) that serves MODEL.

  gemmafile service model.gguf > ~/.config/systemd/user/gemmafile.service
  systemctl --user enable --now gemmafile

  gemmafile service model.gguf > ~/Library/LaunchAgents/gemmafile.plist
  launchctl load ~/Library/LaunchAgents/gemmafile.plist"""

KINDS = ("--systemd", "--launchd")
LABEL = "gemmafile"


def main(words: list[str]) -> int:
    """Prints the unit for the words behind `gemmafile service`; returns the exit code."""
    if not words or {"-h", "--help"} & set(words):
        print(HELP)
        return 0
    kind = next((word for word in words if word in KINDS), "--launchd" if sys.platform == "darwin" else "--systemd")
    rest = [word for word in words if word not in KINDS]
    from gemmafile.cli.flags import read_words

    given = read_words(rest, flags_of_server())  # a word that is none would stop each start of the service
    if not (given.words or {"model", "hf_repo"} & given.values.keys()):
        raise BadSettings("which model? gemmafile service model.gguf")
    print(unit(kind, [*own_command(), "serve", *absolute_paths(rest)]), end="")
    return 0


def unit(kind: str, command: list[str]) -> str:
    """The text of a unit that runs `command`, which serves without a browser."""
    command = [*command, "--nobrowser"]
    return systemd(command) if kind == "--systemd" else launchd(command)


def own_command() -> list[str]:
    """How this program is started again, from anywhere."""
    return [sys.executable, "-m", "gemmafile"]


def flags_of_server() -> list[Flag]:
    from gemmafile.cli.flags import HUB, MODEL, flags_of
    from gemmafile.cli.serve import GROUPS

    return [MODEL, *HUB, *(flag for _, kind in GROUPS for flag in flags_of(kind))]


def absolute_paths(words: list[str]) -> list[str]:
    """The words with files and folders by their whole paths: a service starts in another folder."""
    by_name = {
        name: flag
        for flag in flags_of_server()
        for name in flag.names
        if flag.convert is not None and flag.bare is None
    }
    found: list[str] = []
    waiting: Flag | None = None  # for its value
    for word in words:
        name, equals, value = word.partition("=")
        flag = by_name.get(name.replace("_", "-") if name.startswith("--") else name)
        if waiting is not None:
            found.append(_absolute_value(waiting, word))
            waiting = None
        elif flag is not None and equals:
            found.append(f"{name}={_absolute_value(flag, value)}")
        else:
            waiting = flag
            found.append(word if flag is not None or not os.path.exists(word) else _absolute(word))
    return found


def _absolute_value(flag: Flag, value: str) -> str:
    """The value of a flag; what names a file is not always all of it."""
    if flag.field == "filters":
        name, colon, argument = value.partition(":")
        return f"{name}{colon}{_absolute(argument)}" if os.path.exists(argument) else value
    if flag.metavar == "FILE:SCALE":
        path, colon, scale = value.rpartition(":")
        return f"{_absolute(path)}{colon}{scale}" if os.path.exists(path) else value
    if flag.repeats:  # a list with commas, maybe
        return _absolute(value) if os.path.exists(value) else value
    return _absolute(value) if flag.metavar in ("FILE", "DIR") and value != "-" else value


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def systemd(command: list[str]) -> str:
    words = " ".join(map(_systemd_word, command))
    return f"""[Unit]
Description=gemmafile: a language model on this machine
After=network.target

[Service]
Type=exec
ExecStart={words}
Restart=on-failure
RestartSec=5
TimeoutStopSec=30
NoNewPrivileges=yes
LimitNOFILE=4096

[Install]
WantedBy=default.target
"""


def _systemd_word(word: str) -> str:
    """A word in systemd's quoting: % and $ are its own."""
    for char, spelled in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$"), ("\n", "\\n")):
        word = word.replace(char, spelled)
    return f'"{word}"'


def launchd(command: list[str]) -> str:
    import plistlib

    values = {
        "Label": LABEL, "ProgramArguments": command, "RunAtLoad": True, "KeepAlive": {"SuccessfulExit": False},
        "ProcessType": "Interactive", "ExitTimeOut": 30,
    }  # fmt: skip
    return plistlib.dumps(values, sort_keys=False).decode()
