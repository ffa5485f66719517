"""Quantised models against transformers running the very weights the blocks stand for.

The judge has no rounding of its own, so what is left is the engine's int8 activations: small, and the same for every
format. A wrong nibble, scale or block order is far outside.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.models.test_against_transformers import our_logits
from tests.oracles import llamacpp
from tools.distance import logit_distance
from tools.make_tiny import PRESETS, make_tiny, tiny_tokens, write_tiny

CONFIG = dataclasses.replace(PRESETS["gemma2"], query_std=0.6)
"""Calmer attention: a sharp one would turn the activations' rounding into other answers."""

BLOCKS_OF_32 = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
BY_LLAMACPP = ("Q4_K_S", "Q6_K", "Q5_K_S", "Q3_K_S", "Q2_K", "IQ4_XS", "IQ4_NL")
FLOATS = {"F16": 1e-9, "BF16": 1e-4}
MOST_KL = 1e-3
"""Measured: 1.6e-4 to 1.8e-4 for blocks of 32, 3.5e-4 for K-quants, whose activations share a scale by 256."""


def kl_from_transformers(path: Path, backend: str) -> float:
    from tests.oracles import hf

    token_ids = tiny_tokens(CONFIG, 9, 64)
    expected = hf.logits(hf.build(hf.read_gguf(path)), token_ids)
    distance = logit_distance(our_logits(path, backend, token_ids), expected)
    print(distance)
    return distance.kl


@pytest.mark.oracle
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", [*FLOATS, *BLOCKS_OF_32])
def test_a_quantised_model_answers_as_its_weights_say(name: str, backend: str, tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[name]
    path = write_tiny(make_tiny(CONFIG, 3), tmp_path / "tiny.gguf", lambda _, array: (name, quantize(array, kind)))
    assert kl_from_transformers(path, backend) < FLOATS.get(name, MOST_KL)


@pytest.mark.oracle
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", BY_LLAMACPP)
def test_a_model_quantised_by_llamacpp_answers_as_its_weights_say(name: str, backend: str, tmp_path: Path) -> None:
    native = llamacpp.find()
    if native is None:
        pytest.skip("no native llama.cpp: tools/build_llamacpp.py makes one where there is a compiler")
    whole = write_tiny(make_tiny(CONFIG, 3), tmp_path / "whole.gguf")
    path = native.quantize(whole, tmp_path / "tiny.gguf", name)
    assert kl_from_transformers(path, backend) < MOST_KL
