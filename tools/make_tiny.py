"""Small random models of every architecture, made from a seed, for tests and experiments.

    python -m tools.make_tiny gemma2 tiny.gguf [--seed 1] [--set n_layers=6 --set window=64] [--format Q8_0]

As a library: `make_tiny(PRESETS["gemma2"], seed)` gives a TinyModel (GGUF names, GGUF conventions, float32),
`write_tiny` puts it in a file. The weights are drawn so that every part of the architecture shows in the logits: with
the usual small initialisation attention is flat, and a missing window or scale cannot be told from a right one.
Bits are the same on every machine: raw PCG64 integers, exact sums, one multiplication.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.files.gguf_writer import write_gguf
from gemmafile.files.metadata import Typed
from tools.tiny_vocabulary import bpe_vocabulary, spm_vocabulary

Encode = Callable[[str, np.ndarray], tuple[str, Any]]
"""(tensor name, float32 array) -> (format name, what is to be written)."""

OTHER_STD, NORM_STD = 0.96, 0.2
"""Matrices have std OTHER_STD / sqrt(columns)."""

QK_NORM, FINAL_NORM = 1.8, 3.0
"""Mean weights of the head norms (Gemma 3) and of the last norm."""

BIG_GEMMA = {"gemma2": 46, "gemma3": 62}
"""Layers by which llama.cpp knows a 27B, whose query scale is 1/sqrt(E / H); no key of a GGUF file carries it."""


@dataclass(frozen=True)
class TinyConfig:
    """Sizes of a model. `architecture`  gemma, gemma2, gemma3 or llama, as in GGUF."""

    architecture: str
    n_layers: int = 4
    embedding_dim: int = 256
    feed_forward_dim: int = 512
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    n_vocab: int = 640
    n_context: int = 512
    norm_eps: float = 1e-6
    window: int = 16
    attn_softcap: float = 50.0
    logit_softcap: float = 30.0
    rope_base: float = 10_000.0
    rope_base_local: float | None = None
    rope_factor: float = 1.0
    llama3_rope: bool = False
    tied: bool = True
    query_std: float = 2.4
    """Query and key matrices have std query_std / sqrt(columns): scores of std about 6, an attention that chooses.
    Many layers of such attention would be chaotic: a model of 46 has to be calmer."""

    @property
    def is_gemma(self) -> bool:
        return self.architecture.startswith("gemma")

    @property
    def query_dim(self) -> int:
        """Attention scores are divided by the root of this."""
        is_big = BIG_GEMMA.get(self.architecture) == self.n_layers
        return self.embedding_dim // self.n_heads if is_big else self.head_dim

    @property
    def local_layers(self) -> list[bool]:
        """For each layer: does it see its window only?"""
        period = {"gemma2": 2, "gemma3": 6}.get(self.architecture, 1)
        return [(i + 1) % period != 0 for i in range(self.n_layers)]


PRESETS = {
    "gemma2": TinyConfig("gemma2"),
    "gemma2-odd": TinyConfig(
        "gemma2", n_layers=3, embedding_dim=192, feed_forward_dim=449, n_heads=3, n_kv_heads=1, head_dim=128,
        n_vocab=601, window=7, attn_softcap=8.0, logit_softcap=4.0,
    ),
    "gemma2-27b": TinyConfig(
        "gemma2", n_layers=46, embedding_dim=64, feed_forward_dim=96, n_heads=4, n_kv_heads=2, head_dim=32,
        n_vocab=416, window=5,
        query_std=0.6,
    ),
    "gemma": TinyConfig(
        "gemma", n_layers=3, embedding_dim=160, feed_forward_dim=320, n_heads=2, n_kv_heads=1, head_dim=256,
    ),
    "gemma3": TinyConfig(
        "gemma3", n_layers=7, feed_forward_dim=384, n_kv_heads=1, window=8, rope_base=1_000_000.0,
        rope_base_local=10_000.0, rope_factor=8.0,
    ),
    "gemma3-plain": TinyConfig(
        "gemma3", n_layers=6, embedding_dim=160, feed_forward_dim=288, n_heads=5, n_kv_heads=5, head_dim=128,
        window=11, rope_base=1_000_000.0,
    ),
    "llama": TinyConfig(
        "llama", n_layers=3, embedding_dim=192, feed_forward_dim=416, n_heads=3, n_kv_heads=3, norm_eps=1e-5,
        rope_base=100_000.0, tied=False,
    ),
    "llama3": TinyConfig("llama", n_layers=3, norm_eps=1e-5, rope_base=10_000.0, llama3_rope=True),
}  # fmt: skip

LLAMA3_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
"""Llama 3's frequency bands, for an original context short enough that 64 positions meet all three."""


