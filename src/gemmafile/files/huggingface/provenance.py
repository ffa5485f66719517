"""What a checkpoint is called, where it comes from and how it is licensed: the keys `general.*`.

In: the front matter of README.md, config.json, generation_config.json, the folder's name. Names such as
`google/gemma-2-27b-it` are taken apart into their parts by the conventions of llama.cpp's converter.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from gemmafile.files.card import read_front_matter
from gemmafile.files.huggingface.folder import Folder
from gemmafile.files.metadata import Typed

HUB: Final = "https://huggingface.co"
_SAMPLING: Final = {
    "top_k": ("top_k", "int32"),
    "top_p": ("top_p", "float32"),
    "min_p": ("min_p", "float32"),
    "xtc_probability": ("xtc_probability", "float32"),
    "xtc_threshold": ("xtc_threshold", "float32"),
    "temperature": ("temp", "float32"),
    "penalty_last_n": ("penalty_last_n", "int32"),
    "repetition_penalty": ("penalty_repeat", "float32"),
    "mirostat": ("mirostat", "int32"),
    "mirostat_tau": ("mirostat_tau", "float32"),
    "mirostat_eta": ("mirostat_eta", "float32"),
}
"""generation_config.json -> general.sampling.*"""

_FROM_CARD: Final = {
    "name": ("name", "model_name"),
    "author": ("author", "model_author", "model_creator"),
    "version": ("version", "model_version"),
    "organization": ("organization", "model_organization"),
    "finetune": ("finetune", "model_finetune"),
    "basename": ("basename", "model_basename", "model_type"),
    "description": ("description", "model_description"),
    "quantized_by": (),
    "size_label": ("size_label", "model_size_label"),
    "license": ("license",),
    "license.name": ("license_name",),
    "license.link": ("license_link",),
    "source.url": ("url", "model_url"),
    "source.doi": ("doi", "model_doi"),
    "source.uuid": ("uuid", "model_uuid"),
    "source.repo_url": ("repo_url", "model_repo_url"),
}
"""general.* in the converter's order -> keys of the front matter, the first that is there."""

