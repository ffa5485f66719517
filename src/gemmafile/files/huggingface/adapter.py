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
_FOREIGN = (
    "use_dora fan_in_fan_out modules_to_save layer_replication "
    "alora_invocation_tokens use_qalora use_bdlora arrow_config"
).split()
"""What changes an adapter's answers and is not here."""
_REPEATS = re.compile(r"(?<!\\)(?:\\\\)*[*+{?]")
LONGEST_PATTERN, MOST_REPEATS = 200, 3
LARGEST = float(np.finfo(np.float32).max)
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
    alpha = _check_config(path / CONFIG, config)
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
    if not halves:
        raise BadFile(path, "holds no LoRA pairs")
    pairs = []
    for module, half in halves.items():
        if half.keys() != {"A", "B"} or half["A"].shape[0] != half["B"].shape[1]:
            raise BadFile(path, "is no pair of A [r, in] and B [out, r]", field=f"module {quote(module)}")
        name = gguf_name(f"{_PREFIX.sub('model.', module)}.weight", architecture)
        if name is None or name == "token_embd.weight":
            raise UnsupportedModel(path, f"a {architecture} model has no such matrix", field=f"module {quote(module)}")
        with np.errstate(over="ignore"):
            b = half["B"] * np.float32(_factor(config, module, alpha, half["A"].shape[0]))
        if not np.isfinite(b).all():
            raise BadFile(path, "is scaled beyond what float32 holds", field=f"module {quote(module)}")
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if architecture == "llama" and kind in ("attn_q", "attn_k"):
            heads = n_heads if kind == "attn_q" else n_kv_heads
            if len(b) % (2 * heads):
                raise BadFile(path, f"has {len(b)} rows for {heads} heads", field=f"module {quote(module)}")
            b = interleave_rows(b, heads)
        pairs.append(Pair(name, np.ascontiguousarray(half["A"]), np.ascontiguousarray(b)))
    base = config.get("base_model_name_or_path")
    return Peft(pairs, alpha, base if isinstance(base, str) and base else None)


def _check_config(path: Path, config: dict[str, Any]) -> float:
    """alpha. Raises UnsupportedModel for another kind of adapter."""
    if config.get("peft_type", "LORA") != "LORA":
        raise UnsupportedModel(
            path, f"is {str(config['peft_type'])[:40]}, and only LORA is supported", field="peft_type"
        )
    for name in _FOREIGN:
        if config.get(name):
            raise UnsupportedModel(path, "is set, which is not supported", field=name)
    if config.get("bias", "none") != "none":
        raise UnsupportedModel(path, f"is {str(config['bias'])[:40]}, expected none", field="bias")
    alpha, rank = config.get("lora_alpha"), config.get("r")
    factor = _check_alpha(path, alpha, "lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise BadFile(path, "is no table", field="alpha_pattern")
    for pattern, value in patterns.items():
        _check_alpha(path, value, f"alpha_pattern, {quote(pattern)}")
        _check_pattern(path, pattern)
    if type(rank) is not int or rank < 1:
        raise BadFile(path, f"is {str(rank)[:40]}, expected a whole number over 0", field="r")
    return factor


def _check_alpha(path: Path, alpha: Any, field: str) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < abs(alpha) <= LARGEST:
        raise BadFile(path, f"is {str(alpha)[:40]}, expected a number", field=field)
    return float(alpha)


def _check_pattern(path: Path, pattern: str) -> None:
    """A pattern is a regular expression, and a hostile one can take for ever: few repeats, and none of a group."""
    field = f"alpha_pattern, {quote(pattern)}"
    repeats = _REPEATS.findall(pattern)
    if len(pattern) > LONGEST_PATTERN or len(repeats) > MOST_REPEATS or re.search(r"\)[*+{?]", pattern):
        what = (
            f"is not supported: expected a name, or an expression with at most {MOST_REPEATS} repeats, none of a group"
        )
        raise UnsupportedModel(path, what, field=field)
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadFile(path, f"is no regular expression: {error}", field=field) from None


def _factor(config: dict[str, Any], module: str, alpha: float, own_rank: int) -> float:
    """What B is multiplied by so that alpha / own rank, which GGUF's readers take, is the scale that PEFT has."""
    own_alpha = _by_pattern(config.get("alpha_pattern") or {}, module, alpha)
    divisor = math.sqrt(own_rank) if config.get("use_rslora") else own_rank
    factor = (own_alpha / divisor) / (alpha / own_rank)
    return 1.0 if abs(factor - 1) < 1e-12 else factor


def _by_pattern(table: dict[str, Any], module: str, default: float) -> float:
    """The value of the first pattern that the end of the module's name matches, as PEFT finds it."""
    for pattern, value in table.items():
        if re.match(rf"(?:.*\.)?(?:{pattern})$", module):
            return float(value)
    return default