@dataclass(frozen=True, eq=False)
class TinyModel:
    """`weights`  GGUF name -> float32 array (rows out, columns in); norms of Gemma hold 1 + w, Llama's q and k rows
    are permuted for interleaved rotation, as llama.cpp's converter leaves them."""

    config: TinyConfig
    weights: dict[str, np.ndarray]


def make_tiny(config: TinyConfig, seed: int) -> TinyModel:
    """The model of a seed. A tensor depends on the seed, its name and its shape only."""
    weights = {name: _draw(seed, name, shape, *_distribution(config, name, shape)) for name, shape in _shapes(config)}
    if config.llama3_rope:
        weights["rope_freqs.weight"] = _llama3_factors(config)
    return TinyModel(config, weights)


def tiny_tokens(config: TinyConfig, seed: int, n: int) -> np.ndarray:
    """int32[n]: random token ids of a model's vocabulary, from the same source of bits."""
    raw = np.random.PCG64([seed, n]).random_raw(n)
    return (raw % np.uint64(config.n_vocab)).astype(np.int32)


def write_tiny(model: TinyModel, path: Path, encode: Encode | None = None) -> Path:
    """Writes a GGUF file as llama.cpp's converter would. `encode` chooses formats (default: all F32); norms are never
    handed to it."""
    tensors = []
    for name, array in model.weights.items():
        kind, data = encode(name, array) if encode and array.ndim == 2 else ("F32", array)
        tensors.append((name, kind, array.shape, data))
    write_gguf(path, metadata_of(model.config), tensors)
    return path


def metadata_of(config: TinyConfig) -> dict[str, Any]:
    """The keys llama.cpp's converter writes for this architecture, and a small vocabulary."""
    arch = config.architecture
    keys: dict[str, Any] = {
        "context_length": config.n_context,
        "embedding_length": config.embedding_dim,
        "block_count": config.n_layers,
        "feed_forward_length": config.feed_forward_dim,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.layer_norm_rms_epsilon": float(config.norm_eps),
    }
    if config.is_gemma:
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    keys |= _ARCHITECTURE_KEYS[arch](config)
    vocabulary = spm_vocabulary if config.is_gemma else bpe_vocabulary
    return {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": f"Tiny random {arch}",
        "general.file_type": Typed(0, "uint32"),
        **{f"{arch}.{name}": _typed(value) for name, value in keys.items()},
        **vocabulary(config.n_vocab),
    }


def _typed(value: int | float | str) -> Any:
    return value if isinstance(value, str) else Typed(value, "float32" if isinstance(value, float) else "uint32")


def _gemma2_keys(config: TinyConfig) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": config.attn_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "attention.sliding_window": config.window,
    }


def _gemma3_keys(config: TinyConfig) -> dict[str, Any]:
    keys: dict[str, Any] = {"rope.freq_base": config.rope_base, "attention.sliding_window": config.window}
    if config.rope_base_local is not None:
        keys["rope.freq_base_swa"] = config.rope_base_local
    if config.rope_factor != 1:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factor}
    return keys


def _llama_keys(config: TinyConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.n_vocab,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_base,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
    }


