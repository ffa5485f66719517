"""A mask allows what the grammar allows, nothing else; what cannot be followed is refused with its place."""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
import time
from typing import Any

import numpy as np
import pytest

from gemmafile.engine.gbnf import gbnf_to_lark
from gemmafile.engine.grammar import Grammar, GrammarVocabulary
from gemmafile.engine.sampler import Sampler
from gemmafile.errors import BackendUnavailable, BadSettings, GemmafileError
from gemmafile.settings import SamplingSettings

PIECES = (
    "ab abx xx x1 bc c\n \n\n ent the true false null 12 0. e1 {\" \": \", \"} }} [] ]} name age \\n "
    "日 本 日本 本語 é éa あ い ひら word 一"
).split(" ")  # fmt: skip
TOKENS = (
    [bytes([i]) for i in range(256)]
    + [piece.encode() for piece in PIECES]
    + ["é".encode()[:1] + b"", "日".encode()[1:]]
)
CONTROL = {"<bos>": len(TOKENS), "<turn>": len(TOKENS) + 1, "<eos>": len(TOKENS) + 2, "ab": len(TOKENS) + 3}
TOKENS += [text.encode() for text in CONTROL]
UNUSED = len(TOKENS)
TOKENS.append(b"")
EOS, TURN = CONTROL["<eos>"], CONTROL["<turn>"]


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    return GrammarVocabulary(TOKENS, eog_ids=[EOS, TURN], control_ids=list(CONTROL.values()))


def cut(text: bytes, choose: random.Random) -> list[int]:
    """The text as tokens, cut at random."""
    ids = []
    while text:
        fitting = [i for i, token in enumerate(TOKENS[: CONTROL["<bos>"]]) if token and text.startswith(token)]
        ids.append(choose.choice(fitting))
        text = text[len(TOKENS[ids[-1]]) :]
    return ids


def follows(grammar: Grammar, text: str, choose: random.Random) -> bool:
    """Does every mask on the way allow the text, and may it end there?"""
    grammar = grammar.copy()
    for token_id in cut(text.encode(), choose):
        if not grammar.allowed()[token_id]:
            return False
        grammar.accept(token_id)
    allowed = grammar.allowed()
    assert allowed[EOS] == allowed[TURN] == grammar.may_end
    return grammar.may_end


