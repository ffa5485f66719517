"""An answer by a JSON schema is what the schema says; what cannot be kept to is refused, never dropped."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import pytest

from gemmafile.engine.grammar import Grammar, GrammarVocabulary
from gemmafile.errors import BadSettings, GemmafileError
from tests.engine.grammars import SCHEMA, fits, follows, walk


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


def test_a_schema_that_nothing_fits_is_said_in_words(vocabulary: GrammarVocabulary) -> None:
    with pytest.raises(GemmafileError, match="no text can come next$"):
        Grammar.from_json_schema('{"$ref": "#"}', vocabulary).allowed()


def test_what_is_too_large_is_refused_before_it_takes_long(vocabulary: GrammarVocabulary) -> None:
    words = " | ".join(f'"word {i}"' for i in range(8000))
    start_s = time.monotonic()
    with pytest.raises(BadSettings, match="too big"):
        Grammar.from_gbnf(f"root ::= {words}", vocabulary)
    assert time.monotonic() - start_s < 10
    schema = {"properties": {f"property {i}": {"type": "integer"} for i in range(400)}}
    Grammar.from_json_schema(schema, vocabulary)
