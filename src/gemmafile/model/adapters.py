"""LoRA adapters at run time: `--lora FILE`, `--lora-scaled FILE:SCALE`, several at once.

An adapter's pair for a matrix W is A [r, in] and B [out, r]: W x becomes W x + B (A x), with the scale in B. The tape
records the two small products behind the large one (`tape.py`), in float32, by the kernels that obey the law of rows:
a row's result stays the same in any batch. The weights themselves stay mapped and untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gemmafile.errors import BadFile, BadSettings, UnsupportedModel
from gemmafile.files.formats import format_by_name
from gemmafile.files.gguf import open_gguf
from gemmafile.files.huggingface.adapter import LARGEST, is_adapter_folder, read_adapter
from gemmafile.model.config import ModelConfig
from gemmafile.model.weights import ModelWeights, Weight

Pairs = dict[str, list[tuple[Weight, Weight]]]
"""Name of a tensor -> its pairs (A, B), the first adapter's first."""

_WIDEN = {"F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True)
class Adapter:
    """One adapter read: `pairs`  (name, A, B) float32 · `alpha`  0: the scale is as it stands"""

    path: Path
    pairs: list[tuple[str, np.ndarray, np.ndarray]]
    alpha: float

    def scale(self, rank: int, asked: float) -> float:
        """What B A is multiplied by, as in llama.cpp."""
        return asked * self.alpha / rank if self.alpha else asked


def parse_adapters(plain: Sequence[str], scaled: Sequence[str]) -> list[tuple[str, float]]:
    """(path, scale) from the values of --lora and --lora-scaled, commas between several. Raises BadSettings."""
    found = [(path, 1.0) for value in plain for path in value.split(",") if path]
    for value in scaled:
        for entry in value.split(","):
            path, colon, number = entry.rpartition(":")
            try:
                scale = float(number)
            except ValueError:
                colon = ""
            if not colon or not path or not abs(scale) <= LARGEST:
                raise BadSettings(f"--lora-scaled is {entry!r}, expected FILE:SCALE, such as adapter.gguf:0.5")
            found.append((path, scale))
    return found


def load_adapters(wanted: Sequence[tuple[str, float]], config: ModelConfig, weights: ModelWeights) -> Pairs:
    """Pairs ready for the tape. Raises BadFile, UnsupportedModel for an adapter of another model."""
    shapes = {weight.name: weight.shape for weight in _matrices(weights)}
    pairs: Pairs = {}
    for path, asked in wanted:
        adapter = open_adapter(Path(path), config)
        for name, a, b in adapter.pairs:
            check_pair(adapter, name, a, b, shapes)
            with np.errstate(over="ignore"):
                scaled = b * np.float32(adapter.scale(len(a), asked))
            if not np.isfinite(scaled).all():
                raise BadSettings(f"{path} times {asked:g} is beyond what float32 holds")
            pairs.setdefault(name, []).append((_weight(f"{name}.lora_a", a), _weight(f"{name}.lora_b", scaled)))
    return pairs


def check_pair(adapter: Adapter, name: str, a: np.ndarray, b: np.ndarray, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises UnsupportedModel where a pair does not fit the model's matrix."""
    if name not in shapes or name == "token_embd.weight":
        raise UnsupportedModel(adapter.path, "is not a matrix that can be adapted here", field=f"tensor {name!r}")
    if (len(b), a.shape[1]) != shapes[name] or b.shape[1] != len(a):
        rows, columns = shapes[name]
        what = f"adapts a matrix of {len(b)} x {a.shape[1]}, and the model's has {rows} x {columns}: for another model?"
        raise UnsupportedModel(adapter.path, what, field=f"tensor {name!r}")


def open_adapter(path: Path, config: ModelConfig) -> Adapter:
    """A GGUF adapter, or the folder that PEFT saved. Raises BadFile, UnsupportedModel."""
    if is_adapter_folder(path):
        peft = read_adapter(path, config.architecture, config.n_heads, config.n_kv_heads)
        return Adapter(path, [(pair.name, pair.a, pair.b) for pair in peft.pairs], peft.alpha)
    with open_gguf(path) as file:
        metadata = file.metadata
        kind, form = metadata.get("general.type"), metadata.get("adapter.type")
        if kind != "adapter" or form != "lora":
            raise UnsupportedModel(path, f"is no LoRA adapter (general.type {kind!r}, adapter.type {form!r})")
        if metadata.get_str("general.architecture") != config.architecture:
            what = f"is an adapter for {metadata['general.architecture']!r}, and the model is {config.architecture!r}"
            raise UnsupportedModel(path, what)
        alpha = metadata.get_float("adapter.lora.alpha")
        if not abs(alpha) <= LARGEST:
            raise BadFile(path, f"is {alpha}, expected a number", field="adapter.lora.alpha")
        halves: dict[str, dict[str, np.ndarray]] = {}
        for info in file.tensors.values():
            name, dot, half = info.name.rpartition(".")
            if half not in ("lora_a", "lora_b") or not dot or len(info.shape) != 2:
                raise UnsupportedModel(path, "is no half of a LoRA pair", field=f"tensor {info.name!r}")
            halves.setdefault(name, {})[half] = _read(
                path, info.name, info.format.name, file.data(info.name), info.shape
            )
    pairs = []
    for name, both in halves.items():
        if len(both) != 2:
            raise BadFile(path, "has lost its other half", field=f"tensor {name!r}")
        pairs.append((name, both["lora_a"], both["lora_b"]))
    return Adapter(path, pairs, alpha)


def _read(path: Path, name: str, format_name: str, data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if format_name == "BF16":
        values = (data.view("<u2").astype("<u4") << 16).view("<f4")
    elif format_name in _WIDEN:
        values = data.view(_WIDEN[format_name]).astype("<f4")
    else:
        raise UnsupportedModel(path, f"has format {format_name}, expected F32, F16 or BF16", field=f"tensor {name!r}")
    if not np.isfinite(values).all():
        raise BadFile(path, "holds a number that is infinite or NaN", field=f"tensor {name!r}")
    return values.reshape(shape)


def _weight(name: str, values: np.ndarray) -> Weight:
    data = np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
    return Weight(name, values.shape, format_by_name("F32"), data, int(data.ctypes.data))


def _matrices(weights: ModelWeights) -> list[Weight]:
    found = [] if weights.output is weights.token_embd else [weights.output]
    for layer in weights.layers:
        found += [layer.attn_q, layer.attn_k, layer.attn_v, layer.attn_output]
        found += [layer.ffn_gate, layer.ffn_up, layer.ffn_down]
    return found
