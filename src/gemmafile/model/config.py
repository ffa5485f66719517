"""What a model is, in numbers: read from GGUF metadata, checked, and never guessed.

In: `ModelFile.metadata` and the tensor names. Out: a `ModelConfig`. Read `gemma.py` next.

A missing key is an error. The few keys that old converters did not write have one value for every
size of their architecture, or follow from the sizes as llama.cpp derives them; each such derivation
is recorded in `ModelConfig.notes`, which `--verbose` shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from gemmafile.errors import BadSettings, UnsupportedModel, nearest
from gemmafile.files.gguf import ModelFile
from gemmafile.settings import ContextSettings

MAX_COUNT, MAX_LAYERS = 1 << 24, 4096
"""More is damage: what is made for each layer would take seconds before a tensor is missed."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions of one kind of layer.

    `base`  θ · `factor`  linear scaling, positions are divided by it · `dim`  rotated part of a head ·
    `interleaved`  pairs are (2j, 2j+1) as in Llama GGUFs, else (j, j + dim/2) ·
    `use_factors`  divide the frequencies by the tensor `rope_freqs.weight` (Llama 3)
    """

    base: float
    factor: float
    dim: int
    interleaved: bool
    use_factors: bool = False


SMALL = 1024
"""Models of an embedding narrower than this have some hundred million weights: SmolLM2 135M 576, Gemma 3 270M 640."""


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and constants of one model. Shape letters as everywhere: E, F, H, K (kv heads), D, V."""

    architecture: str
    n_layers: int
    embedding_dim: int
    feed_forward_dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_vocab: int
    n_context: int
    norm_eps: float
    query_scale: float
    rope: Rope
    rope_local: Rope
    activation: str = "gelu"
    embedding_scale: float = 1.0
    attn_softcap: float = 0.0
    logit_softcap: float = 0.0
    window: int = 0
    local_layers: frozenset[int] = frozenset()
    post_norms: bool = False
    qk_norms: bool = False
    tied: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def is_small(self) -> bool:
        """Whether rounding is heard in this model more than time is felt: gate and up get activations of 15 bits."""
        return self.embedding_dim < SMALL

    def window_of(self, layer: int) -> int:
        """Positions a row of this layer sees, itself included; 0: all."""
        return self.window if layer in self.local_layers else 0

    def rope_of(self, layer: int) -> Rope:
        return self.rope_local if layer in self.local_layers else self.rope


class _Keys:
    """The metadata of one architecture: `head_count` stands for `gemma2.attention.head_count` and so on."""

    def __init__(self, file: ModelFile, architecture: str):
        self.file, self.metadata, self.architecture = file, file.metadata, architecture

    def _key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def count(self, name: str, default: int | None = None, most: int = MAX_COUNT) -> int:
        key = self._key(name)
        value = self.metadata.get_int(key) if default is None else self.metadata.get_int(key, default)
        if not 0 < value <= most:
            raise UnsupportedModel(self.file.path, f"is {value}, expected 1 to {most}", field=key)
        return value

    def number(self, name: str, default: float | None = None, *, zero: bool = False) -> float:
        key = self._key(name)
        value = self.metadata.get_float(key) if default is None else self.metadata.get_float(key, default)
        if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
            raise UnsupportedModel(self.file.path, f"is {value}, expected a positive number", field=key)
        return value

    def has(self, name: str) -> bool:
        return self._key(name) in self.metadata


def read_config(file: ModelFile, settings: ContextSettings | None = None) -> ModelConfig:
    """The configuration of an open model, with the RoPE flags of `settings` applied.

    Raises BadFile for a missing key, UnsupportedModel for an architecture or a value this engine does not run.
    """
    architecture = file.metadata.get_str("general.architecture")
    reader = _READERS.get(architecture)
    if reader is None:
        raise UnsupportedModel(
            file.path,
            f"the architecture {architecture!r} is not supported{nearest(architecture, _READERS)}; "
            f"supported: {', '.join(_READERS)}",
            field="general.architecture",
        )
    config = reader(_Keys(file, architecture))
    _check_sizes(file, config)
    return _with_rope_flags(config, settings) if settings else config


def _with_rope_flags(config: ModelConfig, s: ContextSettings) -> ModelConfig:
    """As llama.cpp: --rope-freq-base and --rope-scale replace the model's for layers that see everything."""
    rope = config.rope
    if s.rope_freq_base is not None:
        rope = replace(rope, base=_positive("--rope-freq-base", s.rope_freq_base))
    if s.rope_scale is not None:
        rope = replace(rope, factor=_positive("--rope-scale", s.rope_scale))
    if s.rope_freq_scale is not None:
        rope = replace(rope, factor=1.0 / _positive("--rope-freq-scale", s.rope_freq_scale))
    if s.rope_scaling == "none":
        rope = replace(rope, factor=1.0)
    shared = config.rope_local == config.rope
    return replace(config, rope=rope, rope_local=rope if shared else config.rope_local)


