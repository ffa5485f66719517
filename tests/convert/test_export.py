"""A GGUF as a checkpoint, and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gemmafile.cli.main import main
from gemmafile.convert.to_checkpoint import write_checkpoint as write_back
from gemmafile.files.huggingface.checkpoint import Checkpoint
from gemmafile.files.open import open_model
from gemmafile.model.config import read_config
from tests.checkpoints import write_checkpoint
from tests.files.huggingface.test_checkpoint import small
from tools.make_tiny import write_tiny

LLAMAS = ("llama", "llama3")


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "llama", "llama3"])
@pytest.mark.parametrize("shard_bytes", [5 * 10**9, 60_000])
def test_there_and_back_is_the_same(name: str, shard_bytes: int, tmp_path: Path) -> None:
    """Checkpoint to GGUF to checkpoint: every tensor the same bits, the same configuration, the same tokens."""
    folder = write_checkpoint(tmp_path / "hf", small(name), dtype="BF16")
    assert main(["convert", str(folder), "-o", str(tmp_path / "model.gguf"), "--quiet"]) == 0
    with open_model(tmp_path / "model.gguf") as file:
        write_back(file, tmp_path / "back", shard_bytes=shard_bytes)
    with Checkpoint(folder) as before, Checkpoint(tmp_path / "back") as after:
        assert (len(after.paths) == 1) is (shard_bytes > 10**9)
        theirs = before.folder.tensors
        assert after.folder.tensors.keys() == theirs.keys()
        for tensor, stored in theirs.items():
            again = after.folder.tensors[tensor]
            assert (again.dtype, again.shape) == (stored.dtype, stored.shape)
            assert np.array_equal(after.folder.data(again), before.folder.data(stored)), tensor
        assert read_config(after) == read_config(before)
        for key in ("tokens", "token_type", "bos_token_id", "eos_token_id", "padding_token_id"):
            a, b = (file.metadata[f"tokenizer.ggml.{key}"] for file in (after, before))
            assert list(a) == list(b) if hasattr(a, "__len__") else a == b, key
        assert after.metadata["tokenizer.chat_template"] == before.metadata["tokenizer.chat_template"]


def test_a_quantised_model_becomes_floats(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hf", small("gemma2"), dtype="F32")
    assert main(["convert", str(folder), "-o", str(tmp_path / "q.gguf"), "--outtype", "q8_0", "--quiet"]) == 0
    assert main(["export", str(tmp_path / "q.gguf"), "-o", str(tmp_path / "back"), "--outtype", "f32", "--quiet"]) == 0
    with Checkpoint(tmp_path / "back") as after, Checkpoint(folder) as before:
        a, b = (file.data("blk.0.ffn_up.weight").view(np.float32) for file in (after, before))
        assert 0 < np.abs(a - b).max() < np.abs(b).max() / 127


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "hf", small("gemma2"))
    assert main(["export", str(folder), "-o", str(folder), "--quiet"]) == 2
    assert "not an empty folder" in capsys.readouterr().err


def test_a_number_too_large_for_halves_is_told_and_the_first_token_may_be_the_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = small("llama")
    tiny.weights["blk.1.ffn_up.weight"][3, 1] = 70_000
    model = write_tiny(tiny, tmp_path / "m.gguf")
    assert main(["export", str(model), "-o", str(tmp_path / "half"), "--outtype", "f16", "--quiet"]) == 1
    assert "tensor 'blk.1.ffn_up.weight': holds a number that is" in capsys.readouterr().err
    with open_model(model) as file:
        for key in ("bos", "eos"):
            file.metadata.override(f"tokenizer.ggml.{key}_token_id", 0)
        write_back(file, tmp_path / "whole")
    generation = json.loads((tmp_path / "whole/generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": 0}


def test_modelfile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path / "hf", small("gemma2"))
    assert main(["convert", str(folder), "-o", str(tmp_path / "model.gguf"), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "model.gguf"), "--ollama"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"FROM {tmp_path / 'model.gguf'}\nTEMPLATE")
    assert 'PARAMETER stop "<end_of_turn>"' in text
    assert "PARAMETER temperature 0.75" in text


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "llama", "llama3"])
def test_transformers_reads_what_we_write(name: str, tmp_path: Path) -> None:
    """The exported folder in transformers: logits of the first checkpoint's weights, and our token ids."""
    import transformers

    from gemmafile.text.tokenizer import load_tokenizer
    from tests.oracles import hf
    from tools.make_tiny import PRESETS, make_tiny, tiny_tokens

    model = make_tiny(PRESETS[name], 1)
    folder = write_checkpoint(tmp_path / "hf", model, dtype="F32")
    assert main(["convert", str(folder), "-o", str(tmp_path / "m.gguf"), "--outtype", "f32", "--quiet"]) == 0
    assert main(["export", str(tmp_path / "m.gguf"), "-o", str(tmp_path / "back"), "--quiet"]) == 0
    ids = tiny_tokens(model.config, 1, 40)
    logits = [hf.logits(judge, ids) for judge in (hf.load(str(tmp_path / "back")), hf.build(model))]
    np.testing.assert_allclose(*logits, atol=2e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    with open_model(folder) as file:
        ours = load_tokenizer(file.metadata)
    for text in ("the other men of these years", "Hello, World!\n\n12 é", "  two  spaces "):
        assert tokenizer.encode(text) == ours.encode(text)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["vocab_size"] == model.config.n_vocab
