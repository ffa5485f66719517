"""Whole models of shapes that no released model has, where an engine's tiles, pages and tables have their edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gemmafile import Model
from gemmafile.kernels.rotary import inverse_frequencies
from gemmafile.model.config import Rope
from tests.models.test_against_transformers import TOLERANCE, our_logits
from tools.make_tiny import TinyConfig, make_tiny, tiny_tokens, write_tiny


def test_rotary_frequencies_have_the_last_bits_that_models_are_trained_with() -> None:
    """As `1 / base ** (arange(0, 80, 2) / 80)` in torch; exactly computed, 28 of these 40 have other bits."""
    expected = """
        3f800000 3f4b5918 3f21866b 3f004dce 3ecbd4b4 3ea1e89b 3e809bcc 3e4c509b 3e224b06 3e00e9fa
        3dcccccd 3da2adad 3d813855 3d4d494b 3d231091 3d0186e3 3ccdc613 3ca373ae 3c81d5a0 3c4e432a
        3c23d70a 3c02248c 3bcec089 3ba43aa3 3b8273a4 3b4f3e38 3b249e78 3b02c2f1 3acfbc32 3aa50284
        3a83126f 3a503a7a 3a2566d4 3a03621c 39d0b907 39a5cb60 3983b1fa 395137e8 39263028 39040204"""
    inv_freq = inverse_frequencies(Rope(10_000.0, 1.0, 80, False), None)
    assert [f"{bits:08x}" for bits in inv_freq.view(np.uint32)] == expected.split()


@pytest.mark.parametrize("window", [1, 20, 400])
@pytest.mark.parametrize("group", [1, 3])
def test_an_infinite_value_stays_hidden_from_rows_that_do_not_see_it(window: int, group: int, tmp_path: Path) -> None:
    """One token's value overflows float16: rows before it in the same tile, and those past its window, do not know."""
    config = TinyConfig(
        "gemma2", n_layers=1, embedding_dim=64, feed_forward_dim=64, n_heads=group, n_kv_heads=1, n_vocab=300,
        window=window,
    )  # fmt: skip
    model, token_ids = make_tiny(config, 1), tiny_tokens(config, 1, 100)
    embedding, values = model.weights["token_embd.weight"], model.weights["blk.0.attn_v.weight"]
    loud, values[:, 0] = 7, 1e6
    embedding[:, 0] = 0
    embedding[loud, 0] = 1
    token_ids[token_ids == loud] = 8
    token_ids[45] = loud
    path = write_tiny(model, tmp_path / "tiny.gguf")
    with Model.open(path, cache_type_k="f16", cache_type_v="f16") as opened:
        logits = opened.logits(token_ids.tolist())
    rows = np.arange(len(token_ids))
    np.testing.assert_array_equal(np.isnan(logits).any(axis=1), (rows >= 45) & (rows < 45 + window))


@pytest.mark.oracle
@pytest.mark.parametrize("architecture, head_dim", [("gemma2", 96), ("gemma2", 256), ("llama", 80)])
def test_logits_equal_transformers_after_thousands_of_positions(
    architecture: str, head_dim: int, tmp_path: Path
) -> None:
    from tests.oracles import hf

    config = TinyConfig(
        architecture, n_layers=2, embedding_dim=96, feed_forward_dim=100, n_heads=3, n_kv_heads=1, head_dim=head_dim,
        n_vocab=300, n_context=4096, window=700,
    )  # fmt: skip
    model, token_ids = make_tiny(config, 5), tiny_tokens(config, 5, 2500)
    logits = our_logits(write_tiny(model, tmp_path / "tiny.gguf"), "cpu", token_ids)
    np.testing.assert_allclose(logits, hf.logits(hf.build(model), token_ids), rtol=0, atol=TOLERANCE / 3)


@pytest.mark.oracle
@pytest.mark.parametrize("attn_softcap, logit_softcap", [(1e5, 1e5), (2.0, 1.0)])
def test_a_soft_cap_may_be_far_away_or_near(attn_softcap: float, logit_softcap: float, tmp_path: Path) -> None:
    """A cap of 100,000 is how a model says that there is none: it may cost no digits."""
    from tests.oracles import hf

    config = TinyConfig("gemma2", n_layers=2, n_vocab=300, attn_softcap=attn_softcap, logit_softcap=logit_softcap)
    model, token_ids = make_tiny(config, 8), tiny_tokens(config, 8, 60)
    logits = our_logits(write_tiny(model, tmp_path / "tiny.gguf"), "cpu", token_ids)
    np.testing.assert_allclose(logits, hf.logits(hf.build(model), token_ids), rtol=0, atol=TOLERANCE / 3)
