"""The tiny models as llama.cpp reads them, and the real ones as it runs them: perplexity, KL, top-1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models.golden import golden_model
from tests.oracles import llamacpp
from tools.distance import log_softmax, logit_distance, negative_log_likelihood
from tools.make_tiny import PRESETS, write_tiny

HERE = Path(__file__).parent

GELU_TABLE = 0.02
"""llama.cpp looks GELU up by a float16: it is 0.01 away from transformers on these models; Llama's SiLU is exact."""

EXACT = 1e-3


@pytest.fixture(scope="session")
def native() -> llamacpp.LlamaCpp:
    found = llamacpp.find()
    if found is None:
        pytest.skip("no native llama.cpp: tools/build_llamacpp.py makes one where there is a compiler")
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("name", PRESETS)
def test_llamacpp_reads_our_files_as_transformers_reads_the_weights(
    name: str, native: llamacpp.LlamaCpp, tmp_path: Path
) -> None:
    """Judge against judge: the file and its conventions (1 + w, permuted rows) are right, whatever our engine does."""
    from tests.oracles import hf

    model, token_ids = golden_model(name)
    path = write_tiny(model, tmp_path / "tiny.gguf")
    theirs = native.logits(path, token_ids, model.config.n_vocab)
    tolerance = GELU_TABLE if model.config.is_gemma else EXACT
    np.testing.assert_allclose(theirs, hf.logits(hf.build(model), token_ids), rtol=0, atol=tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "llama"])
def test_the_wheel_of_llamacpp_agrees_on_the_next_token(name: str, tmp_path: Path) -> None:
    from tests.oracles import hf

    model, token_ids = golden_model(name)
    path = write_tiny(model, tmp_path / "tiny.gguf")
    lengths = [20, len(token_ids)]
    theirs = llamacpp.next_token_logprobs(path, [token_ids[:n] for n in lengths], model.config.n_vocab)
    expected = log_softmax(hf.logits(hf.build(model), token_ids)[[n - 1 for n in lengths]])
    np.testing.assert_allclose(theirs, expected, rtol=0, atol=GELU_TABLE)


@pytest.mark.oracle
def test_smollm2_is_as_sure_of_a_text_as_in_llamacpp(smollm2_path: Path, native: llamacpp.LlamaCpp) -> None:
    _compare_on_text(smollm2_path, native, n_tokens=4096, chunk=512, most_kl=2e-3)


@pytest.mark.oracle
def test_gemma3_is_as_sure_of_a_text_as_in_llamacpp(gemma3_path: Path, native: llamacpp.LlamaCpp) -> None:
    """Chunks are longer than its window of 512."""
    _compare_on_text(gemma3_path, native, n_tokens=1600, chunk=800, most_kl=2e-3)


def _compare_on_text(path: Path, native: llamacpp.LlamaCpp, *, n_tokens: int, chunk: int, most_kl: float) -> None:
    """Ours and theirs on the same tokens: perplexities within 0.5%, mean KL under `most_kl` nats, top-1 over 97%."""
    from gemmafile import Model

    model = Model.open(path, backend="cpu")
    text = (HERE / "text.txt").read_text() + (HERE.parent.parent / "LICENSE").read_text()
    token_ids = model.tokenize(text, add_special=False)[:n_tokens]
    assert len(token_ids) == n_tokens, "the text is too short"
    ours_nll, theirs_nll = [], []
    for start in range(0, n_tokens, chunk):
        ids = np.array(model.tokenize("") + token_ids[start : start + chunk])  # each chunk begins as a text does
        ours = model.logits(ids.tolist())
        theirs = native.logits(path, ids, ours.shape[1], cache="f16")
        distance = logit_distance(ours, theirs)
        print(f"tokens {start}-{start + len(ids)}: {distance}")
        assert distance.kl < most_kl
        assert distance.top1 > 0.97
        ours_nll.append(negative_log_likelihood(ours, ids))
        theirs_nll.append(negative_log_likelihood(theirs, ids))
    perplexity, judge = (float(np.exp(np.concatenate(nll).mean())) for nll in (ours_nll, theirs_nll))
    print(f"perplexity {perplexity:.4f}, llama.cpp {judge:.4f}")
    assert abs(perplexity / judge - 1) < 0.005
