from typing import Any

import numpy as np
import pytest

from gemmafile.errors import BadFile, UnsupportedModel
from gemmafile.text.tokenizer import load_tokenizer
from gemmafile.text.vocabulary import read_vocabulary
from tests.text.toy import toy_bpe, toy_spm


class Lazy:
    """Strings as the GGUF reader hands them over."""

    def __init__(self, strings: list[str]):
        self.strings = strings

    def to_list(self) -> list[str]:
        return list(self.strings)


def test_lists_arrays_and_lazy_strings_are_the_same() -> None:
    lists = toy_spm()
    arrays = lists | {
        "tokenizer.ggml.tokens": Lazy(lists["tokenizer.ggml.tokens"]),
        "tokenizer.ggml.scores": np.array(lists["tokenizer.ggml.scores"], np.float32),
        "tokenizer.ggml.token_type": np.array(lists["tokenizer.ggml.token_type"], np.int32),
    }
    assert load_tokenizer(lists).encode("ab abc") == load_tokenizer(arrays).encode("ab abc")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no tokens": ({"tokens": None}, "tokenizer.ggml.tokens: the file has no vocabulary"),
    "tokens a string": ({"tokens": "abc"}, "a str; expected an array of strings"),
    "tokens a number": ({"tokens": 3}, "a int; expected an array of strings"),
    "tokens of numbers": ({"tokens": [1, 2]}, "holds something that is not a string"),
    "half a character": ({"tokens": ["\ud800"]}, "not valid Unicode"),
    "too few types": ({"token_type": [1, 1]}, "2 items for 267 tokens"),
    "types of text": ({"token_type": ["a"] * 267}, "token_type: expected an array of numbers"),
    "types of floats": ({"token_type": [1.5] * 267}, "token_type: expected an array of numbers"),
    "a type unheard of": ({"token_type": [1] * 266 + [7]}, "item 266 is 7; expected 1 to 6"),
    "types in rows": ({"token_type": [[1]] * 267}, "token_type: expected an array of numbers"),
    "too many scores": ({"scores": [0.0] * 268}, "268 items for 267 tokens"),
    "a score not a number": ({"scores": [0.0] * 266 + [float("nan")]}, "a score is infinite or not a number"),
    "bos out of range": ({"bos_token_id": 267}, "bos_token_id: token id 267 is outside the vocabulary of 267"),
    "eos negative": ({"eos_token_id": -1}, "eos_token_id: token id -1 is outside"),
    "eos a bool": ({"eos_token_id": True}, "eos_token_id: a bool; expected a token id"),
    "pad a string": ({"padding_token_id": "x"}, "padding_token_id: a str; expected a token id"),
    "a flag of 1": ({"add_bos_token": 1}, "add_bos_token: a int; expected true or false"),
    "model a number": ({"model": 5}, "tokenizer.ggml.model: a int; expected a string"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_metadata_is_named(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(BadFile) as caught:
        load_tokenizer(toy_spm(**changes), "file.gguf")
    assert str(caught.value).startswith("file.gguf, tokenizer.ggml.")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_merges_are_named() -> None:
    with pytest.raises(BadFile, match='a merge is not "left right"'):
        load_tokenizer(toy_bpe(merges=("he",)))


def test_scores_that_float32_cannot_hold_are_refused_without_noise() -> None:
    scores = np.array(toy_spm()["tokenizer.ggml.scores"], np.float64)
    scores[3] = 1e300
    with pytest.raises(BadFile, match="a score is infinite"):
        load_tokenizer(toy_spm(scores=scores))


def test_a_template_that_is_no_text_is_named() -> None:
    with pytest.raises(BadFile, match=r"tokenizer\.chat_template: a int; expected a string"):
        load_tokenizer(toy_spm() | {"tokenizer.chat_template": 5})


def test_an_unknown_tokenizer_names_the_known_ones() -> None:
    with pytest.raises(UnsupportedModel, match=r"'bert' is not supported; known: llama, gpt2"):
        load_tokenizer(toy_spm(model="bert"))
    with pytest.raises(UnsupportedModel, match=r"'' is not supported"):
        load_tokenizer(toy_spm(model=None))


def test_an_unknown_pre_tokenizer_names_the_nearest() -> None:
    with pytest.raises(UnsupportedModel, match=r"'smollm3' is not supported \(did you mean smollm\?\); known: gpt-2"):
        load_tokenizer(toy_bpe(pre="smollm3"))


def test_a_missing_byte_is_named_unless_there_is_an_unknown_token() -> None:
    tokens = [token for token in toy_spm()["tokenizer.ggml.tokens"] if token != "<0x41>"]
    n = len(tokens)
    types = [2, 3, 3, 3, 3, *[6] * 255, *[1] * (n - 260)]
    changes = {"tokens": tokens, "token_type": types, "scores": [0.0] * n}
    assert load_tokenizer(toy_spm(**changes)).encode("A", add_special=False) == [0]
    with pytest.raises(BadFile, match="no token for byte 0x41"):
        load_tokenizer(toy_spm(**changes, unknown_token_id=None))


def test_a_special_token_of_a_book_is_refused() -> None:
    with pytest.raises(BadFile, match="special token 261 has 2000 characters"):
        load_tokenizer(toy_spm(user_defined=("x" * 2000,)))


def test_type_zero_is_a_normal_token() -> None:
    types = [0 if kind == 1 else kind for kind in toy_spm()["tokenizer.ggml.token_type"]]
    assert load_tokenizer(toy_spm(token_type=types)).encode("ab") == load_tokenizer(toy_spm()).encode("ab")


def test_end_of_turn_is_found_by_its_text() -> None:
    vocabulary = read_vocabulary(toy_spm(), "file")
    assert vocabulary.eot_id == 4
    assert vocabulary.eog_ids == {2, 4}
    assert read_vocabulary(toy_spm(eot_token_id=7), "file").eot_id == 7


def test_an_end_that_is_html_ends_nothing() -> None:
    """`</s>` closes <s> in Gemma's vocabulary; it is user-defined there."""
    vocabulary = read_vocabulary(toy_spm(user_defined=("</s>",)), "file")
    assert vocabulary.index["</s>"] not in vocabulary.eog_ids


@pytest.mark.parametrize("kind", [1, 4])
def test_a_turn_marker_is_control_whatever_the_file_says(kind: int) -> None:
    types = toy_spm()["tokenizer.ggml.token_type"]
    types[3] = types[4] = kind
    tokenizer = load_tokenizer(toy_spm(token_type=types))
    assert tokenizer.is_control(3)
    assert tokenizer.eog_ids == {2, 4}
    assert 4 not in tokenizer.encode("<end_of_turn>")
