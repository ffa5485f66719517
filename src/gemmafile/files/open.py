"""The one place that turns what a user names into an open model, whatever kind of file it is.

model.gguf · model-00001-of-00003.gguf      a GGUF, whole or split
model.llamafile · archive.zip               one that lies in an archive, behind whatever head
archive.zip@name.gguf                       the one of that name
ollama:gemma2:2b                            one that ollama has downloaded
./gemma-2-2b-it                             a Hugging Face checkpoint: a folder of safetensors
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from gemmafile.errors import BadFile
from gemmafile.files.bundle import Bundle, find_bundle, open_bundle
from gemmafile.files.gguf import ModelFile, open_gguf
from gemmafile.files.ollama import PREFIX, find_ollama_blob
from gemmafile.settings import ContextSettings


def open_model(
    path: str | Path, settings: ContextSettings | None = None, say: Callable[[str], None] = print
) -> ModelFile:
    """Open the model that `path` names.

    settings  that say where its bytes are to lie (`placement.py`); None: mapped, to be looked at
    say       gets lines about that
    Raises BadFile for anything that is no model, BadSettings where there is no room to read it into.
    """
    file = _open(path)
    if settings is not None:
        from gemmafile.files.placement import place_model

        place_model(file, settings, say)
    return file


def _open(path: str | Path) -> ModelFile:
    if str(path).startswith(PREFIX):
        return open_gguf(find_ollama_blob(str(path)))
    from gemmafile.files.huggingface.folder import find_folder

    if (folder := find_folder(Path(path))) is not None:
        from gemmafile.files.huggingface.checkpoint import Checkpoint

        return Checkpoint(folder)
    bundle, member = find_archive(Path(path))
    return open_bundle(bundle, member) if bundle is not None else open_gguf(path)


def find_archive(path: Path) -> tuple[Bundle | None, str | None]:
    """The archive that `FILE` or `FILE@MEMBER` names, and the member; (None, None) for another kind of file.

    Raises BadFile for a damaged one.
    """
    file, member = split_member(path)
    try:
        if not file.is_file() or _starts_with(file, b"GGUF"):
            return None, None
        bundle = find_bundle(file)
    except OSError as error:
        raise BadFile(file, f"cannot be read: {error.strerror or error}") from None
    except ValueError:  # a NUL in the path
        return None, None
    if bundle is None and member is not None:
        raise BadFile(file, f"is no archive, so there is no {member!r} in it")
    return (bundle, member) if bundle is not None else (None, None)


def split_member(path: Path) -> tuple[Path, str | None]:
    """FILE@MEMBER in two, where there is such a file and none of the whole name."""
    text = str(path)
    try:
        if "@" in text and not path.exists():
            for at in (i for i, c in enumerate(text) if c == "@"):
                if at and Path(text[:at]).is_file():
                    return Path(text[:at]), text[at + 1 :]
    except (OSError, ValueError):
        pass
    return path, None


def title_of(model: str | Path) -> str:
    """What to call a file that is made from a model: `gemma` for DIR/gemma.gguf, `gemma2-2b` for ollama:gemma2:2b."""
    if str(model).startswith(PREFIX):
        return Path(str(model).removeprefix(PREFIX)).name.replace(":", "-")
    file, member = split_member(Path(model))
    name = Path(os.path.abspath(member or file)).name  # of "." the folder's
    stem, dot, ending = name.rpartition(".")
    return re.sub(r"-\d{5}-of-\d{5}$", "", stem) if dot and ending.lower() in ("gguf", "llamafile", "zip") else name


def check_is_new(file: ModelFile, path: Path) -> None:
    """Raises BadFile where a result would take the place of what it is made from."""
    sources = [split_member(own)[0] for own in file.paths]
    if path.exists() and any(path.samefile(own) for own in sources if own.exists()):
        raise BadFile(path, "is the model itself, or one of its parts: give another name")


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic
