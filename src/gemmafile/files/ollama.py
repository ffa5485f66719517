"""Models that ollama has downloaded: from a name such as `ollama:gemma2:2b` to the GGUF in its store.

MODELS/manifests/HOST/library/NAME/TAG     JSON with a list of layers
MODELS/blobs/sha256-HEX                    the layers; one of them is the model
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from gemmafile.errors import BadFile, nearest

PREFIX = "ollama:"
_MODEL_LAYER = "application/vnd.ollama.image.model"
_PLACES = ("~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/models", "/root/.ollama/models")


def find_ollama_blob(name: str) -> Path:
    """The file behind `ollama:NAME[:TAG]`; NAME may have a user before it, and a host before that. Raises BadFile."""
    wanted = name.removeprefix(PREFIX).removeprefix("//")
    title, _, tag = wanted.partition(":")
    title = title.removeprefix("library/")
    known: list[str] = []
    for store in _stores():
        for manifest in sorted((store / "manifests").glob("*/*/*/*")):
            host, user, model, version = manifest.parts[-4:]
            short = (model if user == "library" else f"{user}/{model}") + f":{version}"
            known.append(short)
            if f"{title}:{tag or 'latest'}" in (short, f"{host}/{user}/{model}:{version}"):
                return store / "blobs" / _digest(manifest).replace(":", "-", 1)
    have = f"; it has {', '.join(known[:8])}" if known else " (no store was found; OLLAMA_MODELS names one)"
    raise BadFile(name, f"ollama has no such model here{nearest(wanted, known)}{have}")


def _stores() -> list[Path]:
    given = os.environ.get("OLLAMA_MODELS")
    places = [Path(given)] if given else [Path(os.path.expanduser(place)) for place in _PLACES]
    return [place for place in places if os.path.isdir(place / "manifests")]  # another's: unseen


def _digest(manifest: Path) -> str:
    """The digest of the layer that is the model: "sha256:HEX". Raises BadFile."""
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        found = [layer["digest"] for layer in layers if layer["mediaType"] == _MODEL_LAYER]
        digest = str(found[0])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        raise BadFile(manifest, "is not a manifest of ollama's with a model in it") from None
    kind, _, hexadecimal = digest.partition(":")
    if kind != "sha256" or len(hexadecimal) != 64 or not set(hexadecimal) <= set("0123456789abcdef"):
        raise BadFile(manifest, f"names its model {digest!r}, expected a SHA-256")
    return digest
