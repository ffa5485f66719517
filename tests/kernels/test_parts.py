"""Products in two parts: what rounding loses of a row is multiplied too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemmafile.engine.saved import fingerprint
from gemmafile.files.formats import format_by_name
from gemmafile.kernels.activations import quantize_int8, remainder
from gemmafile.kernels.formats_on import format_module
from gemmafile.model.record import record
from gemmafile.model.tape import Tape, writes
from tests.kernels.test_replay import opened, tokens, write


@pytest.mark.parametrize("block", [32, 256])
def test_parts_add_up_to_the_row(block: int) -> None:
    x = np.random.default_rng(3).standard_normal((5, 512)).astype(np.float32)
    q, d = quantize_int8(x, block)
    rounded = q.astype(np.float64) * np.repeat(d, block, axis=1)
    np.testing.assert_allclose(rounded + remainder(x, block), x, rtol=0, atol=1e-7 * np.abs(x).max())
    assert np.abs(remainder(x, block)).max() <= 0.5001 * d.max()


def test_odd_rows_have_odd_remainders() -> None:
    """A block of zeros leaves zeros, one too small to have a scale leaves itself, one with an infinity is a NaN."""
    x = np.zeros((3, 32), np.float32)
    x[1, 3], x[2, 4] = 1e-40, np.inf
    rest = remainder(x, 32)
    np.testing.assert_array_equal(rest[:2], x[:2])
    assert np.isnan(rest[2]).all()


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K"])
def test_the_last_product_is_finer_than_one_of_int8(tmp_path: Path, name: str) -> None:
    """Against float64 on the same inputs: far nearer than the rounding of activations to 8 bits allows."""
    with opened(write(tmp_path, "gemma2", name, n_layers=2), threads=2) as engine:
        values: dict[str, np.ndarray] = {}
        ids = tokens("gemma2", 30)
        engine.forward(engine.new_sequence(), ids, want="all", trace=lambda n, v: values.__setitem__(n, v.copy()))
        module = format_module(name)
        for product, weight, x in (
            ("blk.1.attn_output", engine.weights.layers[1].attn_output, values["blk.1.attention"]),
            ("token_embd", engine.weights.output, values["output_norm"]),
            ("blk.0.ffn_gate", engine.weights.layers[0].ffn_gate, values["blk.0.ffn_norm"]),
            ("blk.0.ffn_up", engine.weights.layers[0].ffn_up, values["blk.0.ffn_norm"]),
        ):
            rows = weight.data.reshape(weight.shape[0], -1)
            exact = x.astype(np.float64) @ module.dequantize(rows).astype(np.float64).T
            fine = np.abs(values[product] - exact).max()
            plain = np.abs(module.multiply(x, rows) - exact).max()
            assert fine < plain / 50, (product, fine, plain)
            assert values[product + "_products"].shape == (2 * len(ids), weight.shape[0])


@pytest.mark.parametrize("architecture", ["gemma2", "llama"])
@pytest.mark.parametrize(("width", "is_fine"), [(768, True), (1024, False)])
def test_gate_and_up_are_fine_in_small_models(tmp_path: Path, architecture: str, width: int, is_fine: bool) -> None:
    with opened(write(tmp_path, architecture, "Q8_0", n_layers=1, embedding_dim=width)) as engine:
        tape = record(engine.config, engine.weights)
        names = {value.name for op in tape.ops for value in writes(op)}
        assert ("blk.0.ffn_gate_parts" in names) == ("blk.0.ffn_up_products" in names) == is_fine
        assert "blk.0.attn_output_parts" in names


def test_products_of_two_formats_are_split_apart(tmp_path: Path) -> None:
    """What rounding loses depends on the format's blocks: one split for both would add what one of them never lost."""
    with opened(write(tmp_path, "gemma2", "Q8_0", n_layers=1)) as engine:
        layer, kinds = engine.weights.layers[0], []
        for gate in (layer.ffn_gate, replace(layer.ffn_gate, format=format_by_name("Q6_K"))):
            tape = Tape()
            tape.fine_matmul(tape.embed(engine.weights.token_embd, 1.0), gate, layer.ffn_up)
            kinds.append([type(op).__name__ for op in tape.ops[1:]])
        assert kinds == [["Split", "MatMul", "Join", "Join"], ["Split", "MatMul", "Join"] * 2]


def test_int8_activations_are_asked_for(tmp_path: Path) -> None:
    """Every product is the plain one then; what was read so is not taken for what is read otherwise."""
    path, ids, seen = write(tmp_path, "gemma2", "Q8_0", n_layers=2), tokens("gemma2", 9), set()
    for backend in ("cpu", "reference"):
        with opened(path, activations="int8", backend=backend) as engine:
            values: dict[str, np.ndarray] = {}
            engine.forward(
                engine.new_sequence(),
                ids,
                want="all",
                trace=lambda n, v, values=values: values.__setitem__(n, v.copy()),
            )
            assert not [name for name in values if name.endswith("_parts")]
            rows = engine.weights.output.data.reshape(engine.weights.output.shape[0], -1)
            np.testing.assert_array_equal(
                values["token_embd"], format_module("Q8_0").multiply(values["output_norm"], rows)
            )
            seen.add(fingerprint(engine))
    with opened(path) as engine:
        assert fingerprint(engine) not in seen
    assert len(seen) == 1
