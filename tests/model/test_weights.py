"""Tensors that are not what the metadata says are refused, each by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.errors import BadFile
from gemmafile.files.gguf import open_gguf
from gemmafile.files.gguf_writer import write_gguf
from gemmafile.model.config import read_config
from gemmafile.model.weights import ModelWeights, load_weights
from tools.make_tiny import PRESETS, TinyModel, make_tiny, metadata_of


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return make_tiny(PRESETS["gemma3"], 3)


def load(
    folder: Path, model: TinyModel, changes: dict[str, Any], metadata: dict[str, Any] | None = None
) -> ModelWeights:
    """The model with tensors replaced by (format, array), or left out where that is None."""
    tensors = {name: ("F32", array) for name, array in model.weights.items()} | changes
    entries = [(name, kept[0], kept[1].shape, kept[1]) for name, kept in tensors.items() if kept is not None]
    path = folder / "model.gguf"
    write_gguf(path, metadata_of(model.config) | (metadata or {}), entries)
    file = open_gguf(path)
    return load_weights(file, read_config(file))


def test_weights_are_views_of_the_file(tmp_path: Path, model: TinyModel) -> None:
    weights = load(tmp_path, model, {})
    assert weights.output is weights.token_embd, "tied"
    assert len(weights.layers) == model.config.n_layers
    down = weights.layers[2].ffn_down
    assert down.shape == (model.config.embedding_dim, model.config.feed_forward_dim)
    assert down.row_bytes == 4 * model.config.feed_forward_dim
    assert not down.data.flags.writeable
    assert down.address == down.data.__array_interface__["data"][0]
    np.testing.assert_array_equal(
        down.data.view(np.float32).reshape(down.shape), model.weights["blk.2.ffn_down.weight"]
    )
    assert weights.layers[0].attn_q_norm is not None


MATRIX = np.zeros((2, 3), np.float32)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"blk.1.attn_k.weight": None}, r"'blk\.1\.attn_k\.weight': the tensor is missing"),
    "wrong shape": ({"blk.0.ffn_up.weight": ("F32", MATRIX)}, r"'blk\.0\.ffn_up\.weight': has shape 2 x 3, the meta"),
    "a norm in half precision": (
        {"output_norm.weight": ("F16", np.zeros(256, np.float16))}, r"'output_norm\.weight': has format F16, expected",
    ),
    "surplus": ({"blk.0.attn_q.bias": ("F32", np.zeros(8, np.float32))}, r"'blk\.0\.attn_q\.bias': .*does not use"),
    "no embedding": ({"token_embd.weight": None}, r"'token_embd\.weight'.*missing"),
    "a flat embedding": ({"token_embd.weight": ("F32", np.zeros(8, np.float32))}, r"'token_embd\.weight'.*a matrix"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, model: TinyModel, case: str) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(BadFile, match=message):
        load(tmp_path, model, changes)


def test_layers_beyond_the_file_are_missed(tmp_path: Path, model: TinyModel) -> None:
    with pytest.raises(BadFile, match=r"blk\.7\.attn_norm"):
        load(tmp_path, model, {}, {"gemma3.block_count": 8})
    with pytest.raises(BadFile, match=r"blk\.6\..*does not use"):
        load(tmp_path, model, {}, {"gemma3.block_count": 6})
