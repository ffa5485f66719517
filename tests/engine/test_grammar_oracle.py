"""The same masks as llama.cpp's."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gemmafile.engine.grammar import Grammar, GrammarVocabulary
from tests.engine.grammars import ARITHMETIC, BAD_GBNF, CONTROL, NOTATION, TOKENS


def llamacpp(text: str) -> Any:
    from tests.engine.llamacpp_grammar import LlamaGrammar

    return LlamaGrammar(text)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "name", [*(name for name in NOTATION if name not in ("left recursion", "repeated twice")), "arithmetic"]
)
def test_masks_equal_llamacpps(name: str, vocabulary: GrammarVocabulary) -> None:
    """Along random answers, for every token that is whole characters, and for the end."""
    text = ARITHMETIC if name == "arithmetic" else NOTATION[name][0]
    pieces = {
        i: token.decode() for i, token in enumerate(TOKENS) if token and is_text(token) and i not in CONTROL.values()
    }
    choose, theirs_at_start = random.Random(6), llamacpp(text)
    for _ in range(8):
        ours, theirs = Grammar.from_gbnf(text, vocabulary), theirs_at_start
        for _ in range(15):
            allowed = ours.allowed()
            expected = [i for i, piece in pieces.items() if theirs.after(piece).is_alive]
            assert [i for i in pieces if allowed[i]] == expected
            assert ours.may_end == theirs.may_end
            if not expected:
                break
            token_id = choose.choice(expected)
            ours.accept(token_id)
            theirs = theirs.after(pieces[token_id])


def is_text(token: bytes) -> bool:
    try:
        return token.decode() != "\x00"
    except UnicodeDecodeError:
        return False


@pytest.mark.oracle
def test_llamacpp_refuses_what_is_malformed() -> None:
    """Those that say so in gbnf.py are refused by us alone."""
    ours_alone = ("[z-a]", "[]", "U0010ffff", "uD800", "[5]", "[b]", "[a] root", "{3,2}", "(((")
    for text, _ in BAD_GBNF:
        if not any(part in text for part in ours_alone):
            with pytest.raises(ValueError, match="refuses"):
                llamacpp(text)
