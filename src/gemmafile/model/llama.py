"""Llama (SmolLM2, Llama 2 and 3) on one page: two norms a layer, SiLU, interleaved rotation
(a GGUF's q and k rows are permuted for it). Source: transformers `modeling_llama.py`, llama.cpp's converter.
"""

from __future__ import annotations

from gemmafile.model.config import ModelConfig
from gemmafile.model.tape import Tape
from gemmafile.model.weights import ModelWeights


def record_llama(tape: Tape, config: ModelConfig, weights: ModelWeights) -> None:
    """Append the forward pass. The last value is logits float32[n_outputs, V]."""
    eps, d = config.norm_eps, config.head_dim
    x = tape.embed(weights.token_embd, 1.0)
    for i, layer in enumerate(weights.layers):
        tape.layer(i)
        h = tape.rmsnorm(x, layer.attn_norm, eps)
        q, k, v = tape.matmul(h, layer.attn_q, layer.attn_k, layer.attn_v)
        q = tape.rotate(q, config.rope, d, "attn_q_rope")
        k = tape.rotate(k, config.rope, d, "attn_k_rope")
        a = tape.attention(
            q, k, v, layer=i, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads,
            scale=config.query_scale, window=0, softcap=0.0,
        )  # fmt: skip
        if layer is weights.layers[-1]:
            a, x = tape.take_outputs(a), tape.take_outputs(x)
        (h,) = tape.fine_matmul(a, layer.attn_output)
        x = tape.add(x, h, "attn_residual")
        h = tape.rmsnorm(x, layer.ffn_norm, eps)
        matmul = tape.fine_matmul if config.is_small else tape.matmul
        gate, up = matmul(h, layer.ffn_gate, layer.ffn_up)
        (h,) = tape.matmul(tape.gate(gate, up, "silu"), layer.ffn_down)
        x = tape.add(x, h, "ffn_residual")
    tape.layer(-1)
    x = tape.rmsnorm(x, weights.output_norm, eps)
    tape.fine_matmul(x, weights.output)
