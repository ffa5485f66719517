"""Tensors of a checkpoint under the names and in the layout of GGUF.

    Gemma's norms       hold w and mean 1 + w: GGUF holds 1 + w, in float32
    other vectors       float32 in GGUF
    Llama's q and k     rows of a head stand as (first halves, second halves) of rotation pairs: interleaved in GGUF
    matrices            as they are

In: a Folder and its Sizes. Out: a `Source` for every tensor of the GGUF, in the order of llama.cpp's converter.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gemmafile.errors import BadFile, UnsupportedModel
from gemmafile.files.cursor import quote
from gemmafile.files.formats import Format, format_by_name
from gemmafile.files.huggingface.folder import Folder
from gemmafile.files.huggingface.safetensors import StoredTensor
from gemmafile.files.huggingface.sizes import Sizes

_WHOLE: Final = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER: Final = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TWO_NORMS: Final = {"post_attention_layernorm": "ffn_norm"}
_FOUR_NORMS: Final = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER_NAME: Final = re.compile(r"model\.layers\.(\d{1,5})\.(.+)\.weight")
_PREFIX: Final = re.compile(r"^(?:language_model\.model\.|model\.language_model\.)")
_SKIPPED: Final = re.compile(
    r"(?:^|\.)(?:vision_tower|vision_model|multi_modal_projector)\.|\.rotary_emb\.inv_freq$|\.attention\.(masked_)?bias$"
)
_FLOATS: Final = ("F32", "F16", "BF16")

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor of the GGUF and where it comes from.

    `stored`  None: `made` holds it, float32 · `change`  "": as it is; "f32": a vector widened; "norm": and 1 added;
    "heads": rows of `n_heads` heads interleaved · `format`  after the change
    """

    name: str
    shape: tuple[int, ...]
    format: Format
    stored: StoredTensor | None
    change: str = ""
    n_heads: int = 0
    made: np.ndarray | None = None

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.format.row_bytes(self.shape[-1])


def find_sources(folder: Folder, sizes: Sizes) -> list[Source]:
    """Raises BadFile or UnsupportedModel for tensors that no model of this kind has, or that are no floats."""
    sources = []
    if sizes.rope["full"]["rope_type"] == "llama3":
        made = llama3_factors(sizes.rope["full"], sizes.head_dim)
        sources.append(Source("rope_freqs.weight", made.shape, format_by_name("F32"), None, made=made))
    for tensor in folder.tensors.values():
        name = _PREFIX.sub("model.", tensor.name).removeprefix("language_model.")
        if _SKIPPED.search(name) or (name == "lm_head.weight" and sizes.tied):
            continue
        sources.append(_make_source(tensor, gguf_name(name, sizes.architecture), sizes))
    seen: dict[str, Source] = {}
    for source in sources:
        if source.name in seen:
            assert source.stored is not None
            what = f"stands for {source.name!r}, which is there already"
            raise BadFile(source.stored.path, what, field=f"tensor {quote(source.stored.name)}")
        seen[source.name] = source
    return sources


def layer_names(architecture: str) -> dict[str, str]:
    """Hugging Face's names of a layer's tensors -> GGUF's."""
    return _LAYER | (_FOUR_NORMS if architecture in ("gemma2", "gemma3") else _TWO_NORMS)


def gguf_name(name: str, architecture: str) -> str | None:
    """GGUF's name of a tensor; None where this architecture has no such tensor."""
    if name in _WHOLE:
        return _WHOLE[name]
    match = _LAYER_NAME.fullmatch(name)
    kind = layer_names(architecture).get(match[2]) if match else None
    return f"blk.{int(match[1])}.{kind}.weight" if match and kind else None


def hf_name(name: str, architecture: str) -> str | None:
    """The inverse of `gguf_name`."""
    whole = {ours: theirs for theirs, ours in _WHOLE.items()}
    if name in whole:
        return whole[name]
    match = re.fullmatch(r"blk\.(\d{1,5})\.(.+)\.weight", name)
    kinds = {ours: theirs for theirs, ours in layer_names(architecture).items()}
    return f"model.layers.{match[1]}.{kinds[match[2]]}.weight" if match and match[2] in kinds else None


