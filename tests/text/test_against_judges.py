"""The tokenizers against HF tokenizers and llama.cpp, on thousands of awkward texts."""

import json
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gemmafile.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.fuzz import make_texts
from tests.text.judges import hf_from_metadata, metadata_from_tokenizer_json
from tests.text.make_goldens import MODELS, make_golden, read_golden
from tests.text.test_tokenizer import NO_TOKEN

pytestmark = pytest.mark.oracle

Encode = Callable[[str], list[int]]


def pieces_of(tokenizer: Tokenizer) -> list[str]:
    """The vocabulary's own texts: words that nearly merge."""
    bytes_of = (tokenizer.piece_bytes(i) for i in range(tokenizer.n_tokens))
    return [text for text in (piece.decode("utf-8", "ignore") for piece in bytes_of) if text]


def assert_same(texts: list[str], ours: Encode, judge: Encode) -> None:
    differing = [(ascii(text[:80]), ours(text)[:20], judge(text)[:20]) for text in texts if ours(text) != judge(text)]
    assert not differing, f"{len(differing)} of {len(texts)} differ: {differing[:3]}"


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_hfs_for_the_models_own_vocabulary(name: str, request: pytest.FixtureRequest) -> None:
    metadata: Mapping[str, Any] = request.getfixturevalue(f"{name}_metadata")
    tokenizer: Tokenizer = request.getfixturevalue(name)
    judge = hf_from_metadata(metadata)
    texts = make_texts(2000, seed=21, pieces=pieces_of(tokenizer))
    assert_same(
        texts,
        lambda text: tokenizer.encode(text, add_special=False, parse_special=True),
        lambda text: judge.encode(text, add_special_tokens=False).ids,
    )
    assert make_golden(judge) == read_golden(name), "python -m tests.text.make_goldens writes them anew"


def test_ids_are_hfs_for_gemma2s_tokenizer_json(gemma2_tokenizer_path: Path) -> None:
    """The real file, with the real list of merges; ours knows the scores alone."""
    from tokenizers import Tokenizer as HfTokenizer

    judge = HfTokenizer.from_file(str(gemma2_tokenizer_path))
    tokenizer = load_tokenizer(metadata_from_tokenizer_json(gemma2_tokenizer_path))
    texts = make_texts(2000, seed=22, pieces=pieces_of(tokenizer))
    assert_same(
        texts,
        lambda text: tokenizer.encode(text, parse_special=True),
        lambda text: judge.encode(text, add_special_tokens=True).ids,
    )
    ids = tokenizer.encode("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", parse_special=True)
    assert ids[:4] == [2, 106, 1645, 108]
    assert ids[-5:] == [107, 108, 106, 2516, 108]


@pytest.fixture(scope="module", params=MODELS)
def llamacpp(request: pytest.FixtureRequest) -> tuple[Tokenizer, Callable[[str, bool], list[int]]]:
    """Our tokenizer, and llama.cpp's `(text, parse_special) -> ids` for the same file."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(request.getfixturevalue(f"{request.param}_path"))
    params.n_gpu_layers, params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 0, 64, 1, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)

    def encode(text: str, parse_special: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": True, "parse_special": parse_special}).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{server.listening_address}/tokenize", body, headers)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.loads(answer.read())["tokens"]

    return request.getfixturevalue(request.param), encode


@pytest.mark.parametrize("parse_special", [False, True])
def test_ids_are_llamacpps(llamacpp: tuple[Tokenizer, Callable[[str, bool], list[int]]], parse_special: bool) -> None:
    """On texts without U+2581, where it sees no runs of spaces; without `</s>`, the end of all models for it; and
    without the characters SmolLM2 has no bytes for, which it leaves out only after merging."""
    tokenizer, judge = llamacpp
    texts = make_texts(1000, seed=23, pieces=pieces_of(tokenizer), literal_space=False)
    texts = [text.replace("</s>", "").translate(NO_TOKEN) for text in texts]
    assert_same(
        texts,
        lambda text: tokenizer.encode(text, parse_special=parse_special),
        lambda text: judge(text, parse_special),
    )
