"""`gemmafile inspect FILE`: what a model file holds, without loading it.

One description of the file, a dict fit for JSON, is printed as it is (`--json`) or as text.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.errors import GemmafileError
from gemmafile.files.gguf import ModelFile, StringArray, TensorInfo
from gemmafile.files.open import open_model

SHOWN_ITEMS_JSON = 16
"""Of an array in the metadata, JSON shows this many items beside their count."""

SHOWN_ITEMS = 4
SHOWN_CHARACTERS = 72
"""Of a value in the text's table."""

GEMMA_NOTICE = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
"""The notice that section 3.1 of the Gemma Terms of Use asks for with every copy."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `gemmafile inspect`."""
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a GGUF (of a split one the first part), or a checkpoint's folder",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def main(args: argparse.Namespace) -> int:
    """Print the description of `args.file` to stdout. Raises BadFile if it is no model."""
    with open_model(args.file) as model:
        description = describe_model(model)
    packed = describe_packed(args.file)
    if packed is not None:
        description["packed"] = packed
    if args.json:
        text = json.dumps(description, indent=2, allow_nan=False)
    else:
        text = "\n".join(format_description(description))
    return print_answer(text)


def describe_model(model: ModelFile) -> dict[str, Any]:
    """Everything `inspect` tells, in types JSON has; numbers that are not finite as strings."""
    tensors = list(model.tensors.values())
    n_weights = sum(tensor.n_weights for tensor in tensors)
    tensor_bytes = sum(tensor.n_bytes for tensor in tensors)
    return {
        "file": str(model.path),
        "parts": [str(path) for path in model.paths],
        "gguf_version": model.version,
        "n_bytes": model.n_bytes,
        "architecture": _string(model, "general.architecture"),
        "name": _string(model, "general.name"),
        "n_parameters": n_weights,
        "bits_per_weight": _bits_per_weight(tensor_bytes, n_weights),
        "licence": _describe_licence(model),
        "chat_template": _string(model, "tokenizer.chat_template"),
        "formats": _describe_formats(tensors),
        "metadata": {key: _describe_value(model, key) for key in model.metadata},
        "tensors": [_describe_tensor(tensor) for tensor in tensors],
    }


def describe_packed(path: Path) -> dict[str, Any] | None:
    """Where a packed file comes from and what it carries; None for another kind of file. Raises BadFile."""
    from gemmafile.pack.verify import is_packed, read_manifest

    if not path.is_file() or not is_packed(path):
        return None
    checked = read_manifest(path)
    manifest = checked.manifest
    return {
        "tool": manifest.tool,
        "provenance": manifest.provenance,
        "weights": [{"name": w.name, "sha256": w.sha256, "tree": w.root, "n_bytes": w.size} for w in manifest.weights],
        "signed": checked.signature is not None,
        "members": [{"name": m.name, "n_bytes": m.size, "offset": m.offset} for m in manifest.members],
    }


def _string(model: ModelFile, key: str) -> str | None:
    """A string of the metadata; None if it is missing or something else, which inspecting shows, not refuses."""
    value = model.metadata.get(key)
    return value if isinstance(value, str) else None


def _bits_per_weight(n_bytes: int, n_weights: int) -> float | None:
    return round(8 * n_bytes / n_weights, 3) if n_weights else None


def _describe_licence(model: ModelFile) -> dict[str, str | None]:
    architecture = _string(model, "general.architecture") or ""
    return {
        "id": _string(model, "general.license"),
        "name": _string(model, "general.license.name"),
        "link": _string(model, "general.license.link"),
        "notice": GEMMA_NOTICE if architecture.startswith("gemma") else None,
    }


def _describe_formats(tensors: Sequence[TensorInfo]) -> list[dict[str, Any]]:
    """A row a format, the one that takes most bytes first."""
    rows: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        name = tensor.format.name
        row = rows.setdefault(name, {"format": name, "n_tensors": 0, "n_weights": 0, "n_bytes": 0})
        row["n_tensors"] += 1
        row["n_weights"] += tensor.n_weights
        row["n_bytes"] += tensor.n_bytes
        row["bits_per_weight"] = tensor.format.bits_per_weight
    return sorted(rows.values(), key=lambda row: -row["n_bytes"])


def _describe_tensor(tensor: TensorInfo) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "format": tensor.format.name,
        "n_bytes": tensor.n_bytes,
        "file": str(tensor.path),
        "offset": tensor.offset,
    }


def _describe_value(model: ModelFile, key: str) -> dict[str, Any]:
    """A scalar as {type, value}, an array as {type, count, first}."""
    typed = model.metadata.typed(key)
    if isinstance(typed.value, (np.ndarray, StringArray, tuple)):
        return {"type": f"array of {typed.type}", **_describe_array(typed.value)}
    return {"type": typed.type, "value": _finite(typed.value)}


