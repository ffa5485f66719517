"""transformers in float32 as a judge: the same weights in its model classes, its logits, its values between the layers.

In: a TinyModel (tools/make_tiny.py), or any GGUF file turned into one by `read_gguf`. Needs torch and transformers:
import this inside oracle tests and tools only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.checkpoints import hf_sizes
from tools.make_tiny import LLAMA3_ROPE, TinyConfig, TinyModel

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations between torch and its friends are not ours
    import torch
    import transformers

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF name -> transformers name of a layer's parts, where all architectures agree."""

TWO_NORMS = {"ffn_norm": "post_attention_layernorm"}
FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""The same transformers name stands for two different norms."""


def layer_names(architecture: str) -> dict[str, str]:
    return LAYER_NAMES | (FOUR_NORMS if architecture in ("gemma2", "gemma3") else TWO_NORMS)


def build(model: TinyModel) -> Any:
    """The transformers model, float32, eager attention, in eval mode."""
    config = model.config
    kinds = {
        "gemma": transformers.GemmaForCausalLM,
        "gemma2": transformers.Gemma2ForCausalLM,
        "gemma3": transformers.Gemma3ForCausalLM,
        "llama": transformers.LlamaForCausalLM,
    }
    judge = kinds[config.architecture](hf_config(config)).float().eval()
    judge.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in _hf_weights(model)}, strict=True)
    return judge


def read_gguf(path: Path) -> TinyModel:
    """Any Gemma or Llama GGUF as float32 weights with their sizes, read by the `gguf` package: not by our code."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(path)
    weights = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    architecture = reader.fields["general.architecture"].contents()

    def value(key: str, default: Any = None) -> Any:
        found = reader.fields.get(f"{architecture}.{key}")
        return default if found is None else found.contents()

    n_heads, embedding_dim = value("attention.head_count"), value("embedding_length")
    config = TinyConfig(
        architecture,
        n_layers=value("block_count"),
        embedding_dim=embedding_dim,
        feed_forward_dim=value("feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=value("attention.head_count_kv", n_heads),
        head_dim=value("attention.key_length", embedding_dim // n_heads),
        n_vocab=len(weights["token_embd.weight"]),
        n_context=value("context_length"),
        norm_eps=value("attention.layer_norm_rms_epsilon"),
        window=value("attention.sliding_window", 0),
        attn_softcap=value("attn_logit_softcapping", 0.0),
        logit_softcap=value("final_logit_softcapping", 0.0),
        rope_base=value("rope.freq_base", 10_000.0),
        rope_base_local=value("rope.freq_base_swa"),
        rope_factor=value("rope.scaling.factor", 1.0),
        tied="output.weight" not in weights,
    )
    assert "rope_freqs.weight" not in weights, "their factors have no place in transformers' configuration"
    return TinyModel(config, weights)


def load(folder: str) -> Any:
    """A model of transformers from a folder, float32, eager attention. Raises OSError if there is none."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()


def logits(judge: Any, token_ids: np.ndarray) -> np.ndarray:
    """float32[T, V]: one pass over all tokens, no cache."""
    with torch.inference_mode():
        ids = torch.from_numpy(np.asarray(token_ids, np.int64))[None]
        output: np.ndarray = judge(ids, use_cache=False).logits[0].float().numpy()
    return output


def trace(judge: Any, token_ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float32[T, width]) of the values between the layers, in the order of computation, then "logits".

    Names are those of our tape: "embedding", "blk.0.attn_norm", "blk.0.attn_q", ..., "output_norm". For Llama the rows
    of attn_q and attn_k are put in the order of a GGUF file. Works for any Gemma or Llama of transformers.
    """
    architecture = judge.config.model_type.removesuffix("_text")
    seen: list[tuple[str, np.ndarray]] = []

    def keep(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        if name.endswith(("attn_q_norm", "attn_k_norm")):
            value = value.transpose(1, 2)  # [1, H, T, D]
        array = value[0].reshape(value.shape[1], -1).float().numpy().copy()
        if architecture == "llama" and name.endswith(("attn_q", "attn_k")):
            array = interleaved_rows(array.T, judge.config.head_dim).T
        seen.append((name, array))

    hooks = [
        *(m.register_forward_hook(lambda _m, _in, out, n=n: keep(n, out)) for n, m in _outputs(judge, architecture)),
        *(m.register_forward_pre_hook(lambda _m, ins, n=n: keep(n, ins[0])) for n, m in _inputs(judge, architecture)),
    ]
    try:
        last = logits(judge, token_ids)
    finally:
        for hook in hooks:
            hook.remove()
    yield from seen
    yield "logits", last


def _outputs(judge: Any, architecture: str) -> Iterator[tuple[str, Any]]:
    """(our name, module) where the module's output is our value."""
    yield "embedding", judge.model.embed_tokens
    for i, layer in enumerate(judge.model.layers):
        for ours, theirs in layer_names(architecture).items():
            if architecture == "gemma3" or "_norm" not in theirs.partition(".")[2]:
                yield f"blk.{i}.{ours}", layer.get_submodule(theirs)
        yield f"blk.{i}.ffn_residual", layer
    yield "output_norm", judge.model.norm


def _inputs(judge: Any, architecture: str) -> Iterator[tuple[str, Any]]:
    """(our name, module) where the module's input is our value."""
    for i, layer in enumerate(judge.model.layers):
        yield f"blk.{i}.attention", layer.self_attn.o_proj
        yield f"blk.{i}.attn_residual", layer.get_submodule(layer_names(architecture)["ffn_norm"])
        yield f"blk.{i}.ffn_gated", layer.mlp.down_proj


def hf_config(config: TinyConfig) -> Any:
    """The configuration in transformers' words."""
    common: dict[str, Any] = hf_sizes(config) | {"attn_implementation": "eager"}
    plain = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.architecture == "gemma":
        return transformers.GemmaConfig(**common, rope_parameters=plain)
    if config.architecture == "llama":
        rope = plain | {"rope_type": "llama3"} | LLAMA3_ROPE if config.llama3_rope else plain
        return transformers.LlamaConfig(**common, rope_parameters=rope)
    common |= {"query_pre_attn_scalar": config.query_dim, "sliding_window": config.window}
    if config.architecture == "gemma2":
        caps = {"attn_logit_softcapping": config.attn_softcap, "final_logit_softcapping": config.logit_softcap}
        return transformers.Gemma2Config(**common, **caps, rope_parameters=plain)
    full = plain | {"rope_type": "linear", "factor": config.rope_factor} if config.rope_factor != 1 else plain
    local = {"rope_type": "default", "rope_theta": config.rope_base_local or 10_000.0}
    return transformers.Gemma3TextConfig(**common, rope_parameters={"full_attention": full, "sliding_attention": local})


def _hf_weights(model: TinyModel) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF weights under transformers' names and in its conventions."""
    config = model.config
    for name, array in model.weights.items():
        if name == "rope_freqs.weight":  # transformers derives them from its configuration
            continue
        if array.ndim == 1 and config.is_gemma:
            array = array - np.float32(1)
        if config.architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            array = half_split_rows(array, config.head_dim)
        yield _hf_name(name, config.architecture), array
    if config.tied:
        yield "lm_head.weight", model.weights["token_embd.weight"]


def _hf_name(name: str, architecture: str) -> str:
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    _, index, kind, _ = name.split(".")
    return f"model.layers.{index}.{layer_names(architecture)[kind]}.weight"


def half_split_rows(array: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of q or k from interleaved rotation pairs (GGUF Llama) to half-split ones (transformers)."""
    heads = array.reshape(-1, head_dim // 2, 2, *array.shape[1:])
    return heads.swapaxes(1, 2).reshape(array.shape)


def interleaved_rows(array: np.ndarray, head_dim: int) -> np.ndarray:
    """The inverse of half_split_rows."""
    heads = array.reshape(-1, 2, head_dim // 2, *array.shape[1:])
    return heads.swapaxes(1, 2).reshape(array.shape)
