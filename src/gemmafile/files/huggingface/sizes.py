"""config.json to the keys of an architecture: `gemma2.block_count` and its kin, as llama.cpp's converter writes them.

In: the configuration's table. Out: keys and typed values in the converter's order. What a configuration leaves out has
the value that transformers gives it; what this engine does not run is refused, never ignored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gemmafile.errors import BadFile, UnsupportedModel, nearest
from gemmafile.files.metadata import Typed

ARCHITECTURES: Final = {
    "GemmaForCausalLM": "gemma",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
    "LlamaForCausalLM": "llama",
}
_MODEL_TYPES: Final = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3", "gemma3_text": "gemma3"}

_COMMON: Final[dict[str, Any]] = {"rms_norm_eps": 1e-6, "attention_bias": False, "rope_theta": 10000.0}
_GEMMA: Final = _COMMON | {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_GEMMA2: Final = _GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3: Final = _GEMMA2 | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1_000_000.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_local_base_freq": 10000.0,
}
_LLAMA: Final = _COMMON | {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
_DEFAULTS: Final = {"gemma": _GEMMA, "gemma2": _GEMMA2, "gemma3": _GEMMA3, "llama": _LLAMA}
"""What transformers' configuration classes say where a config.json is silent (transformers 5.23)."""

MAX_VOCAB: Final = 1 << 24
"""Each token of the vocabulary becomes a text in memory, so a hostile size is refused before that."""

BIG_LAYERS: Final = {"gemma2": 46, "gemma3": 62}
"""Layers by which a GGUF's reader knows a 27B, whose query scale is 1/sqrt(E / H)."""
_ACTIVATIONS: Final = {"gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu"}


@dataclass(frozen=True)
class Sizes:
    """What tensors and vocabulary need of a configuration."""

    architecture: str
    n_layers: int
    n_vocab: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    tied: bool
    rope: dict[str, Any]
    keys: dict[str, Typed]
    """Without their prefix "gemma2.", in the converter's order."""
    notes: tuple[str, ...]


