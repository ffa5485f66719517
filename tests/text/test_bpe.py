"""Byte-level BPE: a toy, the pre-tokenizers, and SmolLM2."""

import time

import pytest

from gemmafile.text.bpe import BYTE_ALPHABET
from gemmafile.text.pretokenize import KNOWN_NAMES, find_splitter
from gemmafile.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.toy import toy_bpe


def test_the_byte_alphabet_is_gpt2s() -> None:
    assert len(set(BYTE_ALPHABET)) == 256
    assert BYTE_ALPHABET[0x20] == "Ġ"
    assert BYTE_ALPHABET[0x0A] == "Ċ"
    assert BYTE_ALPHABET[0x41] == "A"
    assert BYTE_ALPHABET[0xAD] == "Ń"
    assert BYTE_ALPHABET[0xFF] == "ÿ"


def test_merges_apply_in_their_order() -> None:
    def tokens(text: str, *merges: str) -> list[str]:
        tokenizer = load_tokenizer(toy_bpe(merges))
        return [tokenizer.token_text(i) for i in tokenizer.encode(text, add_special=False)]

    assert tokens("hello", "h e", "l l", "he ll") == ["hell", "o"]
    assert tokens("hello", "e l", "h e", "l l") == ["h", "el", "l", "o"]
    assert tokens("a w", "Ġ w") == ["a", "Ġw"]
    assert tokens("é", "Ã ©") == ["Ã©"]


def test_bytes_without_a_token_are_left_out_and_never_become_a_control_token() -> None:
    """SmolLM2 has no token for U+0004 and names <|endoftext|> as its unknown token. What is left merges, as in HF."""
    metadata = toy_bpe(("! ?",))
    at = metadata["tokenizer.ggml.tokens"].index(BYTE_ALPHABET[4])
    metadata["tokenizer.ggml.tokens"][at] = "[unused]"
    tokenizer = load_tokenizer(metadata)
    assert tokenizer.encode("\x04", add_special=False) == []
    assert [tokenizer.token_text(i) for i in tokenizer.encode("!\x04?", add_special=False)] == ["!?"]


def test_no_control_token_by_merging() -> None:
    """A word that is spelled like one stays in pieces, also where whole words are looked up."""
    metadata = toy_bpe(("e n", "en d"), pre="llama-bpe")
    at = metadata["tokenizer.ggml.tokens"].index("end")
    metadata["tokenizer.ggml.token_type"][at] = 3
    tokenizer = load_tokenizer(metadata)
    ids = tokenizer.encode("end", add_special=False)
    assert at not in ids
    assert tokenizer.decode(ids) == "end"


def test_llama3_takes_whole_words_and_starts_with_bos() -> None:
    metadata = toy_bpe(("h e", "l l", "hel lo"), pre="llama-bpe", add_bos_token=None)
    tokenizer = load_tokenizer(metadata)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("hello")] == ["<bos>", "hello"]
    metadata["tokenizer.ggml.pre"] = "gpt-2"
    tokenizer = load_tokenizer(metadata)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("hello")] == ["he", "ll", "o"]


SPLITS = {
    "gpt-2": [
        ("it's we'LL", ["it", "'s", " we", "'", "LL"]),
        ("a  b", ["a", " ", " b"]),
        ("a \n b  ", ["a", " \n", " b", "  "]),
        ("x12 345!?", ["x", "12", " 345", "!?"]),
        ("ñé世界 ½²", ["ñé世界", " ½²"]),
        ("e\u0301x", ["e", "\u0301", "x"]),
        ("\x1c\x85", ["\x1c", "\x85"]),
    ],
    "smollm": [("a 12", ["a", " ", "1", "2"]), ("a   1", ["a", "   ", "1"]), ("a   b", ["a", "  ", " b"])],
    "llama-bpe": [
        ("IT'S 12345", ["IT", "'S", " ", "123", "45"]),
        ("a\n\n b", ["a", "\n\n", " b"]),
        ("!!\n\nx", ["!!\n\n", "x"]),
        ("  \n x", ["  \n", " x"]),
        ("\tfoo", ["\tfoo"]),
        ("'ſ", ["'ſ"]),
    ],
    "qwen2": [("123", ["1", "2", "3"])],
    "default": [("a+b=1234", ["a", "+", "b", "=", "123", "4"]), ("(x).", ["(", "x", ").",])],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "words"), [(name, *case) for name, cases in SPLITS.items() for case in cases])
def test_text_is_cut_as_the_models_were_trained(name: str, text: str, words: list[str]) -> None:
    assert find_splitter(name)(text) == words


@pytest.mark.parametrize("name", KNOWN_NAMES)
def test_cutting_loses_nothing(name: str) -> None:
    text = "".join(map(chr, [*range(0x250), *range(0x2000, 0x2070), 0x10400, 0x1D7CE, 0x1F600, 0x20000])) * 2
    assert "".join(find_splitter(name)(text)) == text


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "default"])
@pytest.mark.parametrize("text", ["a", " ", "1", "😀", "'", " \n", "  x", "a\u0301", "!\n", "'s"])
def test_no_text_is_hard_to_cut(name: str, text: str) -> None:
    """100,000 characters; a pattern that backtracks over what it has read takes minutes."""
    start = time.monotonic()
    assert "".join(find_splitter(name)(text * (100_000 // len(text)))) == text * (100_000 // len(text))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello world", ["Hello", "Ġworld"]),
        ("it's 2024", ["it", "'s", "Ġ", "2", "0", "2", "4"]),
        ("<|im_start|>", ["<", "|", "im", "_", "start", "|", ">"]),
    ],
)
def test_smollm2_on_texts_one_can_read(smollm2: Tokenizer, text: str, tokens: list[str]) -> None:
    assert [smollm2.token_text(i) for i in smollm2.encode(text)] == tokens
    assert smollm2.eog_ids == {0, 2, 4}
