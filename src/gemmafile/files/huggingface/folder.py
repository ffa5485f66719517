"""The folder of a checkpoint: its JSON files, and its weights in one safetensors file or many.

In: a path. Out: a `Folder`, whose tensors are known and whose files are mapped. Weights in any other format are
refused: a PyTorch `.bin` is a pickle, and to read a pickle is to run what it says.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from gemmafile.errors import BadFile, UnsupportedModel, nearest
from gemmafile.files.cursor import quote
from gemmafile.files.gguf import map_file
from gemmafile.files.huggingface.safetensors import StoredTensor, read_safetensors

INDEX: Final = "model.safetensors.index.json"
MAX_JSON_BYTES: Final = 256 << 20
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OTHERS: Final = {"*.gguf": "GGUF files", "*.msgpack": "Flax weights", "*.h5": "TensorFlow weights"}
_PART: Final = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def find_folder(path: Path) -> Path | None:
    """The folder that `path` means: itself, or that of the safetensors file or index named; None for other files."""
    try:
        if path.is_dir():
            return path
        if path.is_file() and (path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json")):
            return path.parent
    except (OSError, ValueError):
        pass
    return None


class Folder:
    """A checkpoint's folder. `config`  config.json · `tensors`  all tensors by name, in the order of parts and names
    · `maps`  each part's bytes, read-only"""

    def __init__(self, path: Path, weights: str = "model"):
        """`weights`  the stem of the safetensors files' names. Raises BadFile for a folder that is no checkpoint."""
        self.path = path
        self.maps: dict[Path, Bytes] = {}
        self.tensors: dict[str, StoredTensor] = {}
        if weights == "model" and (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            what = "is a LoRA adapter, no model: `gemmafile convert` makes a GGUF adapter of it, for --lora"
            raise BadFile(path, what)
        parts, index = self._find_parts(weights)
        for name in parts:
            self._read_part(name)
        if index is not None:
            self._check_index(index)
        self.config: dict[str, Any] = self.json("config.json") or {} if weights == "model" else {}
        if weights == "model" and not self.config:
            raise BadFile(path / "config.json", "there is no such file: it says what the weights are")

    # --- JSON and text -------------------------------------------------------------------------------------------

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the folder; None where there is no such file. Raises BadFile."""
        path = self.path / name
        raw = self.read(name)
        if raw is None:
            return None
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadFile(path, f"is no JSON: {error}") from None
        if not isinstance(value, dict):
            raise BadFile(path, "is no JSON object")
        return value

    def text(self, name: str) -> str | None:
        """A text file of the folder; None where there is none. Raises BadFile."""
        raw = self.read(name)
        try:
            return None if raw is None else raw.decode()
        except UnicodeDecodeError as error:
            raise BadFile(self.path / name, "is not UTF-8 text", byte=error.start) from None

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        try:
            if not path.is_file():
                return None
            if path.stat().st_size > MAX_JSON_BYTES:
                raise BadFile(path, f"has {path.stat().st_size} bytes, expected at most {MAX_JSON_BYTES}")
            return path.read_bytes()
        except OSError as error:
            raise BadFile(path, f"cannot be read: {error.strerror or error}") from None

    # --- weights -------------------------------------------------------------------------------------------------

    def data(self, tensor: StoredTensor) -> Bytes:
        """The bytes of a tensor: uint8[n_bytes], read-only, a view of the map."""
        return self.maps[tensor.path][tensor.offset : tensor.offset + tensor.n_bytes]

    def _find_parts(self, stem: str) -> tuple[list[str], dict[str, str] | None]:
        """The names of the weights' files, and the index if there is one: tensor -> file."""
        index = self.json(f"{stem}.safetensors.index.json")
        if index is not None:
            table = _check_table(self.path / INDEX, index.get("weight_map"))
            return sorted(set(table.values())), table
        try:
            names = sorted(entry.name for entry in self.path.iterdir() if entry.is_file())
        except OSError as error:
            raise BadFile(self.path, f"cannot be read: {error.strerror or error}") from None
        parts = [name for name in names if name.startswith(stem) and name.endswith(".safetensors")]
        if not parts:
            raise self._no_weights(names, stem)
        numbered = [m for m in map(_PART.fullmatch, parts) if m]
        if numbered:
            total = int(numbered[0][2])
            missing = {i + 1 for i in range(min(total, len(parts) + 1))} - {int(m[1]) for m in numbered}
            if missing:
                what = f"part {min(missing)} of {total} is missing: there is no "
                raise BadFile(self.path, f"{what}model-{min(missing):05d}-of-{total:05d}.safetensors")
        return parts, None

    def _no_weights(self, names: list[str], stem: str) -> BadFile:
        for pattern in _PICKLES:
            found = next((name for name in names if Path(name).match(pattern)), None)
            if found and found != "training_args.bin":
                what = (
                    f"{found!r} is a Python pickle, which can run any code when it is read, and is never loaded: get "
                    "the weights as safetensors (most repositories have both)"
                )
                return UnsupportedModel(self.path, what)
        for pattern, kind in _OTHERS.items():
            found = next((name for name in names if Path(name).match(pattern)), None)
            if found:
                return BadFile(self.path, f"is a directory of {kind}: name the file, such as {self.path / found}")
        return BadFile(self.path, f"is a directory without {stem}.safetensors: no checkpoint, or not all of it is here")

    def _read_part(self, name: str) -> None:
        path = self.path / name
        buffer = map_file(path)
        tensors, _ = read_safetensors(path, buffer)
        self.maps[path] = np.frombuffer(buffer, np.uint8)
        for tensor in tensors:
            if tensor.name in self.tensors:
                other = self.tensors[tensor.name].path.name
                raise BadFile(path, f"is in {other} as well", field=f"tensor {quote(tensor.name)}")
            self.tensors[tensor.name] = tensor

    def _check_index(self, index: dict[str, str]) -> None:
        """Every tensor lies where the index says, and there are no others."""
        path = self.path / INDEX
        for name, part in index.items():
            tensor = self.tensors.get(name)
            if tensor is None or tensor.path.name != part:
                where = f" (it is in {tensor.path.name})" if tensor else nearest(name, self.tensors)
                raise BadFile(path, f"is not in {part}, where the index says{where}", field=f"tensor {quote(name)}")
        surplus = self.tensors.keys() - index.keys()
        if surplus:
            name = min(surplus)
            what = f"is in {self.tensors[name].path.name}, and the index does not know it"
            raise BadFile(path, what, field=f"tensor {quote(name)}")


def _check_table(path: Path, table: Any) -> dict[str, str]:
    """A weight map whose files are names in the same folder: a hostile one must not reach elsewhere."""
    if not isinstance(table, dict) or not table:
        raise BadFile(path, "is no table of tensors and files", field="weight_map")
    for name, part in table.items():
        plain = isinstance(part, str) and part.endswith(".safetensors") and Path(part).name == part
        if not plain or "\\" in part or "\0" in part:
            what = f"is said to lie in {quote(str(part))}, expected the name of a safetensors file beside the index"
            if isinstance(part, str) and part.endswith((".bin", ".pt", ".pth")):
                what += " (a pickle is never loaded: it can run any code)"
            raise BadFile(path, what, field=f"weight_map, {quote(name)}")
    return table
