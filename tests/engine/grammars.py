"""For the tests of grammars: a vocabulary, grammars with texts that they allow and do not, random answers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from gemmafile.engine.grammar import Grammar

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
