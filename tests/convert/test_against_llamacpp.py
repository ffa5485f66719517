"""`gemmafile convert` and llama.cpp's convert_hf_to_gguf.py make the same file, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gemmafile.cli.main import main
from gemmafile.convert.tokenizer_files import sentencepiece_model
from gemmafile.files.open import open_model
from tests.checkpoints import write_checkpoint
from tests.oracles.llamacpp import find, find_scripts
from tests.text.judges import metadata_from_tokenizer_json
from tools.make_tiny import PRESETS, make_tiny, write_tiny

pytestmark = [pytest.mark.oracle, pytest.mark.timeout(900)]

CARD = """---
license: gemma
license_link: https://ai.google.dev/gemma/terms
tags:
- chat
- "foo"
pipeline_tag: text-generation
base_model: google/gemma-2-2b
language: [en, de]
library_name: transformers
---
A card.
"""

# The converter knows byte-level tokenizers by a hash; a made-up one is named here.
RUN = """
import runpy, sys
folder = sys.argv.pop(1)
sys.path[:0] = [folder + "/gguf-py", folder]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
sys.argv[0] = folder + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def scripts() -> Path:
    found = find_scripts()
    if found is None:
        pytest.skip("llama.cpp's converters are not there: python tools/build_llamacpp.py")
    return found


def convert_by_llamacpp(scripts: Path, folder: Path, out: Path, kind: str) -> None:
    command = [sys.executable, "-c", RUN, str(scripts), str(folder), "--outfile", str(out), "--outtype", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ})
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("preset", "kind"),
    [
        *[("gemma2", kind) for kind in ("auto", "f32", "f16", "q8_0")],
        *[("gemma2-odd", "q8_0"), ("gemma2-27b", "auto"), ("gemma", "auto"), ("gemma3", "auto")],
        *[("gemma3-plain", "bf16"), ("llama", "auto"), ("llama3", "q8_0")],
    ],
)
def test_same_bytes(preset: str, kind: str, scripts: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "Tiny-Thing-2b-it-v0.1", make_tiny(PRESETS[preset], 1), shards=2)
    (folder / "README.md").write_text(CARD)
    convert_by_llamacpp(scripts, folder, tmp_path / "theirs.gguf", kind)
    assert main(["convert", str(folder), "-o", str(tmp_path / "ours.gguf"), "--outtype", kind, "--quiet"]) == 0
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_same_bytes_with_the_real_gemma2_tokenizer(scripts: Path, gemma2_tokenizer_path: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    tiny = replace(PRESETS["gemma2"], n_vocab=256000, embedding_dim=32, feed_forward_dim=64, head_dim=32, n_layers=2)
    folder = write_checkpoint(tmp_path / "gemma-2-2b-it", make_tiny(tiny, 1), tokenizer=None)
    keys = metadata_from_tokenizer_json(gemma2_tokenizer_path)
    arrays = [keys[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "scores")]
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(*arrays, {"unk": 3, "bos": 2, "eos": 1, "pad": 0}))
    table = json.loads(gemma2_tokenizer_path.read_text())
    (folder / "tokenizer.json").write_text(json.dumps(table))
    added = {str(t["id"]): {"content": t["content"], "special": t["special"]} for t in table["added_tokens"]}
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    config = {"add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    convert_by_llamacpp(scripts, folder, tmp_path / "theirs.gguf", "bf16")
    assert main(["convert", str(folder), "-o", str(tmp_path / "ours.gguf"), "--quiet"]) == 0
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize(
    "flags", [["--split-max-tensors", "7"], ["--split-max-size", "1M"], ["--no-tensor-first-split"]]
)
def test_parts_are_gguf_splits(flags: list[str], tmp_path: Path) -> None:
    tools = find()
    if tools is None or not (tools.tools / "llama-gguf-split").exists():
        pytest.skip("llama.cpp is not built: python tools/build_llamacpp.py")
    model = write_tiny(make_tiny(PRESETS["gemma2"], 1), tmp_path / "model.gguf")
    tools.run("llama-gguf-split", "--split", *flags, str(model), str(tmp_path / "theirs"))
    assert main(["split", *flags, "--quiet", str(model), str(tmp_path / "ours")]) == 0
    theirs = sorted(tmp_path.glob("theirs-*"))
    assert len(theirs) > 1
    for path in theirs:
        assert path.with_name(path.name.replace("theirs", "ours")).read_bytes() == path.read_bytes()


def test_llamacpp_joins_our_parts(tmp_path: Path) -> None:
    tools = find()
    if tools is None or not (tools.tools / "llama-gguf-split").exists():
        pytest.skip("llama.cpp is not built: python tools/build_llamacpp.py")
    model = write_tiny(make_tiny(PRESETS["gemma2"], 1), tmp_path / "model.gguf")
    assert main(["split", "--split-max-tensors", "9", "--quiet", str(model), str(tmp_path / "part")]) == 0
    first = min(tmp_path.glob("part-*"))
    tools.run("llama-gguf-split", "--merge", str(first), str(tmp_path / "joined.gguf"))
    with open_model(tmp_path / "joined.gguf") as joined, open_model(model) as whole:
        assert joined.tensors.keys() == whole.tensors.keys()
        assert all(np.array_equal(joined.data(name), whole.data(name)) for name in whole.tensors)