# Every feature of the notation: (grammar, texts it allows, texts it does not).
NOTATION: dict[str, tuple[str, list[str], list[str]]] = {
    "literal": ('root ::= "word"', ["word"], ["", "wor", "words", "Word"]),
    "escapes": (r'root ::= "\x41\u00e9\U000065e5\t\n\r\\\"\[\]\-"', ['Aé日\t\n\r\\"[]-'], ["A"]),
    "class": ("root ::= [ab0-3_]", ["a", "b", "2", "_"], ["c", "4", "-", ""]),
    "class with a dash at its end": ("root ::= [+-]", ["+", "-"], [",", ""]),
    "class with a caret within": ("root ::= [a^]", ["a", "^"], ["b"]),
    "class with brackets": (r"root ::= [\[\]]", ["[", "]"], ["\\"]),
    "negated class": (r'root ::= [^"\\\x7F\x00-\x1F]', ["a", "é", "日", "/"], ['"', "\\", "\n", "\x7f", ""]),
    "class of other scripts": ("root ::= [ぁ-ゟ一日]+", ["ひら", "日", "一あ"], ["カ", "本", "ab", ""]),
    "any character": ("root ::= .", ["a", "\n", "日", "\x7f"], ["", "ab"]),
    "alternatives": ('root ::= "a" | "bc" |\n "d"', ["a", "bc", "d"], ["b", "abc"]),
    "empty alternative": ('root ::= "a" ( | "b")', ["a", "ab"], ["b", ""]),
    "groups over lines": ('root ::= (\n "a" # first\n  | "b"\n "c"\n)', ["a", "bc"], ["b", "ac"]),
    "star": ('root ::= "ab"*', ["", "ab", "abab"], ["a", "aba"]),
    "plus": ("root ::= [ab]+", ["a", "abba"], [""]),
    "question mark": ('root ::= "a"? "b"?', ["", "a", "b", "ab"], ["ba", "aa"]),
    "exactly": ("root ::= [ab]{3}", ["aba"], ["ab", "abab"]),
    "at least": ("root ::= [ab]{2,}", ["ab", "ababab"], ["a"]),
    "between": ("root ::= ( [a] [b] ){ 1 , 2 }", ["ab", "abab"], ["", "ababab"]),
    "at most": ("root ::= [a]{0,2}", ["", "aa"], ["aaa"]),
    "none": ('root ::= "a"{0} "b"', ["b"], ["ab"]),
    "repeated twice": ('root ::= "a"?*', ["", "aaa"], ["b"]),
    "names": ('root ::= foo-bar fooBar foo-1\nfoo-bar ::= "a"\nfooBar::="b"\nfoo-1 ::= "c"', ["abc"], ["ab"]),
    "comments": ('# a grammar\nroot ::= "a" # one\n\n\n# two\n', ["a"], ["#"]),
    "carriage returns": ('root ::= x\r\nx ::= "a"\r\n', ["a"], [""]),
    "recursion": ('root ::= "(" root ")" | "x"', ["x", "((x))"], ["(x", "()", "(x))"]),
    "recursion that need not be": ('root ::= "a" ("b" root)?', ["a", "aba", "ababa"], ["ab", ""]),
    "left recursion": ('root ::= root "+" [0-9] | [0-9]', ["1", "1+2+3"], ["+1", "1+"]),
    # Where a reader of longest words would go astray:
    "a word that could have gone on": ('root ::= word "x"\nword ::= [a-z]+', ["abx", "xx", "abxx"], ["ab", "x"]),
    "a word that is part of another": ('root ::= a "bc" | "abx"\na ::= "a"', ["abc", "abx"], ["ab", "abcx"]),
    "two readings": ('root ::= [0-9]+ "." [0-9]+ | [0-9.]+ "!"', ["1.2", "1.2!", "1.2.3!"], ["1.2.3", "1."]),
    "nothing between": ('root ::= digit* digit*\ndigit ::= "1" | "12"', ["", "1", "1212", "121"], ["2", "22"]),
}


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


def walk(grammar: Grammar, choose: random.Random, limit: int = 400) -> str | None:
    """A random answer of a grammar; None if it did not end within `limit` tokens."""
    done = b""
    for _ in range(limit):
        allowed = np.flatnonzero(grammar.allowed())
        assert len(allowed)
        ends = grammar.may_end and choose.random() < 0.5
        token_id = EOS if ends else int(choose.choice(allowed))
        grammar.accept(token_id)
        if token_id in (EOS, TURN):
            return done.decode()
        done += TOKENS[token_id]
    return None


ARITHMETIC = """
root ::= (sum "=" space term "\\n")+
sum ::= term ([-+*/] term)*
term ::= name | number | "(" space sum ")" space
name ::= [a-z] [a-z0-9_]{0,3} space
number ::= [0-9]+ space
space ::= [ \\t]?
"""


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