_VERSION: Final = re.compile(r"(?:v|iter)?\d+(?:\.\d+)*", re.IGNORECASE)
_FORMAT: Final = re.compile(r"i?q\d(?:_\w)*|b?fp?(?:16|32)", re.IGNORECASE)
_SIZE: Final = re.compile(r"(?:(?:A|\d+x)?\d+(?:[._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_FINETUNE: Final = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)


@dataclass(frozen=True)
class NameParts:
    """`google/gemma-2-27b-it` is google · gemma-2-27b-it · gemma-2 · it · - · 27B"""

    organization: str | None = None
    name: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


def provenance_keys(folder: Folder, n_weights: int) -> dict[str, Typed]:
    """`general.*` that people read, in the converter's order, the architecture and the type not among them."""
    keys = _sampling_keys(folder.json("generation_config.json") or {})
    text = folder.text("README.md")
    card = read_front_matter(text) if text and text.splitlines()[:1] == ["---"] else {}
    values: dict[str, Any] = {}
    for name, sources in _FROM_CARD.items():
        value = next((card[source] for source in sources if card.get(source)), None)
        if isinstance(value, list) and name == "license":
            value = ",".join(value)
        values[name] = value if isinstance(value, str) else None
    told = folder.config.get("_name_or_path")
    names = [told] if isinstance(told, str) and told and told.count("/") <= 1 else []
    for model_id in (*names, folder.path.absolute().name):
        parts = split_name(model_id, n_weights)
        for name in ("name", "organization", "basename", "finetune", "version", "size_label"):
            part = getattr(parts, name)
            if values[name] is None and part is not None:
                values[name] = to_title(part) if name in ("name", "organization") else part
    values["name"] = values["name"] or folder.path.absolute().name
    values["size_label"] = values["size_label"] or size_label(n_weights)
    keys |= {f"general.{name}": Typed(value, "string") for name, value in values.items() if value is not None}
    keys |= _relative_keys(card, "base_model", ("base_model", "base_models", "base_model_sources"), n_weights)
    keys |= _relative_keys(card, "dataset", ("datasets", "dataset", "dataset_sources"), n_weights)
    lists = {"tags": ("tags", "pipeline_tag"), "languages": ("languages", "language")}
    for name, sources in lists.items():
        found = [item for source in sources for item in _as_list(card.get(source))]
        if found:
            keys[f"general.{name}"] = Typed(found, "string")
    return keys


def split_name(model_id: str, n_weights: int = 0) -> NameParts:
    """The parts of a model's name. A size far from the model's own is no size, but perhaps a context."""
    if " " in model_id:
        return NameParts(name=model_id)
    organization, slash, name = model_id.partition("/")
    if not slash:
        organization, name = "", model_id
    words = [word for word in name.split("-") if word]
    kinds = [_kind_of(i, word, n_weights) for i, word in enumerate(words)]
    words = [_spell(word, kind) for word, kind in zip(words, kinds, strict=True)]
    sizes = [i for i, kind in enumerate(kinds) if kind == "size"]
    if any(any(c.isdecimal() for c in words[i]) for i in sizes):
        kinds = ["" if i in sizes and words[i].isalpha() else kind for i, kind in enumerate(kinds)]
    # The name proper is at the start: words without a meaning of their own, and versions between them.
    n_base = 0
    while n_base < len(words) and (kinds[n_base] == "version" or (kinds[n_base] == "" and words[n_base][0].isalpha())):
        n_base += 1
    kinds = [kind or ("finetune" if i >= n_base else "") for i, kind in enumerate(kinds)]
    while n_base and kinds[n_base - 1] == "version" and n_base == len(words):
        n_base -= 1
    base = "-".join(words[:n_base]) or None

    def joined(wanted: str) -> str | None:
        found = [
            word for i, (word, kind) in enumerate(zip(words, kinds, strict=True)) if kind == wanted and i >= n_base
        ]
        return "-".join(dict.fromkeys(found) if wanted == "size" else found) or None

    size, finetune, version = joined("size"), joined("finetune"), joined("version")
    if size is None and finetune is None and version is None:
        base = None
    hidden = not organization or organization.startswith(".")
    return NameParts(None if hidden else organization, name, base, finetune, version, size)


def _kind_of(place: int, word: str, n_weights: int) -> str:
    if _VERSION.fullmatch(word):
        return "version"
    if _FORMAT.fullmatch(word):
        return "format"
    if place > 0 and _SIZE.fullmatch(word):
        return "finetune" if _is_far(_spell(word, "size"), n_weights) else "size"
    return "finetune" if place > 0 and _FINETUNE.fullmatch(word) else ""


def _spell(word: str, kind: str) -> str:
    """Formats and sizes in capitals: 27b is 27B, 7b1 is 7.1B. What only looks like a size gets a small letter."""
    if kind == "format":
        return word.upper()
    if kind == "finetune" and _SIZE.fullmatch(word) and any(c.isdecimal() for c in word):
        word = _spell(word, "size")
        return word[:-1] + word[-1].lower()
    if kind != "size":
        return word
    word = word.replace("_", ".")
    if word[-1].isdecimal():
        word = f"{word[:-2]}.{word[-1]}{word[-2]}"
    return word[:-1] + word[-1].upper() if len(word) > 1 and word[-2].isdecimal() and word[-1] in "kmbt" else word


def _is_far(label: str, n_weights: int) -> bool:
    if not n_weights:
        return False
    try:
        told = float(label[:-1]) * 1000.0 ** " KMBT".find(label[-1])
    except ValueError:
        return False
    return abs(told - n_weights) > 7 * n_weights // 8 if n_weights > 0 else told < -n_weights // 8


def to_title(name: str) -> str:
    """ "gemma-2-27b-it" -> "Gemma 2 27b It" """
    words = name.strip().replace("-", " ").split()
    return " ".join(w.title() if w.islower() and not re.match(r"^(v\d+(\.\d+)*|\d.*)$", w) else w for w in words)


def size_label(n_weights: int) -> str:
    """ "27B", "2.6B", "270M": two digits at least."""
    units = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"), (-1.0, 1e-3, "K"))
    factor, letter = next((factor, letter) for limit, factor, letter in units if n_weights > limit)
    scaled = n_weights * factor
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{letter}"


def file_name(keys: dict[str, Typed], encoding: str) -> str:
    """The name of a converted file by GGUF's naming convention: gemma-2-27B-it-BF16.gguf"""

    def part(name: str, prefix: str = "-") -> str:
        typed = keys.get(f"general.{name}")
        return f"{prefix}{typed.value.strip().replace(' ', '-').replace('/', '-')}" if typed else ""

    base = part("basename", "") or part("name", "") or "ggml-model"
    return f"{base}{part('size_label')}{part('finetune')}{part('version')}-{encoding.upper()}.gguf"


def _sampling_keys(table: dict[str, Any]) -> dict[str, Typed]:
    keys = {}
    for name, (key, kind) in _SAMPLING.items():
        value = table.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1 << 30:
            continue
        if kind == "float32" or type(value) is int:
            keys[f"general.sampling.{key}"] = Typed(float(value) if kind == "float32" else value, kind)
    return keys


def _relative_keys(card: dict[str, Any], name: str, sources: tuple[str, ...], n_weights: int) -> dict[str, Typed]:
    """Models it is based on, or data sets it was trained on."""
    source = next((s for s in sources if s in card), None)
    if source is None:
        return {}
    models = _as_list(card[source])
    keys = {f"general.{name}.count": Typed(len(models), "uint32")}
    for i, model in enumerate(models):
        is_url = model.startswith(("http://", "https://", "ssh://"))
        on_hub = re.match(r"https?://huggingface\.co/([^/]+/[^/]+)$", model) if is_url else None
        parts = split_name(on_hub[1] if on_hub else model, n_weights) if on_hub or not is_url else NameParts()
        url = model if is_url else f"{HUB}/{model}" if parts.organization and parts.name else None
        found = {
            "name": to_title(parts.name) if parts.name else None,
            "version": parts.version,
            "organization": to_title(parts.organization) if parts.organization else None,
            "repo_url": url,
        }
        keys |= {f"general.{name}.{i}.{key}": Typed(value, "string") for key, value in found.items() if value}
    return keys


def _as_list(value: Any) -> list[str]:
    """A text of a card, or several: also as [a, b] on one line."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = [item.strip().strip("'\"") for item in value[1:-1].split(",")]
    items = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [item for item in items if item]
