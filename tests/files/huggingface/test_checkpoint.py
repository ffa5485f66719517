"""A checkpoint's folder, opened like a GGUF."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gemmafile.convert.to_gguf import write_converted
from gemmafile.errors import BadFile
from gemmafile.files.huggingface.checkpoint import Checkpoint
from gemmafile.files.open import open_model
from gemmafile.model.config import read_config
from gemmafile.model_api import Model
from gemmafile.text.tokenizer import load_tokenizer
from tests.checkpoints import write_checkpoint, write_json, write_safetensors
from tools.make_tiny import PRESETS, TinyModel, make_tiny, tiny_tokens, write_tiny

SMALL = {"n_layers": 2, "embedding_dim": 64, "feed_forward_dim": 96, "n_heads": 2, "n_kv_heads": 1, "head_dim": 32}


def small(name: str, **sizes: int) -> TinyModel:
    kv = {"n_kv_heads": 2} if name.startswith("llama") else {}
    return make_tiny(dataclasses.replace(PRESETS[name], **{**SMALL, **kv, **sizes}), seed=1)


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "llama", "llama3"])
def test_float32_folder_holds_the_gguf(name: str, tmp_path: Path) -> None:
    """Names, shapes, rows in order, vocabulary and configuration; norms to the last bit that w = (1 + w) - 1 keeps."""
    model = small(name)
    with (
        open_model(write_checkpoint(tmp_path / "hf", model, dtype="F32")) as ours,
        open_model(write_tiny(model, tmp_path / "tiny.gguf")) as theirs,
    ):
        assert ours.tensors.keys() == theirs.tensors.keys()
        for tensor in theirs.tensors:
            a, b = (file.data(tensor).view(np.float32) for file in (ours, theirs))
            assert ours.tensors[tensor].shape == theirs.tensors[tensor].shape
            np.testing.assert_allclose(a, b, rtol=2e-7, atol=0 if a.size > 200 else 1e-7)
        a, b = (dataclasses.asdict(read_config(file)) for file in (ours, theirs))
        assert {**a, "notes": 0} == {**b, "notes": 0}
        tokens = [load_tokenizer(file.metadata).encode("The other <end_of_turn>\n men 12") for file in (ours, theirs)]
        assert tokens[0] == tokens[1]


@pytest.mark.parametrize("name", ["gemma2", "llama3"])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_folder_and_converted_file_answer_alike_to_the_bit(name: str, dtype: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hf", small(name), dtype=dtype, shards=3)
    with Checkpoint(folder) as checkpoint:
        write_converted(checkpoint, tmp_path / "out.gguf", dtype)
    ids = tiny_tokens(PRESETS[name], 1, 20).tolist()
    with (
        Model.open(folder, backend="reference") as a,
        Model.open(tmp_path / "out.gguf", backend="reference") as b,
    ):
        assert list(a.metadata) == list(b.metadata)
        assert np.array_equal(a.logits(ids), b.logits(ids))
        assert a.chat_template().render([{"role": "user", "content": "Hi"}]) == b.chat_template().render(
            [{"role": "user", "content": "Hi"}]
        )


def test_matrices_are_views_of_the_files(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hf", small("gemma2"))
    with Checkpoint(folder) as checkpoint:
        for name, source in checkpoint.sources.items():
            data = checkpoint.data(name)
            assert not data.flags.writeable
            if len(source.shape) == 2:
                assert np.shares_memory(data, checkpoint.shards()[folder / "model.safetensors"])


@pytest.mark.parametrize("path", [".", "model-00001-of-00002.safetensors", "model.safetensors.index.json"])
def test_a_file_of_the_folder_means_the_folder(path: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hf", small("gemma2"), shards=2)
    assert len(open_model(folder / path).paths) == 2


def test_tokenizer_json_alone_makes_the_same_tokens(tmp_path: Path) -> None:
    model = small("gemma2")
    texts = ["the other men of these years", "Hello, World!\n\n12 é <start_of_turn>", "  two  spaces "]
    ids = []
    for kind in ("own", "json"):
        with open_model(write_checkpoint(tmp_path / kind, model, tokenizer=kind)) as file:
            ids.append([load_tokenizer(file.metadata).encode(text, parse_special=True) for text in texts])
    assert ids[0] == ids[1]


def test_an_odd_query_scale_is_kept_and_converts_with_a_note(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hf", small("gemma2"), query_pre_attn_scalar=24)
    with Checkpoint(folder) as checkpoint:
        assert read_config(checkpoint).query_scale == pytest.approx(1 / math.sqrt(24), rel=1e-7)
        assert "llama.cpp" in checkpoint.notes[0]
        write_converted(checkpoint, tmp_path / "out.gguf", "F32")
    with open_model(tmp_path / "out.gguf") as file:
        assert read_config(file).query_scale == pytest.approx(1 / math.sqrt(24), rel=1e-7)
    with Checkpoint(write_checkpoint(tmp_path / "usual", small("gemma2"))) as usual:
        assert not usual.notes
        assert "gemma2.attention.scale" not in usual.metadata


def test_gemma3_layers_at_another_period(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"] * 3
    with Checkpoint(write_checkpoint(tmp_path, small("gemma3", n_layers=6), layer_types=kinds)) as checkpoint:
        assert read_config(checkpoint).local_layers == {0, 2, 4}


def test_a_multimodal_gemma3_is_its_text_model(tmp_path: Path) -> None:
    model = small("gemma3")
    folder = write_checkpoint(tmp_path, model)
    config = json.loads((folder / "config.json").read_text())
    config.pop("architectures")
    write_json(folder / "config.json", {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": config})
    from tests.checkpoints import hf_weights

    weights = {f"language_model.{name}": array for name, array in hf_weights(model)}
    weights["vision_tower.encoder.weight"] = np.zeros((2, 2), np.float32)
    write_safetensors(folder / "model.safetensors", weights, "BF16")
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.tensors.keys() == model.weights.keys()


# --- what is refused --------------------------------------------------------------------------------------------------


def _patch_header(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + n])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + n :])


def _append(folder: Path, more: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + more)


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def _index(folder: Path, table: object) -> None:
    write_json(folder / "model.safetensors.index.json", {"weight_map": table})


def _config(folder: Path, **changes: object) -> None:
    table = json.loads((folder / "config.json").read_text()) | changes
    write_json(folder / "config.json", table)


def _poison(folder: Path) -> None:
    from tests.checkpoints import hf_weights

    weights = dict(hf_weights(small("gemma2")))
    weights["model.norm.weight"][3] = np.nan
    write_safetensors(folder / "model.safetensors", weights, "BF16")


EMBED, NORM = "model.embed_tokens.weight", "model.norm.weight"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (_pickle, "never loaded"),
    "pickle named safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x02}q\x00." + bytes(99)), "never loaded"),
    "newer pickle named safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04\x95" + bytes(99)), "is a Python pickle"),
    "vocabulary of half a billion": (lambda f: _config(f, vocab_size=500_000_000), "at most 16777216"),
    "vocabulary without rows": (lambda f: _config(f, vocab_size=16_000_000), "vocab_size is 16000000"),
    "pipe": (
        lambda f: (os.mkfifo(f / "a.safetensors"), _index(f, {EMBED: "a.safetensors"})), "is a pipe"),
    "zip named safetensors": (lambda f: (f / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(99)), "ZIP"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "empty"),
    "cut": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "cut short"),
    "longer": (
        lambda f: _append(f, b"x"), "behind the last tensor"),
    "huge header": (
        lambda f: (f / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}"), "do not fit"),
    "deep header": (
        lambda f: (f / "model.safetensors").write_bytes(
            (200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995), "no JSON"),
    "no tensor": (lambda f: _patch_header(f, lambda h: h[NORM].pop("dtype")), "dtype"),
    "negative offset": (lambda f: _patch_header(f, lambda h: h[NORM].update(data_offsets=[-2, 0])), "data_offsets"),
    "overlap": (
        lambda f: _patch_header(f, lambda h: h[NORM].update(data_offsets=[0, h[NORM]["data_offsets"][1]
                                                                          - h[NORM]["data_offsets"][0]])), "overlaps"),
    "shape too large": (lambda f: _patch_header(f, lambda h: h[NORM].update(shape=[1 << 39, 1 << 39])), "takes"),
    "float shape": (lambda f: _patch_header(f, lambda h: h[NORM].update(shape=[64.0])), "shape"),
    "dtype": (lambda f: _patch_header(f, lambda h: h[NORM].update(dtype="Q9")), "unknown dtype"),
    "transposed": (
        lambda f: _patch_header(f, lambda h: h[EMBED].update(shape=h[EMBED]["shape"][::-1])), "vocab_size"),
    "foreign tensor": (
        lambda f: _patch_header(f, lambda h: h.update({"model.layers.0.x.weight": h.pop(NORM)})), "no such tensor"),
    "index outside": (lambda f: _index(f, {EMBED: "../model.safetensors"}), "expected the name"),
    "index of pickles": (lambda f: _index(f, {EMBED: "pytorch_model.bin"}), "never loaded"),
    "index names a missing file": (lambda f: _index(f, {EMBED: "other.safetensors"}), "no such file"),
    "index names a missing tensor": (lambda f: _index(f, {"model.x": "model.safetensors"}), "not in model.safetensors"),
    "index leaves one out": (lambda f: _index(f, {EMBED: "model.safetensors"}), "does not know"),
    "index is a list": (lambda f: _index(f, [1]), "no table"),
    "nan": (_poison, "infinite or NaN"),
    "no config": (lambda f: (f / "config.json").unlink(), "no such file"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "no JSON"),
    "architecture": (lambda f: _config(f, architectures=["Gemma2ForCausalML"]), "did you mean Gemma2ForCausalLM"),
    "heads": (lambda f: _config(f, num_attention_heads="two"), "whole number"),
    "kv heads": (lambda f: _config(f, num_key_value_heads=3), "cannot share"),
    "quantised": (lambda f: _config(f, quantization_config={"quant_method": "gptq"}), "gptq"),
    "rope": (lambda f: _config(f, rope_scaling={"rope_type": "yarn", "factor": 2}), "yarn"),
    "wrong width": (lambda f: _config(f, hidden_size=128), "the metadata says"),
    "missing layer": (lambda f: _config(f, num_hidden_layers=3), "missing"),
    "surplus layer": (lambda f: _config(f, num_hidden_layers=1), "does not use"),
    "activation": (lambda f: _config(f, hidden_activation="relu"), "relu"),
    "activation is a table": (lambda f: _config(f, hidden_activation={"a": 1}), "hidden_activation"),
    "tokenizer cut": (lambda f: (f / "tokenizer.model").write_bytes(b"\x0a\xff\xff"), "cut short"),
    "tokenizer unigram": (lambda f: (f / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01a"), "expected BPE"),
    "part missing": (
        lambda f: (f / "model.safetensors").rename(f / "model-00002-of-00002.safetensors"), "part 1 of 2 is missing"),
    "gguf folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "m.gguf").write_bytes(b"GGUF")), "name the file"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_checkpoints_are_refused(case: str, tmp_path: Path) -> None:
    damage, words = HOSTILE[case]
    folder = write_checkpoint(tmp_path, small("gemma2"))
    damage(folder)
    with pytest.raises(BadFile, match=words) as caught:
        Model.open(folder, backend="reference").close()
    assert len(str(caught.value)) < 900


def test_nan_in_a_matrix_stops_the_conversion(tmp_path: Path) -> None:
    from tests.checkpoints import hf_weights

    folder = write_checkpoint(tmp_path, small("gemma2"))
    weights = dict(hf_weights(small("gemma2")))
    weights["model.layers.1.mlp.up_proj.weight"][5, 7] = np.inf
    write_safetensors(folder / "model.safetensors", weights, "BF16")
    with Checkpoint(folder) as checkpoint, pytest.raises(BadFile, match=r"up_proj.*number 327 is infinite"):
        write_converted(checkpoint, tmp_path / "out.gguf", "BF16")
    assert not list(tmp_path.glob("*gguf*")), "nothing is left of it"


def test_numbers_too_large_for_float16_are_said(tmp_path: Path) -> None:
    from tests.checkpoints import hf_weights

    folder = write_checkpoint(tmp_path, small("gemma2"))
    weights = dict(hf_weights(small("gemma2")))
    weights[EMBED][0, 1] = 70000.0
    write_safetensors(folder / "model.safetensors", weights, "BF16")
    with Checkpoint(folder) as checkpoint, pytest.raises(BadFile, match="too large for F16"):
        write_converted(checkpoint, tmp_path / "out.gguf", "F16")
