"""The Python door: exact logits, traces, answers, chats, and what a mistake is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmafile
from gemmafile import Model
from gemmafile.errors import BadFile, BadSettings, ContextOverflow, UnsupportedModel
from gemmafile.files.gguf_writer import write_gguf
from tests.tiny import write_small
from tools.make_tiny import PRESETS, make_tiny, metadata_of

TOKENS = [2, 7, 300, 5, 9, 9, 411, 100, 101, 102, 3]


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("api") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> Iterator[Model]:
    with Model.open(tiny_path, backend="reference", context=128) as model:
        yield model


def test_the_package_offers_what_it_says() -> None:
    card = "AutoModelForCausalLM AutoTokenizer BatchEncoding BitsAndBytesConfig GenerationConfig TextIteratorStreamer"
    assert set(gemmafile.__all__) == {"Model", "Completion", "__version__", "TextStreamer", *card.split()}
    for name in gemmafile.__all__:
        assert getattr(gemmafile, name)
        assert name in dir(gemmafile)
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        gemmafile.Modle  # noqa: B018


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_logits_are_float32_a_row_a_token(model: Model) -> None:
    logits = model.logits(TOKENS)
    assert logits.shape == (len(TOKENS), model.config.n_vocab)
    assert logits.dtype == np.float32
    assert logits.flags.owndata or logits.base is not None
    assert model.logits([]).shape == (0, model.config.n_vocab)
    assert np.array_equal(model.logits(np.array(TOKENS)), logits)


def test_logits_do_not_depend_on_what_was_asked_before(model: Model) -> None:
    logits = model.logits(TOKENS)
    model.logits(TOKENS[::-1])
    model.generate("the man", max_tokens=20, seed=1)
    assert np.array_equal(model.logits(TOKENS), logits)
    assert np.array_equal(model.logits(TOKENS[:4]), logits[:4])


@pytest.mark.parametrize("settings", [{"ubatch": 1}, {"ubatch": 3}, {"batch": 4}, {"threads": 1}, {"threads": 2}])
def test_how_it_is_computed_does_not_change_a_bit(tiny_path: Path, settings: dict[str, int]) -> None:
    """On the default backend: compiled kernels where they run."""
    with Model.open(tiny_path, context=64) as first, Model.open(tiny_path, context=64, **settings) as second:
        assert np.array_equal(first.logits(TOKENS), second.logits(TOKENS))


def test_the_default_backend_is_near_the_reference(tiny_path: Path, model: Model) -> None:
    with Model.open(tiny_path, context=128) as compiled:
        assert np.abs(compiled.logits(TOKENS) - model.logits(TOKENS)).max() < 1e-3


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_formats_of_the_cache_are_settings(tiny_path: Path, model: Model, kind: str) -> None:
    with Model.open(tiny_path, backend="reference", context=64, cache_type_k=kind, cache_type_v=kind) as other:
        assert np.abs(other.logits(TOKENS) - model.logits(TOKENS)).max() < 0.5


def test_a_trace_names_every_value_and_ends_in_the_logits(model: Model, tiny_path: Path) -> None:
    trace = model.trace(TOKENS)
    names = [name for name, _ in trace]
    assert len(names) == len(set(names))
    assert names[0] == "embedding"
    assert {"blk.0.attn_q", "blk.1.attn_norm"} <= set(names)
    assert all(value.shape[0] == len(TOKENS) and value.dtype == np.float32 for _, value in trace)
    assert np.array_equal(trace[-1][1], model.logits(TOKENS))
    with Model.open(tiny_path, backend="reference", context=64, ubatch=4) as chunked:
        for (name, whole), (other, parts) in zip(trace, chunked.trace(TOKENS), strict=True):
            assert name == other
            assert np.array_equal(whole, parts), name


@pytest.mark.parametrize("token_ids", [[-1], [640], [2, 2**40]])
def test_token_ids_out_of_range_are_refused(model: Model, token_ids: list[int]) -> None:
    for call in (model.logits, model.trace, model.detokenize, model.generate):
        with pytest.raises(BadSettings, match="ids go from 0 to 639"):
            call(token_ids)


def test_too_many_tokens_are_refused_with_both_counts(model: Model) -> None:
    with pytest.raises(ContextOverflow, match="129 tokens and the context holds 128"):
        model.logits([2] * 129)
    with pytest.raises(ContextOverflow):
        model.generate([2] * 129)
    assert model.logits([2] * 128).shape[0] == 128


def test_a_model_without_a_tokenizer_still_has_logits(tmp_path: Path) -> None:
    config = PRESETS["gemma2-odd"]
    made = make_tiny(config, seed=3)
    metadata = {key: value for key, value in metadata_of(config).items() if not key.startswith("tokenizer.")}
    path = tmp_path / "bare.gguf"
    write_gguf(path, metadata, [(name, "F32", array.shape, array) for name, array in made.weights.items()])
    with Model.open(path, backend="reference", context=16) as bare:
        assert bare.logits([1, 2, 3]).shape == (3, 601)
        assert bare.trace([1, 2, 3])
        for call in (bare.tokenize, bare.generate):
            with pytest.raises(BadFile, match="no vocabulary"):
                call("hello")


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_tokens_and_back(model: Model) -> None:
    ids = model.tokenize("the man said, héllo 😀")
    assert ids[0] == 2
    assert model.detokenize(ids) == "the man said, héllo 😀"
    assert model.detokenize(ids, special=True).startswith("<bos>the")
    assert model.tokenize("the", add_special=False) == ids[1 : 1 + len("the")]


def test_control_tokens_in_text_are_text_unless_asked(model: Model) -> None:
    assert 5 not in model.tokenize("<end_of_turn>")
    assert model.tokenize("<end_of_turn>", add_special=False, parse_special=True) == [5]


# --- answers ---------------------------------------------------------------------------------------------------------


def greedy(model: Model, token_ids: list[int], n: int) -> list[int]:
    """The likeliest tokens, each from a fresh pass over everything before it."""
    ids = list(token_ids)
    for _ in range(n):
        ids.append(int(model.logits(ids)[-1].argmax()))
    return ids[len(token_ids) :]


def test_greedy_generation_is_argmax_again_and_again(model: Model) -> None:
    answer = model.generate(TOKENS, max_tokens=8, temperature=0.0, ignore_eos=True)
    assert answer.token_ids == greedy(model, TOKENS, 8)
    assert (answer.finish_reason, answer.n_prompt, answer.logprobs) == ("length", len(TOKENS), None)
    assert answer.text == model.detokenize(answer.token_ids)


def test_a_text_prompt_gets_one_bos_and_its_control_tokens(model: Model) -> None:
    text = "<start_of_turn>user\nthe<end_of_turn>\n"
    ids = model.tokenize(text, parse_special=True)
    assert model.encode_prompt(text) == model.encode_prompt("<bos>" + text) == ids
    kind = {"max_tokens": 3, "temperature": 0.0}
    assert model.generate(text, **kind) == model.generate(ids, **kind)
    assert model.generate(text, parse_special=False, **kind).n_prompt > len(ids)


def test_a_seed_makes_it_repeatable(model: Model) -> None:
    first = model.generate("the", max_tokens=12, temperature=1.5, seed=7)
    assert model.generate("the", max_tokens=12, temperature=1.5, seed=7) == first
    assert model.generate("the", max_tokens=12, temperature=1.5, seed=8) != first


def always(model: Model, piece: str) -> dict[str, Any]:
    return {"temperature": 0.0, "logit_bias": {model.tokenizer.vocabulary.tokens.index(piece): 1000.0}}


def test_stop_strings_end_it(model: Model) -> None:
    answer = model.generate("a", max_tokens=9, stop="e t", **always(model, "▁the"))
    assert (answer.text, answer.finish_reason, len(answer.token_ids)) == (" th", "stop", 2)
    assert model.generate("a", max_tokens=9, stop=["x", " the the t"], **always(model, "▁the")).text == ""


def test_the_end_of_turn_ends_it(model: Model) -> None:
    answer = model.generate("a", max_tokens=9, **always(model, "<end_of_turn>"))
    assert (answer.text, answer.finish_reason, answer.token_ids) == ("", "stop", [5])


def test_no_limit_goes_on_to_the_end_of_the_context(model: Model) -> None:
    answer = model.generate([2] * 120, max_tokens=-1, ignore_eos=True, temperature=0.0)
    assert (len(answer.token_ids), answer.finish_reason) == (9, "length")
    assert model.generate("a", max_tokens=0).token_ids == []


def test_a_stream_is_the_same_answer_in_pieces(model: Model) -> None:
    options: dict[str, Any] = {"max_tokens": 10, "temperature": 0.0, "n_probs": 2}
    whole = model.generate("the man", **options)
    stream = model.generate("the man", stream=True, **options)
    assert stream.completion is None
    assert "".join(stream) == whole.text
    assert stream.completion == whole


def test_characters_are_never_split_in_a_stream(model: Model) -> None:
    """A token that is the first byte of two: held back, then U+FFFD, never half a character."""
    pieces = list(model.generate("a", max_tokens=3, stream=True, **always(model, "<0xC3>")))
    assert "".join(pieces) == "\ufffd" * 3


def test_log_probabilities_when_asked(model: Model) -> None:
    answer = model.generate(TOKENS, max_tokens=4, temperature=0.0, n_probs=3)
    assert answer.logprobs is not None
    assert [choice.token_id for choice in answer.logprobs] == answer.token_ids
    logits = model.logits(TOKENS)[-1].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    first = answer.logprobs[0]
    assert first.logprob == pytest.approx(expected[first.token_id], abs=1e-5)
    assert [token_id for token_id, _ in first.top] == np.argsort(-expected, kind="stable")[:3].tolist()


def test_a_json_schema_is_followed(model: Model) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    answer = model.generate("a", max_tokens=60, seed=1, json_schema=json.dumps(schema))
    assert json.loads(answer.text)["n"] in (1, 2)
    assert answer.finish_reason == "stop"
    assert model.generate("a", max_tokens=60, seed=1, json_schema=schema) == answer
    assert model.generate("a", seed=1, grammar='root ::= "yes" | "no"').text in ("yes", "no")
    with pytest.raises(BadSettings, match="which one"):
        model.generate("a", grammar="root ::= [a]", json_schema="{}")


def test_a_chat_is_the_rendered_prompt(model: Model) -> None:
    messages = [{"role": "user", "content": "the<end_of_turn> man"}]
    answer = model.chat(messages, max_tokens=5, temperature=0.0)
    parts = [("<bos><start_of_turn>user\n", True), (messages[0]["content"], False)]
    ids = model.tokenizer.encode_parts([*parts, ("<end_of_turn>\n<start_of_turn>model\n", True)])
    assert answer == model.generate(ids, max_tokens=5, temperature=0.0)
    assert ids.count(5) == 1


def test_what_a_chat_keeps_does_not_change_its_answers(model: Model, tiny_path: Path) -> None:
    messages: list[dict[str, str]] = []
    for text in ("one", "two", "three"):
        messages.append({"role": "user", "content": text})
        kept = model.chat(messages, max_tokens=6, temperature=0.0)
        with Model.open(tiny_path, backend="reference", context=128) as fresh:
            assert fresh.chat(messages, max_tokens=6, temperature=0.0) == kept
        messages.append({"role": "assistant", "content": kept.text})


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, r"no setting 'temprature' \(did you mean temperature\?\)"),
        ({"temperature": "hot"}, "temperature is 'hot', expected a number"),
        ({"top_p": 7.0}, "top_p is 7.0"),
        ({"grammar": "root ::= nothing"}, "nothing"),
        ({"max_tokens": "many"}, "max_tokens is 'many', expected a whole number"),
        ({"stop": 5}, "stop is 5, expected texts"),
        ({"samplers": None}, "samplers is None: give a list of names"),
        ({"samplers": "top_k"}, "samplers is 'top_k': give a list of names"),
        ({"logit_bias": [[5, 1.0]]}, r"logit_bias is \[\[5, 1.0\]\]: give a dict of token ids and biases"),
        ({"json_schema": {"enum": {1}}}, "json_schema cannot be written as JSON"),
    ],
)
def test_a_mistake_in_a_call_is_named(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        model.generate("a", **options)
    with pytest.raises(BadSettings, match=message):
        model.chat([{"role": "user", "content": "a"}], **options)


@pytest.mark.parametrize("token_ids", [5, None, b"abc", "abc", ["a"], [1.5], [None], [[1, 2]], np.array([[1, 2]])])
def test_what_is_no_list_of_token_ids_is_refused(model: Model, token_ids: Any) -> None:
    for call in (model.logits, model.trace, model.detokenize):
        with pytest.raises(BadSettings, match="expected token ids, which are whole numbers, not "):
            call(token_ids)
    if not isinstance(token_ids, str):
        with pytest.raises(BadSettings, match="expected token ids"):
            model.generate(token_ids)


@pytest.mark.parametrize("text", [5, None, b"a", ["a"]])
def test_what_is_no_text_is_refused(model: Model, text: Any) -> None:
    with pytest.raises(BadSettings, match="expected a string"):
        model.tokenize(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": None}, "messages: expected a list"),
        ({"messages": 5}, "messages: expected a list"),
        ({"messages": {"role": "user", "content": "a"}}, "messages: expected a list"),
        ({"chat_template": 5}, "chat_template is 5, expected text"),
        ({"system_policy": None}, "system_policy is None, expected text"),
    ],
)
def test_a_mistake_in_a_chat_is_named(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSettings, match=message):
        model.chat(**{"messages": [{"role": "user", "content": "a"}], **options})


def test_a_closed_model_says_so(tiny_path: Path) -> None:
    """On compiled kernels, whose threads are gone: waiting for them would be for ever."""
    model = Model.open(tiny_path, threads=2, context=128)
    stream = model.generate("a", max_tokens=9, stream=True, temperature=0.0, ignore_eos=True)
    next(stream)
    model.close()
    model.close()
    with pytest.raises(BadSettings, match="the model is closed"):
        list(stream)
    with pytest.raises(BadSettings, match="the model is closed"):
        model.logits([2])


def test_closing_waits_for_the_pass_of_another_thread(tiny_path: Path) -> None:
    model, said = Model.open(tiny_path, threads=2, context=2048), []

    def ask() -> None:
        try:
            model.generate("a", max_tokens=-1, ignore_eos=True)
        except BadSettings as error:
            said.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    while len(model.sequence) < 4:
        time.sleep(0.001)
    model.close()
    thread.join(timeout=60)
    assert said == ["the model is closed"]


def test_a_mistake_in_opening_is_named(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"no setting 'treads' \(did you mean threads\?\)"):
        Model.open(tiny_path, treads=4)
    with pytest.raises(BadSettings, match="cache_type_k is 'q3', expected one of f32, f16, bf16, q8_0"):
        Model.open(tiny_path, cache_type_k="q3")
    for overrides in (None, "a=int:1", [5]):
        with pytest.raises(BadSettings, match="override_kv is .*: give a list of texts"):
            Model.open(tiny_path, override_kv=overrides)
    with pytest.raises(BadFile, match="no such file"):
        Model.open(tmp_path / "missing.gguf")
    write_gguf(tmp_path / "bert.gguf", {"general.architecture": "bert"}, [])
    with pytest.raises(UnsupportedModel, match="bert"):
        Model.open(tmp_path / "bert.gguf")


def test_a_vocabulary_that_does_not_fit_the_embedding_is_refused(tmp_path: Path) -> None:
    path = write_small(tmp_path / "tiny.gguf")
    metadata = metadata_of(PRESETS["gemma2"]) | {"tokenizer.ggml.tokens": [f"<{i}>" for i in range(600)]}
    metadata = {k: v for k, v in metadata.items() if k not in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type")}
    with Model.open(path, backend="reference", context=16) as model:
        tensors = [(n, t.format.name, t.shape, bytes(model.file.data(n))) for n, t in model.file.tensors.items()]
    write_gguf(tmp_path / "short.gguf", metadata, tensors)
    with pytest.raises(BadFile):
        Model.open(tmp_path / "short.gguf", backend="reference")


def test_a_call_inside_an_unfinished_stream_is_refused_not_waited_for(model: Model) -> None:
    stream = model.generate("a", max_tokens=50, stream=True, temperature=0.0, ignore_eos=True)
    next(stream)
    with pytest.raises(BadSettings, match="in the middle of an answer"):
        model.logits([2])
    stream.close()
    assert model.logits([2]).shape[0] == 1


def test_threads_take_turns(model: Model) -> None:
    expected = [model.generate([2, i], max_tokens=6, temperature=0.0) for i in range(4)]
    found: list[Any] = [None] * 4

    def ask(i: int) -> None:
        found[i] = model.generate([2, i], max_tokens=6, temperature=0.0)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_metadata_can_be_overridden(tiny_path: Path) -> None:
    with Model.open(tiny_path, backend="reference", override_kv=["gemma2.context_length=int:99"]) as model:
        assert model.config.n_context == model.n_context == 99
        assert model.metadata["gemma2.context_length"] == 99
        assert "tiny.gguf: gemma2, context 99" in repr(model)
