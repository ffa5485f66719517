"""A mask allows what the grammar allows, nothing else; what cannot be followed is refused with its place."""

from __future__ import annotations

import itertools
import random
import re
import sys
import time

import numpy as np
import pytest

from gemmafile.engine.gbnf import gbnf_to_lark
from gemmafile.engine.grammar import Grammar, GrammarVocabulary
from gemmafile.errors import BackendUnavailable, BadSettings, GemmafileError
from tests.engine.grammars import ARITHMETIC, BAD_GBNF, CONTROL, EOS, NOTATION, TOKENS, TURN, UNUSED, follows, walk


@pytest.mark.parametrize("name", NOTATION)
def test_notation(name: str, vocabulary: GrammarVocabulary, full: bool) -> None:
    text, allowed, refused = NOTATION[name]
    grammar, choose = Grammar.from_gbnf(text, vocabulary), random.Random(1)
    for _ in range(20 if full else 3):
        for answer in allowed:
            assert follows(grammar, answer, choose), answer
        for answer in refused:
            assert not follows(grammar, answer, choose), answer


def test_the_mask_is_exactly_what_can_go_on(vocabulary: GrammarVocabulary) -> None:
    """All masks of a grammar whose texts can be written out, against the texts."""
    grammar = Grammar.from_gbnf(
        'root ::= word "x" | "ab" ("c" | "é" | "日本"){1,2} "\\n"\nword ::= [abé]{0,2}', vocabulary
    )  # fmt: skip
    words = ["".join(letters) for n in range(3) for letters in itertools.product("abé", repeat=n)]
    tails = ["".join(parts) for n in (1, 2) for parts in itertools.product(("c", "é", "日本"), repeat=n)]
    texts = [(word + "x").encode() for word in words] + [("ab" + tail + "\n").encode() for tail in tails]
    seen: set[bytes] = set()

    def visit(grammar: Grammar, done: bytes) -> None:
        if done in seen:
            return
        seen.add(done)
        expected = {
            i for i, token in enumerate(TOKENS) if token and any(text.startswith(done + token) for text in texts)
        }
        expected = (expected - set(CONTROL.values())) | ({EOS, TURN} if done in texts else set())
        assert set(np.flatnonzero(grammar.allowed()).tolist()) == expected, done
        for token_id in expected - {EOS, TURN}:
            further = grammar.copy()
            further.accept(token_id)
            visit(further, done + TOKENS[token_id])

    visit(grammar, b"")
    assert seen > set(texts)


def is_arithmetic(text: str) -> bool:
    """ARITHMETIC by hand: a reader of one line after the other."""

    def read_sum(at: int) -> int:
        at = read_term(at)
        while text[at] in "+-*/":
            at = read_term(at + 1)
        return at

    def read_term(at: int) -> int:
        if text[at] == "(":
            at = read_sum(space(at + 1))
            assert text[at] == ")"
            return space(at + 1)
        match = re.compile(r"[a-z][a-z0-9_]{0,3}|[0-9]+").match(text, at)
        assert match
        return space(match.end())

    def space(at: int) -> int:
        return at + (text[at] in " \t")

    at = 0
    try:
        while at < len(text) or not text:
            at = read_sum(at)
            assert text[at] == "="
            at = read_term(space(at + 1))
            assert text[at] == "\n"
            at += 1
    except (AssertionError, IndexError):
        return False
    return True


def test_random_answers_follow_their_grammar(vocabulary: GrammarVocabulary, full: bool) -> None:
    assert is_arithmetic("a=b\n(x1 + 20)*c = 3\n".replace(" + ", " +"))
    assert not is_arithmetic("a=b\n(x1=3\n")
    choose, whole = random.Random(3), Grammar.from_gbnf(ARITHMETIC, vocabulary)
    answers = [walk(whole.copy(), choose) for _ in range(200 if full else 25)]
    finished = [answer for answer in answers if answer is not None]
    assert len(finished) >= 5
    for answer in finished:
        assert is_arithmetic(answer), answer


@pytest.mark.parametrize(("text", "message"), BAD_GBNF, ids=[text[:24] for text, _ in BAD_GBNF])
def test_a_malformed_grammar_is_refused_with_its_place(text: str, message: str, vocabulary: GrammarVocabulary) -> None:
    with pytest.raises(BadSettings, match=message):
        Grammar.from_gbnf(text, vocabulary)


def test_any_text_is_a_grammar_or_refused(full: bool) -> None:
    """Broken grammars end in BadSettings, whatever is broken."""
    choose = random.Random(5)
    good = [text for text, _, _ in NOTATION.values()] + [ARITHMETIC]
    for _ in range(5000 if full else 800):
        text = list(choose.choice(good))
        for _ in range(choose.randrange(1, 4)):
            at = choose.randrange(len(text))
            text[at : at + choose.randrange(2)] = choose.choice(
                ['"', "[", "]", "(", ")", "{", "}", "\\", "|", "", "9", "\n"]
            )
        try:
            gbnf_to_lark("".join(text))
        except BadSettings as error:
            assert re.match(r"grammar, line \d+, column \d+: ", str(error))