_ARCHITECTURE_KEYS: dict[str, Callable[[TinyConfig], dict[str, Any]]] = {
    "gemma": lambda config: {},
    "gemma2": _gemma2_keys,
    "gemma3": _gemma3_keys,
    "llama": _llama_keys,
}


def _shapes(config: TinyConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the model, in the order of the file."""
    e, f, d = config.embedding_dim, config.feed_forward_dim, config.head_dim
    yield "token_embd.weight", (config.n_vocab, e)
    for i in range(config.n_layers):
        layer = {
            "attn_norm": (e,),
            "attn_q": (config.n_heads * d, e),
            "attn_k": (config.n_kv_heads * d, e),
            "attn_v": (config.n_kv_heads * d, e),
            "attn_output": (e, config.n_heads * d),
            "ffn_norm": (e,),
            "ffn_gate": (f, e),
            "ffn_up": (f, e),
            "ffn_down": (e, f),
        }
        if config.architecture == "gemma3":
            layer |= {"attn_q_norm": (d,), "attn_k_norm": (d,)}
        if config.architecture in ("gemma2", "gemma3"):
            layer |= {"post_attention_norm": (e,), "post_ffw_norm": (e,)}
        for name, shape in layer.items():
            yield f"blk.{i}.{name}.weight", shape
    yield "output_norm.weight", (e,)
    if not config.tied:
        yield "output.weight", (config.n_vocab, e)


def _distribution(config: TinyConfig, name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(mean, std) of a tensor's weights; logits come out with a std of about 1."""
    kind = name.removesuffix(".weight").rpartition(".")[2]
    if kind == "output_norm":
        return FINAL_NORM, NORM_STD
    if kind in ("attn_q_norm", "attn_k_norm"):
        return QK_NORM, NORM_STD
    if len(shape) == 1:
        return 1.0, NORM_STD
    if kind in ("token_embd", "output"):
        return 0.0, 1 / (FINAL_NORM * math.sqrt(config.embedding_dim))
    return 0.0, (config.query_std if kind in ("attn_q", "attn_k") else OTHER_STD) / math.sqrt(shape[1])


def _draw(seed: int, name: str, shape: tuple[int, ...], mean: float, std: float) -> np.ndarray:
    """Nearly normal float32: the sum of four uniform int16, exact in float32, scaled once."""
    raw = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(math.prod(shape))
    sums = raw.astype("<u8").view("<i2").reshape(-1, 4).sum(axis=1, dtype=np.int32).astype(np.float32)
    unit = math.sqrt(4 / 12) * 2**16
    return (sums * np.float32(std / unit) + np.float32(mean)).reshape(shape)


def _llama3_factors(config: TinyConfig) -> np.ndarray:
    """float32[D / 2]: what each rotation frequency is divided by. Source: transformers, _compute_llama3_parameters."""
    base, d = config.rope_base, config.head_dim
    factor, low, high = (LLAMA3_ROPE[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = LLAMA3_ROPE["original_max_position_embeddings"] / (2 * math.pi * base ** (np.arange(0, d, 2) / d))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def _encoder(name: str) -> Encode:
    """Encodes every matrix whose rows are whole blocks of a format, with the `gguf` package; the others stay F32."""
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[name]

    def encode(tensor: str, array: np.ndarray) -> tuple[str, Any]:
        try:
            return name, quants.quantize(array, kind)
        except quants.QuantError:
            return "F32", array

    return encode


def main() -> int:
    parser = argparse.ArgumentParser(description="Write a small random model as a GGUF file.")
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", default="F32", help="of the matrices, where their rows allow it (needs gguf)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="changes a size of the preset"
    )
    args = parser.parse_args()
    config = PRESETS[args.preset]
    for name, _, value in (setting.partition("=") for setting in args.set):
        kind = type(getattr(config, name))
        config = dataclasses.replace(config, **{name: kind(float(value))})
    write_tiny(make_tiny(config, args.seed), args.path, _encoder(args.format) if args.format != "F32" else None)
    print(args.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
