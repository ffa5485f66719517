"""LoRA adapters: PEFT's folder to a GGUF adapter, as llama.cpp's convert_lora_to_gguf.py writes it; and adapters baked
into a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.convert.parts import copied, keys_of
from gemmafile.convert.rows import PIECE_WEIGHTS, NotFinite, encode_rows
from gemmafile.errors import BadFile, BadSettings, UnsupportedModel
from gemmafile.files.formats import Format, format_by_name
from gemmafile.files.gguf import ModelFile
from gemmafile.files.gguf_writer import Tensor, write_gguf
from gemmafile.files.huggingface.adapter import CONFIG, Peft, read_adapter
from gemmafile.files.huggingface.sizes import read_sizes
from gemmafile.files.metadata import Typed
from gemmafile.files.open import open_model
from gemmafile.files.tensors import TensorInfo
from gemmafile.kernels.formats_on import FORMAT_MODULES
from gemmafile.model.adapters import Adapter, check_pair
from gemmafile.model.config import read_config

FLOATS = ("F32", "F16", "BF16", "Q8_0")


def read_peft(folder: Path, base: Path | None) -> tuple[Peft, str]:
    """An adapter and its architecture. `base`  the model it is for (anything with its sizes); None: what it names.

    Raises BadSettings where the base model is not known.
    """
    place = base
    if place is None:
        try:
            named = json.loads((folder / CONFIG).read_bytes()).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            raise BadFile(folder / CONFIG, "cannot be read") from None
        place = Path(named) if isinstance(named, str) and named else None
        if place is None or not place.exists():
            raise BadSettings(f"which model is {folder} for? give its folder or GGUF with --base (it names {named!r})")
    config = place / "config.json" if place.is_dir() else place
    if config.name == "config.json" and config.is_file():  # the weights need not be there
        try:
            sizes = read_sizes(config, json.loads(config.read_bytes()))
        except (OSError, ValueError) as error:
            raise BadFile(config, f"cannot be read: {error}") from None
        return read_adapter(folder, sizes.architecture, sizes.n_heads, sizes.n_kv_heads), sizes.architecture
    with open_model(place) as file:
        model = read_config(file)
    return read_adapter(folder, model.architecture, model.n_heads, model.n_kv_heads), model.architecture


def write_adapter(peft: Peft, architecture: str, out: Path, name: str) -> None:
    """Write the GGUF adapter, float32. `name`  its general.name"""
    keys = {
        "general.architecture": Typed(architecture, "string"),
        "general.type": Typed("adapter", "string"),
        "adapter.type": Typed("lora", "string"),
        "general.name": Typed(name, "string"),
        "adapter.lora.alpha": Typed(peft.alpha, "float32"),
        "general.quantization_version": Typed(2, "uint32"),
    }
    tensors: list[Tensor] = []
    for pair in peft.pairs:
        tensors += [(f"{pair.name}.lora_a", "F32", pair.a.shape, pair.a)]
        tensors += [(f"{pair.name}.lora_b", "F32", pair.b.shape, pair.b)]
    write_gguf(out, keys, tensors)


def merge_adapters(
    file: ModelFile, adapters: Sequence[tuple[Adapter, float]], out: Path, out_type: str = "auto",
    on_bytes: Callable[[int], None] = lambda n: None,
) -> None:  # fmt: skip
    """Write the model with the adapters baked in: W + scale * B A, summed in float32.

    `out_type`  of the adapted matrices: auto is their own where that is F32, F16, BF16 or Q8_0, else F16; all other
    tensors are copied. Raises BadFile, UnsupportedModel, BadSettings.
    """
    shapes = {info.name: info.shape for info in file.tensors.values()}
    added: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for adapter, asked in adapters:
        for name, a, b in adapter.pairs:
            check_pair(adapter, name, a, b, shapes)
            added.setdefault(name, []).append((a, b * np.float32(adapter.scale(len(a), asked))))
    if out_type != "auto" and out_type.upper() not in FLOATS:
        raise BadSettings(f"--outtype is {out_type!r}, expected auto, f32, f16, bf16 or q8_0")
    tensors: list[Tensor] = []
    for info in file.tensors.values():
        if info.name not in added:
            tensors.append(copied(file, info, on_bytes))
            continue
        if info.format.name not in FORMAT_MODULES:
            raise UnsupportedModel(file.path, f"has format {info.format.name}", field=f"tensor {info.name!r}")
        own = info.format.name if info.format.name in FLOATS else "F16"
        target = format_by_name(own if out_type == "auto" else out_type.upper())
        target = format_by_name("F16") if info.shape[-1] % target.weights_per_block else target
        tensors.append((info.name, target, info.shape, _merged(file, info, target, added[info.name], on_bytes)))
    write_gguf(out, keys_of(file), tensors)


def _merged(
    file: ModelFile, info: TensorInfo, target: Format, pairs: list[tuple[np.ndarray, np.ndarray]],
    on_bytes: Callable[[int], None],
) -> Callable[[], Iterator[Any]]:  # fmt: skip
    def read() -> Iterator[Any]:
        rows, module = file.data(info.name).reshape(info.shape[0], -1), FORMAT_MODULES[info.format.name]
        step = max(1, PIECE_WEIGHTS // info.shape[1])
        for start in range(0, len(rows), step):
            values = module.dequantize(np.ascontiguousarray(rows[start : start + step]))
            for a, b in pairs:
                values = values + b[start : start + step] @ a
            flat = np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
            try:
                for piece in encode_rows(flat, "F32", target, info.shape[1]):
                    yield piece
                    on_bytes(piece.nbytes)
            except NotFinite:
                what = f"with its adapters it holds a number that is infinite, NaN, or too large for {target.name}"
                raise BadFile(file.path, what, field=f"tensor {info.name!r}") from None

    return read