def test_control_tokens_are_no_text(vocabulary: GrammarVocabulary) -> None:
    """Neither by the text they are spelled with nor by being allowed to end where the grammar may not."""
    grammar = Grammar.from_gbnf('root ::= "<eos>" .* | "ab" | .', vocabulary)
    spelled = grammar.allowed()
    assert spelled[TOKENS.index(b"ab")]
    assert not any(spelled[token_id] for token_id in (*CONTROL.values(), UNUSED))
    grammar.accept(TOKENS.index(b"ab"))
    assert np.flatnonzero(grammar.allowed()).tolist() == sorted((EOS, TURN))


def test_what_is_not_allowed_is_not_accepted(vocabulary: GrammarVocabulary) -> None:
    grammar = Grammar.from_gbnf('root ::= "ab"', vocabulary)
    for token_id in (EOS, CONTROL["<bos>"], ord("b"), UNUSED, 10**6):
        with pytest.raises(GemmafileError, match=f"does not allow token {token_id} here"):
            grammar.accept(token_id)
    grammar.accept(ord("a"))  # and it stays where it was
    grammar.accept(ord("b"))
    assert grammar.is_finished
    grammar.accept(TURN)
    with pytest.raises(GemmafileError, match="does not allow"):
        grammar.accept(ord("a"))


def test_may_end_and_is_finished(vocabulary: GrammarVocabulary) -> None:
    grammar = Grammar.from_gbnf('root ::= "a" "b"?', vocabulary)
    states = [(grammar.may_end, grammar.is_finished)]
    for token_id in (ord("a"), EOS):
        grammar.accept(token_id)
        states.append((grammar.may_end, grammar.is_finished))
    assert states == [(False, False), (True, False), (True, True)]


def test_copies_are_independent(vocabulary: GrammarVocabulary) -> None:
    grammar = Grammar.from_json_schema("{}", vocabulary)
    grammar.accept(ord("["))
    copy = grammar.copy()
    copy.accept(ord("1"))
    assert grammar.allowed()[ord("t")]
    assert not copy.allowed()[ord("t")]


def test_a_model_without_an_end_token() -> None:
    grammar = Grammar.from_gbnf('root ::= "a"', GrammarVocabulary(TOKENS[:256], [], []))
    assert np.flatnonzero(grammar.allowed()).tolist() == [ord("a")]
    grammar.accept(ord("a"))
    assert grammar.is_finished
    assert not grammar.allowed().any()
    assert not grammar.allows(256)  # a logit beyond the vocabulary, say


@pytest.mark.parametrize("n_bytes", [1024, 1025, 100_000])
def test_a_token_of_a_page_is_left_out(n_bytes: int) -> None:
    """Of more than 1,024 bytes llguidance can make no tree; it ends the process where it is asked to."""
    tokens = [*(bytes([i]) for i in range(256)), b"<eos>", b"a" * n_bytes]
    vocabulary = GrammarVocabulary(tokens, eog_ids=[256], control_ids=[256])
    allowed = np.flatnonzero(Grammar.from_gbnf("root ::= [a-c]+", vocabulary).allowed())
    assert allowed.tolist() == [97, 98, 99, *([257] if n_bytes == 1024 else [])]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BackendUnavailable, match="pip install llguidance"):
        Grammar.from_gbnf('root ::= "a"', GrammarVocabulary(TOKENS, [EOS], []))


def test_allows_agrees_with_the_mask(vocabulary: GrammarVocabulary) -> None:
    choose = random.Random(9)
    for text in ('root ::= "a" [^"]* "x"?', ARITHMETIC):
        grammar = Grammar.from_gbnf(text, vocabulary)
        for _ in range(12):
            allowed = grammar.allowed()
            assert [grammar.allows(i) for i in range(len(TOKENS))] == allowed.tolist()
            assert not grammar.allows(len(TOKENS))
            assert not grammar.allows(-1)
            grammar.accept(int(choose.choice(np.flatnonzero(allowed[: CONTROL["<bos>"]]))))


def test_a_grammar_that_takes_too_long_is_given_up(vocabulary: GrammarVocabulary) -> None:
    """It would hold up the answers of others: `a` reads a text in as many ways as there are trees over it."""
    grammar = Grammar.from_gbnf('root ::= a\na ::= a a | [a-z] | ""', vocabulary)
    start_s = time.monotonic()

    def follow() -> None:
        for _ in range(5000):
            grammar.accept(ord("a"))

    with pytest.raises(BadSettings, match="too ambiguous"):
        follow()
    assert time.monotonic() - start_s < 20
