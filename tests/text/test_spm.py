"""SentencePiece BPE on vocabularies small enough to see through, and on Gemma 3's."""

import random
import re
from typing import Any

import pytest

from gemmafile.text.merge import NEVER
from gemmafile.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.test_merge import merge_by_scanning
from tests.text.toy import toy_spm


def encode(text: str, *, parse_special: bool = False, **vocabulary: Any) -> list[str]:
    """The tokens of `text`, spelled out, without BOS."""
    tokenizer = load_tokenizer(toy_spm(**vocabulary))
    return [tokenizer.token_text(i) for i in tokenizer.encode(text, False, parse_special)]


def test_the_highest_score_wins_whatever_the_order_of_ids() -> None:
    assert encode("abc", pieces={"a": 0, "b": 0, "c": 0, "ab": -1, "bc": -2}) == ["ab", "c"]
    assert encode("abc", pieces={"a": 0, "b": 0, "c": 0, "ab": -2, "bc": -1}) == ["a", "bc"]
    assert encode("abc", pieces={"bc": -1, "ab": -2, "c": 0, "b": 0, "a": 0}) == ["a", "bc"]


def test_equal_scores_go_to_the_left() -> None:
    assert encode("aaa", pieces={"a": 0, "aa": -1}) == ["aa", "a"]
    assert encode("abc", pieces={"c": 0, "b": 0, "a": 0, "bc": -1, "ab": -1}) == ["ab", "c"]


def test_characters_without_a_piece_become_bytes() -> None:
    assert encode("aé", pieces={"a": 0}) == ["a", "<0xC3>", "<0xA9>"]
    assert encode("\0\n") == ["<0x00>", "<0x0A>"]


def test_a_space_is_put_before_text_only_where_the_file_wants_it() -> None:
    assert encode("ab") == ["ab"]
    assert encode("ab", add_space_prefix=True) == ["▁ab"]
    assert encode("ab", add_space_prefix=None) == ["▁ab"], "as llama.cpp: yes, where the file is silent"
    assert encode("", add_space_prefix=True) == []
    after = encode("ab<eos>ab\nab", parse_special=True, add_space_prefix=True)
    assert after == ["▁ab", "<eos>", "▁ab", "<0x0A>", "ab"]


def test_bos_is_added_unless_the_file_says_no() -> None:
    for flag, expected in ((True, [1]), (None, [1]), (False, [])):
        assert load_tokenizer(toy_spm(add_bos_token=flag)).encode("") == expected
    assert load_tokenizer(toy_spm(add_eos_token=True)).encode("") == [1, 2]


def test_runs_of_spaces_are_tokens_and_the_odd_one_belongs_to_the_word() -> None:
    runs = ("  ", "   ", "    ")
    assert encode("  ab", user_defined=runs) == ["  ", "ab"]
    assert encode("     ab", user_defined=runs) == ["    ", "▁ab"]
    assert encode("      ab", user_defined=runs) == ["    ", "  ", "ab"]
    assert encode("ab       ", user_defined=runs) == ["ab", "    ", "   "]
    assert encode("     a", user_defined=("  ", "    ")) == ["    ", "▁a"]
    assert encode("   a", user_defined=("  ", "    ")) == ["  ", "▁a"]


def test_a_literal_lower_one_eighth_block_is_a_space() -> None:
    """U+2581 stands for the space in the vocabulary; HF tokenizers look for runs of it before runs of spaces."""
    runs = ("  ", "   ")
    assert encode("▁ab", user_defined=runs) == encode(" ab", user_defined=runs) == ["▁ab"]
    assert encode(" ▁ab", user_defined=runs) == ["  ", "ab"]
    assert encode(" ▁▁ab", user_defined=runs) == ["▁", "  ", "ab"]


def test_a_run_spelled_with_blocks_in_the_file_is_a_run_of_spaces() -> None:
    tokenizer = load_tokenizer(toy_spm(user_defined=("▁▁",)))
    assert tokenizer.decode(tokenizer.encode("a  b")) == "a  b"
    assert tokenizer.token_text(tokenizer.encode("a  b", False)[1]) == "▁▁"