def _positive(flag: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise BadSettings(f"{flag} is {value}, expected a positive number")
    return value


def _check_sizes(file: ModelFile, c: ModelConfig) -> None:
    key = c.architecture
    if c.n_heads % c.n_kv_heads:
        raise UnsupportedModel(
            file.path, f"{c.n_heads} heads cannot share {c.n_kv_heads} kv heads", field=f"{key}.attention.head_count_kv"
        )
    if c.head_dim % 2 or c.head_dim > 512:
        raise UnsupportedModel(
            file.path, f"head size {c.head_dim}, expected an even number up to 512", field=f"{key}.attention.key_length"
        )
    for rope in (c.rope, c.rope_local):
        if rope.dim % 2 or not 0 < rope.dim <= c.head_dim:
            raise UnsupportedModel(
                file.path,
                f"is {rope.dim}, expected an even number up to {c.head_dim}",
                field=f"{key}.rope.dimension_count",
            )


def _common(keys: _Keys, notes: list[str]) -> dict[str, Any]:
    """Keys that every architecture has."""
    embedding_dim, n_heads = keys.count("embedding_length"), keys.count("attention.head_count")
    if not keys.has("attention.key_length") and embedding_dim % n_heads:
        raise UnsupportedModel(
            keys.file.path,
            f"{embedding_dim} is not a multiple of {n_heads} heads and attention.key_length is missing",
            field=f"{keys.architecture}.embedding_length",
        )
    head_dim = keys.count("attention.key_length", default=max(1, embedding_dim // n_heads))
    value_dim = keys.count("attention.value_length", default=head_dim)
    if value_dim != head_dim:
        raise UnsupportedModel(
            keys.file.path,
            f"is {value_dim} and attention.key_length {head_dim}: unequal head sizes are not supported",
            field=f"{keys.architecture}.attention.value_length",
        )
    return {
        "architecture": keys.architecture,
        "n_layers": keys.count("block_count", most=MAX_LAYERS),
        "embedding_dim": embedding_dim,
        "feed_forward_dim": keys.count("feed_forward_length"),
        "n_heads": n_heads,
        "n_kv_heads": keys.count("attention.head_count_kv", default=n_heads),
        "head_dim": head_dim,
        "n_context": keys.count("context_length"),
        "norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "n_vocab": _vocabulary_size(keys.file),
        "tied": "output.weight" not in keys.file.tensors,
        "notes": notes,
    }


def _vocabulary_size(file: ModelFile) -> int:
    info = file.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2:
        raise UnsupportedModel(file.path, "is missing or not a matrix", field="tensor 'token_embd.weight'")
    return info.shape[0]


def _linear_factor(keys: _Keys) -> float:
    """The linear RoPE factor, 1 when there is no scaling. Other scalings are refused, not ignored.

    As in llama.cpp (llama-model.cpp), a factor without a type is linear, and rope.scale_linear is its old name.
    """
    kind = keys.metadata.get_str(f"{keys.architecture}.rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise UnsupportedModel(
            keys.file.path,
            f"RoPE scaling {kind!r} is not supported (none and linear are)",
            field=f"{keys.architecture}.rope.scaling.type",
        )
    if kind == "none":
        return 1.0
    if keys.has("rope.scale_linear") and not keys.has("rope.scaling.factor"):
        return keys.number("rope.scale_linear")
    return keys.number("rope.scaling.factor", default=None if keys.has("rope.scaling.type") else 1.0)


def _query_scale(keys: _Keys, c: dict[str, Any], big_layers: int, notes: list[str]) -> float:
    """Scale of the attention scores. No GGUF key carries it for Gemma: llama.cpp derives it from the size
    (src/models/gemma2.cpp, gemma3.cpp): 27B divides by sqrt(E / H), the others by sqrt(D)."""
    if keys.has("attention.scale"):
        return keys.number("attention.scale")
    e, h, d = c["embedding_dim"], c["n_heads"], c["head_dim"]
    if c["n_layers"] == big_layers:
        if e < h:
            raise UnsupportedModel(
                keys.file.path, f"{h} heads over {e} numbers", field=f"{keys.architecture}.attention.head_count"
            )
        notes.append(f"query scale derived for {big_layers} layers (27B): 1/sqrt({e}/{h}) = 1/sqrt({e // h})")
        return 1.0 / math.sqrt(e // h)
    notes.append(f"query scale derived from the head size: 1/sqrt({d})")
    return 1.0 / math.sqrt(d)


def _gemma_constant(keys: _Keys, name: str, value: float, notes: list[str]) -> float:
    """A key that the first Gemma 2 converters left out and that is the same for 2B, 9B and 27B."""
    if keys.has(name):
        return keys.count(name) if isinstance(value, int) else keys.number(name, zero=True)
    notes.append(f"{keys.architecture}.{name} is not in the file; every Gemma 2 has {value:g}")
    return value


def _gemma(keys: _Keys) -> ModelConfig:
    notes: list[str] = []
    c = _common(keys, notes)
    rope = Rope(keys.number("rope.freq_base", default=10000.0), _linear_factor(keys), c["head_dim"], False)
    scale = _query_scale(keys, c, -1, notes)
    return ModelConfig(**c, query_scale=scale, rope=rope, rope_local=rope, embedding_scale=_embedding_scale(c))


def _gemma2(keys: _Keys) -> ModelConfig:
    notes: list[str] = []
    c = _common(keys, notes)
    rope = Rope(keys.number("rope.freq_base", default=10000.0), _linear_factor(keys), c["head_dim"], False)
    n_layers = c["n_layers"]
    return ModelConfig(
        **c,
        query_scale=_query_scale(keys, c, 46, notes),
        rope=rope,
        rope_local=rope,
        embedding_scale=_embedding_scale(c),
        attn_softcap=_gemma_constant(keys, "attn_logit_softcapping", 50.0, notes),
        logit_softcap=_gemma_constant(keys, "final_logit_softcapping", 30.0, notes),
        window=int(_gemma_constant(keys, "attention.sliding_window", 4096, notes)),
        local_layers=frozenset(range(0, n_layers, 2)),
        post_norms=True,
    )


def _gemma3(keys: _Keys) -> ModelConfig:
    notes: list[str] = []
    c = _common(keys, notes)
    dim, n_layers = c["head_dim"], c["n_layers"]
    period = _window_period(keys)
    return ModelConfig(
        **c,
        query_scale=_query_scale(keys, c, 62, notes),
        rope=Rope(keys.number("rope.freq_base"), _linear_factor(keys), dim, False),
        rope_local=Rope(keys.number("rope.freq_base_swa", default=10000.0), 1.0, dim, False),
        embedding_scale=_embedding_scale(c),
        logit_softcap=keys.number("final_logit_softcapping", default=0.0, zero=True),
        window=keys.count("attention.sliding_window"),
        local_layers=frozenset(i for i in range(n_layers) if (i + 1) % period),
        post_norms=True,
        qk_norms=True,
    )


def _window_period(keys: _Keys) -> int:
    """Every how many layers a Gemma 3 layer sees everything: 6 in every released size."""
    key = f"{keys.architecture}.attention.sliding_window_pattern"
    if key in keys.metadata and not isinstance(keys.metadata[key], int):
        raise UnsupportedModel(keys.file.path, "is not one number; only a fixed period is supported", field=key)
    return keys.count("attention.sliding_window_pattern", default=6)


def _llama(keys: _Keys) -> ModelConfig:
    notes: list[str] = []
    for name in ("expert_count",):
        if keys.has(name) and keys.metadata.get_int(f"llama.{name}"):
            raise UnsupportedModel(keys.file.path, "mixtures of experts are not supported", field=f"llama.{name}")
    c = _common(keys, notes)
    head_dim = c["head_dim"]
    if not keys.has("rope.freq_base"):
        notes.append("llama.rope.freq_base is not in the file; Llama 1 and 2 have 10000")
    rope = Rope(
        keys.number("rope.freq_base", default=10000.0),
        _linear_factor(keys),
        keys.count("rope.dimension_count", default=head_dim),
        True,
        "rope_freqs.weight" in keys.file.tensors,
    )
    scale = keys.number("attention.scale", default=1.0 / math.sqrt(head_dim))
    return ModelConfig(**c, query_scale=scale, rope=rope, rope_local=rope, activation="silu")


def _embedding_scale(c: dict[str, Any]) -> float:
    return math.sqrt(c["embedding_dim"])


_READERS: dict[str, Callable[[_Keys], ModelConfig]] = {
    "gemma2": _gemma2,
    "gemma": _gemma,
    "gemma3": _gemma3,
    "llama": _llama,
}
