"""`gemmafile service`: the unit by which a service manager keeps a server running. Nothing is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gemmafile.errors import BadSettings

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
    if not rest:
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


def absolute_paths(words: list[str]) -> list[str]:
    """The words with files that are there by their whole paths: a service starts in another folder."""
    return [str(Path(word).absolute()) if os.path.exists(word) else word for word in words]


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
