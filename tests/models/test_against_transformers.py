"""Whole models against transformers in float32: every architecture, every backend, logit by logit."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.golden import STRIDE, Golden, golden_model, weights_digest
from tools.distance import same_choice
from tools.make_tiny import PRESETS, TinyConfig, make_tiny, tiny_tokens, write_tiny

TOLERANCE = 1e-3
"""On logits of standard deviation 1. float32 itself costs these models 6e-5; every wrong part costs over 5e-3."""

BACKENDS = ("reference", "cpu")


def our_logits(path: Path, backend: str, token_ids: np.ndarray) -> np.ndarray:
    """float32[T, V] with nothing rounded that need not be: the KV cache holds float32."""
    from gemmafile import Model

    model = Model.open(path, backend=backend, cache_type_k="f32", cache_type_v="f32")
    return model.logits(token_ids.tolist())


@pytest.mark.parametrize("name", PRESETS)
def test_a_seed_gives_the_same_weights_everywhere(name: str) -> None:
    model, _ = golden_model(name)
    assert weights_digest(model) == Golden.load(name).weights


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PRESETS)
def test_logits_equal_transformers(name: str, backend: str, tmp_path: Path) -> None:
    model, token_ids = golden_model(name)
    golden = Golden.load(name)
    logits = our_logits(write_tiny(model, tmp_path / "tiny.gguf"), backend, token_ids)

    assert logits.shape == (len(token_ids), model.config.n_vocab)
    np.testing.assert_allclose(logits[:, ::STRIDE], golden.logits, rtol=0, atol=TOLERANCE)
    clear = golden.margin > TOLERANCE
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(logits.argmax(axis=1)[clear], golden.best[clear])


@pytest.mark.oracle
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("backend, seed", [("reference", 100), *(("cpu", seed) for seed in range(100, 105))])
def test_fresh_models_equal_transformers(name: str, backend: str, seed: int, tmp_path: Path) -> None:
    from tests.oracles import hf

    config = PRESETS[name]
    model, token_ids = make_tiny(config, seed), tiny_tokens(config, seed, 150)
    logits = our_logits(write_tiny(model, tmp_path / "tiny.gguf"), backend, token_ids)
    expected = hf.logits(hf.build(model), token_ids)

    np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
    assert same_choice(logits, expected, TOLERANCE).all()


PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma 2's window, one position off": ("gemma2", {"window": 17}),
    "Gemma 2's cap on scores": ("gemma2", {"attn_softcap": 60.0}),
    "Gemma 2's cap on logits": ("gemma2", {"logit_softcap": 1000.0}),
    "Gemma 2's rotation base": ("gemma2", {"rope_base": 12_000.0}),
    "the epsilon of the norms": ("gemma2", {"norm_eps": 1e-2}),
    "Gemma 3's window, one position off": ("gemma3", {"window": 9}),
    "Gemma 3's global rotation base": ("gemma3", {"rope_base": 10_000.0}),
    "Gemma 3's local rotation base": ("gemma3", {"rope_base_local": 1_000_000.0}),
    "Gemma 3's linear rotation factor": ("gemma3", {"rope_factor": 1.0}),
    "Llama 3's rotation factors": ("llama3", {"llama3_rope": False}),
}
"""What a reader of a model could get wrong, as another configuration of the same weights."""


@pytest.mark.oracle
@pytest.mark.parametrize("part", PARTS)
def test_a_tiny_model_shows_every_part_of_its_architecture(part: str) -> None:
    """The other tests are worth no more than this: without the part, logits must be far outside the tolerance."""
    from tests.oracles import hf

    name, change = PARTS[part]
    model, token_ids = golden_model(name)
    wrong = dataclasses.replace(model, config=dataclasses.replace(model.config, **change))
    difference = np.abs(hf.logits(hf.build(wrong), token_ids) - hf.logits(hf.build(model), token_ids))
    assert difference.max() > 5 * TOLERANCE


@pytest.mark.oracle
def test_a_27b_scales_its_queries_by_heads_not_by_head_size() -> None:
    assert PRESETS["gemma2-27b"].query_dim != PRESETS["gemma2-27b"].head_dim
    assert TinyConfig("gemma2").query_dim == TinyConfig("gemma2").head_dim
