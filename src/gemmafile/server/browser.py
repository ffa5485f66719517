"""Opening the page in a browser, where there is one and somebody sees it. Never waits: another process does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

OPENERS = (
    "xdg-open", "gio", "gnome-open", "kde-open", "x-www-browser", "wslview", "firefox", "chromium", "google-chrome",
)  # fmt: skip

_OPEN = "import sys, webbrowser; webbrowser.open(sys.argv[1])"


def has_browser(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> bool:
    """Is there a screen in front of the user, and a program that opens pages on it?"""
    if environ.get("BROWSER"):
        return True
    if any(environ.get(name) for name in ("SSH_CONNECTION", "SSH_CLIENT", "SSH_TTY")):
        return False
    if platform in ("darwin", "win32"):
        return True
    if not (environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY")):
        return False
    return any(shutil.which(name, path=environ.get("PATH")) for name in OPENERS)


def open_browser(url: str) -> bool:
    """Have a process of its own open the page; False where none can be started. Returns at once."""
    from gemmafile.server.client import interpreter_flags

    nowhere = subprocess.DEVNULL
    command = [sys.executable, *interpreter_flags(), "-c", _OPEN, url]
    try:
        subprocess.Popen(command, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
    except OSError:
        return False
    return True
