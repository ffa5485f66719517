"""Special tokens of a checkpoint: their ids, whether texts begin and end with them, and the chat template.

In: the tables of tokenizer.json, tokenizer_config.json and config.json. Out: keys of GGUF. Which file is believed when
several speak is what llama.cpp's converter decides (gguf-py, `SpecialVocab`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gemmafile.errors import BadFile
from gemmafile.files.huggingface.folder import Folder
from gemmafile.files.metadata import Typed

_ID_KEYS: Final = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",  # so spelled in GGUF
    "pad": "padding",
    "cls": "",  # no key
    "mask": "mask",
    "eot": "eot",
    "eom": "eom",
}


def special_keys(folder: Folder, tables: Mapping[str, dict[str, Any] | None], n_vocab: int | None) -> dict[str, Typed]:
    """`tables`  tokenizer.json and tokenizer_config.json, None where missing · `n_vocab`  larger ids are dropped"""
    tokenizer, config = tables["tokenizer.json"], tables["tokenizer_config.json"]
    kinds = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"]
    config = None if config is None else dict(config)
    flags = _flags_of_processor(tokenizer, config, kinds) if tokenizer is not None else {}
    ids: dict[str, int] = {}
    if config is not None:
        added = _added_ids(tokenizer)
        for kind in kinds:
            flag = config.get(f"add_{kind}_token")
            if isinstance(flag, bool):
                flags.setdefault(kind, flag)
            token_id = added.get(token_text(config.get(f"{kind}_token")) or "")
            if token_id is not None and (n_vocab is None or token_id < n_vocab):
                ids.setdefault(kind, token_id)
    text_config = folder.config.get("text_config")
    for kind in kinds:
        token_id = folder.config.get(f"{kind}_token_id")
        if token_id is None and isinstance(text_config, dict):
            token_id = text_config.get(f"{kind}_token_id")
        if type(token_id) is int and token_id >= 0 and (n_vocab is None or token_id < n_vocab):
            ids.setdefault(kind, token_id)
    keys = {f"tokenizer.ggml.{_ID_KEYS[k]}_token_id": Typed(i, "uint32") for k, i in ids.items() if _ID_KEYS[k]}
    known = ("bos", "eos", "sep")
    keys |= {f"tokenizer.ggml.add_{kind}_token": Typed(flags[kind], "bool") for kind in flags if kind in known}
    return keys | _template_keys(folder, config)


def token_text(entry: Any) -> str | None:
    """A token in tokenizer_config.json is a text, or a table with its text as `content`."""
    entry = entry.get("content") if isinstance(entry, dict) else entry
    return entry if isinstance(entry, str) else None


def _added_ids(tokenizer: dict[str, Any] | None) -> dict[str, int]:
    entries = (tokenizer or {}).get("added_tokens") or []
    found: dict[str, int] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int:
            found.setdefault(entry["content"], entry["id"])
    return found


def _flags_of_processor(tokenizer: dict[str, Any], config: dict[str, Any] | None, kinds: list[str]) -> dict[str, bool]:
    """What the post-processor puts around and between texts. May name tokens in `config`, and add to `kinds`."""
    flags: dict[str, bool] = {}
    processor = tokenizer.get("post_processor")
    if not isinstance(processor, dict):
        return flags
    steps = processor.get("processors", [processor])
    for step in (s for s in (steps if isinstance(steps, list) else []) if isinstance(s, dict)):
        if step.get("type") == "ByteLevel":
            flags.setdefault("bos", False)
            flags.setdefault("eos", False)
        elif step.get("type") == "TemplateProcessing":
            _read_template(step, config, kinds, flags)
    return flags


def _read_template(
    step: dict[str, Any], config: dict[str, Any] | None, kinds: list[str], flags: dict[str, bool]
) -> None:
    single, pair = _items(step.get("single")), _items(step.get("pair"))
    bos, eos, sep = (token_text((config or {}).get(f"{kind}_token")) for kind in ("bos", "eos", "sep"))
    first = last = None
    if len(single) > 1:
        first, last = single[0], single[-1]
        if first is not None:
            if bos is None:
                bos = first
                if config is not None:
                    config["bos_token"] = first
            flags["bos"] = first == bos
        if last is not None:
            if config is not None and eos is not None and last != eos and "eot" not in kinds:
                kinds.append("eot")
                config["eot_token"], config["eos_token"] = eos, last
            flags["eos"], eos = True, last
    if len(pair) > (first is not None):
        middle = pair[1 if first is not None and pair[0] == first else 0 :]
        middle = middle[: -1 if last is not None and middle and middle[-1] == last else None]
        inner = middle[1:-1]
        if len(middle) > 1 and middle[0] is None and middle[-1] is None and inner:
            flags["sep"] = any(
                token is not None and token in (sep, eos) and (i or last is None) for i, token in enumerate(inner[:2])
            )


def _items(template: Any) -> list[str | None]:
    """The special tokens of a template, None for its texts."""
    found: list[str | None] = []
    for item in template if isinstance(template, list) else []:
        special = item.get("SpecialToken") if isinstance(item, dict) else None
        text = special.get("id") if isinstance(special, dict) else None
        found.append(text if isinstance(text, str) else None)
    return found


def _template_keys(folder: Folder, config: dict[str, Any] | None) -> dict[str, Typed]:
    """The chat template, or several by their names."""
    template: Any = folder.text("chat_template.jinja")
    if template is None:
        template = (folder.json("chat_template.json") or {}).get("chat_template")
    template = (config or {}).get("chat_template", template)
    if template is None:
        return {}
    if isinstance(template, str):
        return {"tokenizer.chat_template": Typed(template, "string")}
    if not isinstance(template, list):
        raise BadFile(folder.path / "tokenizer_config.json", "is no text", field="chat_template")
    named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
    texts = {
        "".join(c if c.isascii() and c.isalnum() else "_" for c in name): text
        for name, text in named.items()
        if isinstance(name, str) and name and isinstance(text, str)
    }
    default = texts.pop("default", None)
    keys = {f"tokenizer.chat_template.{name}": Typed(text, "string") for name, text in texts.items()}
    if texts:
        keys["tokenizer.chat_templates"] = Typed(list(texts), "string")
    return keys | ({"tokenizer.chat_template": Typed(default, "string")} if default is not None else {})
