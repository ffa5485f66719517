"""A GGUF back to a Hugging Face checkpoint: safetensors, config.json, tokenizer; and a Modelfile for ollama.

Quantised matrices become the floats their blocks stand for, rounded to the type asked for. Matrices stream through in
pieces; files have at most SHARD_BYTES of tensors, as transformers writes them.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from gemmafile.convert.rows import PIECE_WEIGHTS, round_bf16
from gemmafile.convert.tokenizer_files import sentencepiece_model, tokenizer_config, tokenizer_json
from gemmafile.errors import BadFile, BadSettings, UnsupportedModel
from gemmafile.files.atomic import replace_file
from gemmafile.files.gguf import ModelFile
from gemmafile.files.huggingface.sizes import ARCHITECTURES, BIG_LAYERS
from gemmafile.files.huggingface.tensor_names import hf_name, llama3_factors, split_rows
from gemmafile.files.tensors import TensorInfo
from gemmafile.kernels.formats_on import FORMAT_MODULES
from gemmafile.model.config import ModelConfig, read_config

SHARD_BYTES: Final = 5 * 10**9
INDEX: Final = "model.safetensors.index.json"
_WEIGHTS: Final = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
DTYPES: Final = {"F32": 4, "F16": 2, "BF16": 2}
TORCH_NAMES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class _Out:
    """A tensor to be written: `name` is Hugging Face's."""

    name: str
    info: TensorInfo
    dtype: str

    @property
    def n_bytes(self) -> int:
        return self.info.n_weights * DTYPES[self.dtype]


