"""The whole of Gemma 1, 2 and 3 (text) on one page.

Numerics: norms multiply by the stored weight (a GGUF holds 1 + w already); Gemma 2 and 3 norm a block's
output before the residual add; Gemma 3 norms each head of q and k before the rotation; the embedding is
scaled by sqrt(E) and shared with the output. Sources: the Gemma 2 report (arXiv 2408.00118), transformers
`modeling_gemma2.py`.
"""

from __future__ import annotations

from gemmafile.model.config import ModelConfig
from gemmafile.model.tape import Tape
from gemmafile.model.weights import ModelWeights


def record_gemma(tape: Tape, config: ModelConfig, weights: ModelWeights) -> None:
    """Append the forward pass. The last value is logits float32[n_outputs, V]."""
    eps, d = config.norm_eps, config.head_dim
    x = tape.embed(weights.token_embd, config.embedding_scale)
    for i, layer in enumerate(weights.layers):
        tape.layer(i)
        h = tape.rmsnorm(x, layer.attn_norm, eps)
        q, k, v = tape.matmul(h, layer.attn_q, layer.attn_k, layer.attn_v)
        if layer.attn_q_norm is not None and layer.attn_k_norm is not None:
            q, k = tape.rmsnorm(q, layer.attn_q_norm, eps), tape.rmsnorm(k, layer.attn_k_norm, eps)
        q = tape.rotate(q, config.rope_of(i), d, "attn_q_rope")
        k = tape.rotate(k, config.rope_of(i), d, "attn_k_rope")
        a = tape.attention(
            q, k, v, layer=i, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads,
            scale=config.query_scale, window=config.window_of(i), softcap=config.attn_softcap,
        )  # fmt: skip
        if layer is weights.layers[-1]:
            a, x = tape.take_outputs(a), tape.take_outputs(x)
        (h,) = tape.fine_matmul(a, layer.attn_output)
        if layer.post_attention_norm is not None:
            h = tape.rmsnorm(h, layer.post_attention_norm, eps)
        x = tape.add(x, h, "attn_residual")
        h = tape.rmsnorm(x, layer.ffn_norm, eps)
        matmul = tape.fine_matmul if config.is_small else tape.matmul
        gate, up = matmul(h, layer.ffn_gate, layer.ffn_up)
        (h,) = tape.matmul(tape.gate(gate, up, config.activation), layer.ffn_down)
        if layer.post_ffw_norm is not None:
            h = tape.rmsnorm(h, layer.post_ffw_norm, eps)
        x = tape.add(x, h, "ffn_residual")
    tape.layer(-1)
    x = tape.rmsnorm(x, weights.output_norm, eps)
    (logits,) = tape.fine_matmul(x, weights.output)
    if config.logit_softcap:
        tape.softcap(logits, config.logit_softcap)