def _make_source(tensor: StoredTensor, name: str | None, sizes: Sizes) -> Source:
    field = f"tensor {quote(tensor.name)}"
    if name is None:
        what = f"a {sizes.architecture} model has no such tensor: running without it would give wrong answers"
        raise UnsupportedModel(tensor.path, what, field=field)
    if tensor.dtype not in _FLOATS:
        what = f"has dtype {tensor.dtype}, expected {', '.join(_FLOATS)} (a quantised checkpoint?)"
        raise UnsupportedModel(tensor.path, what, field=field)
    if not 1 <= len(tensor.shape) <= 2 or 0 in tensor.shape:
        raise BadFile(tensor.path, f"has the shape {list(tensor.shape)}, expected a vector or a matrix", field=field)
    kind = name.removesuffix(".weight").rpartition(".")[2]
    if len(tensor.shape) == 1:
        change = "norm" if kind.endswith("_norm") and sizes.architecture != "llama" else "f32"
        if change == "f32" and tensor.dtype == "F32":
            change = ""
        return Source(name, tensor.shape, format_by_name("F32"), tensor, change)
    format_ = format_by_name(tensor.dtype)
    if sizes.architecture == "llama" and kind in ("attn_q", "attn_k"):
        n_heads = sizes.n_heads if kind == "attn_q" else sizes.n_kv_heads
        if tensor.shape[0] % (2 * n_heads):
            what = f"has {tensor.shape[0]} rows, which {n_heads} heads cannot share"
            raise BadFile(tensor.path, what, field=field)
        return Source(name, tensor.shape, format_, tensor, "heads", n_heads)
    return Source(name, tensor.shape, format_, tensor)


def read_source(folder: Folder, source: Source) -> np.ndarray:
    """The tensor in GGUF's layout: uint8 of its format's bytes; a view of the map where nothing changes.

    Raises BadFile for a vector with a number that is infinite or none.
    """
    if source.stored is None:
        assert source.made is not None
        return source.made.astype("<f4").view(np.uint8)
    raw = folder.data(source.stored)
    if source.change == "heads":
        row_bytes = raw.nbytes // source.shape[0]
        return interleave_rows(raw.reshape(-1, row_bytes), source.n_heads).reshape(-1)
    if source.change == "":
        return raw
    values = widen(raw, source.stored.dtype)
    if not np.isfinite(values).all():
        what = "holds a number that is infinite or NaN: the checkpoint is damaged"
        raise BadFile(source.stored.path, what, field=f"tensor {quote(source.stored.name)}")
    if source.change == "norm":
        values = values + np.float32(1)
    return values.view(np.uint8)


def widen(raw: Bytes, dtype: str) -> np.ndarray:
    """Bytes of F32, F16 or BF16 numbers as float32."""
    if dtype == "BF16":
        return (raw.view("<u2").astype("<u4") << 16).view("<f4")
    return raw.view("<f4" if dtype == "F32" else "<f2").astype("<f4", copy=False)


def interleave_rows(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of q or k from half-split rotation pairs to interleaved ones: any dtype, [rows, ...]."""
    halves = rows.reshape(n_heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def split_rows(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """The inverse of `interleave_rows`."""
    pairs = rows.reshape(n_heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def llama3_factors(rope: dict[str, Any], head_dim: int) -> np.ndarray:
    """float32[D / 2]: what each rotation frequency is divided by, for Llama 3's longer context.

    Frequencies that turn often within the original context stay, slow ones are divided by `factor`, those between are
    blended. All steps in float32, as llama.cpp's converter (torch) does them.
    """
    one = np.float32(1)
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = one / (float(rope["rope_theta"]) ** exponent.astype(np.float64)).astype(np.float32)
    factor, low, high = rope.get("factor", 8.0), rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    length = rope.get("original_max_position_embeddings", 8192)
    wavelength = one / frequency * np.float32(2 * math.pi)
    with np.errstate(all="ignore"):
        smooth = (one / wavelength * np.float32(length) - np.float32(low)) / np.float32(high - low)
        blended = one / ((one - smooth) / np.float32(factor) + smooth)
    slow, fast = wavelength > length / low, wavelength < length / high
    return np.where(fast, one, np.where(slow, np.float32(factor), blended)).astype(np.float32)
