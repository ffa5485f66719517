"""The card's Python without torch: arrays are NumPy's."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gemmafile import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    TextIteratorStreamer,
    TextStreamer,
)
from gemmafile.checkpoint_api import arrays
from gemmafile.checkpoint_api.in_memory import four_bits, reformatted_bytes
from gemmafile.checkpoint_api.model import CausalLM
from gemmafile.checkpoint_api.tokenizer import CardTokenizer
from gemmafile.errors import BadFile, BadSettings, ContextOverflow
from gemmafile.files.formats import format_by_name
from gemmafile.files.huggingface.checkpoint import Checkpoint
from gemmafile.files.tensors import TensorInfo
from tests.checkpoints import write_checkpoint
from tests.files.huggingface.test_checkpoint import small
from tests.tiny import write_small


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("api") / "hf", small("gemma2"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> CardTokenizer:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[CausalLM]:
    found = load(folder)
    yield found
    found.close()


def load(path: Any, **options: Any) -> CausalLM:
    return AutoModelForCausalLM.from_pretrained(path, backend="reference", context=128, **options)


def greedy(model: CausalLM, ids: Any, **options: Any) -> list[list[int]]:
    rows: list[list[int]] = model.generate(ids, **{"max_new_tokens": 8, **options}).tolist()
    return rows


def test_pt_without_torch_is_numpy(tokenizer: CardTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "load_torch", lambda: None)
    inputs = tokenizer("the other men", return_tensors="pt").to("cuda")
    assert isinstance(inputs.input_ids, np.ndarray)
    assert inputs.input_ids.to("cuda").dtype == np.int64
    assert inputs["attention_mask"].tolist() == [[1] * inputs.input_ids.shape[1]]


def test_generate_and_decode(tokenizer: CardTokenizer, model: CausalLM) -> None:
    inputs = tokenizer("the other men", return_tensors="np")
    outputs = model.generate(**inputs)
    assert outputs.shape[1] <= inputs.input_ids.shape[1] + 20
    assert outputs[0, : inputs.input_ids.shape[1]].tolist() == inputs.input_ids[0].tolist()
    assert tokenizer.decode(outputs[0]).startswith("<bos>the other men")
    assert tokenizer.decode(outputs[0], skip_special_tokens=True).startswith("the other men")
    assert tokenizer.batch_decode(outputs) == [tokenizer.decode(outputs[0])]


def test_the_answer_is_the_engines(tokenizer: CardTokenizer, model: CausalLM) -> None:
    ids = tokenizer.encode("the other men")
    logits = model([ids]).logits[0, -1]
    assert greedy(model, ids)[0][len(ids)] == int(np.argmax(logits))
    assert np.array_equal(logits, model.model.logits(ids)[-1])


def test_a_batch_is_its_rows(tokenizer: CardTokenizer, model: CausalLM) -> None:
    texts = ["the", "the other men of these years", "who came"]
    batch = tokenizer(texts, return_tensors="np", padding=True)
    rows = model.generate(**batch, max_new_tokens=6)
    for text, row, mask in zip(texts, rows, batch.attention_mask, strict=True):
        alone = greedy(model, tokenizer.encode(text), max_new_tokens=6)[0]
        kept = row.tolist()[int((mask == 0).sum()) :]
        assert kept[: len(alone)] == alone
        assert set(kept[len(alone) :]) <= {tokenizer.pad_token_id}
    right = AutoTokenizer.from_pretrained(model.model.file.path, padding_side="right")(texts, padding=True)
    assert right["attention_mask"][0][0] == 1
    assert right["attention_mask"][0][-1] == 0


def test_seeds_stop_strings_and_limits(tokenizer: CardTokenizer, model: CausalLM) -> None:
    ids = tokenizer.encode("the other")
    options = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 12}
    assert greedy(model, ids, **options, seed=4) == greedy(model, ids, **options, seed=4)
    assert greedy(model, ids, **options, seed=4) != greedy(model, ids, **options, seed=5)
    assert len(greedy(model, ids, max_length=len(ids) + 3, max_new_tokens=None)[0]) == len(ids) + 3
    text = tokenizer.decode(greedy(model, ids, max_new_tokens=12)[0][len(ids) :])
    stopped = tokenizer.decode(
        model.generate(ids, max_new_tokens=12, stop_strings=[text[4:6]], tokenizer=tokenizer)[0][len(ids) :]
    )
    assert text.startswith(stopped)
    assert text[4:6] in stopped
    assert text[4:6] not in stopped[:-4]
    assert len(model.generate(ids, num_return_sequences=3, max_new_tokens=2)) == 3


def test_what_transformers_takes_is_taken(tokenizer: CardTokenizer, model: CausalLM) -> None:
    """None takes a step out; what is of beams and of its cache changes nothing."""
    ids = tokenizer.encode("the other")
    usual = greedy(model, ids)
    assert greedy(model, ids, do_sample=False, temperature=None, top_p=None, top_k=None) == usual
    assert greedy(model, ids, temperature=0.0, cache_implementation="static", early_stopping=True) == usual
    sampled = {"do_sample": True, "seed": 4, "top_k": 0}
    alike = greedy(model, ids, **sampled, temperature=None, top_p=None, repetition_penalty=None)
    assert alike == greedy(model, ids, **sampled, temperature=1.0, top_p=1.0)
    assert model.num_parameters() == sum(array.size for array in small("gemma2").weights.values())


def test_repetition_and_ngrams(tokenizer: CardTokenizer, model: CausalLM) -> None:
    ids = tokenizer.encode("the other")
    answer = greedy(model, ids, max_new_tokens=40, no_repeat_ngram_size=2)[0]
    pairs = list(zip(answer, answer[1:], strict=False))
    assert len(pairs) == len(set(pairs))
    assert len(set(greedy(model, ids, max_new_tokens=20, repetition_penalty=50.0)[0])) == len(ids) + 20


def test_tokens_that_may_not_come(model: CausalLM) -> None:
    ids = [2, 300, 301]
    first, second, third = greedy(model, [ids], max_new_tokens=3)[0][3:]
    assert greedy(model, [ids], max_new_tokens=1, suppress_tokens=[first])[0][3] != first
    words = greedy(model, [ids], max_new_tokens=3, bad_words_ids=[[first, second], [third, first, 1]])[0][3:]
    assert words[0] == first
    assert words[1] != second
    assert len(greedy(model, [ids], eos_token_id=first, min_length=6, max_new_tokens=8)[0]) >= 6
    assert len(greedy(model, [ids], eos_token_id=first, max_new_tokens=8)[0]) == 4


def test_outputs_are_read_by_name_and_number(model: CausalLM) -> None:
    ids = np.array([[2, 300, 301, 302]])
    out = model(ids, labels=np.array([[2, 300, -100, 302]]))
    assert list(out) == ["loss", "logits"]
    assert out[0] == out.loss == out["loss"]
    logits = out.logits[0].astype(np.float64)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), [300, 301, 302, 0]]
    assert out.loss == pytest.approx(losses[[0, 2]].mean())
    assert model.forward(ids)[0] is not None
    made = model.generate(ids, max_new_tokens=2, return_dict_in_generate=True)
    assert made["sequences"] is made.sequences
    assert (made.scores, list(made)) == (None, ["sequences"])
    assert model.config.to_dict()["hidden_size"] == model.config.hidden_size


def test_generation_config_is_an_object_or_the_folders(model: CausalLM, tokenizer: CardTokenizer) -> None:
    assert model.generation_config.eos_token_id == [1, 5]
    config = GenerationConfig(max_new_tokens=3)
    ids = tokenizer.encode("a")
    assert len(model.generate(ids, config)[0]) <= len(ids) + 3


def test_scores_are_given(model: CausalLM, tokenizer: CardTokenizer) -> None:
    ids = tokenizer.encode("the")
    result = model.generate(ids, max_new_tokens=3, return_dict_in_generate=True, output_scores=True, output_logits=True)
    assert len(result.scores) == len(result.logits) == result.sequences.shape[1] - len(ids)
    assert result.scores[0].shape == (1, model.model.config.n_vocab)


@pytest.mark.parametrize(
    ("options", "name", "share"),
    [
        ({"torch_dtype": "float32"}, "F32", 2.0),
        ({"dtype": "torch.float16"}, "F16", 1.0),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, "Q8_0", 34 / 64),
        ({"quantization_config": {"load_in_4bit": True}}, "IQ4_NL", 18 / 64),
        ({"load_in_8bit": True}, "Q8_0", 34 / 64),
    ],
)
def test_formats_at_load(options: dict[str, Any], name: str, share: float, folder: Path, model: CausalLM) -> None:
    other = load(folder, **options)
    matrices = [t for t in other.model.file.tensors.values() if t.name.startswith("blk") and len(t.shape) == 2]
    assert {t.format.name for t in matrices} == {name}
    before = sum(model.model.file.tensors[t.name].n_bytes for t in matrices)
    assert sum(t.n_bytes for t in matrices) == pytest.approx(share * before)
    ids = [2, 300, 301, 302, 303]
    a, b = (m([ids]).logits[0] for m in (model, other))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > (0.8 if name == "IQ4_NL" else 0.99)
    other.close()


@pytest.mark.parametrize(
    ("n_vocab", "n_columns", "n_others", "finest"),
    [
        (256_000, 4608, 5_650_000, "Q6_K"),  # Gemma 2 27B
        (256_000, 2304, 878_000, "Q5_K"),  # Gemma 2 2B
        (256_000, 256, 3_000, "Q4_K"),
        (32, 96, 3_000, "Q8_0"),
        (49_152, 576, 184_000, "Q5_0"),  # SmolLM2 135M
        (256_000, 64, 900, "IQ4_NL"),
    ],
)
def test_four_bits_are_a_quarter_whatever_the_vocabulary(
    n_vocab: int, n_columns: int, n_others: int, finest: str
) -> None:
    """The embedding gets more bits where it is a small part of the model. `n_others`  rows of the other matrices"""
    shapes = {"token_embd.weight": (n_vocab, n_columns), "blk.0.ffn_up.weight": (n_others, n_columns)}
    tensors = {n: TensorInfo(n, s, format_by_name("BF16"), Path("x"), 0, 2 * s[0] * s[1]) for n, s in shapes.items()}
    file: Any = SimpleNamespace(tensors=tensors)
    choose = four_bits(file)
    found = choose(tensors["token_embd.weight"])
    assert found is not None
    assert found.name == finest
    share = reformatted_bytes(file, choose) / sum(t.n_bytes for t in tensors.values())
    assert 0.28 < share <= 0.3


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what is in memory")
def test_what_was_reformatted_leaves_memory(tmp_path: Path) -> None:
    """8 bits are half the memory only if the 16 bits they were made from are not held as well."""
    folder = write_checkpoint(tmp_path / "hf", small("gemma2", feed_forward_dim=16384))
    size = (folder / "model.safetensors").stat().st_size
    model = load(folder, load_in_8bit=True)
    kept, held = Path("/proc/self/smaps").read_text().split(str(folder / "model.safetensors"))[1:], 0
    for part in kept:
        found = re.search(r"^Rss: +(\d+) kB", part, re.MULTILINE)
        assert found is not None
        held += 1024 * int(found[1])
    assert kept
    assert held < size / 2  # norms are read where they lie, and bring a huge page along
    model.close()


def test_float16_does_not_overflow(tmp_path: Path) -> None:
    """Residuals far beyond 65,504 flow between the layers, in float32."""
    weights = small("gemma2")
    for name in weights.weights:
        if name.endswith(("post_attention_norm.weight", "post_ffw_norm.weight")):
            weights.weights[name] = weights.weights[name] * np.float32(60000)
    big = load(write_checkpoint(tmp_path / "hf", weights, dtype="F32"), dtype="float16")
    assert np.isfinite(big([[2, 300, 301]]).logits).all()
    big.close()


def test_devices(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("auto", "cpu", {"": "cpu"}, None):
        load(folder, device_map=device).close()
    assert capsys.readouterr().err == ""
    for device in ("cuda", "cuda:1", {"model.embed_tokens": "cuda", "model": 0}):
        load(folder, device_map=device).close()
        assert "there is no GPU engine here" in capsys.readouterr().err
    assert str(load(folder).to("cpu").device) == "cpu"
    with pytest.raises(BadSettings, match="is not known"):
        load(folder, device_map="toaster")


def test_eager_is_the_reference(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", context=64)
    assert type(model.model.engine.backend).__name__.lower().startswith("reference")
    model.close()
    with pytest.raises(BadSettings, match="did you mean flash_attention"):
        load(folder, attn_implementation="flash_attention_4")


def test_a_gguf_works_alike(tmp_path: Path) -> None:
    path = write_small(tmp_path / "model.gguf")
    model, tokenizer = load(path), AutoTokenizer.from_pretrained(path)
    assert model.config.hidden_size == 64
    assert model.config.architectures == ["Gemma2ForCausalLM"]
    chat = [{"role": "user", "content": "Hi"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="np")
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1
    assert model.generate(inputs, max_new_tokens=3).shape[0] == 1
    model.close()


def test_chats_and_their_policy(tokenizer: CardTokenizer) -> None:
    chat = [{"role": "user", "content": "<end_of_turn>"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False).count("<end_of_turn>") == 2
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    assert ids.count(tokenizer.convert_tokens_to_ids("<end_of_turn>")) == 1, "a message's text is only text"
    both = tokenizer.apply_chat_template([chat, chat * 1], tokenize=False)
    assert both[0] == both[1]


def test_the_last_message_can_be_gone_on_with(tokenizer: CardTokenizer) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " ho ho "}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert text == "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nho ho"
    with pytest.raises(BadSettings, match="goes with tokenize=False"):
        tokenizer.apply_chat_template(chat, continue_final_message=True)


def test_streamers(tokenizer: CardTokenizer, model: CausalLM, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tokenizer.encode("the other men")
    whole = tokenizer.decode(model.generate(ids, max_new_tokens=15)[0])
    model.generate(ids, max_new_tokens=15, streamer=TextStreamer(tokenizer))
    assert capsys.readouterr().out == whole + "\n"
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=5)
    model.generate(ids, max_new_tokens=15, streamer=streamer)
    assert "".join(streamer) == whole.removeprefix(tokenizer.decode(ids))


def test_vocabulary(tokenizer: CardTokenizer) -> None:
    assert tokenizer.convert_tokens_to_string(tokenizer.tokenize("the the")) == "the the"
    assert tokenizer.special_tokens_map["bos_token"] == tokenizer.bos_token
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")
    assert tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(["<bos>", "▁the"])) == ["<bos>", "▁the"]
    assert tokenizer.tokenize("the")[0] != "<bos>"
    assert len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab())
    assert 2 in tokenizer.all_special_ids


WRONG: dict[str, tuple[Any, str]] = {
    "argument": (lambda m, t: m.generate([[2]], max_new_token=3), "did you mean max_new_tokens"),
    "number": (lambda m, t: m.generate([[2]], max_new_tokens=-1), "max_new_tokens"),
    "temperature": (lambda m, t: m.generate([[2]], do_sample=True, temperature=0.0), "temperature"),
    "end": (lambda m, t: m.generate([[2]], eos_token_id=[1, {"a": 1}]), "eos_token_id"),
    "end text": (lambda m, t: m.generate([[2]], eos_token_id="<eos>"), "eos_token_id"),
    "padding": (lambda m, t: m.generate([[2]], pad_token_id=1 << 70), "pad_token_id"),
    "min_p": (lambda m, t: m.generate([[2]], do_sample=True, min_p="a"), "min_p"),
    "answers": (lambda m, t: m.generate([[2]], num_return_sequences=1 << 30), "at most"),
    "stop": (lambda m, t: m.generate([[2]], stop_strings=[5], tokenizer=t), "stop_strings"),
    "ids": (lambda m, t: m.generate([["a"]]), "token ids"),
    "ragged": (lambda m, t: m.generate([[2], [2, 3]]), "different lengths"),
    "outside": (lambda m, t: m.generate([[2, 10**6]]), "vocabulary"),
    "beams": (lambda m, t: m.generate([[2]], num_beams=4), "beam"),
    "mask": (lambda m, t: m.generate([[2, 3]], attention_mask=[[1]]), "shapes"),
    "stops": (lambda m, t: m.generate([[2]], stop_strings="a"), "tokenizer"),
    "long": (lambda m, t: m.generate([[2] * 200]), "128"),
    "text": (lambda m, t: t(5), "expected text"),
    "tensors": (lambda m, t: t("a", return_tensors="tf"), "expected"),
    "pair": (lambda m, t: t("a", "b"), "text_pair is not here"),
    "unpadded": (lambda m, t: t(["a", "the other"], return_tensors="np"), "padding=True"),
    "token": (lambda m, t: setattr(t, "pad_token", "<bo>"), "did you mean <bos>"),
    "decode": (lambda m, t: t.decode([10**7]), "vocabulary"),
    "chat": (lambda m, t: t.apply_chat_template("hi"), "list of messages"),
    "policy": (
        lambda m, t: t.apply_chat_template([{"role": "system", "content": "x"}], system_policy="err"), "policy"),
    "dtype": (lambda m, t: load(m.model.file.path, dtype="int3"), "expected float32"),
    "bits": (lambda m, t: BitsAndBytesConfig(True, True), "which one"),
    "no ids": (lambda m, t: m.generate({}), "expected rows of token ids"),
    "config": (lambda m, t: m.generate([[2]], generation_config=5), "expected a GenerationConfig"),
    "decode text": (lambda m, t: t.decode("abc"), "expected token ids"),
    "decode nothing": (lambda m, t: t.decode(None), "expected token ids"),
    "cut": (lambda m, t: t("the other", truncation=True, max_length=-3), "max_length"),
    "device": (lambda m, t: load(m.model.file.path, device_map=["cpu"]), "is not known"),
    "no name": (lambda m, t: load("no-such-thing"), "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_told(case: str, model: CausalLM, tokenizer: CardTokenizer) -> None:
    call, words = WRONG[case]
    with pytest.raises((BadSettings, BadFile, ContextOverflow), match=words):
        call(model, tokenizer)


# --- weights, and saving ----------------------------------------------------------------------------------------------


def test_weights_by_name_are_the_files(folder: Path, model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    stored = open_tensors(folder)
    state = model.state_dict()
    assert set(state) == {*stored, "lm_head.weight"}
    assert [name for name, _ in model.named_parameters()] == [name for name in state if name != "lm_head.weight"]
    for name, values in model.named_parameters():
        assert np.allclose(values, stored[name], rtol=0, atol=1e-6)
        assert not values.flags.writeable
    assert model.num_parameters() == sum(values.size for values in model.parameters())
    n_embedding = stored["model.embed_tokens.weight"].size
    assert model.num_parameters(exclude_embeddings=True) == model.num_parameters() - n_embedding
    assert (model.num_parameters(only_trainable=True), list(model.buffers())) == (0, [])
    with pytest.raises(KeyError):
        state["model.layers.99.mlp.up_proj.weight"]


def open_tensors(folder: Path) -> dict[str, np.ndarray]:
    with Checkpoint(folder) as file:
        found = {}
        for name, stored in file.folder.tensors.items():
            raw = file.folder.maps[stored.path][stored.offset : stored.offset + stored.n_bytes].tobytes()
            bits = np.frombuffer(raw, "<u2").astype(np.uint32) << 16
            found[name] = bits.view(np.float32).reshape(stored.shape)
        return found


def test_types_change_in_place(folder: Path) -> None:
    model, ids = load(folder), [[2, 300, 301]]
    before = model(ids).logits
    assert model.bfloat16() is model
    assert model.half()._dtype == "F16"
    assert {i.format.name for i in model.model.file.tensors.values() if len(i.shape) == 2} == {"F16"}
    assert next(model.parameters()).dtype is not None
    whole = load(folder, dtype="float32")
    assert np.array_equal(model.to("cpu", dtype="float32")(ids).logits, whole(ids).logits)
    assert np.array_equal(model.to(np.float32)(ids).logits, whole(ids).logits)
    assert np.array_equal(load(folder)(ids).logits, before)
    with pytest.raises(BadSettings, match="expected float32"):
        model.to(dtype="float8")
    small_one = load(folder, load_in_8bit=True)
    with pytest.raises(BadSettings, match="quantised"):
        small_one.half()
    assert small_one.generate(ids, max_new_tokens=2).shape == (1, 5), "still open"
    for opened in (model, whole, small_one):
        opened.close()


def test_what_is_saved_opens_again(folder: Path, tokenizer: CardTokenizer, tmp_path: Path) -> None:
    model, ids = load(folder), [[2, 300, 301]]
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "a", max_shard_size="40KB")
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 2
    model.save_pretrained(tmp_path / "a")
    assert [p.name for p in (tmp_path / "a").glob("*safetensors*")] == ["model.safetensors"]
    again, tokens = load(tmp_path / "a"), AutoTokenizer.from_pretrained(tmp_path / "a")
    assert np.allclose(again(ids).logits, model(ids).logits, atol=1e-4)
    assert greedy(again, ids) == greedy(model, ids)
    assert tokens.encode("the other men") == tokenizer.encode("the other men")
    again.save_pretrained(tmp_path / "a")  # where it was opened from
    assert greedy(again, ids) == greedy(load(tmp_path / "a"), ids) == greedy(model, ids)
    for words, options in (("pickle", {"safe_serialization": False}), ("5GB", {"max_shard_size": "5 bananas"})):
        with pytest.raises(BadSettings, match=words):
            model.save_pretrained(tmp_path / "b", **options)
    with pytest.raises(BadSettings, match="is a file"):
        model.save_pretrained(tmp_path / "a" / "config.json")


def test_a_ggufs_tokenizer_is_saved_with_its_changes(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_small(tmp_path / "model.gguf"))
    tokenizer.pad_token, tokenizer.padding_side, tokenizer.chat_template = tokenizer.eos_token, "right", "{{ 'x' }}"
    assert tokenizer.add_special_tokens({"unk_token": "<unk>"}) == 0
    with pytest.raises(BadSettings, match="there is no token"):
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    paths = tokenizer.save_pretrained(str(tmp_path / "saved"))
    assert {Path(p).name for p in paths} >= {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    table = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    assert (table["pad_token"], table["padding_side"], table["chat_template"]) == ("<eos>", "right", "{{ 'x' }}")


def test_rows_are_padded_with_their_masks(tokenizer: CardTokenizer) -> None:
    one, two = {"input_ids": [5, 6], "attention_mask": [0, 1]}, {"input_ids": [7, 8, 9], "attention_mask": [1, 1, 1]}
    for padded in (tokenizer.pad([one, two]), tokenizer.pad({n: [one[n], two[n]] for n in one})):
        assert padded["input_ids"] == [[0, 5, 6], [7, 8, 9]]
        assert padded["attention_mask"] == [[0, 0, 1], [1, 1, 1]]
    assert tokenizer.convert_ids_to_tokens([2, 300], skip_special_tokens=True) == [tokenizer.convert_ids_to_tokens(300)]
    assert tokenizer.get_added_vocab()["<bos>"] == 2
    assert tokenizer.num_special_tokens_to_add() == 1