BAD_GBNF = [
    ("", "line 1, column 1: there is no rule 'root'"),
    ('rot ::= "a"', "line 1, column 1: there is no rule 'root'"),
    ("root ::= item\nitme ::= [a]", r"line 1, column 10: there is no rule 'item' \(did you mean itme\?\)"),
    ("root = [a]", "line 1, column 6: expected ::="),
    ("root ::=\n  [a-", "line 2, column 3: this character class is not closed"),
    ("root ::= [a", "line 1, column 10: this character class is not closed"),
    ('root ::= "a', "line 1, column 10: this string is not closed"),
    ('root ::= ("a" | "b"', r"line 1, column 10: this '\(' is not closed"),
    ('root ::= "a")', "line 1, column 13: '\\)' was not expected here"),
    ('root ::= "\\q"', r"line 1, column 11: there is no escape \\q"),
    ('root ::= "\\x4"', "line 1, column 13: expected 2 hexadecimal digits"),
    ("root ::= *", r"line 1, column 10: '\*' has nothing before it to repeat"),
    ('root ::= ""+', r"line 1, column 12: '\+' has nothing before it to repeat"),
    ('root ::= "a"{x}', "line 1, column 14: expected a number"),
    ('root ::= "a"{2', "line 1, column 15: expected '}'"),
    ('root ::= "a"{3,2}', "line 1, column 14: at least 3 and at most 2 cannot both be"),
    ('root ::= "a"{2001}', "line 1, column 14: 2001 repetitions are more"),
    ("root ::= [z-a]", "line 1, column 14: this range runs backwards"),
    ("root ::= []", "line 1, column 10: this character class has no character in it"),
    ("root ::= [^\\x01-\\U0010ffff]", "line 1, column 10: this character class has no character in it"),
    ('root ::= "\\uD800"', r"line 1, column 10: U\+D800 is no character"),
    ("root ::= <think>", "line 1, column 10: tokens in grammars are not supported"),
    ("root ::= !<[5]>", "line 1, column 10: tokens in grammars are not supported"),
    ("root ::= [a]\nroot ::= [b]", "line 2, column 1: rule 'root' is defined a second time"),
    ("root ::= [a] root", "line 1, column 1: rule 'root' never comes to an end"),
    ('root ::= "a" | x\n\nx ::= x', "line 3, column 1: rule 'x' never comes to an end"),
    ("root ::= " + "(" * 200 + '"a"' + ")" * 200, "line 1, column 110: more than 100 groups"),
    ("root ::= a b\nb\n::= [x]\n", "line 2, column 2: expected ::="),
]


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


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["ab", "abx", "the"]}, "minItems": 1, "maxItems": 3},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}


def fits(value: Any) -> bool:
    """SCHEMA by hand."""
    return (
        isinstance(value, dict)
        and value.keys() <= {"name", "age", "tags", "next"}
        and isinstance(value.get("name"), str)
        and 1 <= len(value["name"]) <= 5
        and ("age" not in value or (type(value["age"]) is int and 0 <= value["age"] <= 120))
        and isinstance(value.get("tags"), list)
        and 1 <= len(value["tags"]) <= 3
        and all(tag in ("ab", "abx", "the") for tag in value["tags"])
        and ("next" not in value or value["next"] is None or fits(value["next"]))
    )


def test_random_answers_follow_their_schema(vocabulary: GrammarVocabulary, full: bool) -> None:
    choose, finished = random.Random(4), 0
    whole = Grammar.from_json_schema(json.dumps(SCHEMA), vocabulary)
    for _ in range(300 if full else 40):
        answer = walk(whole.copy(), choose)
        if answer is not None:
            finished += 1
            assert fits(json.loads(answer)), answer
            assert not re.search(r"\s{23}", answer)
    assert finished >= 20


JSON: list[tuple[str | dict[str, Any], list[str], list[str]]] = [
    (
        "{}",
        ['{"a": [1, 2.5e-3, true, null, "\\n\\u00e9日"]}', "3", '"x"', "[]"],
        ["", "{", "01", "tru", "nul", "{'a': 1}"],
    ),
    ('{"type": "object"}', ["{}", '{"a":\n  1\n}', '{"x": {}}'], ["[]", "3", '{"a" 1}', '{"a":  1}', '{"a":\n\n\n1}']),
    ('{"type": "string"}', ['"\\u00e9\\ud83d\\ude00\\n"'], ['"\\ud83d"', '"\n"', '"']),
    ({"const": {"é": ["日"]}}, ['{"é": ["日"]}', '{"é":["日"]}'], ['{"e": ["日"]}']),
    ({"enum": ["a", "ab", 3]}, ['"a"', '"ab"', "3"], ['"abc"', "a", "33"]),
    ({"type": "integer", "minimum": -5, "exclusiveMaximum": 12}, ["-5", "0", "11"], ["-6", "12", "1.0", "--1"]),
    ({"type": "string", "pattern": "^[ab]+x$"}, ['"abx"'], ['"x"', '"abxx"']),
    ({"type": "array", "prefixItems": [{"type": "boolean"}], "items": False}, ["[]", "[true]"], ["[1]", "[true, 1]"]),
    ({"type": ["string", "null"], "maxLength": 2}, ["null", '"ab"', '"日本"'], ['"abx"', "1"]),
    ({"x-guidance": {"whitespace_flexible": False}, "type": "array"}, ["[1,2]"], ["[1, 2]"]),
]


