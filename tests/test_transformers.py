"""transformers around our engine, beside transformers alone: the same ids."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints import write_checkpoint
from tools.make_tiny import PRESETS, make_tiny

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]

TEXTS = ["the other men of these years", "who", "Before the war, many", "a b c"]
GREEDY = {"max_new_tokens": 25, "do_sample": False}


@pytest.fixture(scope="module", params=["gemma2", "llama"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(tokenizer, ours, theirs), float32."""
    import torch
    import transformers

    from gemmafile.transformers import GemmafileForCausalLM

    folder = tmp_path_factory.mktemp("shim") / request.param
    write_checkpoint(folder, make_tiny(PRESETS[request.param], 1), tokenizer="json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    ours = GemmafileForCausalLM.from_pretrained(folder, dtype="float32", context=256)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    yield tokenizer, ours, theirs
    ours.close()


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "top-k": {"max_new_tokens": 25, "do_sample": True, "top_k": 10, "temperature": 0.8},
    "top-p": {"max_new_tokens": 25, "do_sample": True, "top_p": 0.8, "top_k": 0},
    "penalty": GREEDY | {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "beams": {"max_new_tokens": 8, "num_beams": 3, "do_sample": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_generate_is_transformers(name: str, models: Any) -> None:
    import torch

    tokenizer, ours, theirs = models
    for text in TEXTS[:2]:
        inputs = tokenizer(text, return_tensors="pt")
        results = []
        for model in (ours, theirs):
            torch.manual_seed(11)
            results.append(model.generate(**inputs, **OPTIONS[name]).tolist())
        assert results[0] == results[1]


@pytest.mark.parametrize("name", ["greedy", "top-k"])
def test_batches_are_transformers(name: str, models: Any) -> None:
    import torch

    tokenizer, ours, theirs = models
    inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
    results = []
    for model in (ours, theirs):
        torch.manual_seed(12)
        results.append(model.generate(**inputs, **OPTIONS[name]).tolist())
    assert results[0] == results[1]


def test_logits_are_transformers(models: Any) -> None:
    import torch

    tokenizer, ours, theirs = models
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    with torch.inference_mode():
        a, b = (model(**inputs).logits.numpy() for model in (ours, theirs))
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_pipeline_and_streamer(models: Any) -> None:
    import transformers

    tokenizer, ours, theirs = models
    texts = [
        transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)(TEXTS[0], **GREEDY)
        for model in (ours, theirs)
    ]
    assert texts[0] == texts[1]
    streamer = transformers.TextIteratorStreamer(tokenizer, timeout=60)
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    thread = threading.Thread(target=ours.generate, kwargs={**inputs, **GREEDY, "streamer": streamer})
    thread.start()
    streamed = "".join(streamer)
    thread.join(60)
    assert streamed == tokenizer.decode(theirs.generate(**inputs, **GREEDY)[0])


def test_only_new_tokens_are_computed(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, ours, _ = models
    computed: list[int] = []
    forward = ours.engine_model.engine.forward

    def counted(sequence: Any, ids: list[int], **options: Any) -> Any:
        computed.append(len(ids))
        return forward(sequence, ids, **options)

    monkeypatch.setattr(ours.engine_model.engine, "forward", counted)
    inputs = tokenizer(TEXTS[2], return_tensors="pt")
    ours.generate(**inputs, max_new_tokens=10, min_new_tokens=10, do_sample=False)
    assert computed[1:] == [1] * 9


def test_real_model_is_transformers(smollm2_path: Path, tmp_path: Path) -> None:
    """SmolLM2 135M with the weights of its GGUF, exported, in float32."""
    import torch
    import transformers

    from gemmafile.cli.main import main
    from gemmafile.transformers import GemmafileForCausalLM

    assert main(["export", str(smollm2_path), "-o", str(tmp_path / "hf"), "--outtype", "f32", "--quiet"]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = GemmafileForCausalLM.from_pretrained(tmp_path / "hf", context=512)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    chat = [{"role": "user", "content": "Name three colours."}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    for options in (GREEDY, OPTIONS["top-k"], OPTIONS["penalty"]):
        results = []
        for model in (ours, theirs):
            torch.manual_seed(5)
            results.append(model.generate(**inputs, **options).tolist())
        assert results[0] == results[1]
    ours.close()
