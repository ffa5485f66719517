"""LoRA adapters: read, converted, run, merged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.cli.main import main
from gemmafile.errors import BadFile, BadSettings
from gemmafile.files.open import open_model
from gemmafile.model.adapters import parse_adapters
from gemmafile.model_api import Model
from tests.checkpoints import hf_weights, write_checkpoint, write_json, write_safetensors
from tests.files.huggingface.test_checkpoint import small
from tools.make_tiny import TinyModel, tiny_tokens

TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj")


def write_lora(
    folder: Path, model: TinyModel, *, rank: int = 4, alpha: float = 8.0, seed: int = 1, base: Path | None = None,
    targets: tuple[str, ...] = TARGETS, **config: Any,
) -> Path:  # fmt: skip
    """An adapter as PEFT saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    weights = {}
    for name, array in hf_weights(model):
        module = name.removesuffix(".weight")
        if module.endswith(targets):
            rows, columns = array.shape
            for half, shape in (("A", (rank, columns)), ("B", (rows, rank))):
                key = f"base_model.model.{module}.lora_{half}.weight"
                weights[key] = (random.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    write_safetensors(folder / "adapter_model.safetensors", weights)
    table = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "target_modules": list(targets)}
    write_json(folder / "adapter_config.json", table | {"base_model_name_or_path": str(base or "x/y")} | config)
    return folder


def adapted(model: TinyModel, folder: Path, scale: float) -> dict[str, np.ndarray]:
    """Hugging Face's weights with the adapter added, in float64."""
    from gemmafile.files.gguf import map_file
    from gemmafile.files.huggingface.safetensors import read_safetensors

    path = folder / "adapter_model.safetensors"
    raw = bytes(map_file(path))
    halves = {
        t.name: np.frombuffer(raw[t.offset : t.offset + t.n_bytes], np.float32).reshape(t.shape)
        for t in read_safetensors(path, raw)[0]
    }
    weights = dict(hf_weights(model))
    for name, a in halves.items():
        if ".lora_A." in name:
            target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
            b = halves[name.replace("lora_A", "lora_B")]
            weights[target] = (weights[target] + scale * (b.astype(np.float64) @ a)).astype(np.float32)
    return weights


def logits(path: Path, ids: list[int], backend: str = "reference", **settings: Any) -> np.ndarray:
    with Model.open(path, backend=backend, context=64, cache_type_k="f32", cache_type_v="f32", **settings) as model:
        return model.logits(ids)


IDS = tiny_tokens(small("gemma2").config, 1, 20).tolist()


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama3"])
def test_run_is_the_added_weights(name: str, tmp_path: Path) -> None:
    """As a folder and as a GGUF, alone and scaled, two at once."""
    model = small(name)
    base = write_checkpoint(tmp_path / "base", model, dtype="F32")
    lora = write_lora(tmp_path / "lora", model, base=base)
    write_safetensors(
        write_checkpoint(tmp_path / "sum", model, dtype="F32") / "model.safetensors", adapted(model, lora, 2.0)
    )
    plain, expected = logits(base, IDS), logits(tmp_path / "sum", IDS)
    assert np.abs(plain - expected).max() > 0.1, "the adapter does something"
    np.testing.assert_allclose(logits(base, IDS, lora=[str(lora)]), expected, atol=2e-4)
    assert main(["convert", str(lora), "-o", str(tmp_path / "lora.gguf"), "--quiet"]) == 0
    from_gguf = logits(base, IDS, lora=[str(tmp_path / "lora.gguf")])
    assert np.array_equal(from_gguf, logits(base, IDS, lora=[str(lora)]))
    halves = logits(base, IDS, lora_scaled=[f"{lora}:0.5,{tmp_path / 'lora.gguf'}:0.5"])
    np.testing.assert_allclose(halves, expected, atol=2e-4)
    np.testing.assert_allclose(logits(base, IDS, lora_scaled=[f"{lora}:0"]), plain, atol=1e-5)


