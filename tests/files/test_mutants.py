"""Damaged files by the thousand: each is refused with a BadFile or read whole; none crashes, hangs or eats memory."""

from __future__ import annotations

import json
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.cli.inspect import describe_model, format_description
from gemmafile.errors import BadFile
from gemmafile.files.gguf import ModelFile, StringArray
from gemmafile.files.gguf_writer import Typed, write_gguf
from gemmafile.files.open import open_model
from tests.files.mutate import MUTATIONS, find_spans, mutants

MAX_S = 2.0
"""Of processor time: a neighbour may hold the machine for longer."""
MAX_MEMORY = 32 << 20
"""Peak of Python's and NumPy's memory for one mutant; the sound files take 1 MB."""

RICH = {
    "general.architecture": "gemma2",
    "general.name": "a file with everything",
    "gemma2.block_count": 2,
    "gemma2.rope.freq_base": 10000.0,
    "all.int8": Typed(-1, "int8"),
    "all.int16": Typed(-1, "int16"),
    "all.uint64": Typed(1 << 40, "uint64"),
    "all.float64": Typed(0.1, "float64"),
    "a.bool": True,
    "bools": [True, False] * 20,
    "tokenizer.ggml.tokens": [f"▁token{i}" for i in range(200)],
    "tokenizer.ggml.scores": np.linspace(-10, 0, 200, dtype=np.float32),
    "tokenizer.ggml.token_type": [1] * 200,
    "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    "nested": [["a", "b"], [1, 2, 3], [[1.5], [2.5]]],
    "empty": Typed([], "string"),
}


TENSORS = [
    ("token_embd.weight", "Q8_0", (8, 64), bytes(range(68)) * 8),
    ("blk.0.attn_q.weight", "Q4_K", (2, 256), bytes(288)),
    ("blk.0.attn_norm.weight", "F32", (16,), np.ones(16, np.float32)),
    ("a.cube", "F16", (2, 3, 4), np.ones((2, 3, 4), np.float16)),
]


@pytest.fixture(params=["rich, version 3", "plain, version 2"])
def sound(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """A small file without a flaw."""
    path = tmp_path / "sound.gguf"
    if request.param.startswith("rich"):
        write_gguf(path, RICH, TENSORS, alignment=64)
    else:
        write_gguf(path, {"general.architecture": "llama"}, TENSORS, version=2)
    return path.read_bytes()


def touch(value: Any) -> None:
    """Read all of a value."""
    if isinstance(value, tuple):
        for item in value:
            touch(item)
    elif isinstance(value, StringArray):
        value.to_bytes()
        value.to_list()
        assert value[:] == value.to_list()
    elif isinstance(value, np.ndarray):
        assert len(value.tolist()) == value.size
    else:
        assert isinstance(value, (int, float, str))


def read_all(model: ModelFile) -> None:
    """Look at everything a file offers, as the rest of the engine might."""
    for name, tensor in model.tensors.items():
        data = model.data(name)
        assert data.size == tensor.n_bytes > 0
        assert int(data.sum()) >= 0
        assert model.address(name) % 8 == 0
    description = describe_model(model)
    json.dumps(description, allow_nan=False)
    assert all(line.replace("\n", "").isprintable() for line in format_description(description))
    for value in model.metadata.values():
        touch(value)


def outcome(path: Path) -> str | None:
    """The refusal, or None when all of the file was read."""
    try:
        read_all(open_model(path))
    except BadFile as error:
        return str(error)
    return None


def test_every_mutant_is_refused_or_read_whole(sound: bytes, tmp_path: Path, full: bool):
    path = tmp_path / "mutant.gguf"
    refused, read, peak, slowest = 0, 0, 0, 0.0
    tracemalloc.start()
    try:
        for name, mutant in mutants(sound, 5000 if full else 400, seed=20):
            path.write_bytes(mutant)
            tracemalloc.reset_peak()
            start = time.process_time()
            message = outcome(path)
            read, refused = read + (message is None), refused + (message is not None)
            assert message is None or message.isprintable(), name
            slowest = max(slowest, time.process_time() - start)
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            assert slowest < MAX_S, name
            assert peak < MAX_MEMORY, name
    finally:
        tracemalloc.stop()
    print(f"{refused} refused, {read} read, slowest {slowest:.3f} s, peak {peak / 1e6:.1f} MB")
    assert refused > read / 2 > 0  # the damage is neither harmless nor always found at once


def test_mutants_are_repeatable(sound: bytes):
    first = dict(mutants(sound, 60, seed=1))
    assert first == dict(mutants(sound, 60, seed=1))
    assert first != dict(mutants(sound, 60, seed=2))
    assert len(set(first.values())) > 50


def test_every_kind_of_damage_is_done_and_differs_from_the_sound_file(sound: bytes):
    kinds = {name.split("-", 2)[2] for name, mutant in mutants(sound, 400, seed=3) if mutant != sound}
    assert kinds == {mutation.__name__ for mutation in MUTATIONS}


def test_the_spans_lie_apart_and_end_where_the_last_tensor_entry_does(sound: bytes):
    spans, header_end = find_spans(sound)
    leaves = sorted((span.start, span.size) for span in spans if span.kind != "entry" and span.size)
    assert all(start + size <= after for (start, size), (after, _) in pairwise(leaves))
    name = b"a.cube"
    assert header_end == sound.index(name) + len(name) + 4 + 3 * 8 + 4 + 8 == sum(leaves[-1])