@pytest.mark.parametrize("case", JSON, ids=lambda case: json.dumps(case[0])[:50])
def test_schema(case: tuple[str | dict[str, Any], list[str], list[str]], vocabulary: GrammarVocabulary) -> None:
    schema, allowed, refused = case
    grammar, choose = Grammar.from_json_schema(schema, vocabulary), random.Random(2)
    for _ in range(3):
        for answer in allowed:
            assert follows(grammar, answer, choose), answer
        for answer in refused:
            assert not follows(grammar, answer, choose), answer


BAD_SCHEMA: list[tuple[Any, str]] = [
    ('{"type": "object",}', "line 1, column 1[89]: "),
    ('{\n"a": tru}', "line 2, column 6: "),
    ("", "line 1, column 1: "),
    ("[" * 100_000, "nested too deeply"),
    ("3", r"expected an object such as \{\} \(any JSON\), got 3"),
    ('{"minimum": NaN}', "NaN is no JSON"),
    ({"properties": {"a": {"items": {"not": {}}}}}, "at /properties/a/items: .*not"),
    ({"type": "array", "uniqueItems": True}, "at /: .*uniqueItems"),
    ({"anyOf": [{}, {"if": {}, "then": {}}]}, "at /anyOf/1: .*if"),
    ({"type": "strng"}, "Invalid type: strng"),
    ({"type": "string", "format": "colour"}, "Unknown format: colour"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"$ref": "#/nowhere"}, "Pointer '/nowhere' does not exist"),
    ({"$ref": "https://example.org/schema"}, "https://example.org/schema"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, r"minimum \(5\) is greater than maximum \(3\)"),
    (False, "schema is false"),
]


@pytest.mark.parametrize(("schema", "message"), BAD_SCHEMA, ids=[str(schema)[:30] for schema, _ in BAD_SCHEMA])
def test_a_schema_that_cannot_be_enforced_is_refused(schema: Any, message: str, vocabulary: GrammarVocabulary) -> None:
    with pytest.raises(BadSettings, match=f"^json_schema.*{message}") as caught:
        Grammar.from_json_schema(schema, vocabulary)
    assert "\n" not in str(caught.value)


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


def test_a_schema_that_nothing_fits_is_said_in_words(vocabulary: GrammarVocabulary) -> None:
    with pytest.raises(GemmafileError, match="no text can come next$"):
        Grammar.from_json_schema('{"$ref": "#"}', vocabulary).allowed()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BackendUnavailable, match="pip install llguidance"):
        Grammar.from_gbnf('root ::= "a"', GrammarVocabulary(TOKENS, [EOS], []))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"mirostat": 2},
        {"top_k": 1},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
        {"typical_p": 0.5},
    ],
    ids=str,
)
def test_sampled_answers_follow_the_grammar(settings: dict[str, Any], vocabulary: GrammarVocabulary) -> None:
    """Though the model would say something else."""
    rng = np.random.default_rng(8)
    sampler = Sampler(
        SamplingSettings(seed=1, n_probs=1, **settings),
        len(TOKENS) + 3,  # a model may have more logits than tokens
        grammar=Grammar.from_json_schema(SCHEMA, vocabulary),
    )
    sampler.accept_prompt(range(50))
    done = b""
    for _ in range(300):
        logits = rng.standard_normal(len(TOKENS) + 3).astype(np.float32)
        logits[len(TOKENS) :] += 30
        logits[[ord('"'), ord("}"), ord("]"), TOKENS.index(b'"}')]] += 3  # come to an end
        choice = sampler.sample(logits)
        assert np.isfinite(choice.logprob)
        sampler.accept(choice.token_id)
        if choice.token_id in (EOS, TURN):
            break
        done += TOKENS[choice.token_id]
    assert sampler.grammar is not None
    assert sampler.grammar.is_finished
    assert fits(json.loads(done)), done
    sampler.reset()
    assert not sampler.grammar.is_finished


