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
@pytest.mark.timeout(1800)
def test_smollm2_is_no_farther_from_its_weights_than_in_llamacpp(smollm2_path: Path, native: llamacpp.LlamaCpp) -> None:
    compare_on_text(smollm2_path, native, n_tokens=4096, chunk=512)


@pytest.mark.oracle
@pytest.mark.timeout(1800)
def test_gemma3_is_no_farther_from_its_weights_than_in_llamacpp(gemma3_path: Path, native: llamacpp.LlamaCpp) -> None:
    """Chunks are longer than its window of 512."""
    compare_on_text(gemma3_path, native, n_tokens=1600, chunk=800)


def compare_on_text(path: Path, native: llamacpp.LlamaCpp, *, n_tokens: int, chunk: int) -> None:
    """Both engines round activations to int8, so neither can be the other's judge: the exact weights in float32 are,
    by transformers. Our mean KL from them is at most llama.cpp's and a fifth, our perplexity within 1%."""
    from gemmafile import Model
    from tests.oracles import hf

    model, judge = Model.open(path, backend="cpu"), hf.build(hf.read_gguf(path))
    text = (HERE / "text.txt").read_text() + (HERE.parent.parent / "LICENSE").read_text()
    token_ids = model.tokenize(text, add_special=False)[:n_tokens]
    assert len(token_ids) == n_tokens, "the text is too short"
    kl: dict[str, list[float]] = {"ours": [], "llama.cpp": []}
    nll: dict[str, list[np.ndarray]] = {"ours": [], "llama.cpp": [], "exact": []}
    for start in range(0, n_tokens, chunk):
        ids = np.array(model.tokenize("") + token_ids[start : start + chunk])  # each chunk begins as a text does
        exact = hf.logits(judge, ids)
        nll["exact"].append(negative_log_likelihood(exact, ids))
        for name in kl:
            logits = (
                model.logits(ids.tolist()) if name == "ours" else native.logits(path, ids, exact.shape[1], cache="f16")
            )
            distance = logit_distance(logits, exact)
            print(f"tokens {start}-{start + len(ids)}, {name}: {distance}")
            kl[name].append(distance.kl)
            nll[name].append(negative_log_likelihood(logits, ids))
    perplexity = {name: float(np.exp(np.concatenate(parts).mean())) for name, parts in nll.items()}
    mean_kl = {name: float(np.mean(parts)) for name, parts in kl.items()}
    print(f"{path.name}: perplexity {perplexity}, mean KL from the exact weights {mean_kl}")
    assert mean_kl["ours"] <= 1.2 * mean_kl["llama.cpp"]
    assert abs(perplexity["ours"] / perplexity["exact"] - 1) < 0.01
