"""Every Python snippet of Gemma's model card runs with its import line changed. card.md is the card's own text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmafile.convert.tokenizer_files import tokenizer_config
from tests.checkpoints import write_checkpoint, write_json
from tests.files.hub_server import Hub
from tools.make_tiny import PRESETS, make_tiny

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

CARD = Path(__file__).with_name("card.md")
NAME = "google/gemma-2-27b-it"
TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
PROMPT = "<bos><start_of_turn>user\nWrite a hello world program<end_of_turn>\n<start_of_turn>model\n"


def snippets() -> list[str]:
    """The Python blocks of the card, in order, with gemmafile in the place of transformers."""
    blocks = re.findall(r"^```(?:python|py)\n(.*?)^```", CARD.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block.replace("from transformers import", "from gemmafile import") for block in blocks]


def test_the_card_has_its_snippets() -> None:
    assert len(snippets()) == 8
    assert all("gemmafile" in block for block in snippets()[:7])


@pytest.fixture(scope="module")
def checkpoint(gemma2_tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 2 with the real tokenizer."""
    tiny = replace(PRESETS["gemma2"], n_vocab=256000, n_layers=2, embedding_dim=64, feed_forward_dim=96, head_dim=32)
    folder = write_checkpoint(tmp_path_factory.mktemp("card") / "gemma", make_tiny(tiny, 1), tokenizer=None, shards=2)
    write_json(folder / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [1, 107], "pad_token_id": 0})
    document = json.loads(gemma2_tokenizer_path.read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(gemma2_tokenizer_path.read_text(encoding="utf-8"), encoding="utf-8")
    tokens = [""] * 256000
    for text, i in document["model"]["vocab"].items():
        tokens[i] = text
    types = [1] * 256000
    for entry in document["added_tokens"]:
        types[entry["id"]] = 3 if entry["special"] else 4
    ids = {"bos": 2, "eos": 1, "unk": 3, "pad": 0}
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokens, types, ids, TEMPLATE, adds_bos=True))
    return folder


@pytest.fixture(scope="module")
def hub(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The hub with the tiny model under the 27B's name."""
    patch = pytest.MonkeyPatch()
    with Hub({NAME: checkpoint}) as server:
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        yield server
    patch.undo()


def run(block: str, names: dict[str, Any]) -> str:
    """What a snippet prints."""
    printed: list[str] = []
    exec(compile(block, "card", "exec"), names | {"print": lambda *words: printed.append(" ".join(map(str, words)))})
    return "\n".join(printed)


@pytest.mark.parametrize("number", range(6))
def test_snippet(number: int, hub: Hub, checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Loaded by its name from the hub, revision and all; 20 tokens behind the prompt, which is the card's."""
    import torch

    text = run(snippets()[number], {"torch": torch})  # a notebook has imported it in the first cell
    assert text.startswith("<bos>Write me a poem about Machine Learning.")
    assert len(text) > 50


def test_chat_snippets(hub: Hub) -> None:
    """The two last ones are one program: the text of the template, byte for byte, then an answer to it."""
    names: dict[str, Any] = {}
    exec(compile(snippets()[6], "card", "exec"), names)
    assert names["prompt"] == PROMPT
    assert names["prompt"] in CARD.read_text(encoding="utf-8")
    printed: list[str] = []
    exec(compile(snippets()[7], "card", "exec"), names | {"print": printed.append})
    assert printed[0].startswith(PROMPT)
    inputs = names["tokenizer"].encode(PROMPT, add_special_tokens=False, return_tensors="pt")
    assert inputs[0, :4].tolist() == [2, 106, 1645, 108]


def test_flash_attention_snippet(checkpoint: Path) -> None:
    """The card shows it as a diff."""
    import torch

    from gemmafile import AutoModelForCausalLM

    block = re.search(r"^```diff\n(.*?)^```", CARD.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block is not None
    names = {"AutoModelForCausalLM": AutoModelForCausalLM, "torch": torch, "model_id": checkpoint}
    exec(compile(block[1].replace("+ ", ""), "card", "exec"), names)
    assert names["model"].dtype == torch.float16


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    return tokenizer, model


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Any:
    from gemmafile import AutoModelForCausalLM, AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint), AutoModelForCausalLM.from_pretrained(checkpoint, dtype="float32")


TEXTS = ["Write me a poem about Machine Learning.", PROMPT, "  Größe 12345 \n\n\n🦙 <b>x</b>", "a"]


@pytest.mark.parametrize("text", TEXTS)
def test_outputs_are_transformers(text: str, ours: Any, theirs: Any) -> None:
    """Ids, greedy answer in float32 and its text; sampled with torch's seed as well."""
    import torch

    answers = []
    for tokenizer, model in (ours, theirs):
        inputs = tokenizer(text, return_tensors="pt")
        greedy = model.generate(**inputs, max_new_tokens=30, do_sample=False)
        torch.manual_seed(3)
        sampled = model.generate(
            **inputs, max_new_tokens=20, do_sample=True, temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.3
        )
        texts = [
            tokenizer.decode(row, skip_special_tokens=skip) for row in (greedy[0], sampled[0]) for skip in (False, True)
        ]
        answers.append((inputs["input_ids"].tolist(), greedy.tolist(), sampled.tolist(), texts))
    assert answers[0] == answers[1]


def test_a_batch_with_left_padding_is_transformers(ours: Any, theirs: Any) -> None:
    results = []
    for tokenizer, model in (ours, theirs):
        tokenizer.padding_side = "left"
        inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)
        results.append((inputs["attention_mask"].tolist(), model.generate(**inputs, max_new_tokens=12).tolist()))
    assert results[0] == results[1]


def test_scores_and_logits_are_transformers(ours: Any, theirs: Any) -> None:
    options = {"max_new_tokens": 5, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    results = [
        model.generate(**tokenizer(TEXTS[0], return_tensors="pt"), **options, repetition_penalty=1.5)
        for tokenizer, model in (ours, theirs)
    ]
    for name in ("scores", "logits"):
        a, b = (np.stack([step.numpy() for step in getattr(result, name)]) for result in results)
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_chat_templates_are_transformers(ours: Any, theirs: Any) -> None:
    chat = [
        {"role": "user", "content": " Hi there "},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    for options in ({}, {"add_generation_prompt": True}):
        texts = [t.apply_chat_template(chat, tokenize=False, **options) for t, _ in (ours, theirs)]
        assert texts[0] == texts[1]
        ids = [t.apply_chat_template(chat, **options)["input_ids"] for t, _ in (ours, theirs)]
        assert ids[0] == ids[1]


def test_streamers_are_transformers(ours: Any, theirs: Any) -> None:
    """Theirs works with our generate; ours says the same texts."""
    import transformers

    import gemmafile

    tokenizer, model = ours
    inputs = tokenizer(TEXTS[0], return_tensors="pt")
    texts = []
    for kind, its in ((gemmafile.TextIteratorStreamer, tokenizer), (transformers.TextIteratorStreamer, theirs[0])):
        streamer = kind(its, skip_prompt=True)
        model.generate(**inputs, max_new_tokens=25, streamer=streamer)
        texts.append(list(streamer))
    assert "".join(texts[0]) == "".join(texts[1])
    whole = tokenizer.decode(model.generate(**inputs, max_new_tokens=25)[0][inputs["input_ids"].shape[1] :])
    assert "".join(texts[0]) == whole
