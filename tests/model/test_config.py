"""What a file says, what it leaves out, and what it must not say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.errors import BadFile, BadSettings, UnsupportedModel
from gemmafile.files.gguf import ModelFile, open_gguf
from gemmafile.files.gguf_writer import write_gguf
from gemmafile.model.config import ModelConfig, read_config
from gemmafile.settings import ContextSettings
from tools.make_tiny import PRESETS, metadata_of

GEMMA2 = {
    "2b": {"block_count": 26, "embedding_length": 2304, "attention.head_count": 8, "attention.head_count_kv": 4},
    "9b": {"block_count": 42, "embedding_length": 3584, "attention.head_count": 16, "attention.head_count_kv": 8},
    "27b": {
        "block_count": 46, "embedding_length": 4608, "attention.head_count": 32, "attention.head_count_kv": 16,
        "attention.key_length": 128, "attention.value_length": 128,
    },
}  # fmt: skip
"""Sizes of the released models; the rest as in 2B."""

GEMMA2_REST = {
    "context_length": 8192,
    "feed_forward_length": 9216,
    "attention.key_length": 256,
    "attention.value_length": 256,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "attention.sliding_window": 4096,
}

GEMMA3_27B = GEMMA2_REST | {
    "context_length": 131072,
    "block_count": 62,
    "embedding_length": 5376,
    "attention.head_count": 32,
    "attention.head_count_kv": 16,
    "attention.key_length": 128,
    "attention.value_length": 128,
    "attention.sliding_window": 1024,
    "rope.freq_base": 1_000_000.0,
    "rope.scaling.type": "linear",
    "rope.scaling.factor": 8.0,
}

LLAMA = {
    "block_count": 30,
    "context_length": 8192,
    "embedding_length": 576,
    "feed_forward_length": 1536,
    "attention.head_count": 9,
    "attention.head_count_kv": 3,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 100_000.0,
    "rope.dimension_count": 64,
}


def open_with(folder: Path, architecture: str, keys: dict[str, Any], *tensors: str) -> ModelFile:
    """A file with these keys, a one-row embedding and a number under each further name."""
    path = folder / "model.gguf"
    metadata = {"general.architecture": architecture} | {f"{architecture}.{name}": v for name, v in keys.items()}
    one = np.zeros(1, np.float32)
    write_gguf(
        path, metadata, [("token_embd.weight", "F32", (1, 1), one), *((name, "F32", (1,), one) for name in tensors)]
    )
    return open_gguf(path)


def config_of(folder: Path, architecture: str, keys: dict[str, Any], *tensors: str) -> ModelConfig:
    return read_config(open_with(folder, architecture, keys, *tensors))


@pytest.mark.parametrize("size, divisor", [("2b", 256), ("9b", 256), ("27b", 144)])
def test_gemma2_as_released(tmp_path: Path, size: str, divisor: int) -> None:
    """27B divides its scores by sqrt(4608 / 32), not by the root of its head size."""
    config = config_of(tmp_path, "gemma2", GEMMA2_REST | GEMMA2[size])
    assert config.query_scale == 1 / math.sqrt(divisor)
    assert config.embedding_scale == math.sqrt(GEMMA2[size]["embedding_length"])
    assert (config.attn_softcap, config.logit_softcap) == (50, 30)
    assert [config.window_of(i) for i in range(4)] == [4096, 0, 4096, 0]
    assert config.rope_of(0) == config.rope_of(1)
    assert config.rope.base == 10_000
    assert config.post_norms
    assert not config.qk_norms
    assert config.tied
    assert len(config.notes) == 1, "the derived query scale, and nothing else, is noted"


def test_first_gemma2_files_lack_caps_and_window(tmp_path: Path) -> None:
    missing = ("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window")
    keys = {name: v for name, v in (GEMMA2_REST | GEMMA2["2b"]).items() if name not in missing}
    config = config_of(tmp_path, "gemma2", keys)
    assert (config.attn_softcap, config.logit_softcap, config.window) == (50, 30, 4096)
    for name in missing:
        assert any(name in note for note in config.notes), f"{name} was derived in silence"


def test_a_cap_of_zero_is_no_cap(tmp_path: Path) -> None:
    config = config_of(tmp_path, "gemma2", GEMMA2_REST | GEMMA2["2b"] | {"attn_logit_softcapping": 0.0})
    assert config.attn_softcap == 0


def test_gemma3_27b_as_released(tmp_path: Path) -> None:
    config = config_of(tmp_path, "gemma3", GEMMA3_27B | {"final_logit_softcapping": 0.0})
    assert config.query_scale == 1 / math.sqrt(168)
    assert [i for i in range(62) if not config.window_of(i)] == [5, 11, 17, 23, 29, 35, 41, 47, 53, 59]
    assert config.window_of(0) == 1024
    assert (config.rope_of(5).base, config.rope_of(5).factor) == (1_000_000, 8)
    assert (config.rope_of(0).base, config.rope_of(0).factor) == (10_000, 1)
    assert config.qk_norms
    assert (config.attn_softcap, config.logit_softcap) == (0, 0)


def test_gemma3_window_period_is_read(tmp_path: Path) -> None:
    config = config_of(tmp_path, "gemma3", GEMMA3_27B | {"attention.sliding_window_pattern": 2})
    assert [config.window_of(i) for i in range(3)] == [1024, 0, 1024]
    by_layer = GEMMA3_27B | {"attention.sliding_window_pattern": [True, False]}
    with pytest.raises(UnsupportedModel, match="sliding_window_pattern"):
        config_of(tmp_path, "gemma3", by_layer)


def test_llama_as_released(tmp_path: Path) -> None:
    """Its converter writes no key_length: a head is E / H."""
    config = config_of(tmp_path, "llama", LLAMA)
    assert config.head_dim == 64
    assert config.query_scale == 1 / 8
    assert config.embedding_scale == 1
    assert config.activation == "silu"
    assert config.rope.interleaved
    assert not config.rope.use_factors
    assert config.notes == []
    with_factors = config_of(tmp_path, "llama", LLAMA, "rope_freqs.weight", "output.weight")
    assert with_factors.rope.use_factors
    assert not with_factors.tied


def test_old_llama_files_lack_base_and_kv_heads(tmp_path: Path) -> None:
    absent = ("rope.freq_base", "attention.head_count_kv", "rope.dimension_count")
    config = config_of(tmp_path, "llama", {name: v for name, v in LLAMA.items() if name not in absent})
    assert (config.rope.base, config.rope.dim, config.n_kv_heads) == (10_000, 64, 9)
    assert any("rope.freq_base" in note for note in config.notes)


@pytest.mark.parametrize("name", PRESETS)
def test_tiny_models_are_read_as_made(tmp_path: Path, name: str) -> None:
    made = PRESETS[name]
    path, zero = tmp_path / "tiny.gguf", np.zeros((made.n_vocab, made.embedding_dim), np.float32)
    write_gguf(path, metadata_of(made), [("token_embd.weight", "F32", zero.shape, zero)])
    config = read_config(open_gguf(path))
    for field in ("architecture", "n_layers", "embedding_dim", "n_heads", "n_kv_heads", "head_dim", "n_vocab"):
        assert getattr(config, field) == getattr(made, field)
    assert config.query_scale == 1 / math.sqrt(made.query_dim)
    if made.architecture in ("gemma2", "gemma3"):
        assert [bool(config.window_of(i)) for i in range(made.n_layers)] == made.local_layers


OPTIONAL = {
    "gemma2": {"attention.key_length", "attention.value_length", "attention.head_count_kv", "attn_logit_softcapping",
               "final_logit_softcapping", "attention.sliding_window"},
    "gemma3": {"attention.key_length", "attention.value_length", "attention.head_count_kv", "attn_logit_softcapping",
               "final_logit_softcapping", "rope.scaling.type"},
    "llama": {"attention.head_count_kv", "rope.freq_base", "rope.dimension_count"},
}  # fmt: skip
COMPLETE = {"gemma2": GEMMA2_REST | GEMMA2["2b"], "gemma3": GEMMA3_27B, "llama": LLAMA}
REQUIRED = [(arch, name) for arch, keys in COMPLETE.items() for name in keys if name not in OPTIONAL[arch]]


@pytest.mark.parametrize("architecture, name", REQUIRED)
def test_a_missing_key_is_named(tmp_path: Path, architecture: str, name: str) -> None:
    """No default where sizes differ: nothing is guessed."""
    keys = {key: v for key, v in COMPLETE[architecture].items() if key != name}
    with pytest.raises(BadFile, match=f"{architecture}.{name}"):
        config_of(tmp_path, architecture, keys)


CONTRADICTIONS = {
    "heads not shared evenly": ({"attention.head_count_kv": 3}, "8 heads cannot share 3 kv heads"),
    "value size": ({"attention.value_length": 128}, "128 and attention.key_length 256"),
    "odd head": ({"attention.key_length": 255, "attention.value_length": 255}, "head size 255"),
    "huge head": ({"attention.key_length": 1024, "attention.value_length": 1024}, "head size 1024"),
    "no layers": ({"block_count": 0}, "block_count.*is 0"),
    "millions of layers": ({"block_count": 1 << 24}, "block_count: is 16777216, expected 1 to 4096"),
    "negative width": ({"embedding_length": -1}, "embedding_length.*is -1"),
    "epsilon of zero": ({"attention.layer_norm_rms_epsilon": 0.0}, "rms_epsilon.*is 0"),
    "epsilon not a number": ({"attention.layer_norm_rms_epsilon": float("nan")}, "rms_epsilon.*is nan"),
    "infinite cap": ({"attn_logit_softcapping": float("inf")}, "attn_logit_softcapping.*is inf"),
    "no window": ({"attention.sliding_window": 0}, "sliding_window.*is 0"),
    "huge window": ({"attention.sliding_window": 1 << 40}, "sliding_window"),
    "yarn": ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "'yarn' is not supported"),
    "linear without a factor": ({"rope.scaling.type": "linear"}, "rope.scaling.factor"),
    "factor of zero": ({"rope.scaling.factor": 0.0}, "rope.scaling.factor.*is 0"),
    "27B with more heads than numbers": (
        {"block_count": 46, "attention.head_count": 4096, "attention.head_count_kv": 4096}, "4096 heads over 2304",
    ),
    "text for a number": ({"block_count": "many"}, "block_count"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_contradictions_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    change, message = CONTRADICTIONS[case]
    with pytest.raises(BadFile, match=message) as raised:
        config_of(tmp_path, "gemma2", COMPLETE["gemma2"] | change)
    assert "\n" not in str(raised.value)


def test_unknown_architectures_are_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"'gemma2b' is not supported \(did you mean gemma2\?\)"):
        config_of(tmp_path, "gemma2b", {})


def test_experts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="experts"):
        config_of(tmp_path, "llama", LLAMA | {"expert_count": 8})


def test_heads_that_do_not_divide_the_width_need_a_head_size(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="576 is not a multiple of 7 heads"):
        config_of(tmp_path, "llama", LLAMA | {"attention.head_count": 7})


SCALINGS: list[tuple[dict[str, Any], float]] = [
    ({}, 1.0),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, 1.0),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 4.0),
    ({"rope.scaling.factor": 4.0}, 4.0),
    ({"rope.scale_linear": 4.0}, 4.0),
    ({"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, 4.0),
]


@pytest.mark.parametrize("keys, factor", SCALINGS)
def test_rope_scaling_is_read_as_llamacpp_does(tmp_path: Path, keys: dict[str, Any], factor: float) -> None:
    assert config_of(tmp_path, "llama", LLAMA | keys).rope.factor == factor


def test_rope_flags_reach_the_layers_that_see_everything(tmp_path: Path) -> None:
    file = open_with(tmp_path, "gemma3", GEMMA3_27B)
    config = read_config(file, ContextSettings(rope_freq_base=5000.0, rope_scale=2.0))
    assert (config.rope_of(5).base, config.rope_of(5).factor) == (5000, 2)
    assert (config.rope_of(0).base, config.rope_of(0).factor) == (10_000, 1)
    assert read_config(file, ContextSettings(rope_freq_scale=0.25)).rope.factor == 4
    assert read_config(file, ContextSettings(rope_scaling="none")).rope.factor == 1
    assert read_config(file, ContextSettings()) == read_config(file)


def test_rope_flags_reach_all_layers_where_they_share(tmp_path: Path) -> None:
    file = open_with(tmp_path, "gemma2", COMPLETE["gemma2"])
    config = read_config(file, ContextSettings(rope_freq_base=5000.0))
    assert config.rope_of(0).base == config.rope_of(1).base == 5000


@pytest.mark.parametrize("flag", ["rope_freq_base", "rope_scale", "rope_freq_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_rope_flags_are_positive_numbers(tmp_path: Path, flag: str, value: float) -> None:
    file = open_with(tmp_path, "gemma2", COMPLETE["gemma2"])
    with pytest.raises(BadSettings, match="--" + flag.replace("_", "-")):
        read_config(file, ContextSettings(**{flag: value}))
