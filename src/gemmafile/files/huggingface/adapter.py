"""A LoRA adapter as PEFT saves it: a folder with adapter_config.json and adapter_model.safetensors.

For some matrices W it holds A [r, in] and B [out, r]; the adapted matrix is W + scale * B A. In: the folder, and the
sizes of the base model. Out: pairs under GGUF's names, in GGUF's order of rows, float32.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.errors import BadFile, UnsupportedModel
from gemmafile.files.cursor import quote
from gemmafile.files.huggingface.folder import Folder
from gemmafile.files.huggingface.tensor_names import gguf_name, interleave_rows, widen

CONFIG = "adapter_config.json"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.[\w-]+)?\.weight")
_PREFIX = re.compile(r"^(?:model\.language_model\.|language_model\.model\.)")


@dataclass(frozen=True)
class Pair:
    """`name`  of the adapted tensor · `a`  float32[r, in] · `b`  float32[out, r]"""

    name: str
    a: np.ndarray
    b: np.ndarray


@dataclass(frozen=True)
class Peft:
    """`alpha`  the adapter's scale times its rank, as GGUF has it · `base`  the model it was made for, if it says"""

    pairs: list[Pair]
    alpha: float
    base: str | None


def is_adapter_folder(path: Path) -> bool:
    try:
        return path.is_dir() and (path / CONFIG).is_file()
    except (OSError, ValueError):
        return False


def read_adapter(path: Path, architecture: str, n_heads: int, n_kv_heads: int) -> Peft:
    """The pairs of an adapter's folder, in the order of its file.

    Raises BadFile for a damaged one, UnsupportedModel for what is more than LoRA on matrices.
    """
    folder = Folder(path, "adapter_model")
    config = folder.json(CONFIG)
    if config is None:
        raise BadFile(path / CONFIG, "there is no such file")
    alpha, rank = _check_config(path / CONFIG, config)
    halves: dict[str, dict[str, np.ndarray]] = {}
    for tensor in folder.tensors.values():
        match = _NAME.fullmatch(tensor.name)
        field = f"tensor {quote(tensor.name)}"
        if match is None:
            raise UnsupportedModel(tensor.path, "is no part of a LoRA pair, and is not supported", field=field)
        if tensor.dtype not in ("F32", "F16", "BF16") or len(tensor.shape) != 2 or 0 in tensor.shape:
            raise BadFile(
                tensor.path, f"is {tensor.dtype}{list(tensor.shape)}, expected a matrix of floats", field=field
            )
        values = widen(folder.data(tensor), tensor.dtype).reshape(tensor.shape)
        if not np.isfinite(values).all():
            raise BadFile(tensor.path, "holds a number that is infinite or NaN", field=field)
        halves.setdefault(match[1], {})[match[2]] = values
    pairs = []
    for module, half in halves.items():
        if half.keys() != {"A", "B"} or half["A"].shape[0] != half["B"].shape[1]:
            raise BadFile(path, "is no pair of A [r, in] and B [out, r]", field=f"module {quote(module)}")
        name = gguf_name(f"{_PREFIX.sub('model.', module)}.weight", architecture)
        if name is None or name == "token_embd.weight":
            raise UnsupportedModel(path, f"a {architecture} model has no such matrix", field=f"module {quote(module)}")
        b = half["B"] * np.float32(_factor(config, module, alpha, rank, half["A"].shape[0]))
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if architecture == "llama" and kind in ("attn_q", "attn_k"):
            heads = n_heads if kind == "attn_q" else n_kv_heads
            if len(b) % (2 * heads):
                raise BadFile(path, f"has {len(b)} rows for {heads} heads", field=f"module {quote(module)}")
            b = interleave_rows(b, heads)
        pairs.append(Pair(name, np.ascontiguousarray(half["A"]), np.ascontiguousarray(b)))
    base = config.get("base_model_name_or_path")
    return Peft(pairs, alpha, base if isinstance(base, str) and base else None)


def _check_config(path: Path, config: dict[str, Any]) -> tuple[float, int]:
    """(alpha, rank). Raises UnsupportedModel for another kind of adapter."""
    if config.get("peft_type", "LORA") != "LORA":
        raise UnsupportedModel(
            path, f"is {str(config['peft_type'])[:40]}, and only LORA is supported", field="peft_type"
        )
    for name in ("use_dora", "fan_in_fan_out", "modules_to_save", "layer_replication"):
        if config.get(name):
            raise UnsupportedModel(path, "is set, which is not supported", field=name)
    if config.get("bias", "none") != "none":
        raise UnsupportedModel(path, f"is {str(config['bias'])[:40]}, expected none", field="bias")
    alpha, rank = config.get("lora_alpha"), config.get("r")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha == 0:
        raise BadFile(path, f"is {str(alpha)[:40]}, expected a number", field="lora_alpha")
    if type(rank) is not int or rank < 1:
        raise BadFile(path, f"is {str(rank)[:40]}, expected a whole number over 0", field="r")
    return float(alpha), rank


def _factor(config: dict[str, Any], module: str, alpha: float, rank: int, own_rank: int) -> float:
    """What B is multiplied by so that alpha / own rank, which GGUF's readers take, is the scale that PEFT has."""
    own_alpha = _by_pattern(config.get("alpha_pattern"), module, alpha)
    divisor = math.sqrt(own_rank) if config.get("use_rslora") else own_rank
    factor = (own_alpha / divisor) / (alpha / own_rank)
    return 1.0 if abs(factor - 1) < 1e-12 else factor


def _by_pattern(table: Any, module: str, default: float) -> float:
    for pattern, value in (table or {}).items() if isinstance(table, dict) else ():
        if (module == pattern or module.endswith(f".{pattern}")) and isinstance(value, (int, float)):
            return float(value)
    return default
