"""Small Hugging Face checkpoints, written by hand: safetensors, configuration, tokenizer. No torch, no transformers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemmafile.convert.rows import round_bf16
from gemmafile.convert.tokenizer_files import sentencepiece_model, tokenizer_json
from tools.make_tiny import LLAMA3_ROPE, TinyConfig, TinyModel
from tools.tiny_vocabulary import CHATML_TEMPLATE, GEMMA_TEMPLATE, bpe_vocabulary, spm_vocabulary

HF_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
TWO_NORMS = {"ffn_norm": "post_attention_layernorm"}
FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CLASSES = {"gemma": "Gemma", "gemma2": "Gemma2", "gemma3": "Gemma3", "llama": "Llama"}
CONTROL = 3


def write_checkpoint(
    folder: Path, model: TinyModel, *, dtype: str = "BF16", shards: int = 1, tokenizer: str | None = "own",
    **config: Any,
) -> Path:  # fmt: skip
    """A folder as save_pretrained leaves it.

    tokenizer  "own": tokenizer.model for Gemma, tokenizer.json for Llama · "json": tokenizer.json · None: none
    config     changes to config.json; None takes a key away
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {k: v for k, v in (hf_config(model.config) | config).items() if v is not None})
    write_json(folder / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [1, 5], "temperature": 0.75})
    write_weights(folder, dict(hf_weights(model)), dtype, shards)
    if tokenizer is not None:
        write_tokenizer(folder, model.config, tokenizer)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


# --- weights ----------------------------------------------------------------------------------------------------------


def hf_weights(model: TinyModel) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF weights under Hugging Face's names and in its conventions, float32."""
    config = model.config
    norms = FOUR_NORMS if config.architecture in ("gemma2", "gemma3") else TWO_NORMS
    for name, array in model.weights.items():
        if name == "rope_freqs.weight":
            continue
        if array.ndim == 1 and config.is_gemma:
            array = array - np.float32(1)
        if config.architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            pairs = array.reshape(-1, config.head_dim // 2, 2, array.shape[1])
            array = pairs.swapaxes(1, 2).reshape(array.shape)
        parts = name.split(".")
        if parts[0] == "blk":
            yield f"model.layers.{parts[1]}.{(HF_NAMES | norms)[parts[2]]}.weight", np.ascontiguousarray(array)
        else:
            yield f"{WHOLE[parts[0]]}.weight", array


def write_weights(
    folder: Path, weights: Mapping[str, np.ndarray], dtype: str, shards: int, stem: str = "model"
) -> None:
    """One file, or as many with an index."""
    names = list(weights)
    if shards == 1:
        write_safetensors(folder / f"{stem}.safetensors", weights, dtype)
        return
    table = {}
    for i in range(shards):
        part = names[i::shards]
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file, {name: weights[name] for name in part}, dtype)
        table |= dict.fromkeys(part, file)
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {}, "weight_map": table})


def write_safetensors(path: Path, weights: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blocks, at = [], 0
    for name, array in weights.items():
        raw = encode(array, dtype)
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(raw)]}
        blocks.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))


def encode(array: np.ndarray, dtype: str) -> bytes:
    array = np.ascontiguousarray(array, np.float32)
    return {"F32": lambda: array, "F16": lambda: array.astype("<f2"), "BF16": lambda: round_bf16(array)}[
        dtype
    ]().tobytes()


def hf_sizes(config: TinyConfig) -> dict[str, Any]:
    """What transformers calls the sizes that all architectures have."""
    return {
        "vocab_size": config.n_vocab,
        "hidden_size": config.embedding_dim,
        "intermediate_size": config.feed_forward_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.n_context,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }


def hf_config(config: TinyConfig) -> dict[str, Any]:
    """config.json as transformers 4 wrote it."""
    architecture = config.architecture
    table: dict[str, Any] = {
        "architectures": [f"{CLASSES[architecture]}ForCausalLM"],
        "model_type": "gemma3_text" if architecture == "gemma3" else architecture,
        **hf_sizes(config),
        "rope_theta": config.rope_base,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if architecture == "llama":
        scaling = {"rope_type": "llama3"} | LLAMA3_ROPE if config.llama3_rope else None
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        return table | ids | {"rope_scaling": scaling, "hidden_act": "silu"}
    if architecture != "gemma":
        table |= {"query_pre_attn_scalar": config.query_dim, "sliding_window": config.window}
        table["hidden_activation"] = "gelu_pytorch_tanh"
    if architecture == "gemma2":
        caps = {"attn_logit_softcapping": config.attn_softcap, "final_logit_softcapping": config.logit_softcap}
        return table | caps
    if architecture == "gemma3":
        scaling = {"rope_type": "linear", "factor": config.rope_factor} if config.rope_factor != 1 else None
        table |= {"rope_scaling": scaling, "rope_local_base_freq": config.rope_base_local or 10_000.0}
    return table


# --- tokenizers -------------------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path, config: TinyConfig, kind: str) -> None:
    keys = (spm_vocabulary if config.is_gemma else bpe_vocabulary)(config.n_vocab)
    arrays = {name: keys.get(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type", "merges")}
    tokens, scores, types, merges = (None if typed is None else typed.value for typed in arrays.values())
    added = [i for i, token_type in enumerate(types) if token_type in (2, CONTROL)]
    names = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>"}
    if not config.is_gemma:
        names = {"bos": "<|im_start|>", "eos": "<|im_end|>", "unk": "<|endoftext|>", "pad": "<|im_end|>"}
    template = GEMMA_TEMPLATE if config.is_gemma else CHATML_TEMPLATE
    table = {f"{name}_token": text for name, text in names.items()} | {
        "tokenizer_class": "GemmaTokenizer" if config.is_gemma else "GPT2Tokenizer",
        "chat_template": template,
        **({"add_bos_token": True, "add_eos_token": False} if config.is_gemma else {"add_prefix_space": False}),
        "added_tokens_decoder": {str(i): {"content": tokens[i], "special": True} for i in added},
    }
    write_json(folder / "tokenizer_config.json", table)
    ids = {"bos": 2, "eos": 1, "unk": 3, "pad": 0} if config.is_gemma else {}
    if config.is_gemma and kind == "own":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(tokens, types, scores, ids))
        return
    model, pre = ("llama", "default") if config.is_gemma else ("gpt2", "smollm")
    document = tokenizer_json(model, pre, tokens, types, scores or [], merges or [], ids.get("bos"))
    write_json(folder / "tokenizer.json", document)