def test_a_piece_that_reaches_across_a_space_is_found() -> None:
    pieces = {"a": 0, "b": 0, "▁": 0, "▁b": -1, "a▁b": -2, "b▁": -3}
    assert encode("a b", pieces=pieces) == ["a▁b"]
    assert encode("a a", pieces=pieces) == ["a", "▁", "a"]
    assert encode("b a", pieces=pieces) == ["b▁", "a"]


def encode_by_definition(text: str, metadata: dict[str, Any], run_lengths: list[int]) -> list[str]:
    """Without words: user-defined runs first, then all of the stretch between them at once."""
    tokens = metadata["tokenizer.ggml.tokens"]
    types, scores = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.scores"]
    ranks = {token: round(-score * 10) for token, kind, score in zip(tokens, types, scores, strict=True) if kind == 1}
    assert max(ranks.values(), default=0) < NEVER
    normalized = text.replace(" ", "▁")
    runs = "|".join(f"▁{{{n}}}" for n in sorted(run_lengths, reverse=True))
    result = []
    for piece in re.split(f"({runs})", normalized) if runs else [normalized]:
        is_run = set(piece) == {"▁"} and len(piece) in run_lengths
        symbols = [" " * len(piece)] if is_run else merge_by_scanning(list(piece), ranks)
        for symbol in symbols:
            known = is_run or symbol in ranks
            result += [symbol] if known else [f"<0x{value:02X}>" for value in symbol.encode()]
    return result


@pytest.mark.parametrize("seed", range(60))
def test_cutting_into_words_changes_nothing(seed: int) -> None:
    """Random vocabularies: pieces that start with, end with and hold spaces; equal scores; with runs and without."""
    rng = random.Random(seed)
    alphabet = "ab>▁" if seed % 2 else "ab▁▁"
    run_lengths = [] if seed % 3 else sorted(rng.sample(range(2, 6), rng.randint(1, 3)))
    pieces = {"".join(rng.choice(alphabet) for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(5, 40))}
    if run_lengths:  # in Gemma, two spaces in a row are in no other piece
        pieces = {piece for piece in pieces if "▁▁" not in piece}
    scored = {piece: -float(rng.randint(0, 9)) for piece in sorted(pieces)}
    metadata = toy_spm(scored, user_defined=tuple(" " * n for n in run_lengths))
    tokenizer = load_tokenizer(metadata)
    for _ in range(40):
        text = "".join(rng.choice("ab> ") for _ in range(rng.randint(0, 24)))
        found = [tokenizer.token_text(i) for i in tokenizer.encode(text, False)]
        assert found == encode_by_definition(text, metadata, run_lengths)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello world", ["Hello", "▁world"]),
        ("x > </a> y", ["x", "▁>", "▁", "</a>", "▁y"]),
        ("> </p", [">▁</", "p"]),
        ("    def", ["    ", "def"]),
        ("\n\n\tz", ["\n\n", "\t", "z"]),
    ],
)
def test_gemma3_on_texts_one_can_read(gemma3: Tokenizer, text: str, tokens: list[str]) -> None:
    assert [gemma3.token_text(i) for i in gemma3.encode(text, add_special=False)] == tokens


def test_gemma3_reads_the_prompt_of_the_model_card(gemma3: Tokenizer) -> None:
    text = "<start_of_turn>user\nWrite a hello world program<end_of_turn>\n<start_of_turn>model\n"
    ids = gemma3.encode(text, parse_special=True)
    assert ids[:4] == [2, 105, 2364, 107]
    assert ids[-5:] == [106, 107, 105, 4368, 107]
    assert gemma3.decode(ids) == "user\nWrite a hello world program\nmodel\n"
    assert gemma3.decode(ids, special=True) == "<bos>" + text
    assert (gemma3.bos_id, gemma3.eos_id, gemma3.eot_id, gemma3.pad_id, gemma3.unk_id) == (2, 1, 106, 0, 3)
    assert gemma3.eog_ids == {1, 106}
