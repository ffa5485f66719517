"""Quantised files beside llama-quantize's: the same bytes, from the first of the header to the last of the padding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemmafile.cli.main import main
from gemmafile.files.gguf import open_gguf
from gemmafile.quantize.importance import Entry, Importance, save_importance
from gemmafile.quantize.mixture import FILE_TYPES
from tests.oracles import llamacpp
from tools.make_tiny import PRESETS, make_tiny, write_tiny

MODELS = {
    "gemma2 of 9 layers": replace(PRESETS["gemma2"], n_layers=9),
    "llama, untied, four heads share one": replace(
        PRESETS["llama"], n_layers=17, embedding_dim=256, feed_forward_dim=256, n_heads=4, n_kv_heads=1, tied=False
    ),
    "rows of 160 and 288": replace(PRESETS["gemma3-plain"], n_layers=8),
    "rows of 449": PRESETS["gemma2-odd"],
}

FLAGS: list[list[str]] = [
    ["--pure"],
    ["--leave-output-tensor"],
    ["--output-tensor-type", "q5_k"],
    ["--token-embedding-type", "Q4_0"],
    ["--tensor-type", "attn_v=q8_0", "--tensor-type", r"blk\.[0-3]\.ffn=Q3_K"],
    ["--tensor-type", "ATTN_Q=iq4_nl", "--pure"],
]


@pytest.fixture(scope="module")
def native() -> llamacpp.LlamaCpp:
    found = llamacpp.find()
    if found is None:
        pytest.skip("no native llama.cpp: tools/build_llamacpp.py makes one where there is a compiler")
    return found


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    return write_tiny(make_tiny(MODELS[request.param], seed=3), path)


def both(native: llamacpp.LlamaCpp, source: Path, folder: Path, kind: str, *flags: str) -> tuple[Path, Path]:
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    native.run("llama-quantize", *flags, str(source), str(theirs), kind, "2")
    assert main(["quantize", "--quiet", *flags, str(source), str(ours), kind, "2"]) == 0
    return ours, theirs


@pytest.mark.oracle
@pytest.mark.parametrize("kind", [name for name in FILE_TYPES if name != "Q2_K_S"])
def test_every_type_is_the_same_file(kind: str, model: Path, native: llamacpp.LlamaCpp, tmp_path: Path) -> None:
    ours, theirs = both(native, model, tmp_path, kind)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.oracle
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_every_flag_is_the_same_file(flags: list[str], model: Path, native: llamacpp.LlamaCpp, tmp_path: Path) -> None:
    for kind in ("Q4_K_M", "Q2_K"):
        ours, theirs = both(native, model, tmp_path, kind, *flags)
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_halves_are_the_same_source(kind: str, model: Path, native: llamacpp.LlamaCpp, tmp_path: Path) -> None:
    half = tmp_path / "half.gguf"
    assert main(["quantize", "--quiet", str(model), str(half), kind]) == 0
    for target in ("Q8_0", "Q4_K_S", "Q3_K_S", "F32"):
        ours, theirs = both(native, half, tmp_path, target)
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kind", "legacy"), [*((name, False) for name in FILE_TYPES if FILE_TYPES[name].is_mixture), ("Q4_K_M", True)]
)
def test_with_importance_every_type_is_the_same_file(
    kind: str, legacy: bool, model: Path, native: llamacpp.LlamaCpp, tmp_path: Path
) -> None:
    write_importance(model, tmp_path / "imatrix", legacy)
    ours, theirs = both(native, model, tmp_path, kind, "--imatrix", str(tmp_path / "imatrix"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.oracle
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["Q3_K_S", "Q4_0", "Q4_1", "Q4_K_S", "Q6_K", "IQ4_NL"])
def test_zeros_and_faint_runs_are_the_same_file(
    kind: str, weighted: bool, native: llamacpp.LlamaCpp, tmp_path: Path
) -> None:
    """Blocks of zeros, runs too faint beside their neighbours for a scale of their own, on a grid, all alike."""
    tiny = make_tiny(replace(MODELS["llama, untied, four heads share one"], n_layers=1), seed=5)
    w = tiny.weights["blk.0.ffn_down.weight"]
    w[:8], w[8:16, :48], w[16:24] = 0, 0, w[16:24] * np.float32(1e-9)
    w[24:40, 16:80] *= np.float32(1e-5)
    w[40:48, :128], w[48:56] = np.float32(0.25), np.round(w[48:56] * 64) / 64
    w[56:64, ::2], w[64:72] = 0, -np.abs(w[64:72])
    model = write_tiny(tiny, tmp_path / "model.gguf")
    flags = []
    if weighted:
        write_importance(model, tmp_path / "imatrix", False)
        flags = ["--imatrix", str(tmp_path / "imatrix")]
    ours, theirs = both(native, model, tmp_path, kind, *flags)
    assert ours.read_bytes() == theirs.read_bytes()


def write_importance(model: Path, path: Path, legacy: bool) -> Importance:
    """Random, spread over some powers of ten, with a zero column; the embedding has none."""
    rng = np.random.default_rng(11)
    with open_gguf(model) as file:
        entries = {
            name: Entry(np.exp(2 * rng.standard_normal(tensor.shape[-1])).astype(np.float32), 512)
            for name, tensor in file.tensors.items()
            if len(tensor.shape) == 2 and name.startswith("blk.")
        }
    next(iter(entries.values())).sums[3] = 0
    importance = Importance(entries, ["text.txt"], 1)
    save_importance(path, importance, legacy=legacy)
    return importance


@pytest.mark.oracle
def test_bfloat16_and_float16_of_all_kinds_of_numbers(native: llamacpp.LlamaCpp, tmp_path: Path) -> None:
    """Subnormals, halfway cases, both zeros."""
    config = replace(PRESETS["llama"], n_layers=1)
    tiny = make_tiny(config, seed=4)
    w = tiny.weights["token_embd.weight"]
    bits = np.random.default_rng(1).integers(0, 2**32, w.size, np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        small = np.where(np.isfinite(bits) & (np.abs(bits) < 6e4), bits, np.float32(-0.0))
    w.reshape(-1)[:] = small
    path = write_tiny(tiny, tmp_path / "model.gguf")
    for kind in ("F16", "BF16", "Q8_0", "Q4_1"):
        ours, theirs = both(native, path, tmp_path, kind)
        assert ours.read_bytes() == theirs.read_bytes()