class _Config:
    """config.json with defaults; a value of the wrong kind raises BadFile naming the key."""

    def __init__(self, path: Path, architecture: str, table: dict[str, Any]):
        self.path, self.architecture = path, architecture
        self.table = _DEFAULTS[architecture] | table

    def bad(self, name: str, what: str) -> UnsupportedModel:
        return UnsupportedModel(self.path, what, field=name)

    def count(self, name: str, default: int | None = None) -> int:
        value = self.table.get(name)
        value = default if value is None and default is not None else value
        if type(value) is not int or not 0 < value < 1 << 31:
            raise BadFile(self.path, f"is {str(value)[:80]}, expected a whole number over 0", field=name)
        return value

    def number(self, name: str) -> float:
        return self.checked(name, self.table.get(name))

    def checked(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise BadFile(self.path, f"is {str(value)[:80]}, expected a number over 0", field=name)
        return float(value)


def find_architecture(path: Path, config: dict[str, Any]) -> str:
    """GGUF's name for the architecture of a config.json. Raises UnsupportedModel."""
    text = config.get("text_config")
    found = config.get("architectures")
    name = found[0] if isinstance(found, list) and found else None
    if isinstance(text, dict) and isinstance(text.get("architectures"), list) and text["architectures"]:
        name = text["architectures"][0]
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    kind = config.get("model_type")
    if name is None and isinstance(kind, str) and kind in (*_MODEL_TYPES, "llama"):
        return _MODEL_TYPES.get(kind, kind)
    known = ", ".join(ARCHITECTURES)
    near = nearest(str(name), ARCHITECTURES)
    raise UnsupportedModel(path, f"{name!r} is not supported{near}; supported: {known}", field="architectures")


def read_sizes(path: Path, config: dict[str, Any]) -> Sizes:
    """The sizes of a checkpoint. Raises BadFile for a value that cannot be, UnsupportedModel for one we do not run."""
    architecture = find_architecture(path, config)
    text = config.get("text_config")
    c = _Config(path, architecture, {**config, **text} if isinstance(text, dict) else config)
    _refuse_foreign(c)
    n_heads, embedding_dim = c.count("num_attention_heads"), c.count("hidden_size")
    n_kv_heads = c.count("num_key_value_heads", n_heads)
    head_dim = c.count("head_dim", max(1, embedding_dim // n_heads))
    if n_heads % n_kv_heads or head_dim % 2:
        raise c.bad("num_key_value_heads", f"{n_heads} heads of {head_dim} cannot share {n_kv_heads} kv heads")
    notes: list[str] = []
    c.table |= {"num_key_value_heads": n_kv_heads, "head_dim": head_dim}
    rope = _read_rope(c)
    keys = _WRITERS[architecture](c, rope)
    keys |= _extra_keys(c, keys, notes)
    n_vocab = c.count("vocab_size")
    if n_vocab > MAX_VOCAB:
        raise BadFile(path, f"is {n_vocab}, expected at most {MAX_VOCAB}", field="vocab_size")
    n_layers, tied = c.count("num_hidden_layers"), c.table["tie_word_embeddings"] is not False
    return Sizes(architecture, n_layers, n_vocab, n_heads, n_kv_heads, head_dim, tied, rope, keys, tuple(notes))


def _refuse_foreign(c: _Config) -> None:
    """What would change the answers, and this engine has not."""
    quantised = c.table.get("quantization_config")
    if isinstance(quantised, dict):
        how = str(quantised.get("quant_method", "some way"))[:40]
        raise c.bad("quantization_config", f"the weights are quantised ({how}): take the original checkpoint")
    for name in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if c.table.get(name):
            raise c.bad(name, f"is {str(c.table[name])[:40]}, which is not supported")
    wanted = c.table.get("hidden_activation") or c.table.get("hidden_act")
    known = {"silu", "swish"} if c.architecture == "llama" else _ACTIVATIONS
    if wanted is not None and not (isinstance(wanted, str) and wanted in known):
        raise c.bad("hidden_activation", f"is {str(wanted)[:40]!r}, expected {' or '.join(sorted(known))}")
    if c.architecture == "gemma3" and c.table.get("attn_logit_softcapping"):
        raise c.bad("attn_logit_softcapping", "is set, and Gemma 3 has none")


def _read_rope(c: _Config) -> dict[str, Any]:
    """{"full": {...}, "local": {...} or {}} from the spellings of all generations of config.json."""
    table = c.table.get("rope_parameters") or c.table.get("rope_scaling") or {}
    if not isinstance(table, dict):
        raise BadFile(c.path, "is no table", field="rope_parameters")
    if "full_attention" in table or "sliding_attention" in table:
        full, local = table.get("full_attention"), table.get("sliding_attention")
    else:
        full, local = table, {}
    full, local = dict(full or {}), dict(local or {})
    full.setdefault("rope_type", full.get("type") or "default")
    theta = c.table.get("rope_theta") if full.get("rope_theta") is None else full["rope_theta"]
    full["rope_theta"] = c.checked("rope_theta", theta)
    if c.architecture == "gemma3":
        theta = c.table.get("rope_local_base_freq") if local.get("rope_theta") is None else local["rope_theta"]
        local["rope_theta"] = c.checked("rope_local_base_freq", theta)
        if local.get("rope_type", "default") != "default":
            raise c.bad("rope_parameters", "local layers are scaled, which is not supported")
    known = ("default", "linear", "llama3") if c.architecture == "llama" else ("default", "linear")
    if full["rope_type"] not in known:
        kind = str(full["rope_type"])[:40]
        raise c.bad("rope_parameters", f"RoPE scaling {kind!r} is not supported ({', '.join(known)} are)")
    if c.table.get("partial_rotary_factor", 1.0) != 1.0 or full.get("partial_rotary_factor", 1.0) != 1.0:
        raise c.bad("partial_rotary_factor", "is not 1, which is not supported")
    for name in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        if full["rope_type"] != "default" and name in full:
            full[name] = c.checked(f"rope_parameters, {name}", full[name])
    return {"full": full, "local": local}


def _u32(value: int) -> Typed:
    return Typed(value, "uint32")


def _f32(value: float) -> Typed:
    return Typed(float(value), "float32")


def _gemma(c: _Config, rope: dict[str, Any]) -> dict[str, Typed]:
    return {
        "context_length": _u32(c.count("max_position_embeddings")),
        "embedding_length": _u32(c.count("hidden_size")),
        "block_count": _u32(c.count("num_hidden_layers")),
        "feed_forward_length": _u32(c.count("intermediate_size")),
        "attention.head_count": _u32(c.count("num_attention_heads")),
        "attention.head_count_kv": _u32(c.count("num_key_value_heads")),
        "attention.layer_norm_rms_epsilon": _f32(c.number("rms_norm_eps")),
        "attention.key_length": _u32(c.count("head_dim")),
        "attention.value_length": _u32(c.count("head_dim")),
    }


def _gemma1(c: _Config, rope: dict[str, Any]) -> dict[str, Typed]:
    return _gemma(c, rope) | {FILE_TYPE: _u32(0)}


def _gemma2(c: _Config, rope: dict[str, Any]) -> dict[str, Typed]:
    return _gemma1(c, rope) | {
        "attn_logit_softcapping": _f32(_cap(c, "attn_logit_softcapping")),
        "final_logit_softcapping": _f32(_cap(c, "final_logit_softcapping")),
        "attention.sliding_window": _u32(c.count("sliding_window")),
    }


def _cap(c: _Config, name: str) -> float:
    return 0.0 if c.table.get(name) is None else c.number(name)


def _base(c: _Config, rope: dict[str, Any]) -> dict[str, Typed]:
    """The keys that the converter writes for any text model."""
    full, local = rope["full"], rope["local"]
    keys = {
        "block_count": _u32(c.count("num_hidden_layers")),
        "context_length": _u32(c.count("max_position_embeddings")),
        "embedding_length": _u32(c.count("hidden_size")),
        "feed_forward_length": _u32(c.count("intermediate_size")),
        "attention.head_count": _u32(c.count("num_attention_heads")),
        "attention.head_count_kv": _u32(c.count("num_key_value_heads")),
    }
    if full["rope_type"] == "linear":
        keys["rope.scaling.type"] = Typed("linear", "string")
        keys["rope.scaling.factor"] = _f32(c.checked("rope_parameters, factor", full.get("factor")))
    keys["rope.freq_base"] = _f32(full["rope_theta"])
    if local:
        keys["rope.freq_base_swa"] = _f32(local["rope_theta"])
    keys["attention.layer_norm_rms_epsilon"] = _f32(c.number("rms_norm_eps"))
    keys["attention.key_length"] = keys["attention.value_length"] = _u32(c.count("head_dim"))
    keys[FILE_TYPE] = _u32(0)
    return keys


def _gemma3(c: _Config, rope: dict[str, Any]) -> dict[str, Typed]:
    keys = _base(c, rope)
    if c.table.get("final_logit_softcapping"):
        keys["final_logit_softcapping"] = _f32(c.number("final_logit_softcapping"))
    return keys | {"attention.sliding_window": _u32(c.count("sliding_window"))}


def _llama(c: _Config, rope: dict[str, Any]) -> dict[str, Typed]:
    return _base(c, rope) | {
        "vocab_size": _u32(c.count("vocab_size")),
        "rope.dimension_count": _u32(c.count("head_dim")),
    }


FILE_TYPE: Final = "general.file_type"
"""A key without the architecture's name among those that have it, for its place in the order."""
_WRITERS: Final = {"gemma": _gemma1, "gemma2": _gemma2, "gemma3": _gemma3, "llama": _llama}


def _extra_keys(c: _Config, keys: dict[str, Typed], notes: list[str]) -> dict[str, Typed]:
    """Keys for what GGUF readers would otherwise derive wrongly: an odd query scale, another pattern of layers, and
    for Gemma 1 another base or scaling of RoPE. llama.cpp's converter has none of them."""
    extra: dict[str, Typed] = {}
    architecture, head_dim = c.architecture, c.count("head_dim")
    layers = c.count("num_hidden_layers")
    if architecture in BIG_LAYERS:
        derived = c.count("hidden_size") // c.count("num_attention_heads")
        derived = derived if layers == BIG_LAYERS[architecture] else head_dim
        asked = c.number("query_pre_attn_scalar")
        if asked != derived:
            extra["attention.scale"] = _f32(1 / math.sqrt(asked))
            notes.append(
                f"query_pre_attn_scalar is {asked:g}, where llama.cpp derives {derived} from the sizes: the key "
                f"{architecture}.attention.scale says so to gemmafile, and llama.cpp does not look at it"
            )
        period = _find_period(c, layers)
        if period != (2 if architecture == "gemma2" else 6):
            extra["attention.sliding_window_pattern"] = _u32(period)
            notes.append(f"every layer number {period} sees all positions: llama.cpp takes another pattern for granted")
    if architecture in ("gemma", "gemma2"):
        full = _read_rope(c)["full"]
        if full["rope_theta"] != 10000.0:
            extra["rope.freq_base"] = _f32(full["rope_theta"])
        if full["rope_type"] == "linear":
            extra["rope.scaling.type"] = Typed("linear", "string")
            extra["rope.scaling.factor"] = _f32(c.checked("rope_parameters, factor", full.get("factor")))
    return {name: value for name, value in extra.items() if name not in keys}


def _find_period(c: _Config, n_layers: int) -> int:
    """Every how many layers one sees everything. Raises UnsupportedModel for layers without a period."""
    kinds, usual = c.table.get("layer_types"), 2 if c.architecture == "gemma2" else 6
    if kinds is None:
        given = c.table.get("sliding_window_pattern") or c.table.get("_sliding_window_pattern")
        period = c.count("sliding_window_pattern", usual) if given is not None else usual
        if c.architecture == "gemma2" and period != usual:
            raise c.bad("sliding_window_pattern", f"is {period}, expected 2")
        return period
    names = ("sliding_attention", "full_attention")
    if not isinstance(kinds, list) or len(kinds) != n_layers or not all(kind in names for kind in kinds):
        raise BadFile(c.path, f"expected {n_layers} of {' and '.join(names)}", field="layer_types")
    candidates = [usual, *range(1, n_layers + 2)]
    for period in candidates if c.architecture == "gemma3" else [usual]:
        if kinds == [names[(i + 1) % period == 0] for i in range(n_layers)]:
            return period
    raise c.bad("layer_types", "layers that see all positions do not come at a fixed period")