@pytest.mark.parametrize("kind", ["f32", "bf16", "q8_0"])
def test_merged_is_run(kind: str, tmp_path: Path) -> None:
    model = small("gemma2")
    base = write_checkpoint(tmp_path / "base", model, dtype="F32")
    lora = write_lora(tmp_path / "lora", model)
    assert main(["convert", str(base), "-o", str(tmp_path / "base.gguf"), "--outtype", kind, "--quiet"]) == 0
    words = ["merge", str(tmp_path / "base.gguf"), "--lora-scaled", f"{lora}:0.5", "-o", str(tmp_path / "m.gguf")]
    assert main([*words, "--quiet"]) == 0
    with open_model(tmp_path / "m.gguf") as merged, open_model(tmp_path / "base.gguf") as before:
        assert list(merged.metadata) == list(before.metadata)
        assert {n: t.format for n, t in merged.tensors.items()} == {n: t.format for n, t in before.tensors.items()}
        assert np.array_equal(merged.data("blk.0.ffn_up.weight"), before.data("blk.0.ffn_up.weight"))
    a = logits(tmp_path / "m.gguf", IDS)
    b = logits(tmp_path / "base.gguf", IDS, lora_scaled=[f"{lora}:0.5"])
    np.testing.assert_allclose(a, b, atol={"f32": 2e-4, "bf16": 0.5, "q8_0": 0.7}[kind])
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98


def test_a_sum_too_large_for_halves_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small("gemma2")
    base, lora = write_checkpoint(tmp_path / "base", model, dtype="F32"), write_lora(tmp_path / "lora", model)
    words = ["merge", str(base), "--lora-scaled", f"{lora}:1e9", "-o", str(tmp_path / "m.gguf"), "--outtype", "f16"]
    assert main([*words, "--quiet"]) == 1
    assert "with its adapters it holds a number that is" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "lora"]


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_the_law_of_rows_holds_with_adapters(dtype: str, tmp_path: Path) -> None:
    """Compiled kernels: chunked or at once, and as the reference, to the bit."""
    model = small("gemma2")
    base = write_checkpoint(tmp_path / "base", model, dtype=dtype)
    lora = [str(write_lora(tmp_path / "lora", model, rank=5))]
    whole = logits(base, IDS, "cpu", lora=lora)
    assert np.array_equal(whole, logits(base, IDS, "cpu", lora=lora, ubatch=3, threads=2))
    assert np.array_equal(whole, logits(base, IDS, "cpu", lora=lora, ubatch=1, threads=1))
    assert np.array_equal(whole, logits(base, IDS, "reference", lora=lora))


def test_kept_prompts_know_the_adapters(tmp_path: Path) -> None:
    """Keys and values of another adapter, or another scale of it, are not taken for this one's."""
    from gemmafile.engine.saved import fingerprint

    model = small("gemma2")
    base = write_checkpoint(tmp_path / "base", model)
    lora = write_lora(tmp_path / "lora", model)
    seen = set()
    for scaled in ([], [f"{lora}:1"], [f"{lora}:0.5"]):
        with Model.open(base, backend="reference", context=64, lora_scaled=scaled) as opened:
            seen.add(fingerprint(opened.engine))
    assert len(seen) == 3


def test_rank_stabilised_and_patterns(tmp_path: Path) -> None:
    model = small("gemma2")
    base = write_checkpoint(tmp_path / "base", model, dtype="F32")
    expected = logits(base, IDS, lora_scaled=[f"{write_lora(tmp_path / 'a', model, alpha=8.0)}:2"])
    same = write_lora(tmp_path / "b", model, alpha=8.0, use_rslora=True)  # 8 / sqrt(4) is twice 8 / 4
    np.testing.assert_allclose(logits(base, IDS, lora=[str(same)]), expected, atol=1e-4)
    pattern = {target.split(".")[-1]: 16.0 for target in TARGETS}
    for names in (pattern, {r"^model\.layers\.\d\..*": 16.0}, {r"layers\.(0|1)\.\w+\.\w+_proj": 16.0, "q_proj": 3.0}):
        other = write_lora(tmp_path / "c", model, alpha=8.0, alpha_pattern=names)
        np.testing.assert_allclose(logits(base, IDS, lora=[str(other)]), expected, atol=1e-4)


def _damage(folder: Path, changes: Mapping[str, Any]) -> None:
    table = json.loads((folder / "adapter_config.json").read_text())
    write_json(folder / "adapter_config.json", table | changes)


def _rewrite(folder: Path, rename: Callable[[str], str], value: float = 0.0) -> None:
    shape = (4, 64)
    names = ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",)
    write_safetensors(folder / "adapter_model.safetensors", {rename(n): np.full(shape, value, "f4") for n in names})


