"""Models small enough for the tests of the doors: a few milliseconds a token with the NumPy reference.

Their weights are random: what they say means nothing, and is always the same.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tools.make_tiny import PRESETS, make_tiny, write_tiny

SIZES = {"n_layers": 2, "embedding_dim": 64, "feed_forward_dim": 96, "n_heads": 2, "n_kv_heads": 1, "head_dim": 32}


def write_small(path: Path, architecture: str = "gemma2", **sizes: int) -> Path:
    """A GGUF file: gemma2 with a SentencePiece vocabulary, or llama with a byte-level one."""
    n_kv_heads = 2 if architecture == "llama" else 1
    config = replace(PRESETS[architecture], **{**SIZES, "n_kv_heads": n_kv_heads, **sizes})
    return write_tiny(make_tiny(config, seed=1), path)