def write_checkpoint(
    file: ModelFile, folder: Path, dtype: str = "auto", on_bytes: Callable[[int], None] = lambda n: None,
    shard_bytes: int = SHARD_BYTES, *, replace: bool = False, tokenizer: bool = True,
    generation: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write the checkpoint into `folder`, which is made; the configuration last, so an unfinished one does not open.

    dtype       F32, F16, BF16, or auto: F32 for a model of F32, F16 for one of F16, else BF16
    replace     the folder may hold something; what this writes, and all weights, are replaced
    tokenizer   whether its files are written · generation  generation_config.json, if not made from the model's keys
    Raises BadSettings for a folder that holds something, UnsupportedModel for what has no place in a checkpoint.
    """
    config = read_config(file)
    dtype = _choose_dtype(file, dtype)
    if folder.exists() and not replace and (not folder.is_dir() or any(folder.iterdir())):
        raise BadSettings(f"{folder} is there already, and not an empty folder")
    table = config_json(file, config, dtype)
    outs = [_find_out(file, config, info, dtype) for info in file.tensors.values() if info.name != "rope_freqs.weight"]
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer:
        write_tokenizer(file, folder)
    shards = _shards(outs, shard_bytes)
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(folder / name, file, config, shard, on_bytes)
        weight_map |= {out.name: name for out in shard}
    if len(shards) > 1:
        total = {"total_size": sum(out.n_bytes for out in outs)}
        _write_json(folder / INDEX, {"metadata": total, "weight_map": weight_map})
    if replace:
        _remove_others(folder, set(weight_map.values()) | ({INDEX} if len(shards) > 1 else set()))
    _write_json(folder / "generation_config.json", _generation_json(file) if generation is None else generation)
    _write_json(folder / "config.json", table)


def _remove_others(folder: Path, written: set[str]) -> None:
    """The weights that were there before, which would be read beside the new ones."""
    for path in folder.iterdir():
        if path.name not in written and (path.name == INDEX or _WEIGHTS.fullmatch(path.name)):
            path.unlink()


def _generation_json(file: ModelFile) -> dict[str, Any]:
    ids = {name: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "eot")}
    ends = sorted({i for i in (ids["eos"], ids["eot"]) if i is not None})
    generation = {"bos_token_id": ids["bos"], "eos_token_id": ends[0] if len(ends) == 1 else ends}
    return {key: value for key, value in generation.items() if value not in (None, [])}


def exported_bytes(file: ModelFile, dtype: str = "auto") -> int:
    """Bytes of all tensors of the checkpoint."""
    return sum(tensor.n_weights for tensor in file.tensors.values()) * DTYPES[_choose_dtype(file, dtype)]


def _choose_dtype(file: ModelFile, dtype: str) -> str:
    name = dtype.upper()
    if name == "AUTO":
        formats = {tensor.format.name for tensor in file.tensors.values() if len(tensor.shape) == 2}
        return next((only for only in ("F32", "F16") if formats == {only}), "BF16")
    if name not in DTYPES:
        raise BadSettings(f"--outtype is {dtype!r}, expected auto, f32, f16 or bf16")
    return name


# --- configuration ----------------------------------------------------------------------------------------------------


def config_json(file: ModelFile, config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json for the model. Raises UnsupportedModel for frequencies that are no Llama 3 scaling."""
    metadata, architecture = file.metadata, config.architecture
    name = next(name for name, known in ARCHITECTURES.items() if known == architecture)
    table: dict[str, Any] = {
        "architectures": [name],
        "model_type": "gemma3_text" if architecture == "gemma3" else architecture,
        "torch_dtype": TORCH_NAMES[dtype],
        "vocab_size": config.n_vocab,
        "hidden_size": config.embedding_dim,
        "intermediate_size": config.feed_forward_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.n_context,
        "rms_norm_eps": _shortest(config.norm_eps),
        "rope_theta": _shortest(config.rope.base),
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        **{f"{n}_token_id": metadata.get(f"tokenizer.ggml.{key}_token_id") for n, key in _IDS.items() if n != "unk"},
    }
    if config.rope.factor != 1.0:
        table["rope_scaling"] = {"rope_type": "linear", "factor": _shortest(config.rope.factor)}
    if architecture == "llama":
        scaling = _llama3_scaling(file, config)
        return table | {"hidden_act": "silu", "mlp_bias": False} | ({"rope_scaling": scaling} if scaling else {})
    table["hidden_activation"] = "gelu_pytorch_tanh"
    if architecture in BIG_LAYERS:
        table["query_pre_attn_scalar"] = _whole(1 / config.query_scale**2)
        table["sliding_window"] = config.window
        kinds = ("full_attention", "sliding_attention")
        table["layer_types"] = [kinds[i in config.local_layers] for i in range(config.n_layers)]
        table["final_logit_softcapping"] = _shortest(config.logit_softcap) or None
        table["attn_logit_softcapping"] = _shortest(config.attn_softcap) or None
    if architecture == "gemma3":
        table["rope_local_base_freq"] = _shortest(config.rope_local.base)
    return table


_IDS: Final = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def _shortest(value: float) -> float:
    """A float32 with the digits it was written with: 1e-6, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))


def _whole(value: float) -> float | int:
    return round(value) if abs(value - round(value)) < 1e-3 * value else value


def _llama3_scaling(file: ModelFile, config: ModelConfig) -> dict[str, Any] | None:
    """The scaling that makes the factors of `rope_freqs.weight`."""
    if not config.rope.use_factors:
        return None
    factors = file.data("rope_freqs.weight").view(np.float32)
    base, dim = config.rope.base, config.head_dim
    frequency = 1 / base ** (np.arange(0, dim, 2) / dim)
    largest = float(factors.max())
    blended = (factors > 1) & (factors < largest)
    lengths = [8192.0]
    if blended.any():
        share = (1 / factors[blended].astype(np.float64) - 1 / largest) / (1 - 1 / largest)
        lengths.insert(0, float(np.round(np.median((1 + 3 * share) * 2 * np.pi / frequency[blended]))))
    for length in lengths:
        scaling = {
            "rope_type": "llama3",
            "factor": _shortest(largest),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": int(length),
        }
        if np.allclose(llama3_factors(scaling | {"rope_theta": base}, dim), factors, rtol=1e-5):
            return scaling
    raise UnsupportedModel(file.path, "are no scaling that config.json has", field="tensor 'rope_freqs.weight'")


def write_tokenizer(file: ModelFile, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, and tokenizer.model of SentencePiece; nothing without a vocabulary."""
    metadata = file.metadata
    if "tokenizer.ggml.tokens" not in metadata:
        return
    tokens = metadata.get_strings("tokenizer.ggml.tokens").to_list()
    n = len(tokens)
    types = _numbers(file, "tokenizer.ggml.token_type", n, 1)
    scores = _numbers(file, "tokenizer.ggml.scores", n, 0.0)
    merges = list(metadata.get_strings("tokenizer.ggml.merges", [])) or []
    model, pre = metadata.get_str("tokenizer.ggml.model"), metadata.get_str("tokenizer.ggml.pre", "default")
    ids = {name: metadata.get_int(f"tokenizer.ggml.{key}_token_id", None) for name, key in _IDS.items()}
    if any(i is not None and not 0 <= i < n for i in ids.values()):
        raise BadFile(file.path, f"a special token is outside the vocabulary of {n}", field="tokenizer.ggml")
    adds_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", model == "llama")) and ids["bos"] is not None
    bos = ids["bos"] if adds_bos else None
    _write_json(folder / "tokenizer.json", tokenizer_json(model, pre, tokens, types, scores, merges, bos))
    template = metadata.get_str("tokenizer.chat_template", None)
    _write_json(folder / "tokenizer_config.json", tokenizer_config(tokens, types, ids, template, adds_bos=adds_bos))
    if model == "llama":
        with replace_file(folder / "tokenizer.model") as out:
            out.write(sentencepiece_model(tokens, types, scores, ids))


def _numbers(file: ModelFile, key: str, n: int, default: float) -> list[Any]:
    array = file.metadata.get_array(key, None)
    if array is not None and len(array) != n:
        raise BadFile(file.path, f"has {len(array)} items for {n} tokens", field=key)
    return [default] * n if array is None else list(array.tolist())


# --- weights ----------------------------------------------------------------------------------------------------------


def _find_out(file: ModelFile, config: ModelConfig, info: TensorInfo, dtype: str) -> _Out:
    name = hf_name(info.name, config.architecture)
    if name is None:
        raise UnsupportedModel(file.path, "has no place in a checkpoint", field=f"tensor {info.name!r}")
    if info.format.name not in FORMAT_MODULES:
        raise UnsupportedModel(file.path, f"has format {info.format.name}", field=f"tensor {info.name!r}")
    return _Out(name, info, dtype)


def _shards(outs: Sequence[_Out], most: int) -> list[list[_Out]]:
    shards: list[list[_Out]] = [[]]
    size = 0
    for out in outs:
        if shards[-1] and size + out.n_bytes > most:
            shards.append([])
            size = 0
        shards[-1].append(out)
        size += out.n_bytes
    return shards


def _write_safetensors(
    path: Path, file: ModelFile, config: ModelConfig, outs: Sequence[_Out], on_bytes: Callable[[int], None]
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for out in outs:
        offsets = [at, at + out.n_bytes]
        header[out.name] = {"dtype": out.dtype, "shape": list(out.info.shape), "data_offsets": offsets}
        at += out.n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replace_file(path) as target:
        target.write(struct.pack("<Q", len(text)) + text)
        for out in outs:
            for values in read_pieces(file, config, out.info):
                piece = _encode(values, out.dtype)
                if piece is None:
                    what = f"holds a number that is infinite, NaN, or too large for {out.dtype}"
                    raise BadFile(file.path, what, field=f"tensor {out.info.name!r}")
                target.write(piece)
                on_bytes(len(piece))


def read_pieces(file: ModelFile, config: ModelConfig, info: TensorInfo) -> Iterator[np.ndarray]:
    """The tensor's numbers, float32, in Hugging Face's layout, some rows at a time."""
    module = FORMAT_MODULES[info.format.name]
    data = file.data(info.name)
    if len(info.shape) == 1:
        values = module.dequantize(data)
        yield values - np.float32(1) if config.architecture != "llama" else values
        return
    rows = data.reshape(info.shape[0], -1)
    kind = info.name.removesuffix(".weight").rpartition(".")[2]
    if config.architecture == "llama" and kind in ("attn_q", "attn_k"):
        rows = split_rows(rows, config.n_heads if kind == "attn_q" else config.n_kv_heads)
    step = max(1, PIECE_WEIGHTS // info.shape[1])
    for start in range(0, len(rows), step):
        yield module.dequantize(np.ascontiguousarray(rows[start : start + step]))


def _encode(values: np.ndarray, dtype: str) -> bytes | None:
    """float32 as the bytes of a type; None where a number is infinite, NaN, or too large for F16."""
    values = np.ascontiguousarray(values, "<f4")
    with np.errstate(over="ignore"):
        encoded = {"F32": lambda: values, "F16": lambda: values.astype("<f2"), "BF16": lambda: round_bf16(values)}[
            dtype
        ]()
    finite = np.isfinite(values if dtype == "BF16" else encoded).all()
    return encoded.tobytes() if finite else None


def _write_json(path: Path, value: Any) -> None:
    with replace_file(path) as out:
        out.write((json.dumps(value, ensure_ascii=False, indent=None if len(value) < 9 else 2) + "\n").encode())
