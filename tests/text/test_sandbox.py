"""Templates are strangers' programs: what they may do, and that they cannot run away."""

import resource
import time
from typing import Any

import pytest

from gemmafile.text import bounds
from gemmafile.text.sandbox import TemplateFailure, compile_template, render


def run(source: str, **variables: Any) -> str:
    return render(compile_template(source), variables, 0)


WORKS = [
    (
        "{% for i in range(3) %}{{ loop.index }}{{ loop.last }}/{{ loop.length }} {% endfor %}",
        "1False/3 2False/3 3True/3 ",
    ),
    ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
    ("{% for k, v in {'a': 1}.items() %}{{ k ~ v }}{% endfor %}", "a1"),
    ("{% for a in [[1, [2]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}", "12"),
    ("{% set ns = namespace(n=0) %}{% for i in 'abc' %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
    ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') ~ m(1) }}", "<a><1>"),
    ("{% generation %}a{% endgeneration %}b", "ab"),
    ("a\n{% if true %}\n  b\n{% endif %}\nc", "a\n  b\nc"),
    ("{{ [1, 'a', none, true, 1.5] }}", "[1, 'a', None, True, 1.5]"),
    ("{{ {'b': 'é', 'a': [1]} | tojson }}", '{"b": "é", "a": [1]}'),
    ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
    ("{{ '<' | tojson }}{{ '<' | e }}", '"<"&lt;'),
    ("{{ ' x ' | trim }}{{ ['a', 'b'] | join(', ') }}{{ 'abc' | replace('b', 'x') }}", "xa, baxc"),
    ("{{ 'a-b'.split('-')[-1].upper() }}{{ ', '.join(['a', 'b']) }}{{ 'aa'.replace('a', 'b', 1) }}", "Ba, bba"),
    ("{{ '%s is %d' % ('a', 3) }}{{ '{} {:02d}'.format('b', 7) }}", "a is 3b 07"),
    ("{{ 'x\ny' | indent(2) }}|{{ 'x\ny' | indent(2, true) }}", "x\n  y|  x\n  y"),
    ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}", "['u']"),
    ("{{ messages[0].content }}{{ messages[0]['role'] }}{{ messages[0].get('x', '-') }}", "uuser-"),
    ("{{ ('<b>' | safe) ~ '<i>' }}", "<b><i>"),
    ("{{ 2 ** 10 }}{{ 7 // 2 }}{{ 'ab' * 2 }}{{ [1] + [2] }}", "10243abab[1, 2]"),
    ("{{ nothing }}{{ nothing is defined }}{{ nothing | default('d') }}", "Falsed"),
    ("{{ strftime_now('%Y') | length }}", "4"),
    ("{% set x %}a{{ 1 }}{% endset %}{{ x }}", "a1"),
]


@pytest.mark.parametrize(("source", "expected"), WORKS)
def test_what_templates_do_works(source: str, expected: str) -> None:
    assert run(source, messages=[{"role": "user", "content": "u"}]) == expected


RUNS_AWAY = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ [0] * 10 ** 10 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(10 ** 12) %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = '{}{}'.format(ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in 'xxx' %}{% set n.x | replace('a', n.x*9999) %}a{% endset %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
    "{% set ns = namespace(x=1) %}{% for i in range(99) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 9 ** (9 ** 9) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for i in range(90000) %}" + "x" * 90000 + "{% endfor %}",
    "{% macro m() %}{% for i in range(90000) %}" + "x" * 90000 + "{% endfor %}{% endmacro %}{{ m() }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '%.9999999999f' % 1.0 }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 9999999999) }}",
    "{{ 'x' | center(10 ** 10) }}",
    "{{ 'x'.ljust(10 ** 10) }}",
    "{{ 'x'.zfill(10 ** 10) }}",
    "{{ 'x'.expandtabs(10 ** 10) }}",
    "{{ ('\\n' * 100000) | indent(10 ** 10) }}",
    "{{ [[[]]] | tojson(indent=10 ** 10) }}",
    "{{ ('x' * 100000).join(range(99999) | map('string')) }}",
    "{{ ('x' * 100000) | replace('', 'y' * 100000) }}",
    "{{ (10).to_bytes(10 ** 10, 'big') }}",
    "{{ strftime_now('%9999999999d') }}",
    "{% set x = 'ab' * 400000 %}" + "".join(f"{{% set v{i} = x + '{i}' %}}" for i in range(3000)),
    "{{ " + "9" * 6000 + " }}",
    "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "x" * 200_000,
]


@pytest.mark.parametrize("source", RUNS_AWAY, ids=[source[:60] for source in RUNS_AWAY])
def test_no_template_runs_away(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends in a failure, soon and without eating memory."""
    monkeypatch.setattr(bounds, "MAX_SECONDS", 1.0)
    start, memory_kb = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateFailure) as caught:
        run(source)
    assert time.monotonic() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kb < 500_000
    assert caught.value.what


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''['__class__'] }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0[0]}'.format([1]) }}",
    "{{ ''.format_map({}) }}",
    "{{ run.__globals__ }}",
    "{{ (messages | attr('append'))(1) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ namespace.__init__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{% include 'x' %}",
    "{% import 'x' as y %}",
    "{% extends 'x' %}",
    "{{ namespace() | upper }}",
    "{{ [namespace()] }}",
    "{{ range }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_nothing_but_data_is_in_reach(source: str) -> None:
    messages = [{"role": "user"}]
    try:
        written = run(source, messages=messages)
    except TemplateFailure:
        written = ""
    assert written == ""
    assert messages == [{"role": "user"}]


@pytest.mark.parametrize(
    ("source", "line", "what"),
    [
        ("a\nb\n{{ raise_exception('No ' ~ 5) }}", 3, "No 5"),
        ("a\n{{ nothing.at.all }}", 2, "'nothing' is undefined"),
        ("a\n{% for x in %}", 2, "Expected an expression, got 'end of statement block'"),
        ("a\n{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n{{ m() }}", 3, "ZeroDivisionError: division by zero"),
        ("a\n\n{{ 'x' | center }}", 3, "No filter named 'center'."),
        ("{% if true %}", 1, "Unexpected end of template."),
    ],
)
def test_a_failure_says_where_and_what(source: str, line: int, what: str) -> None:
    with pytest.raises(TemplateFailure) as caught:
        run(source)
    assert caught.value.line == line
    assert caught.value.what.startswith(what)


def test_long_messages_are_no_fault_of_the_template() -> None:
    text = "x" * 3_000_000
    template = compile_template("{% for m in messages %}{{ '<' + m.content | trim + '>' }}{% endfor %}")
    assert len(render(template, {"messages": [{"content": text}] * 2}, 2 * len(text))) == 2 * len(text) + 4


@pytest.mark.oracle
def test_the_same_text_as_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for source, _ in WORKS:
        chat = [{"role": "user", "content": "u"}]
        [theirs], _ = render_jinja_template([chat], chat_template=source)
        assert run(source, messages=chat) == theirs