def _pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (_pickle, "never loaded"),
    "dora": (lambda f: _damage(f, {"use_dora": True}), "not supported"),
    "bias": (lambda f: _damage(f, {"bias": "all"}), "expected none"),
    "kind": (lambda f: _damage(f, {"peft_type": "IA3"}), "only LORA"),
    "alpha": (lambda f: _damage(f, {"lora_alpha": "big"}), "lora_alpha"),
    "rank": (lambda f: _damage(f, {"r": 0}), "over 0"),
    "half": (lambda f: _rewrite(f, str), "no pair"),
    "foreign": (lambda f: _rewrite(f, lambda n: n.replace("lora_A", "lora_X")), "no part of a LoRA pair"),
    "alpha beyond float32": (lambda f: _damage(f, {"lora_alpha": 1e39}), "expected a number"),
    "pattern of no number": (lambda f: _damage(f, {"alpha_pattern": {"q_proj": float("nan")}}), "alpha_pattern"),
    "pattern table": (lambda f: _damage(f, {"alpha_pattern": ["q_proj"]}), "is no table"),
    "pattern for ever": (lambda f: _damage(f, {"alpha_pattern": {"(.*)*x": 2}}), "none of a group"),
    "pattern of nothing": (lambda f: _damage(f, {"alpha_pattern": {"q_(": 2}}), "no regular expression"),
    "after a token": (lambda f: _damage(f, {"alora_invocation_tokens": [3]}), "not supported"),
    "empty": (lambda f: write_safetensors(f / "adapter_model.safetensors", {}), "no LoRA pairs"),
    "nan": (lambda f: _rewrite(f, str, np.nan), "infinite or NaN"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_adapters_are_refused(case: str, tmp_path: Path) -> None:
    damage, words = HOSTILE[case]
    model = small("gemma2")
    base = write_checkpoint(tmp_path / "base", model)
    lora = write_lora(tmp_path / "lora", model)
    damage(lora)
    with pytest.raises(BadFile, match=words):
        logits(base, IDS, lora=[str(lora)])


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_checkpoint(tmp_path / "base", small("gemma2"))
    wide = write_lora(tmp_path / "wide", small("gemma2", embedding_dim=128))
    with pytest.raises(BadFile, match="for another model"):
        logits(base, IDS, lora=[str(wide)])
    assert main(["convert", str(base), "-o", str(tmp_path / "m.gguf"), "--quiet"]) == 0
    with pytest.raises(BadFile, match="is no LoRA adapter"):
        logits(base, IDS, lora=[str(tmp_path / "m.gguf")])
    with pytest.raises(BadFile, match="LoRA adapter, no model"):
        open_model(wide)
    assert main(["convert", str(wide), "-o", str(tmp_path / "w.gguf")]) == 2
    assert "--base" in capsys.readouterr().err
    assert main(["merge", str(base), "-o", str(tmp_path / "x.gguf")]) == 2


@pytest.mark.parametrize("text", ["a.gguf", "a.gguf:", ":1", "a.gguf:x", "a.gguf:nan", "a.gguf:1e39"])
def test_scales_that_are_none(text: str) -> None:
    with pytest.raises(BadSettings, match="FILE:SCALE"):
        parse_adapters([], [text])


def test_several_adapters_on_a_command_line() -> None:
    assert parse_adapters(["a,b"], ["c:2,d:e:-0.5"]) == [("a", 1.0), ("b", 1.0), ("c", 2.0), ("d:e", -0.5)]


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["gemma2", "llama3"])
def test_llamacpps_converter_writes_the_same(name: str, tmp_path: Path) -> None:
    from tests.oracles.llamacpp import find_scripts

    scripts = find_scripts()
    if scripts is None:
        pytest.skip("llama.cpp's converters are not there: python tools/build_llamacpp.py")
    model = small(name)
    base = write_checkpoint(tmp_path / "base", model)
    lora = write_lora(tmp_path / "Tiny-lora", model, base=base)
    script = scripts / "convert_lora_to_gguf.py"
    command = [sys.executable, str(script), str(lora), "--base", str(base), "--outfile", str(tmp_path / "theirs.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]
    assert main(["convert", str(lora), "-o", str(tmp_path / "ours.gguf"), "--quiet"]) == 0
    with open_model(tmp_path / "ours.gguf") as ours, open_model(tmp_path / "theirs.gguf") as theirs:
        assert ours.tensors.keys() == theirs.tensors.keys()
        for tensor in theirs.tensors:
            assert np.array_equal(ours.data(tensor), theirs.data(tensor)), tensor
        for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha"):
            assert ours.metadata.typed(key) == theirs.metadata.typed(key)
