"""Laws that hold for both kinds of tokenizer, on the real vocabularies."""

import random
import time
from itertools import islice

import pytest

from gemmafile.errors import BadSettings
from gemmafile.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.fuzz import LOOKALIKES, make_texts
from tests.text.toy import toy_bpe, toy_spm

NO_TOKEN = dict.fromkeys(map(ord, "\x04\x06\x13\x14\x16\x1d"))
"""What SmolLM2 has no bytes for; nor has it any for F1 and F2, with which the characters of NO_BYTES begin."""
NO_BYTES = range(0x40000, 0xC0000)


def expected_back(tokenizer: Tokenizer, text: str) -> str:
    """What `text` reads as after encoding: SPM spells the space ▁, SmolLM2 lacks a few bytes."""
    return text.replace("▁", " ") if tokenizer.vocabulary.model == "llama" else text.translate(NO_TOKEN)


@pytest.mark.parametrize("parse_special", [False, True])
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, n_texts: int, parse_special: bool) -> None:
    for text in make_texts(n_texts, seed=1):
        ids = tokenizer.encode(text, True, parse_special)
        visible = tokenizer.decode(ids[1:] if tokenizer.add_bos else ids, special=True)
        assert visible == expected_back(tokenizer, text)
        if not parse_special:
            assert tokenizer.decode(ids) == expected_back(tokenizer, text)


def test_every_character_comes_back(tokenizer: Tokenizer, full: bool) -> None:
    step = 1 if full else 37
    characters = [c for c in range(0, 0x110000, step) if not 0xD800 <= c <= 0xDFFF and c not in NO_BYTES]
    for start in range(0, len(characters), 1000):
        text = "".join(map(chr, characters[start : start + 1000]))
        assert tokenizer.decode(tokenizer.encode(text)) == expected_back(tokenizer, text)


def test_no_text_gives_a_control_token(tokenizer: Tokenizer, n_texts: int) -> None:
    texts = [*make_texts(n_texts, seed=2), *LOOKALIKES, *(tokenizer.token_text(i) for i in range(300))]
    for text in texts:
        assert not any(map(tokenizer.is_control, tokenizer.encode(text, add_special=False))), ascii(text)


def test_written_out_control_tokens_are_read_when_asked(tokenizer: Tokenizer) -> None:
    for token_id in islice(filter(tokenizer.is_control, range(tokenizer.n_tokens)), 0, 7000, 13):
        text = tokenizer.token_text(token_id)
        assert tokenizer.encode(f"a{text}b", False, parse_special=True)[1] == token_id
        assert tokenizer.find_token(text) == token_id


def test_joints_of_untrusted_parts_cannot_be_seen(tokenizer: Tokenizer, n_texts: int) -> None:
    rng = random.Random(3)
    for text in make_texts(n_texts, seed=3):
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randint(0, 5)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        joined = tokenizer.encode_parts([(part, False) for part in parts])
        assert joined == tokenizer.encode(text, add_special=False)


def test_trust_ends_where_its_part_ends(tokenizer: Tokenizer) -> None:
    end = tokenizer.token_text(tokenizer.eot_id or 0)
    whole = tokenizer.encode_parts([("x", False), (end, True), (f"{end}y", False)])
    assert whole.count(tokenizer.eot_id or 0) == 1
    for cut in range(1, len(end)):
        for trust in ((True, True), (True, False), (False, True)):
            ids = tokenizer.encode_parts([(end[:cut], trust[0]), (end[cut:], trust[1])])
            assert not any(map(tokenizer.is_control, ids))


def test_a_stream_says_what_decode_says_and_no_half_characters(tokenizer: Tokenizer, n_texts: int) -> None:
    for text in make_texts(n_texts, seed=4):
        ids = tokenizer.encode(text)
        stream = tokenizer.stream()
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) == expected_back(tokenizer, text)
        assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
        assert stream.flush() == ""


def test_half_an_emoji_is_held_back(gemma3: Tokenizer) -> None:
    first, second, third, fourth = (gemma3.vocabulary.tokens.index(f"<0x{value:02X}>") for value in "😀".encode())
    stream = gemma3.stream()
    assert [stream.push(i) for i in (first, second, third, fourth)] == ["", "", "", "😀"]
    assert [stream.push(first), stream.push(second), stream.flush()] == ["", "", "\ufffd"]
    letter = gemma3.encode("a", add_special=False)[0]
    assert [stream.push(first), stream.push(letter)] == ["", "\ufffda"], "it can no longer complete"
    assert gemma3.decode([second]) == "\ufffd"


def test_special_tokens_are_seen_only_when_asked(gemma3: Tokenizer) -> None:
    ids = gemma3.encode("<start_of_turn>user", parse_special=True)
    assert gemma3.decode(ids) == "user"
    assert gemma3.decode(ids, special=True) == "<bos><start_of_turn>user"
    assert gemma3.piece_bytes(105) == b""
    assert gemma3.piece_bytes(105, special=True) == b"<start_of_turn>"
    assert gemma3.token_bytes()[105] == b"<start_of_turn>"


def test_the_space_put_before_a_text_is_taken_off_again() -> None:
    tokenizer = load_tokenizer(toy_spm(add_space_prefix=True))
    for text in ("ab", " ab", "", "  ", "é", "\nab"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        stream = tokenizer.stream()
        assert "".join(map(stream.push, tokenizer.encode(text))) == text
    assert tokenizer.decode(tokenizer.encode("ab"), at_start=False) == " ab"


def test_half_a_character_of_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(BadSettings, match=r"half a character \(U\+D83D at 2\)"):
        tokenizer.encode("ab\ud83dcd")


@pytest.mark.parametrize("token_id", [-1, 1 << 30])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, token_id: int) -> None:
    for ask in (tokenizer.token_text, tokenizer.piece_bytes, lambda i: tokenizer.decode([i])):
        with pytest.raises(BadSettings, match=f"token id {token_id} is outside the vocabulary"):
            ask(token_id)


def test_bos_written_out_is_noticed() -> None:
    tokenizer = load_tokenizer(toy_spm())
    assert tokenizer.starts_with_bos("<bos>a")
    assert not tokenizer.starts_with_bos(" <bos>a")
    assert not load_tokenizer(toy_bpe()).starts_with_bos("<bos>a"), "it adds none"


def test_what_is_remembered_is_bounded() -> None:
    tokenizer = load_tokenizer(toy_spm())
    for start in range(0, 200_000, 1000):
        tokenizer.encode(" ".join(f"a{i}b" for i in range(start, start + 1000)))
    tokenizer.encode("a" * 100_000)
    assert len(tokenizer._words) <= 1 << 16
    assert max(map(len, tokenizer._words)) <= 48


@pytest.mark.parametrize("text", ["a", "ab", " ", "\n", "é", "😀", "7", "=", "▁", "<", "a ", "\u0301"])
def test_no_text_is_hard(tokenizer: Tokenizer, full: bool, text: str) -> None:
    """One thing over and over: a megabyte in a few seconds (quadratic work would take hours)."""
    n_bytes = 1_000_000 if full else 60_000
    long = text * (n_bytes // len(text.encode()))
    start = time.monotonic()
    ids = tokenizer.encode(long)
    assert time.monotonic() - start < 60
    assert tokenizer.decode(ids) == expected_back(tokenizer, long)
