"""What a name given to from_pretrained means: something on this disk, else a repository of the hub."""

from __future__ import annotations

import sys
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from gemmafile.errors import BadFile
from gemmafile.files.hub import pull_model, split_hub_name
from gemmafile.files.open import split_member


def find_path(name: str | PathLike[str], revision: str | None = None, **options: Any) -> Path | str:
    """The path to open. A name that is no path is fetched from the hub (its cache first). Raises BadFile and others.

    revision  of the hub; what lies on the disk has none, and is taken as it is
    """
    text = fspath(name)
    if text.startswith("ollama:") or split_member(Path(text))[0].exists():
        return text
    if split_hub_name(text) is None:
        raise BadFile(text, "there is no such file or folder, and it is no name of the hub's (OWNER/REPO)")
    return pull_model(text, revision, say=say)


def say(line: str) -> None:
    print(f"gemmafile: {line}", file=sys.stderr)
