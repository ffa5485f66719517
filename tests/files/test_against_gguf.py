"""The `gguf` package reads the same from real models, and reads what is written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.files.gguf import ModelFile, StringArray
from gemmafile.files.gguf_writer import write_gguf
from gemmafile.files.open import open_model

pytestmark = pytest.mark.oracle


def plain(value: Any) -> Any:
    if isinstance(value, StringArray):
        return value.to_list()
    return value.tolist() if isinstance(value, np.ndarray) else value


def compare(path: Path, model: ModelFile) -> None:
    """Every key and every tensor, byte by byte."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    theirs = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert list(model.metadata) == list(theirs)
    for key, field in theirs.items():
        assert plain(model.metadata[key]) == field.contents(), key
        typed = model.metadata.typed(key)
        assert typed.type == field.types[-1].name.lower(), key
    assert list(model.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        info = model.tensors[tensor.name]
        assert info.shape == tuple(int(dim) for dim in tensor.shape[::-1])
        assert info.format.id == tensor.tensor_type
        assert info.offset == tensor.data_offset
        assert np.array_equal(model.data(tensor.name), tensor.data.reshape(-1).view(np.uint8))


def test_smollm2_reads_the_same(smollm2_path: Path):
    compare(smollm2_path, open_model(smollm2_path))


def test_gemma3_reads_the_same(gemma3_path: Path):
    compare(gemma3_path, open_model(gemma3_path))


@pytest.mark.parametrize("version", [2, 3])
def test_a_model_written_again_reads_the_same(smollm2_path: Path, tmp_path: Path, version: int):
    model = open_model(smollm2_path)
    fields = {key: model.metadata.typed(key) for key in model.metadata}
    tensors = [(t.name, t.format, t.shape, model.data(t.name)) for t in list(model.tensors.values())[:20]]
    path = tmp_path / "again.gguf"
    write_gguf(path, fields, tensors, version=version)
    again = open_model(path)
    compare(path, again)
    assert all(np.array_equal(again.data(name), model.data(name)) for name in again.tensors)
    if version == 3:
        # The metadata, all but the counts before it, is byte for byte what it was.
        assert path.read_bytes()[24:1_000_000] == smollm2_path.read_bytes()[24:1_000_000]