def test_probabilities_are_shared_among_what_is_allowed(vocabulary: GrammarVocabulary) -> None:
    """The mask comes before top-k and the others."""
    logits = np.zeros(len(TOKENS), np.float32)
    logits[ord("a")], logits[ord("b")], logits[ord("c")] = 1, 2, 9
    sampler = Sampler(
        SamplingSettings(seed=2, top_k=2, top_p=1.0, min_p=0.0, temperature=1.0),
        len(TOKENS),
        grammar=Grammar.from_gbnf("root ::= [ab]", vocabulary),
    )
    chosen = [sampler.sample(logits).token_id for _ in range(4000)]
    assert set(chosen) == {ord("a"), ord("b")}
    assert chosen.count(ord("b")) / 4000 == pytest.approx(1 / (1 + np.exp(-1)), abs=0.02)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"top_k": 3, "repeat_penalty": 1.5},
        {"top_k": 90, "logit_bias": {ord("a"): float("-inf")}},
    ],
    ids=str,
)
def test_asking_for_the_likeliest_alone_chooses_as_the_mask_does(
    settings: dict[str, Any], vocabulary: GrammarVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where many tokens are allowed, where few are, and where equals compete for the last place."""
    for text in ('root ::= [^"]*', 'root ::= [a-z]* "1"', 'root ::= "ab" .*', "root ::= [日本あ]+"):
        chosen: list[list[int]] = []
        for most_asked in (128, 0):
            monkeypatch.setattr("gemmafile.engine.sampler.MOST_ASKED", most_asked)
            rng = np.random.default_rng(3)
            grammar = Grammar.from_gbnf(text, vocabulary)
            sampler = Sampler(SamplingSettings(seed=4, **settings), len(TOKENS) + 2, grammar=grammar)
            chosen.append([])
            for _ in range(60):
                logits = np.round(rng.standard_normal(len(TOKENS) + 2) * 3).astype(np.float32)
                logits[-2:] = 50
                chosen[-1].append(sampler.sample(logits).token_id)
                if chosen[-1][-1] in (EOS, TURN):
                    break
                sampler.accept(chosen[-1][-1])
        assert chosen[0] == chosen[1], text


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


def test_a_grammar_and_biases_that_leave_nothing(vocabulary: GrammarVocabulary) -> None:
    settings = SamplingSettings(logit_bias={ord("a"): float("-inf")})
    sampler = Sampler(settings, len(TOKENS), grammar=Grammar.from_gbnf('root ::= "a"', vocabulary))
    with pytest.raises(GemmafileError, match="no token can be chosen: .*grammar"):
        sampler.sample(np.zeros(len(TOKENS), np.float32))


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


def test_what_is_too_large_is_refused_before_it_takes_long(vocabulary: GrammarVocabulary) -> None:
    words = " | ".join(f'"word {i}"' for i in range(8000))
    start_s = time.monotonic()
    with pytest.raises(BadSettings, match="too big"):
        Grammar.from_gbnf(f"root ::= {words}", vocabulary)
    assert time.monotonic() - start_s < 10
    schema = {"properties": {f"property {i}": {"type": "integer"} for i in range(400)}}
    Grammar.from_json_schema(schema, vocabulary)