def _describe_array(array: Any) -> dict[str, Any]:
    shown = range(min(len(array), SHOWN_ITEMS_JSON))
    if isinstance(array, StringArray):
        # A vocabulary may hold strings that are not UTF-8; they are shown escaped.
        first: list[Any] = [array.raw(i).decode(errors="backslashreplace") for i in shown]
    elif isinstance(array, np.ndarray):
        first = [_finite(array[i].item()) for i in shown]
    else:
        first = [_describe_array(array[i]) for i in shown]
    return {"count": len(array), "first": first}


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def format_description(description: dict[str, Any]) -> Iterable[str]:
    """The lines of the text: summary, metadata, tensors, sizes, chat template."""
    yield from _format_summary(description)
    if "packed" in description:
        yield from _format_packed(description["packed"])
    yield f"\nMetadata: {len(description['metadata'])} keys"
    rows = [(key, field["type"], _format_field(field)) for key, field in description["metadata"].items()]
    yield from _format_table(rows, "<<<")
    yield f"\nTensors: {len(description['tensors'])}"
    yield from _format_table([_tensor_row(tensor) for tensor in description["tensors"]], "<<<>>", _TENSOR_HEADS)
    yield "\nFormats"
    yield from _format_table([_format_row(row) for row in description["formats"]], "<>>>>", _FORMAT_HEADS)
    if description["chat_template"] is not None:
        yield "\nChat template"
        yield from (f"  {_printable(line)}" for line in description["chat_template"].split("\n"))


def _format_packed(packed: dict[str, Any]) -> Iterable[str]:
    yield "\nPacked file"
    rows = {"packed by": packed["tool"], "signed": "yes: gemmafile verify --key" if packed["signed"] else "no"}
    rows |= {name.replace("_", " "): str(value) for name, value in packed["provenance"].items()}
    rows |= {f"SHA-256 of {w['name']}": w["sha256"] for w in packed["weights"]}
    yield from (f"  {name}: {_printable(value)}" for name, value in rows.items())
    yield from _format_table([(m["name"], f"{m['n_bytes']:,}") for m in packed["members"]], "<>", ("member", "bytes"))


def _format_summary(description: dict[str, Any]) -> Iterable[str]:
    licence = description["licence"]
    bits = description["bits_per_weight"]
    parts = f", {len(description['parts'])} parts" if len(description["parts"]) > 1 else ""
    rows = {
        "file": description["file"],
        "format": (f"GGUF {description['gguf_version']}" if description["gguf_version"] else "safetensors") + parts,
        "size": _format_bytes(description["n_bytes"]),
        "name": description["name"],
        "architecture": description["architecture"],
        "parameters": _format_count(description["n_parameters"]) + (f", {bits:.2f} bits each" if bits else ""),
        "licence": " · ".join(filter(None, (licence["id"], licence["name"], licence["link"]))),
        "notice": licence["notice"],
    }
    yield from (f"{name:<13} {_printable(value) if value else '(not in the file)'}" for name, value in rows.items())


def _format_field(field: dict[str, Any]) -> str:
    if "value" in field:
        value = field["value"]
        return _shorten(value) if isinstance(value, str) else _format_item(value)
    return f"{field['count']}: {_format_items(field)}"


def _format_items(array: dict[str, Any]) -> str:
    shown = [_format_item(item) for item in array["first"][:SHOWN_ITEMS]]
    return _shorten(", ".join(shown) + (", ..." if array["count"] > SHOWN_ITEMS else ""))


def _format_item(item: Any) -> str:
    if isinstance(item, dict):
        return f"[{item['count']}: {_format_items(item)}]"
    if isinstance(item, bool):
        return str(item).lower()
    return f"{item:.7g}" if isinstance(item, float) else repr(item)


_TENSOR_HEADS = ("name", "shape", "format", "bytes", "offset")
_FORMAT_HEADS = ("format", "tensors", "weights", "bytes", "bits/weight")


def _tensor_row(tensor: dict[str, Any]) -> tuple[str, ...]:
    shape = " x ".join(map(str, tensor["shape"]))
    return tensor["name"], shape, tensor["format"], f"{tensor['n_bytes']:,}", f"{tensor['offset']:,}"


def _format_row(row: dict[str, Any]) -> tuple[str, ...]:
    counts = (f"{row[name]:,}" for name in ("n_tensors", "n_weights", "n_bytes"))
    return row["format"], *counts, f"{row['bits_per_weight']:.4g}"


def _format_table(rows: Sequence[Sequence[str]], align: str, heads: Sequence[str] = ()) -> Iterable[str]:
    """Lines of columns; a cell is cut to SHOWN_CHARACTERS, a last column that is aligned left is not padded."""
    cells = [[_shorten(cell) for cell in row] for row in ([heads] if heads else []) + list(rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True))
        yield f"  {line}".rstrip()


def _format_count(n: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= size:
            return f"{n / size:.1f} {unit} ({n:,})"
    return str(n)


def _format_bytes(n: int) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n >= size:
            return f"{n / size:.1f} {unit} ({n:,} bytes)"
    return f"{n} bytes"


def _shorten(text: str) -> str:
    text = _printable(text[: SHOWN_CHARACTERS + 1])
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def _printable(text: str) -> str:
    """Control characters escaped: a file must not drive the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_answer(text: str) -> int:
    """Write `text` to stdout, escaping what its encoding lacks; a reader that has gone away is no error."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # The interpreter flushes stdout once more when it ends: give it somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise GemmafileError(f"stdout: cannot be written: {error.strerror}") from error
    return 0
