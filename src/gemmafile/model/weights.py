"""Weights: tensors of a model file under the names the forward pass uses, each checked for its shape.

A `Weight` is a read-only view of the map: nothing is copied or converted at load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gemmafile.errors import UnsupportedModel, nearest
from gemmafile.files.formats import Format
from gemmafile.files.gguf import ModelFile
from gemmafile.model.config import ModelConfig


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """One tensor. `shape` in NumPy order (rows out, columns in) · `data`  uint8[n_bytes], read-only ·
    `address`  of its first byte, for kernels · `row_bytes`  from one row to the next"""

    name: str
    shape: tuple[int, ...]
    format: Format
    data: np.ndarray
    address: int

    @property
    def row_bytes(self) -> int:
        return self.data.nbytes // self.shape[0] if len(self.shape) > 1 else self.data.nbytes


@dataclass(slots=True, eq=False)
class LayerWeights:
    """One layer's tensors; None where the architecture has none."""

    attn_norm: Weight
    attn_q: Weight
    attn_k: Weight
    attn_v: Weight
    attn_output: Weight
    ffn_norm: Weight
    ffn_gate: Weight
    ffn_up: Weight
    ffn_down: Weight
    attn_q_norm: Weight | None = None
    attn_k_norm: Weight | None = None
    post_attention_norm: Weight | None = None
    post_ffw_norm: Weight | None = None


@dataclass(slots=True, eq=False)
class ModelWeights:
    token_embd: Weight
    output_norm: Weight
    output: Weight
    layers: list[LayerWeights]
    rope_freqs: Weight | None = None


class _Tensors:
    """Hands out tensors of a file and remembers which were never asked for."""

    def __init__(self, file: ModelFile):
        self.file, self.unused = file, set(file.tensors)

    def take(self, name: str, *shape: int) -> Weight:
        info = self.file.tensors.get(name)
        if info is None:
            hint = nearest(name, self.unused)
            raise UnsupportedModel(self.file.path, f"the tensor is missing{hint}", field=f"tensor {name!r}")
        if info.shape != shape:
            raise UnsupportedModel(
                self.file.path,
                f"has shape {_by(info.shape)}, the metadata says {_by(shape)}",
                field=f"tensor {name!r}",
            )
        self.unused.discard(name)
        return Weight(name, info.shape, info.format, self.file.data(name), self.file.address(name))

    def take_vector(self, name: str, n: int) -> Weight:
        weight = self.take(name, n)
        if weight.format.name != "F32":
            raise UnsupportedModel(
                self.file.path, f"has format {weight.format.name}, expected F32", field=f"tensor {name!r}"
            )
        return weight


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def load_weights(file: ModelFile, config: ModelConfig) -> ModelWeights:
    """All tensors of the model.

    Raises UnsupportedModel for a missing or surplus tensor, or a shape that contradicts the metadata.
    """
    tensors = _Tensors(file)
    e, v = config.embedding_dim, config.n_vocab
    embedding = tensors.take("token_embd.weight", v, e)
    weights = ModelWeights(
        token_embd=embedding,
        output_norm=tensors.take_vector("output_norm.weight", e),
        output=embedding if config.tied else tensors.take("output.weight", v, e),
        layers=[_load_layer(tensors, config, i) for i in range(config.n_layers)],
    )
    if config.rope.use_factors:
        weights.rope_freqs = tensors.take_vector("rope_freqs.weight", config.rope.dim // 2)
    if tensors.unused:
        name = min(tensors.unused)
        raise UnsupportedModel(
            file.path,
            f"a {config.architecture} model does not use this tensor ({len(tensors.unused)} such): "
            "running without it would give wrong answers",
            field=f"tensor {name!r}",
        )
    return weights


def _load_layer(tensors: _Tensors, config: ModelConfig, index: int) -> LayerWeights:
    e, f, d = config.embedding_dim, config.feed_forward_dim, config.head_dim
    q_dim, kv_dim = config.n_heads * d, config.n_kv_heads * d

    def matrix(name: str, rows: int, columns: int) -> Weight:
        return tensors.take(f"blk.{index}.{name}.weight", rows, columns)

    def vector(name: str, n: int) -> Weight:
        return tensors.take_vector(f"blk.{index}.{name}.weight", n)

    return LayerWeights(
        attn_norm=vector("attn_norm", e),
        attn_q=matrix("attn_q", q_dim, e),
        attn_k=matrix("attn_k", kv_dim, e),
        attn_v=matrix("attn_v", kv_dim, e),
        attn_output=matrix("attn_output", e, q_dim),
        ffn_norm=vector("ffn_norm", e),
        ffn_gate=matrix("ffn_gate", f, e),
        ffn_up=matrix("ffn_up", f, e),
        ffn_down=matrix("ffn_down", e, f),
        attn_q_norm=vector("attn_q_norm", d) if config.qk_norms else None,
        attn_k_norm=vector("attn_k_norm", d) if config.qk_norms else None,
        post_attention_norm=vector("post_attention_norm", e) if config.post_norms else None,
        post_ffw_norm=vector("post_ffw_norm", e) if config.post_norms else None,
    )
